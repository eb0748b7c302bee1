"""Skills from one base to another, and from elsewhere into a library."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

import sim
from policies.card import SkillCard
from policies.library import Library, Published
from policies.peft_io import import_peft
from policies.policy import Policy
from policies.rebase import RebaseReport, rebase
from robot_cl.checkpoint import load_policy
from robot_cl.data.store import open_dataset
from robot_cl.skills import base_policy, find_base, library_of, skill_policy

PROBES, NOISE, SEED = 20_000, 0.1, 700_000  # observations at most; noise on actions; first episode


class MoveOptions(Protocol):
    """What `move_skill` reads of its options."""

    data: str | None
    episodes: int
    gate: float
    steps: int
    force: bool
    overwrite: bool
    seed: int


def library_of_run(run: Path) -> Library:
    """The library of a run's policy as a base, made if need be. Raises ValueError for a policy without an interface."""
    policy: Any = load_policy(run)
    if policy.interface is None:
        raise ValueError(f"{run} does not know its interface, and skills need one")
    return library_of(policy.actor, policy.interface, policy.task)


def move_skill(library: Library, name: str, target: Library, options: MoveOptions) -> tuple[RebaseReport, bool]:
    """Publish the skill on the target's base if it is accepted (or forced). Returns the report and whether it was.

    Raises ValueError for a base with another interface, where the same numbers mean other things, unless forced.
    """
    skill, old, new = library.load(name), base_policy(library), base_policy(target)
    if library.header.interface != target.header.interface and not options.force:
        raise ValueError(
            f"skill {name!r} was made for interface {library.header.interface[:12]}, base {target.folder.name} has "
            f"{target.header.interface[:12]} ({old.interface.difference(new.interface)}); force=true moves it anyway"
        )
    obs = probes(library, name, options)
    rng = torch.Generator().manual_seed(options.seed)
    adapter, report = rebase(skill.adapter, old.actor, new.actor, obs, target.header, rng, options.gate, options.steps)
    if not (report.accepted or options.force):
        return report, False
    how = f"by {report.method}, {100 * report.final:.1f} % of the action gap left"
    said = f"{skill.card.description} (moved from base {library.folder.name} {how})".strip()
    # Scores were measured on the old base, and its parents stay there.
    card = skill.card.filled(
        description=said, scores={}, fingerprint="", parents=(), spread=0.0, created=0.0,
        interface=new.interface.to_dict(), control_dt=new.interface.control_dt,
    )  # fmt: skip
    target.publish(name, adapter, card, options.overwrite)
    return report, True


def probes(library: Library, name: str, options: MoveOptions) -> Tensor:
    """Observations (N, obs_dim), in random order: of a dataset, or of the skill's own episodes. Raises ValueError for a
    dataset of another width."""
    if options.data:
        dataset, width = open_dataset(options.data), base_policy(library).obs_dim
        if dataset.meta.obs_dim != width:
            raise ValueError(
                f"dataset {dataset.name} has {dataset.meta.obs_dim} observations, base {library.folder.name} reads "
                f"{width}; give one of the base's own robot"
            )
        obs = dataset.transitions().obs
    else:
        policy = skill_policy(library, {name: 1.0})
        if not policy.task:
            raise ValueError(f"base {library.folder.name} does not say its task; give data=NAME with observations")
        obs = visited(policy, str(policy.task), options.episodes, options.seed)
    order = torch.randperm(len(obs), generator=torch.Generator().manual_seed(options.seed))
    return obs[order[:PROBES]]


def visited(policy: Policy, task: str, episodes: int, seed: int = 0) -> Tensor:
    """Observations (N, obs_dim) of episodes under slightly disturbed actions, so that the way back is among them."""
    world, rng = sim.make(task, num_worlds=episodes), np.random.default_rng(seed)
    obs, going, seen = world.reset(seed=SEED + seed), np.ones(episodes, bool), []
    policy.reset()
    while going.any():
        rows = obs.astype(np.float32)
        seen.append(rows[going])
        action = policy.act(rows)
        pushed = np.clip(action + NOISE * rng.standard_normal(action.shape), -1.0, 1.0)
        obs, _, terminated, truncated, _ = world.step(pushed)
        going &= ~(terminated | truncated)
    return torch.from_numpy(np.concatenate(seen))


class ForeignOptions(Protocol):
    """What `import_skill` reads of its options."""

    name: str | None
    base: str | None
    description: str
    overwrite: bool


def import_skill(path: Path, options: ForeignOptions) -> tuple[Library, Published]:
    """Publish an adapter of peft (a folder) or a skill file. Raises LookupError, ValueError or OSError."""
    from policies.skill_file import read_skill

    if path.is_file():
        adapter, _ = read_skill(path)
        library = find_base(options.base or adapter.header.base)
        return library, library.add_file(path, options.name, options.overwrite)
    if not path.is_dir():
        raise FileNotFoundError(f"there is no {path}; give a folder with adapter_model.safetensors, or a skill file")
    if not (path / "adapter_config.json").exists():
        raise FileNotFoundError(f"{path} has no adapter_config.json; give a folder of a peft adapter or a skill file")
    adapter = import_peft(path)
    if options.base is None and not adapter.header.base:
        raise ValueError(f"{path} does not say which base it belongs to; name it with base=DIGEST or base=RUN")
    library = find_base(options.base or adapter.header.base)
    if not adapter.header.base:
        adapter = adapter.with_header(library.header)  # whoever names the base vouches for it
    name, face = options.name or path.name, base_policy(library).interface
    card = SkillCard(name, description=options.description, interface=face.to_dict(), control_dt=face.control_dt)
    return library, library.publish(name, adapter, card, options.overwrite)
