"""Every task by name, ported ones and our own, and the names users know them by."""

from __future__ import annotations

import difflib

from sim.task import Task
from sim.tasks import ant, arm, arm_skills, dm_cheetah, dm_walker, halfcheetah, hopper, quadrotor, vehicle, walker2d

TASKS: dict[str, Task] = {
    "hopper": hopper.TASK,
    "halfcheetah": halfcheetah.TASK,
    "walker2d": walker2d.TASK,
    "ant": ant.TASK,
    "walker-stand": dm_walker.STAND,
    "walker-walk": dm_walker.WALK,
    "walker-run": dm_walker.RUN,
    "walker-backward": dm_walker.BACKWARD,
    "cheetah-run": dm_cheetah.TASK,
    "vehicle-waypoint": vehicle.TASK,
    "quadrotor-hover": quadrotor.HOVER,
    "quadrotor-waypoint": quadrotor.WAYPOINT,
    "arm-reach": arm.REACH,
    "arm-push": arm.PUSH,
    "arm-skills-reach": arm_skills.REACH,
    "arm-skills-push": arm_skills.PUSH,
    "arm-skills-obstacle": arm_skills.OBSTACLE,
}
ALIASES: dict[str, str] = {task.original: name for name, task in TASKS.items()}


def get_task(name: str) -> Task:
    """A task by its name ("halfcheetah") or its original's id ("HalfCheetah-v5"). LookupError lists near names."""
    known = {**{alias.lower(): task for alias, task in ALIASES.items()}, **{task: task for task in TASKS}}
    key = name.lower()
    if key in known:
        return TASKS[known[key]]
    near = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean {known[near[0]]!r}? " if near else ""
    raise LookupError(f"no task {name!r}; {hint}tasks: {', '.join(TASKS)}")
