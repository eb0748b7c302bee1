"""Draws frames in a process of its own, so that no OpenGL fault can stop or hang the caller.

Started as `python -m sim.render_worker MODEL.mjb WIDTH HEIGHT` with MUJOCO_GL set. It writes one byte when the context
stands, then for each nq float64 on its input one frame of WIDTH × HEIGHT × 3 bytes on its output.
"""

from __future__ import annotations

import os
import sys

import mujoco
import numpy as np

CAMERAS = ("track", "side")


def camera_of(model: mujoco.MjModel) -> mujoco.MjvCamera:
    """The model's own side camera where it has one, else one that follows the first body."""
    camera = mujoco.MjvCamera()
    mujoco.mjv_defaultFreeCamera(model, camera)
    for name in CAMERAS:
        index = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_CAMERA, name)
        if index >= 0:
            camera.type, camera.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, index
            return camera
    if model.nbody > 1:
        camera.type, camera.trackbodyid = mujoco.mjtCamera.mjCAMERA_TRACKING, 1
    return camera


def main(path: str, width: int, height: int) -> None:
    # Whatever a driver prints must not end up between the frames.
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    model = mujoco.MjModel.from_binary_path(path)
    model.vis.global_.offwidth = max(model.vis.global_.offwidth, width)
    model.vis.global_.offheight = max(model.vis.global_.offheight, height)
    # Software rendering spends two thirds of a frame on the usual shadow map of 4096² pixels.
    model.vis.quality.shadowsize = min(model.vis.quality.shadowsize, 1024)
    data, camera = mujoco.MjData(model), camera_of(model)
    renderer = mujoco.Renderer(model, height, width)
    out.write(b"+")
    out.flush()
    while len(packed := sys.stdin.buffer.read(8 * model.nq)) == 8 * model.nq:
        data.qpos[:] = np.frombuffer(packed, dtype=np.float64)
        mujoco.mj_forward(model, data)
        renderer.update_scene(data, camera)
        out.write(renderer.render().tobytes())
        out.flush()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
    sys.stderr.flush()
    os._exit(0)  # some drivers complain or hang while a context is taken down
