"""What torch computes is what the robot computes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from policies.actor import ActorConfig, ActorPolicy, Distribution, Sigma, StackedGaussianActor
from policies.adapter import Adapter, Factors
from policies.composed import ComposedActor
from policies.composers.composer import Composer, CompositionShape
from policies.composers.context_gate import ContextGate
from policies.composers.fixed import Fixed
from policies.composers.self_activated import SelfActivated
from policies.diffusion import DiffusionActor, FlowActor, GenerativeActor, GenerativeConfig
from policies.lora import layer_shape, linear_layers
from policies.mixture import Mixture
from policies.networks import generators
from robot_cl.deploy.bundle import PolicyBundle, open_session
from robot_cl.deploy.contract import Contract, terms_from_interface
from robot_cl.deploy.onnx_check import check_model
from robot_cl.export import (
    ExportOptions,
    ExportReport,
    _check_target,
    _lean,
    _write,
    export_module,
    export_policy,
)
from sim.spec import Interface

WIDE = torch.tensor([[1.0, 2.0, -3.0, 40.0]])


def small_actor(**options: object) -> StackedGaussianActor:
    actor = StackedGaussianActor(4, 2, generators(0, 2), ActorConfig(hidden=(16, 16), **options))
    actor.normalizer.fit(torch.randn(500, 4, generator=torch.Generator().manual_seed(1)) * WIDE + WIDE)
    return actor


def check(report: ExportReport, policy: ActorPolicy) -> PolicyBundle:
    bundle = PolicyBundle.load(report.folder)
    obs = (np.random.default_rng(3).standard_normal((64, 4)) * 20).astype(np.float32)
    np.testing.assert_allclose(bundle.act(obs), policy.act(obs), atol=1e-5)
    assert 0 <= report.parity <= 1e-5 and np.ptp(bundle.act(obs)) > 0.1
    return bundle


def test_a_gaussian_actor_exports_with_its_normaliser_inside(tmp_path: Path, arm_interface: Interface) -> None:
    actor = small_actor(distribution=Distribution.tanh_gaussian, sigma=Sigma.head, layer_norm=True, activation="mish")
    policy = ActorPolicy(actor, member=1, interface=arm_interface)
    report = export_policy(policy, tmp_path / "bundle", options=ExportOptions(licence="Apache-2.0"))
    bundle = check(report, policy)
    stats = policy.actor.normalizer
    assert [t.mean for t in bundle.contract.observation] == pytest.approx(stats.mean.tolist())
    assert [t.std for t in bundle.contract.observation] == pytest.approx(stats.var.sqrt().tolist())
    assert bundle.contract.licence == "Apache-2.0" and bundle.contract.simulator["mujoco"]
    assert sorted(p.name for p in report.folder.iterdir()) == ["card.md", "contract.json", "policy.onnx"]


def composed(composer: type[Composer], level: str = "parameter", **options: object) -> ComposedActor:
    actor = small_actor(init="orthogonal", out_gain=1.0).member(0)
    adapters = {}
    for k, name in enumerate(("hop", "crouch", "turn")):
        layers = {}
        rng = torch.Generator().manual_seed(k)
        for layer, _, _, module in linear_layers(actor):
            d_out, d_in = layer_shape(module)
            down, up = torch.randn(2, d_in, generator=rng), torch.randn(d_out, 2, generator=rng)
            layers[layer] = Factors(0.2 * down, 0.3 * up)
        adapters[name] = Adapter(layers)
    mixture = Mixture(actor, adapters)
    shape = CompositionShape.of(mixture, 4)
    return ComposedActor(mixture, composer(shape, **options), level)


@pytest.mark.parametrize("level", ["parameter", "action"])
def test_constant_skill_weights_become_an_input_of_the_graph(
    tmp_path: Path, arm_interface: Interface, level: str
) -> None:
    policy = composed(Fixed, level, weights=[0.2, 0.0, 0.7])
    report = export_policy(policy, tmp_path / "bundle", interface=arm_interface)
    bundle = PolicyBundle.load(report.folder)
    assert report.skills == bundle.skill_names == ("hop", "crouch", "turn")
    assert bundle.weights.tolist() == pytest.approx([0.2, 0.0, 0.7])
    obs = (np.random.default_rng(3).standard_normal((16, 4)) * 5).astype(np.float32)
    start = bundle.act(obs)
    np.testing.assert_allclose(start, policy.act(obs), atol=1e-5)
    bundle.set_skills({"hop": 0.0, "crouch": 1.0, "turn": 0.0})
    policy.composer.weights.copy_(torch.tensor([0.0, 1.0, 0.0]))
    np.testing.assert_allclose(bundle.act(obs), policy.act(obs), atol=1e-5)
    assert np.abs(bundle.act(obs) - start).max() > 0.05
    assert len({s.digest for s in bundle.contract.skills}) == 3


@pytest.mark.parametrize(("composer", "level"), [(ContextGate, "noise"), (SelfActivated, "parameter")])
def test_a_composer_travels_inside_the_graph(
    tmp_path: Path, arm_interface: Interface, composer: type[Composer], level: str
) -> None:
    policy = composed(composer, level)
    if isinstance(policy.composer, ContextGate):
        weight = policy.composer.net.layers[-1].weight  # of a size that training would give it
        nn.init.normal_(weight, std=0.05, generator=torch.Generator().manual_seed(0))
    report = export_policy(policy, tmp_path / "bundle", interface=arm_interface)
    bundle = PolicyBundle.load(report.folder)
    obs = (np.random.default_rng(3).standard_normal((16, 4)) * 5).astype(np.float32)
    np.testing.assert_allclose(bundle.act(obs), policy.act(obs), atol=1e-5)
    assert report.skills == ()


@pytest.mark.parametrize("kind", [DiffusionActor, FlowActor])
def test_generative_actors_export_with_all_their_steps_inside(
    tmp_path: Path, arm_interface: Interface, kind: type[GenerativeActor]
) -> None:
    config = GenerativeConfig(steps=3, hidden=16, blocks=1, features=8, time_width=8, temperature=0.5)
    actor = kind(4, 2, generators(0, 2), config)
    actor.normalizer.fit(torch.randn(500, 4, generator=torch.Generator().manual_seed(1)) * WIDE + WIDE)
    policy = ActorPolicy(actor, member=1, interface=arm_interface)  # type: ignore[arg-type]
    bundle = check(export_policy(policy, tmp_path / "bundle"), policy)
    assert bundle.contract.kind == kind.__name__


class Wrong(nn.Module):
    """Differs between export and use, as a forgotten training switch would."""

    def forward(self, obs: Tensor) -> Tensor:
        scale = 1.0 if torch.compiler.is_compiling() else 1.001
        return torch.tanh(obs[:, :2] * scale)


def test_a_graph_that_differs_from_torch_is_not_written(tmp_path: Path, arm_interface: Interface) -> None:
    with pytest.raises(ValueError, match="differs from torch by"):
        export_module(Wrong(), arm_interface, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists() and not list(tmp_path.iterdir())


class Branching(nn.Module):
    """What it computes depends on what it sees, which a graph cannot follow."""

    def forward(self, obs: Tensor) -> Tensor:
        return torch.tanh(obs[:, :2] if float(obs.sum()) > 0 else obs[:, 2:4])


def test_what_no_graph_can_be_made_of_is_said_in_one_sentence(tmp_path: Path, arm_interface: Interface) -> None:
    with pytest.raises(ValueError, match="no graph can be made of a Branching") as caught:
        export_module(Branching(), arm_interface, tmp_path / "bundle")
    assert "\n" not in str(caught.value) and not (tmp_path / "bundle").exists()


def filled(size: int) -> bytes:
    """A graph that adds an array of `size` ones, filled by an operator, to what it is given."""
    value, shape = (helper.make_tensor(n, t, [1], [v]) for n, t, v in
                    (("value", TensorProto.FLOAT, 1.0), ("shape", TensorProto.INT64, size)))  # fmt: skip
    nodes = [
        helper.make_node("Constant", [], ["shape"], value=shape),
        helper.make_node("ConstantOfShape", ["shape"], ["ones"], value=value),
        helper.make_node("Add", ["x", "ones"], ["y"]),
    ]
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [size]) for n in "xy")
    model = helper.make_model(helper.make_graph(nodes, "g", [x], [y]), opset_imports=[helper.make_opsetid("", 20)])
    model.ir_version = 10
    return model.SerializeToString()


def test_small_filled_arrays_become_data_and_large_ones_stay_refused() -> None:
    lean = _lean(filled(3))
    check_model(lean)
    session = open_session(lean, "policy.onnx")
    assert session.run(["y"], {"x": np.zeros(3, np.float32)})[0].tolist() == [1.0, 1.0, 1.0]
    with pytest.raises(ValueError, match="ConstantOfShape"):
        check_model(_lean(filled(10**9)))


def test_only_an_older_bundle_is_replaced(tmp_path: Path, arm_interface: Interface) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("do not lose")
    policy = ActorPolicy(small_actor(), interface=arm_interface)
    with pytest.raises(OSError, match=r"thesis\.txt"):
        export_policy(policy, tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "do not lose"


def test_an_older_bundle_stays_until_the_new_one_is_there(
    tmp_path: Path, arm_interface: Interface, linear: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, failures = tmp_path / "bundle", iter([OSError("the disk is gone")])
    old, new = (linear(4, 2, seed=seed) for seed in (0, 1))
    terms = terms_from_interface(arm_interface)

    def contract(model: bytes) -> Contract:
        digest = hashlib.sha256(model).hexdigest()
        return Contract(digest, len(model), "t", arm_interface.control_dt, arm_interface.digest, *terms)

    def failing(move: Any) -> Any:
        def moved(path: Path, target: Path) -> Path:
            if Path(target) == folder and (failure := next(failures, None)):
                raise failure
            return move(path, target)

        return moved

    _write(folder, old, contract(old))
    for way in ("rename", "replace"):
        monkeypatch.setattr(Path, way, failing(getattr(Path, way)))
    with pytest.raises(OSError, match="the disk is gone"):
        _write(folder, new, contract(new))
    assert PolicyBundle.load(folder).contract == contract(old) and [p.name for p in tmp_path.iterdir()] == ["bundle"]
    _write(folder, new, contract(new))
    assert PolicyBundle.load(folder).contract == contract(new)
    monkeypatch.chdir(folder)
    with pytest.raises(OSError, match="the working directory"):
        _check_target(Path())


def test_a_policy_without_interface_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="interface"):
        export_policy(ActorPolicy(small_actor()), tmp_path / "bundle")
