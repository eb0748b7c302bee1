"""The learners by name. A new one is one file and one line here; nothing is imported before it is asked for."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robot_cl.learners.base import Learner, LearnerConfig

LEARNERS = {
    "bc": ("robot_cl.learners.bc", "BC", "BCConfig"),
    "iql": ("robot_cl.learners.iql", "IQL", "IQLConfig"),
    "ppo": ("robot_cl.learners.ppo", "PPO", "PPOConfig"),
    "uni_o4": ("robot_cl.learners.uni_o4", "UniO4", "UniO4Config"),
    "sac": ("robot_cl.learners.sac", "SAC", "SACConfig"),
    "rlpd": ("robot_cl.learners.rlpd", "RLPD", "RLPDConfig"),
    "percent_bc": ("robot_cl.learners.percent_bc", "PercentBC", "PercentBCConfig"),
    "rebrac": ("robot_cl.learners.rebrac", "ReBRAC", "ReBRACConfig"),
    "lcb": ("robot_cl.learners.lcb", "LCB", "LCBConfig"),
    "cal_ql": ("robot_cl.learners.cal_ql", "CalQL", "CalQLConfig"),
    "wsrl": ("robot_cl.learners.wsrl", "WSRL", "WSRLConfig"),
    "moorl": ("robot_cl.learners.moorl", "MOORL", "MOORLConfig"),
    "mbpo": ("robot_cl.learners.mbpo", "MBPO", "MBPOConfig"),
    "psec": ("robot_cl.learners.psec", "PSEC", "PSECConfig"),
    "sb3": ("robot_cl.learners.sb3", "SB3", "SB3Config"),
}


def learner_class(name: str) -> type[Learner]:
    """Raises LookupError for an unknown name."""
    return _load(name, 1)


def config_class(name: str) -> type[LearnerConfig]:
    """The dataclass of a learner's options. Raises LookupError for an unknown name."""
    return _load(name, 2)


def config_classes() -> dict[str, type[LearnerConfig]]:
    """Name -> dataclass of options, of every learner (this imports them all)."""
    return {name: config_class(name) for name in LEARNERS}


def name_of(config: Any) -> str:
    """The learner whose options `config` is. Raises LookupError for anything else."""
    for name, (_, _, cls) in LEARNERS.items():
        if type(config).__name__ == cls and config_class(name) is type(config):
            return name
    raise LookupError(f"{type(config).__name__} is not the options of a learner; learners: {', '.join(LEARNERS)}")


def _load(name: str, column: int) -> Any:
    if name not in LEARNERS:
        raise LookupError(f"no learner {name!r}; learners: {', '.join(LEARNERS)}")
    entry = LEARNERS[name]
    return getattr(importlib.import_module(entry[0]), entry[column])
