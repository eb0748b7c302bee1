"""Policies on disk: published weights apart from the state for continuing, all of it plain tensors and JSON.

`checkpoints/<step>/policy.safetensors` and `policy.json` are publishable, and where a skill was trained `base/` and
`adapter.safetensors` hold what they were made of; `resume/` holds the learner's and the worlds' state of the newest
checkpoint only. Everything appears whole or not at all, and nothing is ever unpickled.
"""

from __future__ import annotations

import itertools
import json
import shutil
import zlib
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from policies.actor import ActorPolicy, StackedGaussianActor
from policies.adapter import Adapter, Factors, Header
from policies.composed import ComposedActor
from policies.diffusion import GENERATIVE
from policies.lora import LowRank, base_digest, linear_layers
from policies.policy import Policy
from robot_cl.data.atomic import whole_folder, write_json
from robot_cl.learners.base import check_shapes
from robot_cl.plain_files import read_json, write_whole
from sim.spec import Interface

FORMAT = 1
ACTORS: dict[str, Any] = {"gaussian": StackedGaussianActor, **GENERATIVE}
CHECKPOINTS, LAST, POLICY, CARD, RESUME = "checkpoints", "last", "policy.safetensors", "policy.json", "resume"
LEARNER, COUNTERS, WORLDS = "learner.safetensors", "counters.json", "worlds.npz"  # in resume/
BASE, ADAPTER = "base", "adapter.safetensors"


def load_policy(path: Path | str, member: int | None = None) -> Policy:
    """A policy from a run, a checkpoint folder, an SB3 zip, a behaviour file or the name of an embedded behaviour.

    `member` picks one of the stacked seeds (None: the first). The policy has `interface` and `task` where they are
    known. Raises LookupError, ValueError or OSError in one sentence.
    """
    path = Path(path)
    if path.is_dir() or path.name == POLICY:
        return _run_policy(path.parent if path.name == POLICY else path, member)
    if member is not None:
        raise ValueError(f"member={member} picks a seed of a training run, and {path} is not one")
    if path.suffix == ".zip" and path.is_file():
        from robot_cl.data.sb3_agent import load_sb3

        return load_sb3(path)
    from robot_cl.data.behaviours import load_behaviour

    return load_behaviour(path)


def checkpoint_folder(path: Path | str) -> Path:
    """The newest checkpoint of a run, or `path` itself if it is a checkpoint. Raises LookupError, OSError."""
    path = Path(path)
    if (path / CARD).exists():
        return path
    pointer = path / CHECKPOINTS / LAST
    if not path.exists():
        raise FileNotFoundError(f"there is no {path}; expected a run folder such as runs/2026-01-31-NAME")
    if not pointer.exists() and (path / BASE / CARD).exists():
        raise LookupError(f"{path} is a run of many tasks without a policy of its own; its base is {path / BASE}")
    if not pointer.exists() and (path / "jobs").is_dir():
        raise LookupError(f"{path} is a sweep without a policy of its own; name one of {path / 'jobs'}/*/*")
    if not pointer.exists():
        raise LookupError(f"{path} has no checkpoint; expected {CHECKPOINTS}/{LAST} or {CARD} in it")
    step = pointer.read_text(encoding="utf-8").strip()
    folder = path / CHECKPOINTS / step
    if not step.isdigit() or not (folder / CARD).exists():
        raise LookupError(f"{pointer} names {step!r}, which is not a checkpoint of {path}")
    return folder


def read_card(folder: Path) -> dict[str, Any]:
    """policy.json of a checkpoint. Raises ValueError if it cannot be read."""
    try:
        card = json.loads((folder / CARD).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as problem:
        raise ValueError(f"{folder / CARD} is not readable JSON ({problem})") from None
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        raise ValueError(f"{folder / CARD} does not describe a policy of format {FORMAT}")
    return card


def load_actor(folder: Path) -> StackedGaussianActor:
    """All members of a checkpoint's actor. Raises ValueError, OSError."""
    card, path = read_card(folder), folder / POLICY
    kind = card.get("kind")
    if kind not in ACTORS:
        raise ValueError(f"{folder / CARD} is of kind {kind!r}; known kinds: {', '.join(ACTORS)}")
    state = load_tensors(path)
    _refuse_giants(card.get("actor"), path)
    actor = ACTORS[kind].from_spec(card["actor"])
    check_shapes("policy", state, actor.state_dict())
    for name, tensor in state.items():
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{path} has NaN or infinite numbers in {name!r}")
    actor.load_state_dict(state)
    return actor


def save_checkpoint(
    run: Path, step: int, card: dict[str, Any], actor: StackedGaussianActor, state: dict[str, Tensor],
    arrays: dict[str, np.ndarray], counters: dict[str, Any], adapted: Any = None,
) -> Path:  # fmt: skip
    """Write checkpoints/<step>, point `last` at it, and drop the resume state of earlier ones. Returns the folder.

    `actor` is what acts; `adapted`, where a skill is trained, the same as a frozen base with adapters attached.
    """
    root = run / CHECKPOINTS
    with whole_folder(root, root / str(step), overwrite=True) as folder:
        write_policy(folder, actor, {"step": step} | card)
        if adapted is not None:
            write_adapted(folder, adapted, {"step": step} | card)
        resume = folder / RESUME
        resume.mkdir()
        save_tensors(resume / LEARNER, state)
        if arrays:
            np.savez(resume / WORLDS, **arrays)  # type: ignore[arg-type]
        write_json(resume / COUNTERS, counters)
    write_whole(root / LAST, f"{step}\n")
    for other in root.iterdir():
        if other.name.isdigit() and other.name != str(step):
            shutil.rmtree(other / RESUME, ignore_errors=True)
    return root / str(step)


def write_policy(folder: Path, actor: Any, card: dict[str, Any]) -> None:
    """policy.safetensors and policy.json in a folder that exists; `card` holds step, task, interface and the like."""
    save_tensors(folder / POLICY, actor.state_dict())
    write_json(folder / CARD, {"format": FORMAT, "kind": actor.kind, "actor": actor.spec()} | card)


def write_adapted(folder: Path, actor: Any, card: dict[str, Any]) -> None:
    """The skill in training, apart from what it was trained on: base/ is a policy like any other, adapter.safetensors
    holds LAYER.down (P, r, d_in) and LAYER.up (P, d_out, r), the scale inside."""
    tensors, bare = dict[str, Tensor](), dict[str, Tensor]()
    for name, _, _, layer in linear_layers(actor):
        if isinstance(layer, LowRank):
            tensors[f"{name}.down"], tensors[f"{name}.up"] = layer.down, layer.up * layer.scale
    for name, tensor in actor.state_dict().items():
        if name.rpartition(".")[2] not in ("down", "up"):
            bare[name.replace(".base.", ".")] = tensor
    (folder / BASE).mkdir()
    save_tensors(folder / ADAPTER, tensors)
    save_tensors(folder / BASE / POLICY, bare)
    write_json(folder / BASE / CARD, read_card(folder) | card)


def load_adapted(folder: Path, member: int = 0) -> tuple[StackedGaussianActor, Adapter]:
    """The frozen base (of population 1) and the adapter of one member of a checkpoint, its header filled in except for
    the interface. Raises LookupError if no adapter was trained there, ValueError for damaged files."""
    if not (folder / ADAPTER).exists():
        raise LookupError(
            f"{folder} holds no adapter; train a skill with trainable=adapter base=RUN, or name such a run"
        )
    base, tensors = load_actor(folder / BASE).member(member), load_tensors(folder / ADAPTER)
    names = dict.fromkeys(name.rpartition(".")[0] for name in tensors)
    try:
        layers = {n: Factors(tensors[f"{n}.down"][member], tensors[f"{n}.up"][member]) for n in names}
    except KeyError as problem:
        raise ValueError(f"{folder / ADAPTER} lacks {problem}; copy the run again") from None
    return base, Adapter(layers, Header(base_digest(base), "", base.normalizer.digest))


def load_resume(folder: Path) -> tuple[dict[str, Tensor], dict[str, np.ndarray], dict[str, Any]]:
    """Learner state, world arrays and counters of a checkpoint. Raises LookupError if it was kept without them."""
    resume = folder / RESUME
    lacking = [name for name in (LEARNER, COUNTERS) if not (resume / name).exists()]
    if lacking:
        run = folder.parents[1] if folder.parent.name == CHECKPOINTS else folder
        raise LookupError(
            f"{run} cannot go on: {resume / lacking[0]} is missing; copy it from where the run was trained, or begin a "
            f"new run with init_from={run}, which can do with the policy alone"
        )
    arrays = load_arrays(resume / WORLDS) if (resume / WORLDS).exists() else {}
    return load_tensors(resume / LEARNER), arrays, read_json(resume / COUNTERS)


def load_learner(folder: Path) -> dict[str, Tensor]:
    """What the learner of a checkpoint remembers, for another to begin with; nothing if the policy alone was kept."""
    return load_tensors(folder / RESUME / LEARNER) if holds_learner(folder) else {}


def holds_learner(folder: Path) -> bool:
    """Whether a checkpoint was kept with what its learner remembers: values, moments, units."""
    return (folder / RESUME / LEARNER).exists()


def save_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Copies, because parameters are views of one buffer."""
    save_file({name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}, path)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Raises ValueError or FileNotFoundError in one sentence."""
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing; the checkpoint is incomplete")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as problem:
        raise ValueError(f"{path} is not a readable safetensors file ({problem})") from None


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """Everything in an .npz file. Raises ValueError in one sentence for a damaged one."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except (ValueError, EOFError, BadZipFile, zlib.error) as problem:
        raise ValueError(f"{path} is damaged ({problem}); copy it again from where it was whole") from None


def _run_policy(path: Path, member: int | None) -> Policy:
    folder = checkpoint_folder(path)
    card = read_card(folder)
    actor: Any = _composition(folder, card) if card.get("kind") == "composed" else load_actor(folder)
    interface = Interface.from_dict(card["interface"]) if card.get("interface") else None
    if interface is not None and (interface.obs_dim, interface.act_dim) != (actor.obs_dim, actor.act_dim):
        raise ValueError(f"{folder / CARD} has an interface of other widths than its actor's")
    name = folder.parents[1].name if folder.parent.name == CHECKPOINTS else folder.name
    if isinstance(actor, ComposedActor):
        actor.interface, actor.task, actor.name = interface, card.get("task"), name
        return actor
    several = actor.population > 1
    label = f"{name} member {member or 0}" if several else name
    return ActorPolicy(actor, member or 0, interface, card.get("task"), label)


def _composition(folder: Path, card: dict[str, Any]) -> ComposedActor:
    from robot_cl.composition_files import load_composed

    return load_composed(folder, card)


def _refuse_giants(spec: Any, path: Path) -> None:
    """Widths that the weights on disk cannot have are refused before memory is taken for them."""
    try:
        population, obs, act = (int(spec[key]) for key in ("population", "obs_dim", "act_dim"))
        hidden = spec["config"]["hidden"]
        if isinstance(hidden, int):  # of a generative actor: one width for all blocks
            blocks, features, time = (int(spec["config"][key]) for key in ("blocks", "features", "time_width"))
            widths = [obs, act, hidden, blocks, features, time]
            weights = 8 * blocks * hidden**2 + (obs + 2 * act + time) * hidden + (features + time) * time
        else:
            widths = [obs, *map(int, hidden), act]
            weights = sum(a * b for a, b in itertools.pairwise(widths))
    except (KeyError, TypeError, ValueError) as problem:
        raise ValueError(f"{path.with_name(CARD)} does not describe an actor ({problem!r})") from None
    if min(widths) < 1 or 4 * population * weights > path.stat().st_size:
        raise ValueError(f"{path.with_name(CARD)} describes an actor larger than {path.name} can hold")
