"""Batched worlds: threads, automatic resets, restoring, repeats, and what they say about mistakes."""

from __future__ import annotations

import gc
import importlib.util
import io
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import mujoco
import numpy as np
import pytest

import sim
from sim.pool import Pool

ROOT = Path(__file__).resolve().parents[2]
SHIFTED = "gravity0.8@5+mass1.2@10-40+latency2+noise0.01+gain0.9"


def run(world: sim.World, steps: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    trace = []
    for _ in range(steps):
        obs, reward, terminated, truncated, info = world.step(
            rng.uniform(-1, 1, (world.num_worlds, world.interface.act_dim))
        )
        trace += [obs, reward, terminated, truncated, info["final_obs"], info["episode_return"], info["episode_length"]]
    return trace


def assert_same(one: list[np.ndarray], other: list[np.ndarray]) -> None:
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


def through_npz(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **state)  # type: ignore[arg-type]
    file.seek(0)
    with np.load(file, allow_pickle=False) as loaded:
        return dict(loaded)


@pytest.mark.parametrize("task", ["hopper", "walker-walk"])
def test_the_number_of_threads_changes_nothing(task: str) -> None:
    assert_same(run(sim.make(task, 5, threads=1), 60), run(sim.make(task, 5, threads=3), 60))


def test_a_world_does_not_depend_on_its_neighbours() -> None:
    together, alone = sim.make("hopper", 4, seed=10), sim.make("hopper", 1, seed=12)
    np.testing.assert_array_equal(together.reset(seed=10)[2], alone.reset(seed=12)[0])
    rng = np.random.default_rng(0)
    for _ in range(80):
        action = rng.uniform(-1, 1, (4, 3))
        np.testing.assert_array_equal(together.step(action)[0][2], alone.step(action[2:3])[0][0])


@pytest.mark.parametrize("task", sorted(sim.TASKS))
@pytest.mark.parametrize("shift", [None, SHIFTED])
def test_a_restored_world_goes_on_bit_for_bit(task: str, shift: str | None) -> None:
    world = sim.make(task, 3, seed=1, shift=shift)
    run(world, 25)
    saved = through_npz(world.get_state())
    expected = run(world, 40, seed=5)
    other = sim.make(task, 3, threads=1, seed=99, shift=shift)
    run(other, 3)
    np.testing.assert_array_equal(other.restore(saved), saved["obs"])
    assert_same(run(other, 40, seed=5), expected)
    world.restore(saved)
    assert_same(run(world, 40, seed=5), expected)


def test_hopper_falls_within_what_is_restored() -> None:
    """The test above goes through automatic resets, or it would not prove that the generators are restored."""
    world = sim.make("hopper", 3, seed=1)
    run(world, 25)
    assert any(flags.any() for flags in run(world, 40, seed=5)[2::7])


def test_a_state_is_plain_numbers() -> None:
    state = sim.make("walker-walk", 2, shift=SHIFTED).get_state()
    assert all(value.dtype.kind in "fiu" and value.shape[0] == 2 for value in state.values())


def test_seeding_starts_over_and_not_seeding_goes_on() -> None:
    world = sim.make("hopper", 2, seed=4, shift="noise0.1")
    first, second = world.reset(seed=4), world.reset()
    assert (first != second).all()
    np.testing.assert_array_equal(world.reset(seed=4), first)
    np.testing.assert_array_equal(world.reset(), second)
    np.testing.assert_array_equal(world.reset(seed=[5, 4])[1], first[0])


def test_any_seed_that_a_run_may_come_to_is_one() -> None:
    """A run's seed is multiplied by its worlds, which for a date is more than the 32 bits of dm_control."""
    world, seed = sim.make("walker-walk", 2), 20_261_127 * 256
    first, second = world.reset(seed=seed), world.reset(seed=seed + 1)
    np.testing.assert_array_equal(first[1], second[0])
    assert (first[0] != first[1]).any()


@pytest.mark.parametrize(
    "damage",
    [{"obs": [["a", "m", 0]]}, {"obs": [["a", "m", "x", 1]]}, {"obs": [5]}, {"obs": 5}, {"control_dt": float("inf")}],
)
def test_an_interface_that_is_none_is_a_sentence(damage: dict[str, object]) -> None:
    data = sim.make("hopper").interface.to_dict()
    assert sim.Interface.from_dict(data).difference(sim.make("hopper").interface) is None
    with pytest.raises(ValueError, match=r"not an interface|positive seconds"):
        sim.Interface.from_dict(data | damage)


def test_an_ended_world_restarts_and_reports_its_last_observation_and_sums() -> None:
    world = sim.make("hopper", 8, seed=0)
    total, length = np.zeros(8), np.zeros(8, dtype=int)
    rng, ends = np.random.default_rng(0), 0
    for _ in range(60):
        obs, reward, terminated, truncated, info = world.step(rng.uniform(-1, 1, (8, 3)))
        total, length = total + reward, length + 1
        np.testing.assert_array_equal(info["episode_return"], total)
        np.testing.assert_array_equal(info["episode_length"], length)
        over = terminated | truncated
        np.testing.assert_array_equal(info["final_obs"][~over], obs[~over])
        assert (np.abs(obs[over, 0] - 1.25) <= 5e-3).all()  # a fresh start is 5 mm around 1.25 m
        assert (info["final_obs"][over] != obs[over]).any(axis=1).all()
        total[over], length[over], ends = 0, 0, ends + over.sum()
    assert ends > 4


def test_the_time_limit_truncates_and_does_not_terminate() -> None:
    world = sim.make("cheetah-run", 2)
    state = world.get_state()
    state["elapsed"][:] = [998, 500]
    world.restore(state)
    assert not world.step(np.zeros((2, 6)))[3].any()
    _, _, terminated, truncated, info = world.step(np.zeros((2, 6)))
    assert truncated.tolist() == [True, False] and not terminated.any()
    assert info["episode_length"].tolist() == [1000, 502]


def test_set_state_depends_on_its_arguments_alone() -> None:
    one, other = sim.make("ant", 2, seed=0), sim.make("ant", 2, seed=8)
    run(one, 7)
    run(other, 20, seed=2)
    qpos, qvel = one.get_qpos(), one.get_qvel()
    np.testing.assert_array_equal(one.set_state(qpos, qvel), other.set_state(qpos, qvel))
    np.testing.assert_array_equal(one.get_qpos(), qpos)
    assert_same(run(one, 5), run(other, 5))


def test_action_repeat_adds_the_rewards_of_single_steps() -> None:
    single, double = sim.make("walker-run", 2, seed=3), sim.make("walker-run", 2, seed=3, action_repeat=2)
    rng = np.random.default_rng(0)
    for _ in range(10):
        action = rng.uniform(-1, 1, (2, 6))
        expected = single.step(action)[1] + single.step(action)[1]
        _, reward, _, _, info = double.step(action)
        np.testing.assert_array_equal(reward, expected)
    np.testing.assert_array_equal(double.get_qpos(), single.get_qpos())
    assert info["episode_length"].tolist() == [20, 20]
    assert double.interface.control_dt == pytest.approx(0.05)


def test_action_repeat_stops_where_the_episode_ends() -> None:
    single, double = sim.make("hopper", 6, seed=3), sim.make("hopper", 6, seed=3, action_repeat=3)
    done, total, length = np.zeros(6, dtype=bool), np.zeros(6), np.zeros(6, dtype=int)
    rng = np.random.default_rng(1)
    while not done.all():
        action = rng.uniform(-1, 1, (6, 3))
        expected = np.zeros(6)
        for _ in range(3):
            _, reward, terminated, truncated, _ = single.step(action)
            expected += np.where(done, 0.0, reward)
            length += ~done
            done |= terminated | truncated
        total += expected
        _, reward, terminated, truncated, info = double.step(action)
        over = terminated | truncated
        np.testing.assert_allclose(info["episode_return"][over & done], total[over & done], rtol=1e-12)
        np.testing.assert_array_equal(info["episode_length"][over & done], length[over & done])
        if (over & done).any():
            assert (length[over & done] % 3 != 0).any(), "an end in the middle of a repeat is what this is about"
            return  # after its end a single world has already begun the next episode: compare no further
    pytest.fail("no end was compared")


def test_actions_beyond_one_are_clipped() -> None:
    one, other = sim.make("halfcheetah", 1, seed=0), sim.make("halfcheetah", 1, seed=0)
    a, b = one.step(np.full((1, 6), 3.0)), other.step(np.ones((1, 6)))
    np.testing.assert_array_equal(a[0], b[0])
    np.testing.assert_array_equal(a[1], b[1])


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (lambda: sim.make("halfchetah"), "did you mean 'halfcheetah'"),
        (lambda: sim.make("hopper", 0), "num_worlds must be at least 1"),
        (lambda: sim.make("hopper", threads=0), "threads must be at least 1"),
        (lambda: sim.make("hopper", 2).step(np.zeros((2, 4))), r"shape \(2, 4\), hopper needs \(2, 3\)"),
        (lambda: sim.make("hopper", 2).step(np.full((2, 3), np.nan)), "'thigh_joint.effort' of world 0 is nan"),
        (lambda: sim.make("hopper", 2).set_state(np.zeros((2, 5)), np.zeros((2, 6))), r"qpos has shape \(2, 5\)"),
        (lambda: sim.make("hopper", 2).restore(sim.make("hopper", 3).get_state()), "does not fit 2 worlds of hopper"),
        (lambda: sim.make("hopper", 2).restore({}), "has nothing"),
        (lambda: sim.make("hopper", 2).reset(seed=[1]), "1 seeds for 2 worlds"),
    ],
)
def test_a_mistake_is_told_in_one_sentence(mistake: object, message: str) -> None:
    with pytest.raises((ValueError, LookupError), match=message):
        mistake()  # type: ignore[operator]


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "dm_control" else real(name))
    with pytest.raises(LookupError, match=r'needs the package dm_control.*robot-cl\[suites\]'):
        sim.make("walker-walk")


def test_originals_ids_are_aliases() -> None:
    assert sim.get_task("HalfCheetah-v5") is sim.TASKS["halfcheetah"]
    assert sim.get_task("dm_control/walker-run") is sim.TASKS["walker-run"]


def test_channels_carry_joint_names_and_units() -> None:
    cheetah, ant = sim.make("halfcheetah").interface, sim.make("ant").interface
    units = {c.name: c.unit for c in (*cheetah.obs, *ant.obs)}
    assert units["rootz.position"] == "m" and units["bthigh.position"] == "rad" and units["bthigh.velocity"] == "rad/s"
    assert units["root.z"] == "m" and units["root.vx"] == "m/s" and units["torso.contact_force_z"] == "N"
    assert [c.name for c in cheetah.action][:2] == ["bthigh.effort", "bshin.effort"]


def test_a_forked_child_steps_like_its_parent() -> None:
    world = sim.make("hopper", 4, threads=2, seed=0)
    action = np.zeros((4, 3))
    world.step(action)
    saved = world.get_state()
    expected = world.step(action)[0]
    world.restore(saved)
    read, write = os.pipe()
    if os.fork() == 0:
        signal.alarm(30)  # a child that waits for threads it does not have fails instead of hanging
        os.write(write, world.step(action)[0].tobytes())
        os._exit(0)
    os.close(write)
    assert os.read(read, expected.nbytes) == expected.tobytes()
    os.wait()
    os.close(read)


def test_threads_end_with_their_world() -> None:
    before = set(threading.enumerate())  # threads of earlier worlds may still be ending
    world = sim.make("hopper", 4, threads=3)
    own = set(threading.enumerate()) - before
    assert len(own) == 2
    del world
    gc.collect()
    for thread in own:
        thread.join(timeout=5)
    assert not any(thread.is_alive() for thread in own)


def test_an_error_in_a_thread_reaches_the_caller_and_the_pool_lives_on() -> None:
    pool, seen = Pool(2), []

    def fail(indices: object) -> None:
        raise RuntimeError("in a thread")

    for _ in range(3):
        with pytest.raises(RuntimeError, match="in a thread"):
            pool.each(fail, range(4))
    pool.each(lambda indices: seen.extend(indices), range(50))
    assert sorted(seen) == list(range(50))


def test_ctrl_c_waits_for_the_threads_and_the_pool_lives_on() -> None:
    pool, caller, taken, seen = Pool(2), threading.main_thread(), threading.Event(), []

    def work(items: Iterator[int]) -> None:
        for _ in items:
            if threading.current_thread() is caller:
                taken.wait(10)
                continue
            taken.set()
            time.sleep(0.05)  # until the caller waits
            signal.pthread_kill(caller.ident or 0, signal.SIGINT)
            time.sleep(0.05)
            seen.append("thread")

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    try:
        with pytest.raises(KeyboardInterrupt):
            pool.each(work, range(2))
    finally:
        signal.signal(signal.SIGINT, before)
    assert seen == ["thread"]
    pool.each(lambda items: seen.extend(items), range(4))
    assert sorted(seen[1:]) == [0, 1, 2, 3]


def test_importing_sim_stays_light() -> None:
    heavy = "{'torch', 'gymnasium', 'dm_control'}"
    code = f"import sys, sim; sim.make('hopper', 2); print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_the_engines_clock_is_not_read_while_worlds_step_but_a_users_clock_is() -> None:
    world = sim.make("hopper", num_worlds=2)
    action = np.zeros((2, 3))
    mujoco.MjData(world.model)  # MuJoCo's package sets its clock with every one of these
    before = [timer.duration for timer in world._datas[0].timer]
    world.step(action)
    assert [timer.duration for timer in world._datas[0].timer] == before
    readings = itertools.count()
    mujoco.set_mjcb_time(lambda: float(next(readings)))
    try:
        world.step(action)
    finally:
        mujoco.set_mjcb_time(None)
    assert next(readings) > 0
