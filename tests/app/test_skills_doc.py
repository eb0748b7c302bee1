"""Every command of docs/skills.md is run as it stands, only with smaller sizes."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

DOC = Path(__file__).resolve().parents[2] / "docs" / "skills.md"
SIZES = {
    r"steps=100000 noise": "steps=600 noise",
    r"offline_steps=\d+": "offline_steps=20",
    r"online_steps=\d+": "online_steps=64",
    r"(?<!_)steps=20000": "steps=2200",
    r"demos=10": "demos=2 steps=10 adapter_steps=10",
    r"episodes=20": "episodes=1",
    r"gate=0.1": "gate=1 steps=10 episodes=1",
}
OF_BASES = ["learner.actor.hidden=[16]", "learner.critic.hidden=[16]"]
OF_RUNS = ["tensorboard=false", "eval_every=0", "num_worlds=1"]


def commands() -> list[str]:
    blocks = re.findall(r"```console\n(.*?)```", DOC.read_text(), re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def smaller(line: str) -> list[str]:
    for pattern, replacement in SIZES.items():
        line = re.sub(pattern, replacement, line)
    words = shlex.split(line)[1:]
    if words[0] == "train":
        words += OF_RUNS + (OF_BASES if "learner=iql" in words else [])
        words += ["learner.horizon=32"] if "learner=ppo" in words else ["learner.lr=0.01"]
    return words


def test_every_command_on_the_page_works(tmp_path: Path, run_in: Callable[..., Any]) -> None:
    lines = commands()
    assert len(lines) > 20 and all(line.startswith("robot-cl ") for line in lines)
    for line in lines:
        ran = run_in(tmp_path, *smaller(line))
        assert ran.code == 0, f"{line}\n{ran.out}{ran.err}"


def test_the_page_names_every_verb_composer_and_merge() -> None:
    from policies.merging import MERGE
    from policies.routers import ROUTERS
    from robot_cl.cli import VERBS
    from robot_cl.routes import ALIASES

    text = DOC.read_text()
    verbs = [verb for verb in VERBS if verb.startswith("skills ") or verb in ("compose", "merge")]
    missing = [name for name in [*verbs, *ALIASES, *MERGE, *ROUTERS] if name not in text]
    assert not missing


def test_the_python_on_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from policies.actor import ActorConfig, StackedGaussianActor
    from policies.adapter import Adapter, Factors
    from policies.lora import layer_shapes
    from policies.networks import generators
    from robot_cl.skills import library_of
    from sim import make

    interface = make("hopper").interface
    base = StackedGaussianActor(11, 3, generators(0, 1), ActorConfig(hidden=(8,))).requires_grad_(False)
    library = library_of(base, interface, "hopper", tmp_path)
    import torch

    layers = {n: Factors(torch.ones(1, d_in), torch.ones(d_out, 1)) for n, (d_out, d_in) in layer_shapes(base).items()}
    library.publish("hop-low-gravity", Adapter(layers, library.header))
    monkeypatch.setenv("ROBOT_CL_LIBRARY", str(tmp_path))
    (code,) = re.findall(r"```python\n(.*?)```", DOC.read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["policy"].act(torch.zeros(2, 11).numpy()).shape == (2, 3)
