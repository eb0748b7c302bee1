"""Pictures of worlds: OpenGL through EGL, else OSMesa, each in a process of its own, else a drawn skeleton."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import mujoco
import numpy as np

from sim.skeleton import Skeleton
from sim.task import Task
from sim.tasks import get_task

OPENGL = ("egl", "osmesa")
SKELETON = "skeleton"
BACKENDS = (*OPENGL, SKELETON)
ADVICE = "for full pictures install Mesa: apt-get install libegl1 libgl1-mesa-dri (EGL) or libosmesa6 (OSMesa)"
START_SECONDS, FRAME_SECONDS = 30.0, 20.0  # software rendering of a large frame takes about a second
WIDTH, HEIGHT = 320, 240


@dataclass(frozen=True)
class Backend:
    """What pictures are made with: "egl", "osmesa" or "skeleton", and what to install for better ones ("" if none)."""

    name: str
    advice: str


class Worker:
    """A process that renders one model with one OpenGL backend. Raises OSError when it fails or takes too long."""

    def __init__(self, model: mujoco.MjModel, gl: str, width: int, height: int):
        self._shape, self._gl = (height, width, 3), gl
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.mjb"
            mujoco.mj_saveModel(model, str(path), None)
            self._process = subprocess.Popen(
                [sys.executable, "-m", "sim.render_worker", str(path), str(width), str(height)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                env=_environment(gl),
            )
            self._read(1, START_SECONDS)  # the model file may go once the context stands

    def frame(self, qpos: np.ndarray) -> np.ndarray:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(np.asarray(qpos, dtype=np.float64).tobytes())
        except BrokenPipeError:
            self.close()
            raise OSError(f"OpenGL through {self._gl} ended early") from None
        return np.frombuffer(self._read(int(np.prod(self._shape)), FRAME_SECONDS), np.uint8).reshape(self._shape)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def _read(self, count: int, seconds: float) -> bytes:
        assert self._process.stdout is not None
        handle, deadline, parts = self._process.stdout.fileno(), time.monotonic() + seconds, bytearray()
        while len(parts) < count:
            ready, _, _ = select.select([handle], [], [], max(0.0, deadline - time.monotonic()))
            part = os.read(handle, count - len(parts)) if ready else b""
            if not part:
                self.close()
                raise OSError(f"OpenGL through {self._gl} {'ended early' if ready else f'took over {seconds:g} s'}")
            parts += part
        return bytes(parts)


def _environment(gl: str) -> dict[str, str]:
    """This process's variables with the backend chosen, and with this package on the path."""
    own = {"MUJOCO_GL": gl, "PYOPENGL_PLATFORM": gl}
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    return {**os.environ, **own, "PYTHONPATH": path}


class Renderer:
    """Frames of one model, one at a time; falls back along EGL, OSMesa, skeleton and says in `backend` where it is."""

    def __init__(self, model: mujoco.MjModel, width: int = WIDTH, height: int = HEIGHT, backend: str | None = None):
        if backend not in (None, *BACKENDS):
            raise ValueError(f"backend {backend!r} is not known; one of {', '.join(BACKENDS)}")
        if width < 16 or height < 16:
            raise ValueError(f"a frame is at least 16 × 16 pixels, got {width} × {height}")
        self._model, self._width, self._height = model, width, height
        self._left = [backend] if backend else list(BACKENDS)
        self._artist: Worker | Skeleton | None = None
        self.backend = ""

    def frame(self, qpos: np.ndarray) -> np.ndarray:
        """qpos (nq,) -> (H, W, 3) uint8. Raises ValueError for another shape, OSError if a demanded backend fails."""
        if np.shape(qpos) != (self._model.nq,):
            raise ValueError(f"a state to draw is qpos ({self._model.nq},), got shape {np.shape(qpos)}")
        while True:
            try:
                if self._artist is None:
                    self.backend = self._left[0]
                    self._artist = self._make(self.backend)
                return self._artist.frame(qpos)
            except OSError:
                self.close()
                if len(self._left) == 1:
                    raise
                self._left.pop(0)

    def close(self) -> None:
        if isinstance(self._artist, Worker):
            self._artist.close()
        self._artist = None

    def __enter__(self) -> Renderer:
        return self

    def __exit__(self, *problem: object) -> None:
        self.close()

    def __del__(self) -> None:
        if isinstance(getattr(self, "_artist", None), Worker):
            self.close()

    def _make(self, backend: str) -> Worker | Skeleton:
        if backend == SKELETON:
            return Skeleton(self._model, self._width, self._height)
        return Worker(self._model, backend, self._width, self._height)


def stream(
    model: mujoco.MjModel | Task | str,
    states: Iterable[np.ndarray],
    width: int = WIDTH,
    height: int = HEIGHT,
    backend: str | None = None,
) -> Iterator[np.ndarray]:
    """One frame (H, W, 3) uint8 per state, made as it is asked for; a state is qpos (nq,) or qpos and qvel together."""
    if isinstance(model, str):
        model = get_task(model)
    if isinstance(model, Task):
        model = model.load_model()
    with Renderer(model, width, height, backend) as renderer:
        for state in states:
            joined = np.shape(state) == (model.nq + model.nv,)
            yield renderer.frame(np.asarray(state)[: model.nq] if joined else np.asarray(state))


def frames(
    model: mujoco.MjModel | Task | str,
    states: np.ndarray,
    width: int = WIDTH,
    height: int = HEIGHT,
    backend: str | None = None,
) -> np.ndarray:
    """A film of recorded states (T, nq) or (T, nq + nv) -> (T, H, W, 3) uint8. Works where no OpenGL exists."""
    made = list(stream(model, states, width, height, backend))
    return np.stack(made) if made else np.empty((0, height, width, 3), np.uint8)


def backend() -> Backend:
    """Which backend works here, found by drawing one small frame (seconds, if OpenGL is broken)."""
    model = mujoco.MjModel.from_xml_string("<mujoco><worldbody><geom size='1'/></worldbody></mujoco>")
    with Renderer(model, 16, 16) as renderer:
        renderer.frame(model.qpos0)
        return Backend(renderer.backend, ADVICE if renderer.backend == SKELETON else "")
