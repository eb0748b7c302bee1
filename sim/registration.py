"""Gymnasium ids of the tasks. Imports nothing heavy, because gymnasium itself runs it as a plugin."""

from __future__ import annotations

from gymnasium.envs import registration

NAMESPACE = "robot_cl"
ENV_IDS: dict[str, str] = {
    "Hopper-v0": "hopper",
    "HalfCheetah-v0": "halfcheetah",
    "Walker2d-v0": "walker2d",
    "Ant-v0": "ant",
    "WalkerStand-v0": "walker-stand",
    "WalkerWalk-v0": "walker-walk",
    "WalkerRun-v0": "walker-run",
    "WalkerBackward-v0": "walker-backward",
    "CheetahRun-v0": "cheetah-run",
    "VehicleWaypoint-v0": "vehicle-waypoint",
    "QuadrotorHover-v0": "quadrotor-hover",
    "QuadrotorWaypoint-v0": "quadrotor-waypoint",
    "ArmReach-v0": "arm-reach",
    "ArmPush-v0": "arm-push",
    "ArmSkillsReach-v0": "arm-skills-reach",
    "ArmSkillsPush-v0": "arm-skills-push",
    "ArmSkillsObstacle-v0": "arm-skills-obstacle",
}
# Control steps; the ported tasks have 1000.
TIME_LIMITS: dict[str, int] = {"vehicle-waypoint": 100}
TIME_LIMITS |= dict.fromkeys((task for task in ENV_IDS.values() if task.startswith(("quadrotor-", "arm-"))), 200)


def register_envs() -> None:
    """Make `gymnasium.make("robot_cl/Hopper-v0")` and `gymnasium.make_vec` know every task.

    Runs at the import of sim.env, and as the package's "gymnasium.envs" entry point, which brings the namespace.
    """
    prefix = "" if registration.current_namespace else f"{NAMESPACE}/"
    for name, task in ENV_IDS.items():
        if f"{NAMESPACE}/{name}" not in registration.registry:
            registration.register(
                id=prefix + name,
                entry_point="sim.env:make_env",
                vector_entry_point="sim.env:make_vector_env",
                max_episode_steps=TIME_LIMITS.get(task, 1000),
                kwargs={"task": task},
            )
