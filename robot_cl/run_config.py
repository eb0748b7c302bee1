"""config.yaml of a run folder: the resolved options, written once and read back into the same dataclasses."""

from __future__ import annotations

import typing
from dataclasses import asdict, dataclass, fields, is_dataclass
from enum import Enum, StrEnum
from pathlib import Path
from typing import Any, TypeVar

import yaml

from policies.critics import CriticConfig
from robot_cl.learners import LEARNERS, config_class, name_of
from robot_cl.learners.base import LearnerConfig
from robot_cl.learners.sb3 import SB3Config
from robot_cl.plain_files import read_yaml, write_whole

T = TypeVar("T")
FILE = "config.yaml"


class Engine(StrEnum):
    """What steps the worlds that a run learns in; evaluation is always by MuJoCo."""

    mujoco = "mujoco"
    warp = "warp"


@dataclass
class TrainConfig:
    """Options of a training run, besides its learner's."""

    task: str | None = None  # where the policy acts: needed for online learning and for evaluation
    shift: str | None = None  # a change of the world that is learned and evaluated in, such as gravity0.6+friction0.5
    data: str | None = None  # dataset to learn from offline, by name or folder
    init_from: str | None = None  # run or checkpoint whose policy (and values, where they fit) to continue
    seeds: int = 1  # runs trained side by side, with seeds seed, seed + 1, ...
    seed: int = 0  # of everything random
    offline_steps: int | None = None  # updates on the dataset; none: 100000 with data, else 0
    online_steps: int | None = None  # environment steps per seed; none: 1000000 without an offline part, else 0
    batch: int = 256  # transitions per update and seed
    num_worlds: int | None = None  # worlds per seed; none: as the learner likes
    engine: Engine = Engine.mujoco  # of the worlds that are learned in; warp: thousands on a GPU (extra gpu)
    threads: int | None = None  # threads that step worlds; none: all cores
    torch_threads: int | None = None  # threads of torch; none: 1 with small networks or in several processes, else all
    processes: int | None = None  # that share the seeds, on a cpu; none: enough for all `threads` where that can be
    log_every: int = 1000  # steps between rows of metrics.csv
    eval_every: int = 20_000  # steps between evaluations, 0: never
    eval_episodes: int = 10  # per evaluation and seed
    checkpoint_every: int = 20_000  # steps between checkpoints
    out: str | None = None  # folder for the run folder; none: runs
    name: str | None = None  # of the run folder after its date; none: learner and data or task
    device: str = "auto"  # auto, cpu or cuda
    compile: bool = False  # updates as compiled code, on a cpu: about a minute before the first, less for each after it
    tensorboard: bool = True  # write event files
    wandb: bool = False  # also log to Weights & Biases

    def __post_init__(self) -> None:
        counts = "seeds", "batch", "num_worlds", "threads", "torch_threads", "processes"
        for key in (*counts, "log_every", "checkpoint_every"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ValueError(f"{key} is {value}; expected at least 1")
        for key in ("offline_steps", "online_steps", "eval_every", "seed"):
            value = getattr(self, key)
            if value is not None and value < 0:
                raise ValueError(f"{key} is {value}; expected 0 or more")
        if self.eval_every and self.eval_episodes < 1:
            raise ValueError(f"eval_episodes is {self.eval_episodes}; expected at least 1, or eval_every=0")

    @property
    def offline(self) -> int:
        """Updates, resolved."""
        return self.offline_steps or 0

    @property
    def online(self) -> int:
        """Environment steps per seed, resolved."""
        return self.online_steps or 0


def write_config(run: Path, config: TrainConfig, learner: LearnerConfig | SB3Config) -> None:
    """config.yaml: the run's options, and those of the learner below `learner`, with its `name`."""
    data = plain(config) | {"learner": {"name": name_of(learner)} | plain(learner)}
    write_whole(run / FILE, yaml.safe_dump(data, sort_keys=False, allow_unicode=True))


def read_config(run: Path) -> tuple[TrainConfig, LearnerConfig | SB3Config]:
    """Inverse of `write_config`. Raises FileNotFoundError, ValueError, LookupError."""
    path = run / FILE
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing; {run} is not a run folder, or was killed before it began")
    data = read_yaml(path)
    if "kind" in data:
        raise LookupError(f"{run} is of kind {data['kind']}, not one training; robot-cl resume goes on with it")
    try:
        learner = dict(data.pop("learner"))
        name = learner.pop("name")
    except (KeyError, TypeError) as problem:
        raise ValueError(f"{path} is not a run's configuration: it does not name a learner ({problem})") from None
    if name not in LEARNERS:
        raise LookupError(f"{run} was made by {name}, not trained; it can be evaluated, but not resumed or verified")
    return filled(TrainConfig, data, str(path)), filled(config_class(name), learner, str(path))


def critic_of(run: Path) -> CriticConfig | None:
    """Of which shape a run's critics are, whatever else it was told; None where it has none, or is no training.

    Raises ValueError if they are of no shape that there is.
    """
    path = run / FILE
    data = read_yaml(path) if path.exists() else {}
    learner = data.get("learner") if "kind" not in data else None
    shape = learner.get("critic") if isinstance(learner, dict) else None
    return filled(CriticConfig, shape, str(path)) if isinstance(shape, dict) else None


def plain(config: Any) -> dict[str, Any]:
    """A dataclass as plain values: enums by value, tuples as lists."""

    def value(x: Any) -> Any:
        if isinstance(x, Enum):
            return x.value
        if isinstance(x, dict):
            return {k: value(v) for k, v in x.items()}
        return [value(v) for v in x] if isinstance(x, (list, tuple)) else x

    return {name: value(x) for name, x in asdict(config).items()}


def filled(schema: type[T], data: dict[str, Any], where: str) -> T:
    """A dataclass from plain values. Raises ValueError naming `where` for unknown keys and wrong values."""
    hints = typing.get_type_hints(schema)
    known = {f.name for f in fields(schema)}  # type: ignore[arg-type]
    strange = sorted(set(data) - known)
    if strange:
        raise ValueError(f"{where}: {schema.__name__} has no option {strange[0]!r}; take the version that wrote it")
    try:
        return schema(**{name: _value(hints[name], x, where) for name, x in data.items()})
    except (TypeError, ValueError) as problem:
        raise ValueError(f"{where}: {problem}") from None


def _value(hint: Any, x: Any, where: str) -> Any:
    if is_dataclass(hint) and isinstance(x, dict):
        return filled(typing.cast(type, hint), x, where)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return hint(x)
    return tuple(x) if typing.get_origin(hint) is tuple else x
