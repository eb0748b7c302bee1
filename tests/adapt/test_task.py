"""A flow for a policy's own task: learned in simulation, worn in evaluation, refused where it does not fit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import sim
from dynamics.reshaped import ReshapeConfig
from policies.policy import Policy
from robot_cl.adapt.task import TaskConfig, TaskLearned, ask, draw, family, learn_for, play
from robot_cl.cli import main
from robot_cl.evaluate import evaluate
from sim.shift import Shift

TASK = "vehicle-waypoint"
TINY = TaskConfig(("bias",), worlds=32, nominal=16, steps=40, every=4, model_steps=300, flow_updates=500, trials=8)


class Driver:
    """Turns to the goal and drives to it; obs are goal ahead, goal left, speed and turn rate."""

    name, task, obs_dim, act_dim = "driver", TASK, 4, 2

    def act(self, obs: np.ndarray) -> np.ndarray:
        turn = np.arctan2(obs[:, 1], obs[:, 0])
        return np.stack([np.clip(np.cos(turn), 0.1, 1.0), np.clip(turn, -1, 1)], 1).astype(np.float32)

    def reset(self, rows: np.ndarray | None = None) -> None:
        pass


@pytest.fixture(scope="module")
def learned() -> TaskLearned:
    torch.set_num_threads(1)
    return learn_for(Driver(), TASK, TINY)


def test_a_policy_with_its_flow_is_a_policy_and_an_unchanged_robot_hardly_notices(learned: TaskLearned) -> None:
    worn = learned.wrap(Driver())
    assert isinstance(worn, Policy) and worn.task == TASK and worn.name == "driver with flow"
    plain, flown = (evaluate(p, TASK, 8, worlds=8) for p in (Driver(), worn))
    assert flown.mean > plain.mean - 0.1


def test_the_answer_to_a_bias_takes_it_back(learned: TaskLearned) -> None:
    world = sim.make(TASK, num_worlds=30, shift=Shift(bias={"speed": 0.2, "turn": -0.3}))
    obs = world.reset(0)
    before = world.get_state()
    _, planned, answer = ask(world, obs, np.zeros((30, 2)), learned.model, np.random.default_rng(0))
    after = world.get_state()
    assert all(np.array_equal(before[name], after[name]) for name in before)
    free = (planned.abs() < 0.6).all(1)
    limits = [c.high for c in world.interface.action]  # m/s, rad/s
    moved = (answer - planned)[free].median(0).values
    assert free.sum() > 5 and moved.tolist() == pytest.approx([-0.2 / limits[0], 0.3 / limits[1]], abs=0.12)


def test_a_flow_lands_nearer_to_what_was_wanted_in_worlds_it_never_saw(learned: TaskLearned) -> None:
    shifts = [Shift(bias={"speed": s, "turn": t}) for s in (-0.18, 0.18) for t in (-0.18, 0.0, 0.18)]

    def miss(policy: Policy) -> float:
        world, total = sim.make(TASK, num_worlds=len(shifts), shift=shifts), 0.0
        obs = world.reset(3)
        policy.reset()
        for t in range(25):
            wanted = torch.as_tensor(Driver().act(obs.astype(np.float32)))
            target = learned.model.belief(torch.as_tensor(obs, dtype=torch.float32), wanted)[0].detach()
            action = policy.act(obs.astype(np.float32))
            obs, _, _, _, info = world.step(action)
            error = (torch.as_tensor(info["final_obs"]) - target) / learned.model.delta_scale
            total += float(error.norm(dim=1).mean()) * (t >= 8)
        return total

    assert miss(learned.wrap(Driver(), ReshapeConfig(trigger=1.5))) < 0.85 * miss(Driver())


def test_playing_twice_gives_the_same(learned: TaskLearned) -> None:
    first, second = (play(Driver(), TASK, [Shift()] * 3, TINY, 5, learned.model) for _ in range(2))
    assert torch.equal(first.answer, second.answer) and torch.equal(first.next_obs, second.next_obs)


def test_it_comes_back_from_disk_and_says_what_it_is_of(learned: TaskLearned, tmp_path: Path) -> None:
    learned.save(tmp_path)
    back = TaskLearned.load(tmp_path)
    obs = sim.make(TASK, num_worlds=5).reset(0).astype(np.float32)
    one, other = learned.wrap(Driver()), back.wrap(Driver())
    for _ in range(3):
        np.testing.assert_array_equal(one.act(obs), other.act(obs))
    assert json.loads((tmp_path / "card.json").read_text())["task"] == TASK
    with pytest.raises(OSError, match=r"no card\.json"):
        TaskLearned.load(tmp_path / "elsewhere")


def test_another_tasks_policy_is_refused(learned: TaskLearned) -> None:
    other = Driver()
    other.obs_dim = 7
    with pytest.raises(ValueError, match=r"made for 4 and 2 of task 'vehicle-waypoint'"):
        learned.wrap(other)


def test_drawn_shifts_are_of_the_kinds_asked_for() -> None:
    drawn = family(TASK, ("gain", "payload"), 60, np.random.default_rng(0))
    assert {s.physics_key() for s in drawn} and any(s == Shift() for s in drawn)
    assert all(s.friction == s.mass == 1.0 and not s.bias for s in drawn)
    assert any(s.payload for s in drawn) and any(s.gain for s in drawn)
    assert draw(("friction",), ("a",), np.random.default_rng(1)).gain == {}


@pytest.mark.parametrize(
    "options", [{"changes": ("wind",)}, {"changes": ()}, {"steps": 3}, {"worlds": 0}, {"trials": 1}]
)
def test_an_impossible_preparation_is_refused(options: dict) -> None:
    with pytest.raises(ValueError, match=r"."):
        TaskConfig(**options)


def test_from_the_command_line_to_an_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["adapt", "hopper-low", "regimes=24", "updates=3", "held_out=2", "out=flow"]
    monkeypatch.setattr(TaskConfig.__init__, "__defaults__", _fewer(TaskConfig.__init__.__defaults__))
    assert main([*words, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["card"]["held_out"].keys() == {"without flow", "with flow"} and said["wrote"] == "flow"
    assert main(["evaluate", "hopper-low", "adapt=flow", "film=0", "episodes=2", "out=.", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["evaluation"]["label"] == "hopper-low with flow"
    assert main(["evaluate", "hopper-low", "film=0", "episodes=2", "out=.", "--json"]) == 0
    capsys.readouterr()
    labels = [entry["label"] for entry in json.loads(Path("evaluation.json").read_text())["entries"]]
    assert labels == ["hopper-low with flow", "hopper-low"]  # neither takes the other's place
    for wrong in (["adapt"], ["adapt", "hopper-low", "robot=vehicle"], ["adapt", "robot=car"]):
        assert main(wrong) == 2


def _fewer(defaults: tuple) -> tuple:
    """TaskConfig's defaults with few worlds, steps and updates."""
    names = list(TaskConfig.__dataclass_fields__)
    small = {"nominal": 4, "steps": 24, "model_steps": 20, "every": 4, "trials": 2}
    return tuple(small.get(n, d) for n, d in zip(names, defaults, strict=True))
