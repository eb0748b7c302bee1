"""One working folder for the whole area: a small behaviour, a dataset and two runs, made by the command line."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robot_cl.cli import main


@dataclass(frozen=True)
class Ran:
    """What one command line answered."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out.strip().splitlines()[-1])


Cli = Callable[..., Ran]
TINY = ["learner.actor.hidden=[8]", "seeds=2", "batch=16", "log_every=5", "eval_every=0", "tensorboard=false"]


def command(place: Path, *words: str) -> Ran:
    """`robot-cl *words` in the folder `place`, in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.chdir(place), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(list(words))
    return Ran(code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with walk.safetensors (a random hopper policy), hopper/tiny-v0 and the runs "cloned" and "critic"."""
    from robot_cl.data.behaviours import Behaviour, BehaviourCard, save_behaviour

    folder = tmp_path_factory.mktemp("place")
    rng = np.random.default_rng(0)
    arrays = {"W0": 0.5 * rng.normal(size=(8, 11)), "b0": np.zeros(8), "W1": rng.normal(size=(3, 8)), "b1": np.zeros(3)}
    card = BehaviourCard("walk", task="hopper", activation="tanh")
    save_behaviour(folder / "walk.safetensors", Behaviour({k: v.astype(np.float32) for k, v in arrays.items()}, card))
    commands = [
        ["data", "collect", "task=hopper", "policy=walk.safetensors", "name=hopper/tiny-v0", "steps=400", "noise=0.8"],
        ["train", "learner=bc", "data=hopper/tiny-v0", "offline_steps=20", "name=cloned", *TINY],
        ["train", "learner=iql", "learner.critic.hidden=[8]", "data=hopper/tiny-v0", "offline_steps=10", "name=critic",
         "online_steps=10", "learner.warmup=5", *TINY],
    ]  # fmt: skip
    for words in commands:
        ran = command(folder, *words)
        assert ran.code == 0, ran
    for name in ("cloned", "critic"):
        ran = command(folder, "evaluate", name, "episodes=3", "film=0.2", "task=hopper")
        assert ran.code == 0, ran
    return folder


@pytest.fixture(scope="session")
def run_in() -> Cli:
    """`run_in(folder, *words)` is the command line in that folder."""
    return command


@pytest.fixture
def cli(place: Path) -> Cli:
    """The command line in the working folder."""
    return lambda *words: command(place, *words)
