"""From a policy in torch to a bundle a robot can run: policy.onnx, contract.json and a card, checked against torch."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dynamics.reshaped import ReshapedPolicy
from policies.normalizer import Normalizer
from robot_cl.data.atomic import whole_folder
from robot_cl.deploy.bundle import BUNDLE_FILES, PolicyBundle
from robot_cl.deploy.contract import CONTRACT_FILE, MODEL_FILE, Contract, SkillEntry, terms_from_interface
from robot_cl.deploy.onnx_check import check_model
from robot_cl.export_graphs import graph_of
from robot_cl.provenance import commit_and_dirty
from sim.spec import Interface

PARITY = 1e-5
OPSET = 20
MOST_FILLED = 4096  # numbers of an array that is folded into a graph


@dataclass
class ExportOptions:
    """What the contract says besides the interface.

    `gains` maps an action name to any of velocity, effort, kp, kd; `licence` is an SPDX name; `kind` is the policy's
    family (empty: found out), `task` the world it was trained in; the parity check compares `rows` observations.
    """

    kind: str = ""
    gains: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    licence: str = "unknown"
    source: str = ""
    task: str = ""
    rows: int = 256

    def __post_init__(self) -> None:
        if self.rows < 16:
            raise ValueError(f"the parity check needs at least 16 rows, got {self.rows}")


@dataclass(frozen=True)
class ExportReport:
    """Where the bundle lies, its size in bytes and max |torch − onnx| over the compared rows."""

    folder: Path
    sha256: str
    size: int
    parity: float
    skills: tuple[str, ...]


def export(
    path: Path | str,
    folder: Path | str,
    member: int | None = None,
    task: str | None = None,
    options: ExportOptions | None = None,
) -> ExportReport:
    """Write the bundle of a run, a checkpoint, an SB3 zip or a behaviour. `task` names the world whose interface to use
    where the policy does not know its own. Raises ValueError, LookupError, OSError."""
    from robot_cl.checkpoint import load_policy

    policy: Any = load_policy(path, member)
    task = task or getattr(policy, "task", None) or getattr(getattr(policy, "card", None), "task", None)
    options = replace(options or ExportOptions(), source=str(path), task=task or "")
    interface = getattr(policy, "interface", None)
    if interface is None and task:
        import sim

        interface = sim.make(task, threads=1).interface
    return export_policy(policy, folder, interface, options)


def export_policy(
    policy: Any, folder: Path | str, interface: Interface | None = None, options: ExportOptions | None = None
) -> ExportReport:
    """Write the bundle of a policy that carries its interface or is given one: an actor, a composition, a behaviour, or
    one of these realigned by an action flow.

    Where a composition's coefficients are constants, they become an input of the graph, so that the robot can weigh its
    skills anew without a merge; a learned composer goes into the graph as it is. Raises ValueError, OSError.
    """
    if isinstance(policy, ReshapedPolicy):
        from robot_cl.export_flow import add_flow

        report = export_policy(policy.policy, folder, interface or getattr(policy, "interface", None), options)
        return add_flow(report, policy.model, policy.flow, policy.coder, policy.config)
    interface = interface or getattr(policy, "interface", None)
    if interface is None:
        raise ValueError("this policy does not know its interface; load it from a run, or name its task")
    if policy.obs_dim != interface.obs_dim or policy.act_dim != interface.act_dim:
        has, wants = (policy.obs_dim, policy.act_dim), (interface.obs_dim, interface.act_dim)
        raise ValueError(f"the policy maps {has[0]} numbers to {has[1]}, its interface {wants[0]} to {wants[1]}")
    graph, skills, kind = graph_of(policy)
    options = options or ExportOptions()
    return export_module(graph, interface, folder, skills, replace(options, kind=options.kind or kind))


def export_module(
    module: nn.Module,
    interface: Interface,
    folder: Path | str,
    skills: Sequence[SkillEntry] = (),
    options: ExportOptions | None = None,
) -> ExportReport:
    """Write a bundle of `module`, which maps obs (B, obs_dim) [and skills (S,)] to an action (B, act_dim) in [-1, 1].

    The normaliser and everything else between raw observation and action must be inside `module`. With `skills`, their
    weights are a second input of the graph. Nothing is written if the exported graph differs from torch by more than
    1e-5 anywhere on random observations. Raises ValueError, OSError.
    """
    options = options or ExportOptions()
    folder = Path(folder)
    _check_target(folder)
    module = module.eval().cpu()
    mean, std = _statistics(module, interface.obs_dim)
    model = onnx_bytes(module, interface.obs_dim, len(skills))
    check_model(model)
    observation, action = terms_from_interface(interface, mean, std, options.gains)

    def contract(parity: float) -> Contract:
        return Contract(
            hashlib.sha256(model).hexdigest(), len(model), options.kind, interface.control_dt, interface.digest,
            observation, action, tuple(skills), parity, simulator_fingerprint(), options.licence, commit(),
            options.source, options.task,
        )  # fmt: skip

    draft = PolicyBundle(contract(0.0), model)
    parity = max_difference(module, draft, mean, std, options.rows)
    if not parity <= PARITY:
        raise ValueError(
            f"the exported graph differs from torch by {parity:.2e}, more than {PARITY:.0e}; nothing was written "
            "(a policy that draws random numbers or keeps state between calls cannot be exported as it is)"
        )
    _write(folder, model, contract(parity))
    return ExportReport(folder, draft.contract.sha256, len(model), parity, draft.skill_names)


def onnx_bytes(module: nn.Module, obs_dim: int, skills: int = 0, memory: int = 0, act_dim: int = 0) -> bytes:
    """The ONNX graph of a module: inputs obs (batch, obs_dim) and, with skills, skills (S,); output action.

    With memory, for one row: inputs obs, planned and taken (1, act_dim), memory (1, M); outputs action, memory_out.
    """
    names, outputs = ["obs"], ["action"]
    # 3 rows, because sizes 0 and 1 are special to torch.export and would be baked in.
    example: tuple[Tensor, ...] = (torch.zeros(3, obs_dim),)
    shapes: list[dict[int, torch.export.Dim] | None] = [{0: torch.export.Dim("batch")}]
    if skills:
        example, shapes = (*example, torch.full((skills,), 1.0 / skills)), [*shapes, None]
        names.append("skills")
    if memory:
        example = tuple(torch.zeros(1, width) for width in (obs_dim, act_dim, act_dim, memory))
        shapes, names, outputs = [None] * 4, [*names, "planned", "taken", "memory"], [*outputs, "memory_out"]
    with torch.no_grad():
        module(*example)  # what is wrong with the policy itself is said by itself
    # With gradients enabled layers take their plain form, without the choice by batch size that eager mode makes.
    with _quiet(), tempfile.TemporaryDirectory() as scratch, torch.enable_grad():
        path = Path(scratch) / MODEL_FILE
        try:
            torch.onnx.export(
                module, example, str(path), input_names=names, output_names=outputs,
                dynamic_shapes=tuple(shapes), opset_version=OPSET, dynamo=True, external_data=False, verbose=False,
            )  # fmt: skip
        except torch.onnx.OnnxExporterError as problem:
            cause = " ".join(str(problem.__cause__ or problem).split())[:200]
            raise ValueError(f"no graph can be made of a {type(module).__name__}: {cause}") from None
        return _lean(path.read_bytes())


def max_difference(module: nn.Module, bundle: PolicyBundle, mean: np.ndarray, std: np.ndarray, rows: int) -> float:
    """max |torch − onnx| over `rows` observations around (mean, std), wild ones included, one by one and as a batch."""
    rng = np.random.default_rng(0)
    spread = rng.choice([0.0, 1.0, 3.0, 10.0], size=(rows, 1))
    obs = (mean + std * spread * rng.standard_normal((rows, mean.size))).astype(np.float32)
    worst = 0.0
    for trial in range(4 if bundle.skill_names else 1):
        weights = _trial_weights(bundle.contract.skills, trial, rng)
        bundle.set_skills(weights)
        inputs = (torch.from_numpy(obs), *((torch.from_numpy(bundle.weights),) if weights.size else ()))
        with torch.no_grad():
            wanted = module(*inputs).numpy()
        alone = np.concatenate([bundle.act(row[None]) for row in obs[:16]])
        for got, want in ((bundle.act(obs), wanted), (alone, wanted[:16])):
            if got.shape != want.shape:
                raise ValueError(f"the exported graph gives actions {got.shape}, torch gives {want.shape}")
            worst = max(worst, float(np.abs(got - want).max()))
            worst = np.inf if not (np.isfinite(got).all() and np.isfinite(want).all()) else worst
    return worst


def simulator_fingerprint() -> dict[str, str]:
    """Versions the policy's training depended on: physics differs between MuJoCo versions."""
    from importlib.metadata import PackageNotFoundError, version

    found: dict[str, str] = {}
    for name in ("torch", "mujoco", "gymnasium", "numpy"):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def commit() -> str:
    """Commit of the checkout this package lies in, with + if changed; "unknown" outside of one."""
    name, dirty = commit_and_dirty()
    return name[:12] + ("+" if dirty else "")


def _trial_weights(skills: Sequence[SkillEntry], trial: int, rng: np.random.Generator) -> np.ndarray:
    """The start weights first, then all low, all high, and a random mixture."""
    low, high = np.array([s.low for s in skills]), np.array([s.high for s in skills])
    start = np.array([s.weight for s in skills])
    return [start, low, high, low + (high - low) * rng.random(len(skills))][trial].astype(np.float32)


def _statistics(module: nn.Module, obs_dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of the first normaliser inside the module that has the observation's width, else 0 and 1."""
    for part in module.modules():
        if isinstance(part, Normalizer) and part.mean.numel() == obs_dim:
            mean, var = (t.detach().double().reshape(-1).cpu().numpy() for t in (part.mean, part.var))
            return mean.copy(), np.sqrt(var)
    return np.zeros(obs_dim), np.ones(obs_dim)


def _lean(model: bytes) -> bytes:
    """The graph without the source paths and traces that the exporter leaves in its documentation fields."""
    import onnx

    proto = onnx.load_model_from_string(model)
    _fold_filled(proto.graph)
    onnx.checker.check_model(proto)
    for message in (proto, proto.graph, *proto.graph.node, *proto.graph.input, *proto.graph.output):
        message.ClearField("doc_string")
        message.ClearField("metadata_props")
    del proto.graph.value_info[:]
    proto.producer_name, proto.graph.name = "robot-cl", "policy"
    return proto.SerializeToString(deterministic=True)


def _fold_filled(graph: Any) -> None:
    """Small arrays filled with one number become data: an operator that fills memory from a number is not allowed."""
    from onnx import numpy_helper

    known = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            known[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
    for node in [n for n in graph.node if n.op_type == "ConstantOfShape" and n.input[0] in known]:
        shape = known[node.input[0]].astype(int)
        if np.prod(shape) <= MOST_FILLED:
            filled = [numpy_helper.to_array(a.t) for a in node.attribute] or [np.zeros(1, dtype=np.float32)]
            graph.initializer.append(numpy_helper.from_array(np.full(shape, filled[0][0]), node.output[0]))
            graph.node.remove(node)


def _check_target(folder: Path) -> None:
    """Only an absent or empty folder, or an older bundle, is ever replaced."""
    if folder.resolve() == Path.cwd():
        raise OSError("a bundle replaces its whole folder, and this is the working directory; name a folder in it")
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise OSError(f"{folder} exists and is not a folder; choose another place for the bundle")
    strange = sorted(p.name for p in folder.iterdir() if p.name not in BUNDLE_FILES) if folder.exists() else []
    if strange:
        raise OSError(f"{folder} holds {strange[0]!r}, which is not part of a bundle; choose an empty or new folder")


def _write(folder: Path, model: bytes, contract: Contract) -> None:
    """The whole bundle appears at once, and an older one stays until it does."""
    with whole_folder(folder.parent, folder, overwrite=True) as scratch:
        (scratch / MODEL_FILE).write_bytes(model)
        (scratch / CONTRACT_FILE).write_text(contract.to_json())
        (scratch / "card.md").write_text(card(contract))


def card(contract: Contract) -> str:
    """A page for a person: what goes in, what comes out, where it comes from."""
    lines = [
        f"# Policy bundle {contract.sha256[:12]}", "",
        f"{contract.kind} policy, one action every {contract.control_dt * 1e3:g} ms, licence {contract.licence}, "
        f"commit {contract.commit}, max |torch − onnx| {contract.parity:.1e}.", "",
        "| observation | unit | mean | std |", "|---|---|---|---|",
        *(f"| {t.name} | {t.unit} | {t.mean:.4g} | {t.std:.4g} |" for t in contract.observation), "",
        "| command | unit | low | high |", "|---|---|---|---|",
        *(f"| {t.name} | {t.unit} | {t.low:.4g} | {t.high:.4g} |" for t in contract.action), "",
    ]  # fmt: skip
    if contract.skills:
        lines += ["| skill | rank | weight at start | range |", "|---|---|---|---|"]
        lines += [f"| {s.name} | {s.rank} | {s.weight:g} | {s.low:g} to {s.high:g} |" for s in contract.skills] + [""]
    lines.append("Simulator: " + ", ".join(f"{k} {v}" for k, v in sorted(contract.simulator.items())))
    return "\n".join(lines) + "\n"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter logs about packages a policy does not use; its real problems arrive as exceptions."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
