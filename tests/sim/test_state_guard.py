"""The NaN guard keeps the last states and says where the numbers went wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import sim


def test_a_diverging_world_is_named_and_its_last_states_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # MuJoCo writes its warning into a log file in the current folder
    world = sim.make("halfcheetah", 3, guard=sim.StateGuard(tmp_path, keep=4))
    rng = np.random.default_rng(0)
    for _ in range(6):
        world.step(rng.uniform(-1, 1, (3, 6)))
    seen = []
    world._datas[1].qvel[:] = 1e150  # the state a broken contact would leave
    with pytest.raises(sim.SimulationError, match=r"halfcheetah: world 1 is not finite at step \d+ .*'rootz.pos"):
        for _ in range(5):
            action = rng.uniform(-1, 1, (3, 6))
            seen.append(action[1])
            world.step(action)
    (dump,) = tmp_path.glob("nan-halfcheetah-world1-step*.npz")
    with np.load(dump, allow_pickle=False) as kept:
        assert kept["qpos"].shape == (4, 9) and kept["command"].shape == (4, 6) and kept["obs"].shape == (17,)
        np.testing.assert_array_equal(kept["command"][-1], seen[-1])
        assert np.isfinite(kept["qpos"]).all() and not np.isfinite(kept["obs"]).all()


def test_a_healthy_run_writes_nothing(tmp_path: Path) -> None:
    world = sim.make("hopper", 2, guard=sim.StateGuard(tmp_path))
    for _ in range(50):
        world.step(np.ones((2, 3)))
    assert not list(tmp_path.iterdir())


def test_kept_states_are_those_before_each_step(tmp_path: Path) -> None:
    guard = sim.StateGuard(tmp_path, keep=2)
    world = sim.make("hopper", 1, guard=guard)
    states = []
    for _ in range(3):
        states.append(world.get_qpos()[0])
        world.step(np.zeros((1, 3)))
    names = [c.name for c in world.interface.obs]
    with pytest.raises(sim.SimulationError, match="in the reward"):
        guard.check("hopper", names, np.array([3]), np.zeros((1, 11)), np.array([np.inf]))
    with np.load(tmp_path / "nan-hopper-world0-step3.npz") as kept:
        np.testing.assert_array_equal(kept["qpos"], states[1:])
