"""Tasks on torch tensors, and worlds stepped by MuJoCo Warp beside the ones stepped by MuJoCo."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import mujoco
import numpy as np
import pytest
import torch

import sim
from robot_cl import warp_worlds
from robot_cl.cli import main
from sim.tasks import TASKS

warped = pytest.mark.skipif(
    importlib.util.find_spec("mujoco_warp") is None,
    reason="mujoco-warp is not installed: pip install 'robot-cl[gpu]' (its kernels compile for half a minute)",
)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("name", sorted(TASKS))
def test_a_task_says_the_same_on_tensors_as_on_arrays(name: str) -> None:
    assert warp_worlds.NAMESPACES[torch.Tensor] is torch
    task, rng = TASKS[name], np.random.default_rng(0)
    model = task.load_model()
    data = mujoco.MjData(model)
    states = []
    for _ in range(2):
        rows = []
        for _ in range(3):
            data.qpos[:] = model.qpos0 + rng.normal(0, 0.1, model.nq)
            data.qvel[:] = rng.normal(0, 1, model.nv)
            mujoco.mj_forward(model, data)
            rows.append({key: np.array(value).reshape(1, -1) for key, value in task.gather(model, data).items()})
        states.append({key: np.concatenate([row[key] for row in rows]) for key in rows[0]})
    tensors = [{key: torch.from_numpy(value) for key, value in state.items()} for state in states]
    action = rng.uniform(-1, 1, (3, model.nu)).astype(np.float64)
    pairs = [
        (task.observe(states[1]), task.observe(tensors[1])),
        (task.reward(*states, action), task.reward(*tensors, torch.from_numpy(action))),
        (task.terminated(states[1]), task.terminated(tensors[1])),
    ]
    for on_arrays, on_tensors in pairs:
        assert isinstance(on_tensors, torch.Tensor)
        np.testing.assert_allclose(on_tensors.numpy(), on_arrays, rtol=1e-12, atol=1e-12)


def test_what_is_missing_is_said_with_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "mujoco_warp", None)
    with pytest.raises(ImportError, match=r"pip install 'robot-cl\[gpu\]'"):
        warp_worlds.WarpWorld("hopper", 1, device="cpu")


@warped
def test_warps_worlds_follow_mujocos_within_a_thousandth() -> None:
    ours, plain = warp_worlds.WarpWorld("halfcheetah", 2, 3, DEVICE), sim.make("halfcheetah", 2, threads=1, seed=3)
    assert ours.interface.digest == plain.interface.digest
    np.testing.assert_allclose(ours.reset(3), plain.reset(3), atol=1e-6)
    rng = np.random.default_rng(0)
    for _ in range(5):
        action = rng.uniform(-1.5, 1.5, (2, 6))
        (obs, reward, *flags, info), (expected, wanted, *ends, said) = ours.step(action), plain.step(action)
        np.testing.assert_allclose(obs, expected, atol=1e-3)
        np.testing.assert_allclose(reward, wanted, atol=1e-3)
        assert [flag.tolist() for flag in flags] == [end.tolist() for end in ends]
        np.testing.assert_allclose(info["episode_return"], said["episode_return"], atol=5e-3)


@warped
def test_an_ended_world_starts_anew_and_the_others_go_on() -> None:
    ours, plain = warp_worlds.WarpWorld("halfcheetah", 2, 0, DEVICE), sim.make("halfcheetah", 2, threads=1)
    still = np.zeros((2, 6))
    ours._elapsed[1] = ours.task.time_limit - 1
    obs, _, _, truncated, info = ours.step(still)
    assert truncated.tolist() == [False, True] and info["episode_length"].tolist() == [1, ours.task.time_limit]
    assert np.abs(info["final_obs"][1] - obs[1]).max() > 0.01 and np.array_equal(info["final_obs"][0], obs[0])
    expected = [plain.reset(0), plain.reset()]  # the second start of generator 1 is what follows its first
    np.testing.assert_allclose(obs[1], expected[1][1], atol=1e-6)
    assert ours.step(still)[4]["episode_length"].tolist() == [2, 1]


@warped
def test_a_restored_world_goes_on_where_the_saved_one_did() -> None:
    first, second = (warp_worlds.WarpWorld("halfcheetah", 2, seed, DEVICE) for seed in (0, 5))
    actions = np.random.default_rng(0).uniform(-1, 1, (4, 2, 6))
    first.step(actions[0])
    second.restore(first.get_state())
    first._elapsed[0] = second._elapsed[0] = first.task.time_limit - 2
    for action in actions[1:]:
        for a, b in zip(first.step(action)[:4], second.step(action)[:4], strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6)
    with pytest.raises(ValueError, match="does not fit 2 worlds of halfcheetah: qpos differs"):
        first.restore({})


@warped
def test_training_steps_its_worlds_in_warp_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["train", "learner=ppo", "task=halfcheetah", "engine=warp", "num_worlds=2", "learner.horizon=4", "name=w"]
    words += ["learner.minibatch=8", "learner.epochs=1", "online_steps=16", "checkpoint_every=8", "eval_every=0"]
    assert main([*words, "learner.actor.hidden=[8]", "learner.critic.hidden=[8]", "tensorboard=false", "--quiet"]) == 0
    assert main(["resume", "w", "--quiet"]) == 0 and len(list(tmp_path.glob("runs/*/checkpoints/16"))) == 1


@warped
def test_a_task_that_reads_more_than_positions_is_refused() -> None:
    with pytest.raises(ValueError, match="task ant reads xpos of a simulation"):
        warp_worlds.WarpWorld("ant", 1, device=DEVICE)
