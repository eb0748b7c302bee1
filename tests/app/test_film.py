"""Films play in a browser: H.264, yuv420p, real time; and one can always be made."""

from __future__ import annotations

import re
import resource
import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest

import sim
from robot_cl.evaluate import Film
from robot_cl.film import captioned, write_film, write_side_by_side


def film(frames: int = 6, dt: float = 0.05) -> Film:
    world = sim.make("halfcheetah", seed=1)
    states = []
    for k in range(frames):
        states.append(world.get_qpos()[0])
        world.step(np.full((1, 6), np.sin(k)))
    return Film("halfcheetah", np.stack(states), dt, 1, 0.0)


def probe(path: Path) -> str:
    """What ffmpeg says about a file."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-i", str(path), "-f", "null", "-"]
    return subprocess.run(command, capture_output=True, text=True).stderr


def test_a_film_is_what_browsers_play_and_as_long_as_the_episode(tmp_path: Path) -> None:
    report = write_film(film(), tmp_path / "a" / "b.mp4", 64, 48, "skeleton")
    said = probe(report.path)
    assert "h264" in said and "yuv420p" in said and "64x48" in said and "20 fps" in said
    assert re.search(r"frame=\s*6\b", said) and report.frames == 6 and report.seconds == pytest.approx(0.3)
    assert report.backend == "skeleton"
    data = report.path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")  # plays before it is whole


def test_the_picture_moves(tmp_path: Path) -> None:
    path = write_film(film(20), tmp_path / "a.mp4", 64, 48, "skeleton").path
    reader = imageio_ffmpeg.read_frames(str(path))
    next(reader)
    frames = [np.frombuffer(frame, np.uint8).astype(int) for frame in reader]
    assert len(frames) == 20 and np.abs(frames[0] - frames[-1]).max() > 60


def test_without_naming_a_backend_there_is_always_a_film(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sim import render

    def broken(*args: object) -> None:
        raise OSError("no OpenGL here")

    monkeypatch.setattr(render.Worker, "__init__", broken)
    assert write_film(film(2), tmp_path / "a.mp4", 64, 48).backend == "skeleton"


def test_films_stand_side_by_side_and_a_shorter_one_waits(tmp_path: Path) -> None:
    said: list[tuple[float, float]] = []
    report = write_side_by_side(
        [("first", film(3)), ("second", film(6))],
        tmp_path / "a.mp4", 64, 48, "skeleton", lambda done, total: said.append((done, total)),
    )  # fmt: skip
    assert "128x48" in probe(report.path) and report.frames == 6 and said[-1] == (6, 6)


def test_a_caption_is_drawn_in_the_corner() -> None:
    frame = np.full((48, 64, 3), 120, np.uint8)
    changed = np.argwhere((captioned(frame, "hi") != frame).any(-1))
    assert len(changed) and changed.max(0)[0] < 30
    np.testing.assert_array_equal(captioned(frame, ""), frame)


def test_a_film_that_fails_leaves_nothing(tmp_path: Path) -> None:
    bad = Film("halfcheetah", np.zeros((3, 5)), 0.05, 1, 0.0)
    with pytest.raises(ValueError, match=r"qpos \(9,\)"):
        write_film(bad, tmp_path / "a.mp4", 64, 48, "skeleton")
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="even"):
        write_film(film(2), tmp_path / "a.mp4", 63, 48)
    with pytest.raises(ValueError, match="nothing to film"):
        write_film(Film("hopper", np.zeros((0, 6)), 0.05, 1, 0.0), tmp_path / "a.mp4")
    with pytest.raises(ValueError, match="same frame rate"):
        write_side_by_side([("a", film(2)), ("b", film(2, dt=0.1))], tmp_path / "a.mp4")


def test_a_film_that_finds_no_room_is_not_taken_for_whole(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1500, hard))  # the encoder inherits it
    try:
        with pytest.raises(OSError, match="could not be written to its end"):
            write_film(film(), tmp_path / "a.mp4", 64, 48, "skeleton")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())
