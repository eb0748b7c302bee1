"""Reference scores: which numbers a return is measured against, said with every score."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

SIMULATOR_PACKAGES = ("mujoco", "gymnasium", "gymnasium-robotics", "dm_control")


@dataclass(frozen=True)
class Reference:
    """score = 100 (return − low) / (high − low); `name` says whose low and high these are."""

    name: str
    low: float
    high: float

    def score(self, ret: float) -> float:
        return 100.0 * (ret - self.low) / (self.high - self.low)


# Fu et al. 2020 (D4RL), undiscounted returns of a random and of an expert policy in D4RL's own simulators.
D4RL: dict[str, Reference] = {
    name: Reference(f"D4RL {name}", low, high)
    for name, (low, high) in {
        "halfcheetah": (-280.178953, 12135.0),
        "hopper": (-20.272305, 3234.3),
        "walker2d": (1.629008, 4592.3),
        "ant": (-325.6, 3879.7),
        "antmaze": (0.0, 1.0),
        "pen": (96.262799, 3076.8331018826877),
        "hammer": (-274.856578, 12794.134825156867),
        "door": (-56.512833, 2880.5693087298737),
        "relocate": (-6.425911, 4233.877797728884),
        "kitchen": (0.0, 4.0),
        "maze2d-umaze": (23.85, 161.86),
        "maze2d-medium": (13.13, 277.39),
        "maze2d-large": (6.7, 273.99),
    }.items()
}
# dm_control rewards lie in [0, 1] at each of 1000 steps.
DM_CONTROL = Reference("dm_control 0 to 1000", 0.0, 1000.0)
_DM_CONTROL_TASKS = ("walker-stand", "walker-walk", "walker-run", "cheetah-run")
_D4RL_ID = re.compile(
    r"((halfcheetah|hopper|walker2d|ant)-(random|medium|expert|medium-replay|medium-expert|full-replay)"
    r"|antmaze-(umaze|medium|large|ultra)(-diverse|-play)?"
    r"|(pen|hammer|door|relocate)-(human|human-longhorizon|cloned|expert)"
    r"|kitchen-(complete|partial|mixed)"
    r"|maze2d-(open|umaze|medium|large|eval-umaze|eval-medium|eval-large)(-sparse|-dense)?)-v\d+"
)


def task_key(task: str) -> str:
    """'Hopper-v5', 'robot_cl/Hopper-v0', 'hopper-medium-v2' -> 'hopper': a row of the table, or the task itself."""
    plain = task.rsplit("/", 1)[-1].lower().removeprefix("adroithand")
    if plain in D4RL or plain in _DM_CONTROL_TASKS:
        return plain
    fits = [key for key in D4RL if re.match(rf"{key}(?![a-z])", plain)]
    return max(fits, key=len) if fits else plain


def find_reference(task: str, source: dict[str, Any] | None = None) -> Reference | None:
    """The scale for returns of `task`. Its name says that it is only a scale, unless `source` is a D4RL file."""
    key = task_key(task)
    if key in _DM_CONTROL_TASKS:
        return DM_CONTROL
    if key not in D4RL:
        return None
    entry = D4RL[key]
    if d4rl_id(source or {}):
        return entry
    return Reference(f"scale of {entry.name}, not D4RL's data or simulator", entry.low, entry.high)


def normalized_score(ret: float, task: str, source: dict[str, Any] | None = None) -> tuple[float, str]:
    """(score x 100, name of the reference). Raises LookupError for a task without one."""
    reference = find_reference(task, source)
    if reference is None:
        known = ", ".join([*D4RL, *_DM_CONTROL_TASKS])
        raise LookupError(f"there is no reference score for task {task!r}; there is for {known}")
    return reference.score(ret), reference.name


def d4rl_id(source: dict[str, Any]) -> str | None:
    """The D4RL id of a D4RL source ('hopper-medium-v2'), or None: data made here never has one."""
    if source.get("kind") != "d4rl":
        return None
    stem = str(source.get("file", "")).rsplit("/", 1)[-1].removesuffix(".hdf5").lower()
    # Files are named with underscores (hopper_medium-v2.hdf5), ids with hyphens.
    name = stem.replace("_", "-")
    return name if _D4RL_ID.fullmatch(name) else None


def claims_d4rl(name: str) -> bool:
    """Whether a dataset of this name would be taken for D4RL's: under d4rl/, or a D4RL id."""
    return name.startswith("d4rl/") or _D4RL_ID.fullmatch(name) is not None


def simulator_fingerprint() -> dict[str, str]:
    """Versions of what computes the physics here; results of different fingerprints are not comparable."""
    found = {}
    for package in SIMULATOR_PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
