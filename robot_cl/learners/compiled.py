"""Updates on a CPU as compiled code: the operations of one update, noted once, fused by torch's inductor into one call.

Networks of 256 units spend half of an update between their matrix products, on some four hundred small operations and
the Python around them. What an update does to the tensors it finds is therefore traced, gradients and optimiser
included, and compiled; products stay with oneDNN. Rounding differs from the plain update, nothing else does.
"""

from __future__ import annotations

import atexit
import itertools
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx

from policies.products import ONEDNN

CACHE = "TORCHINDUCTOR_CACHE_DIR"
NAMED = CACHE in os.environ  # by the user; torch itself sets it too, to a folder that all processes share
Outputs = dict[str, Tensor]


def check_compiler() -> None:
    """Raises ValueError, saying what to install, where no C++ compiler is found."""
    name = os.environ.get("CXX") or "g++"
    if shutil.which(name) is None:
        raise ValueError(
            f"compile=true needs a C++ compiler, and there is no {name}; install one (apt install g++), name another "
            "in the environment variable CXX, or leave compile out"
        )


def compiled(work: Callable[[], Outputs]) -> Callable[[], Outputs]:
    """`work` as one call that reads and writes the tensors which `work` found, and gives new outputs.

    `work` is called once, for real. Raises RuntimeError where it cannot be traced or compiled.
    """
    with _cache():
        return _compiled(work)


def _compiled(work: Callable[[], Outputs]) -> Callable[[], Outputs]:
    from torch._inductor import config
    from torch._inductor.compile_fx import compile_fx_inner
    from torch.fx.experimental.proxy_tensor import make_fx

    traced = make_fx(lambda: work(), tracing_mode="real")()
    found = _lift(traced)
    graph, names = _functional(traced, found)
    inputs = [node.meta["val"] for node in graph.graph.nodes if node.op == "placeholder"]
    context = torch._guards.TracingContext(inputs[0].fake_mode)
    # No graph is read back from a disk, where it would be a pickle.
    options = config.patch(fx_graph_cache=False, fx_graph_remote_cache=False, compile_threads=1)
    with _products_by_onednn(), torch._guards.tracing(context), torch.no_grad(), options:
        code: Any = compile_fx_inner(graph, inputs)

    def call() -> Outputs:
        with torch.no_grad():
            return dict(zip(names, code(list(found)), strict=True))

    return call


def _lift(graph: fx.GraphModule) -> list[Tensor]:
    """Make the tensors that a traced graph found into its inputs, and return them. Raises RuntimeError if two share
    memory: what compiled code writes to one it would not see in the other."""
    inputs: dict[int, fx.Node] = {}
    found, start = list[Tensor](), next(iter(graph.graph.nodes))
    for node in [n for n in graph.graph.nodes if n.op == "get_attr"]:
        tensor = getattr(graph, node.target)
        if id(tensor) not in inputs:
            with graph.graph.inserting_before(start):
                inputs[id(tensor)] = graph.graph.placeholder(f"found_{len(found)}")
            found.append(tensor)
        node.replace_all_uses_with(inputs[id(tensor)])
        graph.graph.erase_node(node)
    graph.recompile()
    spans = sorted((t.data_ptr(), t.data_ptr() + _bytes(t)) for t in found if t.numel())
    if any(end > begin for (_, end), (begin, _) in itertools.pairwise(spans)):
        raise RuntimeError("two tensors of an update share memory")
    return [t.detach() for t in found]


def _bytes(tensor: Tensor) -> int:
    """From the first to behind the last element."""
    reach = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (reach + 1) * tensor.element_size()


def _functional(graph: fx.GraphModule, found: Sequence[Tensor]) -> tuple[fx.GraphModule, list[str]]:
    """The graph without writing in place but for the last value of each input, as inductor expects it; and the names
    of its outputs."""
    from torch._inductor.decomposition import select_decomp_table
    from torch.func import functionalize
    from torch.fx.experimental.proxy_tensor import make_fx

    names = list[str]()

    def run(*tensors: Tensor) -> tuple[Tensor, ...]:
        outputs = _Lowered(graph).run(*tensors)
        names[:] = outputs
        return tuple(outputs.values())

    trace = make_fx(functionalize(run, remove="mutations"), select_decomp_table(), tracing_mode="fake")
    with torch.no_grad():
        return trace(*found), names


class _Lowered(fx.Interpreter):
    """Runs a traced graph with Adam's one kernel, which inductor does not know, as its equations."""

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if getattr(target, "overloadpacket", None) is torch.ops.aten._fused_adam_:
            return _adam(*args, **kwargs)
        return super().call_function(target, args, kwargs)


def _adam(
    values: list[Tensor], grads: list[Tensor], first: list[Tensor], second: list[Tensor], _: list[Tensor],
    steps: list[Tensor], *, lr: Tensor, beta1: float, beta2: float, eps: float, **options: Any,
) -> None:  # fmt: skip
    """Kingma & Ba 2015, algorithm 1. exp, not pow: inductor computes what has an exp once, not for every element."""
    rate = lr / (1.0 - (steps[0] * math.log(beta1)).exp())
    scale = (1.0 - (steps[0] * math.log(beta2)).exp()).sqrt()
    for p, g, m, v in zip(values, grads, first, second, strict=True):
        m.lerp_(g, 1.0 - beta1)
        v.mul_(beta2).addcmul_(g, g, value=1.0 - beta2)
        p.sub_(rate * m / (v.sqrt() / scale + eps))


@contextmanager
def _products_by_onednn() -> Iterator[None]:
    """Within: inductor takes the products that plain updates give to oneDNN; else it wants their weights constant."""
    from torch._inductor import ir
    from torch._inductor.lowering import lowerings
    from torch._inductor.mkldnn_ir import LinearUnary

    if not ONEDNN:
        yield
        return
    op: Any = torch.ops.mkldnn._linear_pointwise.default
    before = lowerings[op]
    lowerings[op] = lambda *operands: ir.TensorBox.create(LinearUnary.create(*operands))
    try:
        yield
    finally:
        lowerings[op] = before


_folder: str | None = None


@contextmanager
def _cache() -> Iterator[None]:
    """Within: compiled code goes to a folder that nobody else can write to and that goes with this process; or to the
    one that the user names, which keeps it."""
    global _folder
    if NAMED:
        yield
        return
    if _folder is None:
        _folder = tempfile.mkdtemp(prefix="robot-cl-compiled-")
        atexit.register(shutil.rmtree, _folder, ignore_errors=True)
    before, os.environ[CACHE] = os.environ.get(CACHE), _folder
    try:
        yield
    finally:
        os.environ.pop(CACHE) if before is None else os.environ.update({CACHE: before})
