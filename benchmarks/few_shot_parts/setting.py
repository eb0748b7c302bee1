"""What every row of the few-shot table starts from: demonstrations, a frozen base, skills on it; made once and kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from few_shot_parts import walker
from few_shot_parts.stacked import Pools, Schedule, actor_loss, clone, fit
from safetensors.torch import load_file, save_file
from torch import Tensor

from policies.adapter import Adapter, Factors
from policies.diffusion import GENERATIVE, GenerativeActor, GenerativeConfig
from policies.lora import attach, extract
from policies.networks import generators
from policies.normalizer import Normalizer
from robot_cl.data.behaviours import Behaviour

RANK, SCALE = 8, 4.0
DEMO_SEED, BASE_SEED, SKILL_SEED, SCORE_SEED, TRIAL_SEED = (k * 1_000_000 for k in (1, 2, 3, 4, 5))


@dataclass(frozen=True)
class Sizes:
    """How large everything is. `horizon` below 500 is for trying the code out."""

    draws: int = 5  # of demonstrations, each with a training seed of its own
    counts: tuple[int, ...] = (1, 3, 10, 30)
    episodes: int = 20  # per member, of the last policy
    trials: int = 5  # per candidate, where the choice may roll out
    horizon: int = walker.HORIZON
    base_episodes: int = 80
    skill_episodes: int = 40
    actor: GenerativeConfig = field(default_factory=GenerativeConfig)
    kind: str = "diffusion"
    base: Schedule = field(default_factory=lambda: Schedule(6000, 3e-4, 1024))
    skills: Schedule = field(default_factory=lambda: Schedule(4000, 1e-3, 512))
    new: Schedule = field(default_factory=lambda: Schedule(3000, 1e-3))  # a new adapter
    gate: Schedule = field(default_factory=lambda: Schedule(1000, 3e-4))  # coefficients by a network
    constants: Schedule = field(default_factory=lambda: Schedule(1000, 1e-2))  # one coefficient per skill
    whole: Schedule = field(default_factory=lambda: Schedule(4000, 3e-4))  # as adapter and gate together

    @property
    def members(self) -> list[tuple[int, int]]:
        """(draw, number of demonstrations) of each member."""
        return [(draw, count) for draw in range(self.draws) for count in self.counts]

    @property
    def main_count(self) -> int:
        """The number of demonstrations that the claims are about."""
        return 10 if 10 in self.counts else self.counts[-1]

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:12]


FULL = Sizes()
SMALL = replace(
    FULL, counts=(10,), base_episodes=24, skill_episodes=12,
    actor=GenerativeConfig(hidden=128, blocks=2, time_width=64, features=32),
    base=Schedule(2500, 1e-3, 256), skills=Schedule(1000, 3e-3, 256), new=Schedule(3000, 3e-3, 128),
    gate=Schedule(300, 1e-3, 128), constants=Schedule(300, 1e-2, 128), whole=Schedule(2000, 1e-3, 128),
)  # fmt: skip
TINY = replace(
    SMALL, draws=2, counts=(1, 3), episodes=2, trials=2, horizon=12, base_episodes=3, skill_episodes=2,
    actor=GenerativeConfig(hidden=32, blocks=1, time_width=16, features=8),
    **{name: Schedule(5, 1e-3, 16) for name in ("base", "skills", "new", "gate", "constants", "whole")},
)  # fmt: skip


@dataclass
class Setting:
    """Sizes, machine, and the folder in which finished pieces lie. `dart` is the noise under which experts show."""

    sizes: Sizes
    folder: Path
    device: str = "cpu"
    threads: int = 1
    dart: float = 0.0
    state: Path | None = None  # where recordings and weights lie; none: in folder
    teachers: str = "own"  # of walker.TEACHERS

    widths: ClassVar[tuple[int, int]] = (walker.OBS, walker.ACT)

    @property
    def kept(self) -> Path:
        return self.state or self.folder / "state"

    def expert(self, task: str) -> tuple[Behaviour, str]:
        """Who demonstrates a task, and where it comes from."""
        return walker.expert(task, self.teachers)

    def roll(
        self, act: walker.Act, task: str, seeds: Sequence[int], sigma: np.ndarray | float = 0.0, label: bool = True,
        keep: bool = False,
    ) -> walker.Episodes:  # fmt: skip
        """One episode from each seed (see walker.roll)."""
        return walker.roll(act, task, seeds, self.threads, self.sizes.horizon, sigma, label, keep)

    # Recordings

    def recording(self, name: str, task: str, seeds: Sequence[int], sigma: np.ndarray | float, label: bool) -> Tensor:
        """(E, T, OBS + ACT) of the task's expert, made at most once."""
        path = self.kept / f"{name}.safetensors"
        return self.kept_rows(path, self.expert(task)[0].act, seeds, sigma, task, label)

    def kept_rows(
        self, path: Path, act: walker.Act, seeds: Sequence[int], sigma: np.ndarray | float, task: str = "",
        label: bool = True,
    ) -> Tensor:  # fmt: skip
        """(E, T, obs and action) of a policy, from disk where it was recorded before."""
        if not path.exists():
            episodes = self.roll(act, task, seeds, sigma, label, keep=True)
            rows = torch.from_numpy(np.concatenate([episodes.obs, episodes.action], -1))
            write(path, {"rows": rows, "returns": torch.from_numpy(episodes.returns)})
        return load_file(path)["rows"]

    def demonstrations(self, task: str) -> Tensor:
        """(draws, largest count, T, OBS + ACT): demonstration i of a draw is in all its counts above i."""
        s = self.sizes
        seeds = [DEMO_SEED + 1000 * draw + i for draw in range(s.draws) for i in range(max(s.counts))]
        rows = self.recording(f"demos-{task}-dart{self.dart:g}", task, seeds, self.dart, False)
        return rows.view(s.draws, max(s.counts), s.horizon, -1)

    def base_data(self) -> Tensor:
        """What the base learns from: what the standing expert meant to do while noise of several strengths, up to what
        throws it over, shook what it did. States are wide, and the statistics that every row shares with them."""
        count = self.sizes.base_episodes
        sigma = np.resize([0.1, 0.3, 0.6, 1.0], count)
        seeds = range(BASE_SEED, BASE_SEED + count)
        return self.recording("base-data", "walker-stand", list(seeds), sigma, False)

    def skill_data(self, name: str) -> Tensor:
        """What the expert of a skill does, under a little noise."""
        seeds = list(range(SKILL_SEED, SKILL_SEED + self.sizes.skill_episodes))
        path = self.kept / f"skill-{name}.safetensors"
        return self.kept_rows(path, walker.skill_expert(name, self.teachers).act, seeds, 0.1, f"walker-{name}", False)

    # Pools: which rows each member may learn from

    def pools(self, task: str, part: str = "all") -> Pools:
        """`part`: "all" demonstrations of a member, or "train" and "held" of them (see `split`)."""
        demos, s = self.demonstrations(task), self.sizes
        flat = demos.flatten(0, 2).to(self.device)
        numbers = torch.arange(len(flat)).view(demos.shape[:3])
        rows = []
        for draw, count in s.members:
            train, held = split(numbers[draw, :count])
            rows.append({"all": numbers[draw, :count].flatten(), "train": train, "held": held}[part])
        return Pools.of(flat[:, : self.widths[0]], flat[:, self.widths[0] :], rows)

    def lone_pools(self, recordings: Sequence[Tensor]) -> Pools:
        """One member per recording, with all of its rows."""
        flat = torch.cat([r.flatten(0, 1) for r in recordings]).to(self.device)
        rows = torch.arange(len(flat)).split([r.shape[0] * r.shape[1] for r in recordings])
        return Pools.of(flat[:, : self.widths[0]], flat[:, self.widths[0] :], rows)

    # Base and skills

    def new_actor(self, seed: int, members: int = 1) -> GenerativeActor:
        """Untrained, with the statistics of the base's data, which every row shares."""
        obs_dim, act_dim = self.widths
        norm = Normalizer(obs_dim).fit(self.base_data()[..., :obs_dim].flatten(0, 1))
        cls = GENERATIVE[self.sizes.kind]
        return cls(obs_dim, act_dim, generators(seed, members), self.sizes.actor, norm).to(self.device)

    def base(self) -> GenerativeActor:
        """Trained on noisy standing; its exponential average, frozen."""
        path, actor = self.kept / "base.safetensors", self.new_actor(0)
        if not path.exists():
            average = clone(actor)
            pools = self.lone_pools([self.base_data()])
            actor.train()
            loss = fit(actor_loss(actor), list(actor.parameters()), pools, self.sizes.base, 0,
                       list(average.parameters()))  # fmt: skip
            print(f"base: ε-loss {loss:.4f}", flush=True)
            write(path, average.state_dict())
        actor.load_state_dict(load_file(path, device=self.device))
        return actor.eval().requires_grad_(False)

    def skills(self, names: Sequence[str]) -> dict[str, Adapter]:
        """Adapters that imitate experts on the base, trained side by side on many demonstrations."""
        path = self.kept / f"skills-{'-'.join(names)}.safetensors"
        if not path.exists():
            shown = [self.skill_data(name) for name in names]
            actor = self.base()
            parameters = attach(actor, RANK, generators(20, len(names)), SCALE)
            actor.train()
            loss = fit(actor_loss(actor), parameters, self.lone_pools(shown), self.sizes.skills, 1)
            print(f"skills {', '.join(names)}: ε-loss {loss:.4f}", flush=True)
            save_adapters(path, {n: extract(actor, p) for p, n in enumerate(names)})
        found = load_adapters(path)
        return {name: found[name] for name in names}


def split(demos: Tensor) -> tuple[Tensor, Tensor]:
    """Row numbers (n, T) -> those to learn from and those held out: a fifth of the demonstrations, at least one; of a
    lone demonstration its last fifth."""
    if len(demos) == 1:
        cut = max(1, demos.shape[1] // 5)
        return demos[0, :-cut], demos[0, -cut:]
    held = max(1, len(demos) // 5)
    return demos[:-held].flatten(), demos[-held:].flatten()


def write(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """All or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    save_file({name: t.detach().cpu().clone().contiguous() for name, t in tensors.items()}, part)
    part.replace(path)


def save_adapters(path: Path, adapters: Mapping[str, Adapter]) -> None:
    flat = {}
    for name, adapter in adapters.items():
        for layer, (down, up) in adapter.layers.items():
            flat |= {f"{name}|{layer}|down": down, f"{name}|{layer}|up": up}
    write(path, flat)


def load_adapters(path: Path) -> dict[str, Adapter]:
    flat, layers = load_file(path), dict[str, dict[str, Factors]]()
    for key, down in flat.items():
        name, layer, which = key.split("|")
        if which == "down":
            layers.setdefault(name, {})[layer] = Factors(down, flat[f"{name}|{layer}|up"])
    return {name: Adapter(found) for name, found in layers.items()}
