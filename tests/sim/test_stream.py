"""Streams are data that can be stepped: known tasks, understood shifts, one interface throughout."""

from __future__ import annotations

import numpy as np
import pytest

import sim
from sim.stream import STREAMS, Stage, Stream, get_stream
from sim.tasks import arm_skills

OURS = sorted(name for name in STREAMS if not name.startswith("cw"))


@pytest.mark.parametrize("name", OURS)
def test_every_task_of_a_stream_has_the_interface_of_its_base_and_runs(name: str) -> None:
    stream = get_stream(name)
    wanted = sim.make(stream.base.task, 1, threads=1, action_repeat=stream.base.action_repeat).interface
    for stage in stream.stages:
        world = sim.make(stage.task, 1, threads=1, shift=stage.shift, action_repeat=stage.action_repeat)
        assert (world.interface.obs_dim, world.interface.act_dim) == (wanted.obs_dim, wanted.act_dim)
        obs, reward, *_ = world.step(np.zeros((1, wanted.act_dim)))
        assert np.isfinite(obs).all() and np.isfinite(reward).all()


def test_continual_world_has_its_ten_tasks_once_and_twice() -> None:
    ten, twenty = get_stream("cw10").stages, get_stream("cw20").stages
    assert len({s.task for s in ten}) == 10
    assert [s.task for s in twenty] == [s.task for s in ten] * 2
    assert all(s.task.startswith("metaworld/") and s.measure == "success" for s in twenty)


def test_a_scaled_stream_keeps_its_tasks_and_changes_its_budgets() -> None:
    small = get_stream("halfcheetah_shifts").scaled(steps=10, base_steps=20, tasks=3)
    assert [s.steps for s in small.stages] == [10, 10, 10] and small.base.steps == 20
    assert [s.shift for s in small.stages] == [s.shift for s in get_stream("halfcheetah_shifts").stages[:3]]
    assert not small.hidden().announced


def test_mistakes_are_refused_by_name() -> None:
    with pytest.raises(LookupError, match="did you mean 'walker'"):
        get_stream("walkers")
    with pytest.raises(ValueError, match="did you mean gravity"):
        Stage("a", "hopper", 10, "gravty2")
    with pytest.raises(ValueError, match="different names"):
        Stream("x", "", Stage("b", "hopper", 1), (Stage("a", "hopper", 1), Stage("a", "hopper", 1)))
    with pytest.raises(ValueError, match="solved"):
        Stage("a", "hopper", 1, untrained=2.0)


def test_walking_backward_is_paid_only_for_speed_the_other_way() -> None:
    walk, back = sim.get_task("walker-walk"), sim.get_task("walker-backward")
    state = {"height": np.full((3, 1), 1.3), "upright": np.ones((3, 1)), "speed": np.array([[1.0], [0.0], [-1.0]])}
    forward = walk.reward(state, state, np.zeros((3, 6)))
    np.testing.assert_allclose(back.reward(state, state, np.zeros((3, 6))), forward[::-1])
    assert forward[0] == 1.0 and forward[2] == pytest.approx(1 / 6)


def test_the_arms_three_tasks_see_the_same_channels_and_the_post_costs() -> None:
    models = {name: sim.get_task(f"arm-skills-{name}") for name in ("reach", "push", "obstacle")}
    described = {name: task.describe(task.load_model()) for name, task in models.items()}
    assert described["reach"] == described["push"] == described["obstacle"]
    assert len(described["reach"]) == sim.make("arm-skills-push", 1, threads=1).interface.obs_dim == 25
    tips = np.array([[0.32, 0.0, 0.2], [0.32, 0.0, 0.6], [0.6, 0.0, 0.2]])
    assert arm_skills.inside_post(tips).tolist() == [True, False, False]
