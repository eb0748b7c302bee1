"""A policy as an ONNX graph, made without torch."""

from __future__ import annotations

import numpy as np


def linear_model(obs_dim: int, act_dim: int, skills: int = 0, seed: int = 0) -> bytes:
    """An ONNX graph without torch: action = tanh(obs W + b [+ Σ_k skills_k · row_k])."""
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(seed)
    weights = {"W": 0.3 * rng.standard_normal((obs_dim, act_dim)), "b": 0.1 * rng.standard_normal(act_dim)}
    inputs = [helper.make_tensor_value_info("obs", TensorProto.FLOAT, ["batch", obs_dim])]
    nodes = [helper.make_node("MatMul", ["obs", "W"], ["xw"]), helper.make_node("Add", ["xw", "b"], ["pre"])]
    last = "pre"
    if skills:
        weights["S"] = rng.standard_normal((skills, act_dim))
        inputs.append(helper.make_tensor_value_info("skills", TensorProto.FLOAT, [skills]))
        nodes.append(helper.make_node("MatMul", ["skills", "S"], ["mix"]))
        nodes.append(helper.make_node("Add", ["pre", "mix"], ["sum"]))
        last = "sum"
    nodes.append(helper.make_node("Tanh", [last], ["action"]))
    output = helper.make_tensor_value_info("action", TensorProto.FLOAT, ["batch", act_dim])
    tensors = [numpy_helper.from_array(v.astype(np.float32), k) for k, v in weights.items()]
    graph = helper.make_graph(nodes, "policy", inputs, [output], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return model.SerializeToString()
