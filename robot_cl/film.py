"""Films of recorded states: mp4 that any browser plays, rendered headless, or drawn where no OpenGL exists."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from robot_cl.evaluate import Film
from sim import render

WIDTH, HEIGHT = 480, 360
QUALITY = ["-crf", "24", "-preset", "veryfast", "-movflags", "+faststart"]
Progress = Callable[[float, float], None]


@dataclass(frozen=True)
class FilmReport:
    """A film on disk: real-time seconds of the episode it shows, and what drew it ("egl", "osmesa", "skeleton")."""

    path: Path
    frames: int
    seconds: float
    backend: str


def write_film(
    film: Film,
    path: Path,
    width: int = WIDTH,
    height: int = HEIGHT,
    backend: str | None = None,
    progress: Progress | None = None,
) -> FilmReport:
    """Render `film` in real time to `path` (.mp4, H.264, yuv420p), whole or not at all.

    Raises ValueError for odd sizes or a film without states, OSError where ffmpeg or a demanded backend fails.
    """
    if width % 2 or height % 2:
        raise ValueError(f"a film's width and height must be even, got {width} × {height}")
    if not len(film.qpos):
        raise ValueError("there is nothing to film; record states with film_seconds")
    from sim.tasks import get_task

    fps = 1.0 / film.dt
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.stem}.part.mp4")
    with render.Renderer(get_task(film.task).load_model(), width, height, backend) as renderer:
        try:
            _encode(_drawn(renderer, film.qpos, progress), part, (width, height), fps)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
        return FilmReport(path, len(film.qpos), len(film.qpos) * film.dt, renderer.backend)


def _drawn(renderer: render.Renderer, qpos: np.ndarray, progress: Progress | None) -> Iterator[np.ndarray]:
    for k, state in enumerate(qpos):
        yield renderer.frame(state)
        if progress is not None:
            progress(k + 1, len(qpos))


def _encode(frames: Iterator[np.ndarray], path: Path, size: tuple[int, int], fps: float) -> None:
    import imageio_ffmpeg

    writer = imageio_ffmpeg.write_frames(
        str(path), size, fps=fps, codec="libx264", pix_fmt_out="yuv420p", macro_block_size=2, output_params=QUALITY
    )
    writer.send(None)
    try:
        for frame in frames:
            writer.send(np.ascontiguousarray(frame))
    finally:
        writer.close()
