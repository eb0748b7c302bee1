"""Films of recorded states: mp4 that any browser plays, rendered headless, or drawn where no OpenGL exists."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from robot_cl.evaluate import Film
from sim import render
from sim.tasks import get_task

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
    return write_side_by_side([("", film)], path, width, height, backend, progress)


def write_side_by_side(
    films: Sequence[tuple[str, Film]],
    path: Path,
    width: int = WIDTH,
    height: int = HEIGHT,
    backend: str | None = None,
    progress: Progress | None = None,
) -> FilmReport:
    """As `write_film`, with several films of equal frame rate beside each other, each under its caption.

    The film is as long as the longest; an episode that ended earlier stands still.
    """
    if width % 2 or height % 2:
        raise ValueError(f"a film's width and height must be even, got {width} × {height}")
    if not films or not all(len(film.qpos) for _, film in films):
        raise ValueError("there is nothing to film; record states with film_seconds")
    if len({film.dt for _, film in films}) > 1:
        raise ValueError("films side by side need the same frame rate")
    count, dt = max(len(film.qpos) for _, film in films), films[0][1].dt
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.stem}.part.mp4")
    with contextlib.ExitStack() as stack:
        renderers = [
            stack.enter_context(render.Renderer(_model(film), width, height, backend)) for _, film in films
        ]
        try:
            _encode(_drawn(films, renderers, count, progress), part, (width * len(films), height), 1.0 / dt)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
        return FilmReport(path, count, count * dt, renderers[0].backend)


def _model(film: Film) -> Any:
    return film.model if film.model is not None else get_task(film.task).load_model()


def _drawn(
    films: Sequence[tuple[str, Film]], renderers: Sequence[render.Renderer], count: int, progress: Progress | None
) -> Iterator[np.ndarray]:
    """(H, n · W, 3) uint8 frames; a standing picture is not drawn again."""
    last: list[np.ndarray | None] = [None] * len(films)
    for t in range(count):
        for k, ((caption, film), renderer) in enumerate(zip(films, renderers, strict=True)):
            if t < len(film.qpos):
                last[k] = captioned(renderer.frame(film.qpos[t]), caption)
        yield np.concatenate([frame for frame in last if frame is not None], axis=1)
        if progress is not None:
            progress(t + 1, count)


def captioned(frame: np.ndarray, caption: str) -> np.ndarray:
    """The frame (H, W, 3) with a line of text in its upper left corner."""
    if not caption:
        return frame
    from PIL import Image, ImageDraw, ImageFont

    image = Image.fromarray(frame)
    font = ImageFont.load_default(size=max(12, frame.shape[0] // 20))
    draw = ImageDraw.Draw(image)
    draw.text((12, 9), caption, font=font, fill="white", stroke_width=2, stroke_fill=(30, 34, 38))
    return np.asarray(image)


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
    if not path.exists() or b"moov" not in path.read_bytes():  # the encoder's exit code is not passed on
        raise OSError(f"the film in {path.parent} could not be written to its end; is the disk full?")
