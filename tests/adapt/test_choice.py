"""When a flow acts is chosen by playing: the best that costs nothing, or nothing at all."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import sim
from dynamics.reshaped import ReshapeConfig
from policies.policy import Policy
from robot_cl.adapt.choice import FARTHEST, LATER, Choice, Setting, best_of, choose, config_of
from robot_cl.adapt.task import TaskConfig, TaskLearned, learn_for
from robot_cl.cli import main
from robot_cl.deploy.bundle import PolicyBundle
from robot_cl.deploy.flow_stage import load_flow
from robot_cl.evaluate import load
from sim.shift import Shift

TASK = "vehicle-waypoint"
LEFT = [Shift(bias={"turn": 1.0})] * 9 + [Shift(bias={"turn": 0.9})]  # rad/s


class Driver:
    """Turns to the goal and drives to it, and turns by `more` (rad/s over its limit) besides."""

    name, task, obs_dim, act_dim = "driver", TASK, 4, 2

    def __init__(self, more: float = 0.0):
        self.more = more

    def act(self, obs: np.ndarray) -> np.ndarray:
        turn = np.arctan2(obs[:, 1], obs[:, 0])
        speed = np.clip(np.cos(turn), 0.1, 1.0)
        return np.stack([speed, np.clip(turn + self.more, -1, 1)], 1).astype(np.float32)

    def reset(self, rows: np.ndarray | None = None) -> None:
        pass


def chosen(wearing: Callable[[ReshapeConfig], Policy]) -> Choice:
    return choose(Driver(), wearing, TASK, LEFT, 3.0, 0)


def test_every_setting_is_played_and_what_steers_the_wrong_way_is_not_worn() -> None:
    found = chosen(lambda c: Driver(0.5 * c.trust))
    assert [(s.trigger, s.trust) for s in found.tried] == [(3.0 * k, t) for k in LATER for t in FARTHEST]
    assert found.best is None and found.card()["trigger"] is None
    json.dumps(found.card(), allow_nan=False)


class Half(Driver):
    """Drives as one in the first half of the rows, which are the unchanged worlds, and as another in the second."""

    remembers = True  # so that it sees all rows at once

    def __init__(self, unchanged: Policy, changed: Policy):
        super().__init__()
        self.unchanged, self.changed = unchanged, changed

    def act(self, obs: np.ndarray) -> np.ndarray:
        first = np.arange(len(obs))[:, None] < len(obs) // 2
        return np.where(first, self.unchanged.act(obs), self.changed.act(obs))


def back(share: float) -> Driver:
    """Takes so much of the change of most worlds back."""
    return Driver(-share / sim.make(TASK).interface.action[1].high)


def test_what_takes_the_change_back_is_worn_as_far_as_it_helps() -> None:
    shares = {2.0: -1.0, 0.4: 1.0, 0.15: -0.2}
    found = chosen(lambda c: Half(Driver(), back(shares[c.trust])))
    assert found.best is not None and found.best.trust == 0.4
    assert found.best.gain == max(s.gain for s in found.tried) > found.best.error


def test_what_costs_in_unchanged_worlds_is_not_worn_however_much_it_brings_in_changed_ones() -> None:
    free, costly = (chosen(lambda c, usual=usual: Half(usual, back(1.0))) for usual in (Driver(), Driver(1.0)))
    assert free.best is not None and costly.best is None
    assert costly.tried[0].gain == pytest.approx(free.tried[0].gain)


def test_a_gain_within_its_error_is_none_and_two_in_a_hundred_may_be_lost_below_zero_too() -> None:
    one = Setting(3.0, 0.4, unchanged=100.0, changed=60.0, gain=10.0, error=4.0)
    assert best_of([one, replace(one, gain=12.0, error=6.1)], 100.0) is one
    assert best_of([replace(one, gain=7.9)], 100.0) is None
    assert best_of([replace(one, trigger=12.0, gain=9.0), one, replace(one, trigger=6.0, gain=8.0)], 100.0) is one
    assert best_of([one], 102.0) is one and best_of([one], 102.1) is None
    assert best_of([replace(one, unchanged=-102.0)], -100.0) and not best_of([replace(one, unchanged=-102.1)], -100.0)


def test_what_is_not_worn_leaves_every_action_as_it_is_and_older_cards_are_read() -> None:
    one = Setting(6.0, 0.4, 1.0, 1.0, 0.5, 0.1)
    worn = config_of(Choice(one, (one,)).card())
    assert (worn.trigger, worn.trust) == (6.0, 0.4)
    assert config_of(Choice(None, (replace(one, gain=0.0),)).card()).trigger == math.inf
    assert config_of({"trigger": 3.5}) == ReshapeConfig(3.5)


@pytest.fixture(scope="module")
def prepared() -> TaskLearned:
    """A flow for a hopper that has hardly been learned."""
    torch.set_num_threads(1)
    tiny = TaskConfig(worlds=20, nominal=4, steps=24, model_steps=20, flow_updates=3, trials=2)
    return learn_for(load("hopper-low"), "hopper", tiny)


def flow_folder(prepared: TaskLearned, trigger: float | None, trust: float | None) -> TaskLearned:
    Path("flow").mkdir()
    one = replace(prepared, card=prepared.card | {"trigger": trigger, "trust": trust})
    one.save(Path("flow"))
    return one


def test_a_flow_that_stays_out_of_the_way_is_not_put_into_a_bundle(
    prepared: TaskLearned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    obs, policy = sim.make("hopper", num_worlds=3).reset(0).astype(np.float32), load("hopper-low")
    worn = flow_folder(prepared, None, None).wrap(policy)
    for k in range(4):  # however surprising
        np.testing.assert_array_equal(worn.act(obs + 5.0 * k), policy.act(obs + 5.0 * k))
    assert main(["evaluate", "hopper-low", "adapt=flow", "film=0", "episodes=1", "out=."]) == 0
    assert "stays out of the way" in capsys.readouterr().out
    assert main(["export", "hopper-low", "to=bundle", "flow=flow"]) == 2
    assert "no setting of this flow surely earned more" in capsys.readouterr().err
    assert not Path("bundle").exists()


def test_a_bundle_wears_a_flow_as_it_was_chosen(
    prepared: TaskLearned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    flow_folder(prepared, 0.01, 0.001)
    assert main(["export", "hopper-low", "to=bundle", "flow=flow", "--quiet"]) == 0
    stage = load_flow(Path("bundle"), PolicyBundle.load(Path("bundle")).contract)
    assert stage is not None
    obs, still = sim.make("hopper", num_worlds=1).reset(0).astype(np.float32), np.zeros(3, np.float32)
    moved = np.abs([stage(obs + 0.1 * k, still, still) for k in range(6)]).max()
    assert stage.active and 0.0 < moved <= 0.001 + 1e-6
