"""Films: a picture is possible on every machine, and broken OpenGL neither stops nor hangs anyone."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

import sim
from sim import render
from sim.render_worker import camera_of

T, H, W = 3, 48, 64


def standing(task: str, steps: int = T) -> np.ndarray:
    """States of a short run: (steps, nq)."""
    world = sim.make(task)
    states = []
    for _ in range(steps):
        states.append(world.get_qpos()[0])
        world.step(np.ones((1, world.interface.act_dim)))
    return np.stack(states)


@pytest.mark.parametrize("task", sorted(sim.TASKS))
def test_a_skeleton_film_shows_every_robot_moving(task: str) -> None:
    film = render.frames(task, standing(task, 12)[::11], W, H, backend="skeleton")
    assert film.shape == (2, H, W, 3) and film.dtype == np.uint8
    assert (film[0] != film[1]).any()
    sky = film[0, 0, 0]
    robot = (film[0][: int(0.8 * H)] != sky).any(axis=-1)
    assert 0.01 < robot.mean() < 0.5, "the robot fills a visible but not the whole part above the floor"


def test_the_skeleton_is_where_the_robot_is() -> None:
    """Lifted by a metre, the drawn robot moves up and the floor stays."""
    low = standing("hopper", 1)[0]
    high = low.copy()
    high[1] += 0.5
    film = render.frames("hopper", np.stack([low, high]), 160, 120, backend="skeleton")
    tops = [np.flatnonzero((frame != frame[0, 0]).any(axis=(1, 2)))[0] for frame in film]
    assert tops[1] < tops[0] - 10
    np.testing.assert_array_equal(film[0][-5:], film[1][-5:])


def test_the_camera_follows_so_that_running_far_keeps_the_robot_in_the_picture() -> None:
    near = standing("halfcheetah", 1)[0]
    far = near.copy()
    far[0] += 100.0  # an even number of metre tiles, so that the floor looks the same
    film = render.frames("halfcheetah", np.stack([near, far]), W, H, backend="skeleton")
    assert np.abs(film[0].astype(int) - film[1]).mean() < 1.0


def test_states_may_carry_velocities_and_other_shapes_are_refused() -> None:
    qpos = standing("hopper", 1)
    both = np.concatenate([qpos, np.ones((1, 6))], axis=1)
    np.testing.assert_array_equal(
        render.frames("hopper", qpos, W, H, "skeleton"), render.frames("hopper", both, W, H, "skeleton")
    )
    with pytest.raises(ValueError, match=r"qpos \(6,\), got shape \(5,\)"):
        render.frames("hopper", np.zeros((1, 5)), W, H, "skeleton")
    with pytest.raises(ValueError, match="one of egl, osmesa, skeleton"):
        render.frames("hopper", qpos, W, H, "vulkan")


def test_no_states_make_an_empty_film() -> None:
    assert render.frames("hopper", np.empty((0, 6)), W, H, "skeleton").shape == (0, H, W, 3)


def use_worker(monkeypatch: pytest.MonkeyPatch, folder: Path, script: str) -> None:
    """Replace the interpreter that draws by a script, to play a driver that fails in some way."""
    fake = folder / "python"
    fake.write_text(f"#!{sys.executable}\nimport os, sys, time\n{script}\n")
    fake.chmod(0o755)
    monkeypatch.setattr(render.sys, "executable", str(fake))


@pytest.mark.parametrize(
    "script",
    [
        "sys.exit(1)",
        "os.kill(os.getpid(), 11)",
        "time.sleep(600)",
        "os.write(1, b'+'); sys.exit(0)",
        "os.write(1, b'+'); time.sleep(600)",
        "os.write(1, b'+' + b'x' * 100); time.sleep(600)",
    ],
    ids=["fails", "crashes", "hangs", "ends", "hangs in a frame", "hangs in the middle of a frame"],
)
def test_broken_opengl_falls_back_to_the_skeleton(
    script: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(render, "START_SECONDS", 0.3)
    monkeypatch.setattr(render, "FRAME_SECONDS", 0.3)
    use_worker(monkeypatch, tmp_path, script)
    states = standing("hopper", 2)
    np.testing.assert_array_equal(
        render.frames("hopper", states, W, H), render.frames("hopper", states, W, H, "skeleton")
    )
    assert render.backend().name == "skeleton" and "apt-get install" in render.backend().advice
    with pytest.raises(OSError, match="OpenGL through egl"):
        render.frames("hopper", states, W, H, "egl")


def test_the_best_backend_there_is_draws_the_env() -> None:
    env = sim.make_env("hopper", render_mode="rgb_array")
    env.reset(seed=0)
    first = env.render()
    env.step(np.ones(3, dtype=np.float32))
    second = env.render()
    env.close()
    assert first is not None and first.shape == (render.HEIGHT, render.WIDTH, 3) and (first != second).any()
    assert render.backend().name in render.BACKENDS


def test_a_models_own_side_camera_is_used() -> None:
    for task, name in (("halfcheetah", "track"), ("walker-walk", "side")):
        model = sim.TASKS[task].load_model()
        assert camera_of(model).fixedcamid == model.camera(name).id
