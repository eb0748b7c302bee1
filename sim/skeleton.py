"""A film without OpenGL: the robot's bodies as capsules seen from the side, drawn with Pillow from joint positions."""

from __future__ import annotations

import mujoco
import numpy as np

GEOM = mujoco.mjtGeom
SKY, FLOOR, TILE, OUTLINE = (232, 238, 244), (196, 204, 210), (176, 186, 194), (40, 48, 56)
NEAR, FAR = np.array([214.0, 120.0, 48.0]), np.array([112.0, 140.0, 168.0])
DEPTH_TO_RIGHT, DEPTH_UP = 0.25, 0.2  # oblique projection: what lies further back is drawn further up
SMOOTH = 2  # drawn twice as large and scaled down


class Skeleton:
    """Draws one model at `width` × `height`; remembers scratch data and the scale (pixels per metre)."""

    def __init__(self, model: mujoco.MjModel, width: int, height: int):
        self._model, self._data = model, mujoco.MjData(model)
        self._size = (width * SMOOTH, height * SMOOTH)
        self._root = 1 if model.nbody > 1 else 0
        mujoco.mj_kinematics(model, self._data)
        ground = (GEOM.mjGEOM_PLANE, GEOM.mjGEOM_HFIELD)
        self._geoms = [g for g in range(model.ngeom) if model.geom_type[g] not in ground]
        self._scale = 0.55 * self._size[1] / self._span()
        self._floor = 0.84 * self._size[1]

    def _span(self) -> float:
        """A length that holds the robot in its initial pose."""
        at = self._data.geom_xpos[self._geoms] if self._geoms else np.zeros((1, 3))
        reach = self._model.geom_rbound[self._geoms].max() if self._geoms else 0.5
        return float(max(np.ptp(at, axis=0).max(), at[:, 2].max()) + reach)

    def frame(self, qpos: np.ndarray) -> np.ndarray:
        """qpos (nq,) -> (H, W, 3) uint8."""
        from PIL import Image, ImageDraw

        self._data.qpos[:] = qpos
        mujoco.mj_kinematics(self._model, self._data)
        image = Image.new("RGB", self._size, SKY)
        draw = ImageDraw.Draw(image)
        self._draw_floor(draw)
        depth = self._data.geom_xpos[:, 1]
        for g in sorted(self._geoms, key=lambda g: -depth[g]):
            self._draw_geom(draw, g)
        small = image.resize((self._size[0] // SMOOTH, self._size[1] // SMOOTH), Image.Resampling.BOX)
        return np.asarray(small, dtype=np.uint8)

    def _pixel(self, point: np.ndarray) -> tuple[float, float]:
        """World coordinates to pixels, the root body in the middle."""
        x, y, z = point - self._data.xpos[self._root] * np.array([1.0, 1.0, 0.0])
        across, up = x + DEPTH_TO_RIGHT * y, z + DEPTH_UP * y
        return self._size[0] / 2 + self._scale * across, self._floor - self._scale * up

    def _draw_floor(self, draw: object) -> None:
        """Tiles of one metre that pass by as the robot moves."""
        width, height = self._size
        draw.rectangle([0, self._floor, width, height], fill=FLOOR)  # type: ignore[attr-defined]
        first = -(self._data.xpos[self._root, 0] % 2.0) * self._scale + width / 2
        for k in range(-int(width / self._scale) - 2, int(width / self._scale) + 3, 2):
            left = first + k * self._scale
            draw.rectangle([left, self._floor, left + self._scale, height], fill=TILE)  # type: ignore[attr-defined]

    def _draw_geom(self, draw: object, geom: int) -> None:
        size, at = self._model.geom_size[geom], self._data.geom_xpos[geom]
        kind = self._model.geom_type[geom]
        long = kind in (GEOM.mjGEOM_CAPSULE, GEOM.mjGEOM_CYLINDER)
        half = size[1] if long else size.max() if kind == GEOM.mjGEOM_BOX else 0.0
        radius = size[0] if long or kind == GEOM.mjGEOM_SPHERE else max(size.min(), 0.02)
        along = self._data.geom_xmat[geom].reshape(3, 3)[:, 2 if long else int(np.argmax(size))] * half
        ends, wide = [self._pixel(at - along), self._pixel(at + along)], max(radius * self._scale, 2.0)
        share = np.clip(2.0 * (at[1] - self._data.xpos[self._root, 1]), 0.0, 1.0)
        colour = tuple(int(c) for c in NEAR + share * (FAR - NEAR))
        for grow, fill in ((SMOOTH, OUTLINE), (0, colour)):
            draw.line(ends, fill=fill, width=round(2 * (wide + grow)))  # type: ignore[attr-defined]
            for u, v in ends:
                box = [u - wide - grow, v - wide - grow, u + wide + grow, v + wide + grow]
                draw.ellipse(box, fill=fill)  # type: ignore[attr-defined]
