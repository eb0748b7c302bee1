"""A new version of a skill takes the old one's place only if no task gets worse, and can be taken back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sim
from policies.actor import ActorConfig, ActorPolicy, StackedGaussianActor
from policies.adapter import Adapter, Factors
from policies.card import SkillCard
from policies.library import Library
from policies.networks import generators
from policies.normalizer import Normalizer
from robot_cl.continual.promotion import gate_policies, paired_returns, promote_skill, read_task
from robot_cl.continual.release_gate import GateConfig
from robot_cl.skills import library_of

TASKS = ("vehicle-waypoint", "vehicle-waypoint:payload2")


class Turning:
    """Drives ahead at a given speed, turning towards the goal."""

    obs_dim, act_dim, task, name = 4, 2, "vehicle-waypoint", "turning"

    def __init__(self, speed: float):
        self.speed, self.interface = speed, sim.make("vehicle-waypoint", 1, threads=1).interface

    def act(self, obs: np.ndarray) -> np.ndarray:
        turn = np.arctan2(obs[:, 1], obs[:, 0])
        return np.stack([self.speed * (np.cos(turn) > 0), np.clip(turn, -1, 1)], 1).astype(np.float32)

    def reset(self, rows: np.ndarray | None = None) -> None:
        """Nothing to forget."""


def test_both_sides_play_the_same_episodes_and_a_slower_driver_is_refused() -> None:
    fast, slow = Turning(1.0), Turning(0.15)
    verdict = gate_policies(slow, fast, TASKS, 6, 100, GateConfig(), threads=1)
    assert [t.task for t in verdict.tasks] == list(TASKS)
    assert not verdict.promoted
    assert gate_policies(fast, fast, TASKS, 4, 100, GateConfig(), threads=1).promoted
    found = paired_returns(fast, TASKS[:1], 3, 7, threads=1)["vehicle-waypoint"]
    np.testing.assert_array_equal(found[1:], paired_returns(fast, TASKS[:1], 2, 8, threads=1)["vehicle-waypoint"])


def test_a_task_is_named_with_its_shift_after_a_colon() -> None:
    assert read_task("hopper") == ("hopper", None)
    assert read_task("hopper:gravity0.6+latency2") == ("hopper", "gravity0.6+latency2")
    with pytest.raises(ValueError, match="not understood"):
        read_task("hopper:gravty2")


def driver(actor: StackedGaussianActor, speed: float) -> Adapter:
    """The output layer's change after which the (linear) actor drives ahead at `speed`, turning to its goal."""
    last = "net.layers.1"
    wanted = torch.zeros(2, 8)
    wanted[0, 2], wanted[1, 1] = speed, 1.0  # hidden unit 2 is always on, unit 1 is the goal to the left
    layer = actor.net.layers[1]
    return Adapter({last: Factors(torch.eye(8), wanted - layer.weight[0].detach())})


@pytest.fixture
def shelf(tmp_path: Path) -> tuple[Library, ActorPolicy]:
    """A library with one good driver on a base that does nothing useful."""
    config = ActorConfig(hidden=(8,), activation="relu", squash_mean=False)
    actor = StackedGaussianActor(4, 2, generators(0, 1), config, Normalizer(4).freeze())
    with torch.no_grad():
        first = actor.net.layers[0]
        first.weight.zero_()
        first.weight[0, 1, 1], first.bias[0, 0, 2] = 1.0, 1.0
        actor.net.layers[1].bias.zero_()
    interface = sim.make("vehicle-waypoint", 1, threads=1).interface
    library = library_of(actor, interface, "vehicle-waypoint", tmp_path)
    library.publish("drive", driver(actor, 0.8).with_header(library.header), SkillCard("drive"))
    return library, ActorPolicy(actor, 0, interface, "vehicle-waypoint")


def test_a_refused_version_changes_nothing_and_a_promoted_one_can_be_rolled_back(shelf: Any) -> None:
    library, base = shelf
    first = library.card("drive").content

    def offer(speed: float) -> bool:
        new = driver(base.actor, speed).with_header(library.header)
        return promote_skill(library, base, "drive", new, SkillCard("drive"), TASKS[:1], 6, 0, GateConfig(margin=0.2),
                             threads=1).promoted  # fmt: skip

    assert not offer(-0.8)
    assert library.card("drive").content == first
    assert offer(0.801)
    assert library.card("drive").content != first
    assert library.rollback("drive").content == first


def test_a_residual_is_judged_on_what_it_was_trained_on(shelf: Any) -> None:
    library, base = shelf
    change = torch.zeros(2, 8)
    change[0, 2] = 0.001  # a little faster; on the bare base this drives nowhere
    residual = Adapter({"net.layers.1": Factors(torch.eye(8), change)}, library.header)
    arguments = (SkillCard("drive"), TASKS[:1], 4, 0, GateConfig(margin=0.2))
    assert not promote_skill(library, base, "drive", residual, *arguments, threads=1).promoted
    assert promote_skill(library, base, "drive", residual, *arguments, {"drive": 1.0}, threads=1).promoted
    assert [(p.skill, p.coefficient) for p in library.card("drive").parents] == [("drive", 1.0)]


def test_an_adapter_of_another_base_is_refused_before_anything_is_played(shelf: Any) -> None:
    library, base = shelf
    stray = driver(base.actor, -0.8)  # of no base
    with pytest.raises(ValueError, match="does not belong to this library's base"):
        promote_skill(library, base, "drive", stray, SkillCard("drive"), TASKS[:1], 10**9, 0, GateConfig())
