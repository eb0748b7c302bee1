"""What a way of learning a stream is: how it begins a task, what it keeps of it, and what it plays afterwards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from policies.actor import StackedGaussianActor
from policies.adapter import Adapter
from policies.lora import extract
from policies.networks import generators
from robot_cl.batch import Transitions
from robot_cl.continual.actors import State, copied
from robot_cl.continual.stage_worlds import stage_world
from robot_cl.learners import learner_class
from robot_cl.learners.base import SEEN, START, Learner, LearnerConfig, Trainable
from robot_cl.learners.ranges import not_negative
from sim.spec import Interface
from sim.stream import Stage, Stream

SEEDS_PER_STAGE = 1000  # stage k's learner draws from seed + 1000 (k + 1), far from other members and stages


@dataclass
class MethodConfig:
    """Options of the methods; each reads those that name it."""

    reach: float = 0.95  # library: a composition does if it scores this share of the best any skill has reached
    margin: float = 0.1  # library: by this share of the best level a composition must beat the base to be begun with
    fit: float = 0.25  # library: and by this share of what its skills gain over the base on their own tasks
    caution: float = 0.0  # library: standard errors of its trial that a composition must be ahead by, besides
    trial_worlds: int = 2  # library: worlds in which a candidate is tried; the steps count as part of the budget
    trial_steps: int = 150  # library: control steps of the first trial; what it leaves open plays whole episodes
    doubt: float = 0.2  # library: by this share of the base's level a first trial rules a composition out
    shortlist: int = 5  # library: compositions tried at most, those of the tasks that began most alike
    look: int = 10_000  # library, hidden borders: steps between looks at whether the world has changed; 0: after alarms
    checks: int = 0  # library, fresh: trials on the way, whose last winner is kept; 0: what was learned last is
    trial_share: float = 0.2  # library: of the budget; the longer trials are cut so that they take half of it at most
    learned: Trainable = Trainable.weights  # library, fresh: how a skill is learned, `weights` or `adapter`
    rank: int = 64  # library, fresh: of a skill at most; small networks lose nothing by it
    skill_lr: float = 1e-3  # library, fresh: learning rate of skills
    explore: float | None = None  # all: log σ with which every task begins; none: what the last one has left
    ewc: float = 10.0  # ewc: weight of the quadratic penalty, in units of KL to the old policy
    clone: float = 1.0  # clonex: weight of the KL to each old actor
    replay: float = 0.3  # replay: weight of each old task's imitation loss
    memory: int = 2048  # ewc, clonex, replay: transitions kept of each task
    prune_at: float = 0.75  # packnet: share of the budget after which weights are pruned, the rest retrains

    def __post_init__(self) -> None:
        for name in ("reach", "skill_lr", "rank", "trial_worlds", "trial_steps", "trial_share", "shortlist", "memory"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a positive number")
        not_negative(self, "look", "checks", "caution")
        if self.learned is Trainable.full:
            raise ValueError("learned is full; a skill is learned as adapter or weights")
        if not 0.0 < self.prune_at < 1.0:
            raise ValueError(f"prune_at is {self.prune_at}; expected a share between 0 and 1")


@dataclass(frozen=True)
class Setup:
    """What all methods share: the stream, the base of all seeds with its values, how to learn, and where to keep."""

    stream: Stream
    base: StackedGaussianActor
    values: State  # the base's critics and running quantities, as `learner_values` gives them
    learner: LearnerConfig
    learner_name: str
    folder: Path
    seed: int = 0
    num_worlds: int = 64  # per seed
    threads: int | None = 1
    config: MethodConfig = field(default_factory=MethodConfig)
    interface: Interface | None = None

    @property
    def seeds(self) -> int:
        return self.base.population


class Method:
    """Base of the methods; one level of inheritance, or two where methods differ in one term.

    All seeds are members of one stack. Remembers what it keeps between tasks; `tensors` and `facts` are all of it.
    """

    knows_task: ClassVar[bool] = True  # whether it is told at test time which of the learned tasks this is

    def __init__(self, setup: Setup):
        self.setup, self.config = setup, setup.config
        self.values: list[State] = []  # of each finished task
        self.rng = generators(setup.seed + 77, setup.seeds)

    # What the loop calls, in this order

    def begin(self, k: int) -> tuple[Learner | None, int]:
        """Decide about task k -> a learner (None: nothing is to be learned) and the steps spent on deciding."""
        raise NotImplementedError

    def world(self, k: int) -> Any:
        """Where task k is learned: seeds · num_worlds rows."""
        return stage_world([self.stage(k)] * (self.setup.seeds * self.setup.num_worlds), self.setup.threads)

    def during(self, k: int, learner: Learner, fresh: Transitions, done: float) -> int:
        """After each update, `done` being the share of the budget used -> the steps that this took."""
        return 0

    def current(self, k: int, learner: Learner | None) -> StackedGaussianActor:
        """What would be played on task k if learning stopped now."""
        assert learner is not None
        return learner.policy()

    def afterwards(self, k: int) -> int:
        """Steps of task k's budget that `end` needs where something was learned: learning stops that much earlier."""
        return 0

    def end(self, k: int, learner: Learner | None, fresh: Transitions | None) -> None:
        """Keep what task k was learned for; `fresh` is the last rollout."""

    def policy(self, j: int) -> StackedGaussianActor:
        """What is played on stage j, learned already or not."""
        raise NotImplementedError

    # What is kept

    def kept(self) -> dict[str, Tensor]:
        """Everything needed to play and to learn on without forgetting, but for the base: what the bytes count."""
        return {}

    def kept_bytes(self) -> int:
        """Of one seed, after the tasks so far."""
        return sum(t.numel() * t.element_size() for t in self.kept().values()) // self.setup.seeds

    def tensors(self) -> dict[str, Tensor]:
        """The whole state but for `facts`."""
        values = {f"values.{k}.{name}": t for k, state in enumerate(self.values) for name, t in state.items()}
        return values | {f"rng.{p}": rng.get_state() for p, rng in enumerate(self.rng)}

    def facts(self) -> dict[str, Any]:
        """Plain JSON data of the state, shown in the results too."""
        return {}

    def restore(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Take up a state."""
        count = len({name.split(".")[1] for name in tensors if name.startswith("values.")})
        self.values = [below(tensors, f"values.{k}.") for k in range(count)]
        for p, rng in enumerate(self.rng):
            rng.set_state(tensors[f"rng.{p}"].clone())

    # Help

    def stage(self, k: int) -> Stage:
        return self.setup.stream.stages[k]

    def learner(
        self, k: int, actor: StackedGaussianActor, values: Mapping[str, Tensor], skill: bool = False
    ) -> Learner:
        """A learner of task k that goes on from `actor` (a copy) and `values`: all of it, or a skill on it."""
        s, c = self.setup, self.config
        options: dict[str, Any] = {"actor": actor.config, "trainable": Trainable.full}
        if skill:
            options |= {"trainable": c.learned, "rank": c.rank}
        if skill and hasattr(s.learner, "lr"):
            options["lr"] = c.skill_lr
        cls, seed = learner_class(s.learner_name), s.seed + SEEDS_PER_STAGE * (k + 1)
        start = copied(actor)
        if self.config.explore is not None and hasattr(start, "log_std"):
            start.log_std.detach().fill_(self.config.explore)
            options["adapt_sigma"] = True  # with full networks σ trains anyway
        made = cls(replace(s.learner, **options), actor.obs_dim, actor.act_dim, s.seeds, seed, actor=start)
        made.adopt(dict(values))
        return made


def learner_values(learner: Learner) -> State:
    """Critics and running quantities of a learner, copied: what the next one on the same kind of task goes on from."""
    state = learner.state_dict()
    skipped = ("nets.actor.", f"nets.{START}.", "extra.discounted", f"extra.{SEEN}")
    kept = {name: value for name, value in state.items() if name.startswith(("nets.", "extra."))}
    return {name: value.detach().clone() for name, value in kept.items() if not name.startswith(skipped)}


def learned_skills(learner: Learner) -> list[Adapter]:
    """What each member of a learner has gained, as it would be published."""
    adapted = learner.adapted()
    assert adapted is not None
    return [extract(adapted, p) for p in range(learner.seeds)]


def below(tensors: Mapping[str, Tensor], prefix: str) -> State:
    """The entries under a prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
