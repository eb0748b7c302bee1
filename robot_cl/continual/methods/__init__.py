"""The ways of learning a stream by name. A new one is one file and one line."""

from __future__ import annotations

import difflib

from robot_cl.continual.method import Method
from robot_cl.continual.methods.clonex import ClonEx
from robot_cl.continual.methods.ewc import EWC
from robot_cl.continual.methods.finetune import FineTune
from robot_cl.continual.methods.fresh import Fresh
from robot_cl.continual.methods.library import SkillLibrary
from robot_cl.continual.methods.multitask import MultiTask
from robot_cl.continual.methods.packnet import PackNet
from robot_cl.continual.methods.replay import Replay
from robot_cl.continual.methods.reset import Reset

METHODS: dict[str, type[Method]] = {
    "library": SkillLibrary,
    "finetune": FineTune,
    "fresh": Fresh,
    "reset": Reset,
    "ewc": EWC,
    "replay": Replay,
    "packnet": PackNet,
    "clonex": ClonEx,
    "multitask": MultiTask,
}
REFERENCE = "reset"  # learns every task alone from the base: the reference of forward transfer


def method_class(name: str) -> type[Method]:
    """Raises LookupError for an unknown name."""
    if name in METHODS:
        return METHODS[name]
    near = difflib.get_close_matches(name, METHODS, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise LookupError(f"no method {name!r}; {hint}methods: {', '.join(METHODS)}")
