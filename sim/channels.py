"""Channel names and units read from a model's joints, bodies and actuators."""

from __future__ import annotations

import mujoco
import numpy as np

from sim.spec import Channel

JOINT = mujoco.mjtJoint
FREE_POSITION = [("x", "m"), ("y", "m"), ("z", "m"), ("qw", "1"), ("qx", "1"), ("qy", "1"), ("qz", "1")]
FREE_VELOCITY = [(f"v{a}", "m/s") for a in "xyz"] + [(f"w{a}", "rad/s") for a in "xyz"]


def positions(model: mujoco.MjModel) -> list[Channel]:
    """One channel per number of qpos: "bthigh.position" [rad], "rootz.position" [m], "root.qw" [1]."""
    channels = []
    for j in range(model.njnt):
        name, kind = joint_name(model, j), model.jnt_type[j]
        if kind == JOINT.mjJNT_FREE:
            channels += [Channel(f"{name}.{part}", unit) for part, unit in FREE_POSITION]
        elif kind == JOINT.mjJNT_BALL:
            channels += [Channel(f"{name}.{part}", unit) for part, unit in FREE_POSITION[3:]]
        else:
            channels.append(Channel(f"{name}.position", "m" if kind == JOINT.mjJNT_SLIDE else "rad"))
    return channels


def velocities(model: mujoco.MjModel, limit: float = np.inf) -> list[Channel]:
    """One channel per number of qvel, bounded by ±limit in its unit."""
    channels = []
    for j in range(model.njnt):
        name, kind = joint_name(model, j), model.jnt_type[j]
        if kind == JOINT.mjJNT_FREE:
            parts = FREE_VELOCITY
        elif kind == JOINT.mjJNT_BALL:
            parts = FREE_VELOCITY[3:]
        else:
            parts = [("velocity", "m/s" if kind == JOINT.mjJNT_SLIDE else "rad/s")]
        channels += [Channel(f"{name}.{part}", unit, -limit, limit) for part, unit in parts]
    return channels


def contact_forces(model: mujoco.MjModel, limit: float) -> list[Channel]:
    """External torque and force on every body but the world, bounded by ±limit."""
    parts = [(f"contact_torque_{a}", "N m") for a in "xyz"] + [(f"contact_force_{a}", "N") for a in "xyz"]
    return [
        Channel(f"{body_name(model, b)}.{part}", unit, -limit, limit)
        for b in range(1, model.nbody)
        for part, unit in parts
    ]


def efforts(model: mujoco.MjModel) -> tuple[Channel, ...]:
    """One channel per actuator, named by its joint: the motor input "bthigh.effort" [1], gear applied by the model."""
    channels = []
    for a in range(model.nu):
        low, high = model.actuator_ctrlrange[a] if model.actuator_ctrllimited[a] else (-1.0, 1.0)
        channels.append(Channel(f"{actuator_joint(model, a)}.effort", "1", float(low), float(high)))
    return tuple(channels)


def joint_name(model: mujoco.MjModel, joint: int) -> str:
    return model.joint(joint).name or f"joint{joint}"


def body_name(model: mujoco.MjModel, body: int) -> str:
    return model.body(body).name or f"body{body}"


def actuator_joint(model: mujoco.MjModel, actuator: int) -> str:
    """The joint an actuator drives, or the actuator's own name where it drives no single joint."""
    if model.actuator_trntype[actuator] == mujoco.mjtTrn.mjTRN_JOINT:
        return joint_name(model, int(model.actuator_trnid[actuator, 0]))
    return model.actuator(actuator).name or f"actuator{actuator}"
