"""What a robot did: recordings of deployment as episodes, actions recovered through the contract inside them.

Every stretch in which the policy drove is an episode; a change of mode, another goal or a missed period ends it as a
truncation. Rewards and ends are the task's where its observation tells them, else zero. What a robot does after the
task's end, waiting at its goal or lying where it fell, is no part of the task and left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from robot_cl.data.importers.rewards import REWARDS
from robot_cl.data.importers.steps import Columns, Counts
from sim.spec import Channel, Interface

MAGIC = b"\x89MCAP0\r\n"


def read_recordings(paths: Sequence[Path], task: str | None, counts: Counts) -> tuple[Columns, Interface, str | None]:
    """-> (columns with actions in the interface's units, interface, task) of recordings of one interface.

    `task` None: the one in the contract. Recordings in which a policy only watched, or never came to drive, are left
    out and noted. Raises ValueError, naming the file, for other files and recordings of different interfaces, or if
    none of them has anything to learn from.
    """
    from robot_cl.deploy.record import drives, read_log

    parts: list[tuple[np.ndarray, ...]] = []
    lengths: list[np.ndarray] = []
    interface: Interface | None = None
    for path in paths:
        log = read_log(path)
        try:
            found = drives(log)
        except ValueError as problem:
            counts.notes.append(f"{path.name} is left out: {problem}")
            continue
        face = recorded_interface(log)
        if interface is not None and (clause := interface.difference(face)):
            raise ValueError(f"{path} is of another interface than those before: {clause}; import them apart")
        interface, task = face, task or log.contract.task or None
        parts.append((found.obs, face.command(found.action), found.next_obs))
        lengths.append(found.lengths)
        if not log.whole:
            counts.notes.append(f"{path.name} was cut short; what is left of it is used")
    if interface is None:
        raise ValueError(f"nothing to learn from in {', '.join(p.name for p in paths)}: the policy never drove")
    obs, action, next_obs = (np.concatenate([p[k] for p in parts]) for k in range(3))
    columns = Columns(obs, action, np.zeros(len(obs)), next_obs=next_obs, lengths=np.concatenate(lengths))
    counts.notes.append(f"{len(columns.lengths)} stretches were driven")  # type: ignore[arg-type]
    columns = _judge(columns, interface, task, counts)
    return columns, interface, task


def recorded_interface(log: Any) -> Interface:
    """The contract's interface; with histories, one channel for each sample of the observation."""
    face: Interface = log.contract.interface
    if log.contract.obs_dim == face.obs_dim:
        return face
    units = [t.unit for t in log.contract.observation for _ in range(t.history)]
    obs = tuple(Channel(name, unit) for name, unit in zip(log.names["observation"], units, strict=True))
    return Interface(obs, face.action, face.control_dt)


def _judge(columns: Columns, interface: Interface, task: str | None, counts: Counts) -> Columns:
    """The columns with rewards, up to the task's end where it says so; every other end of a stretch is a truncation."""
    assert columns.lengths is not None and columns.next_obs is not None
    lengths, terminated = columns.lengths, np.zeros(len(columns.obs), dtype=bool)
    if task in REWARDS:
        unit = interface.action_from_command(columns.action)
        columns.reward, terminated = REWARDS[str(task)](columns.obs, unit, columns.next_obs)
    else:
        counts.notes.append(
            f"observations of {task or 'an unknown task'} do not tell its reward, zeros are stored: learn by imitation"
        )
    stretches = np.split(np.arange(len(columns.obs)), np.cumsum(lengths)[:-1])
    kept = [rows[: 1 + int(terminated[rows].argmax())] if terminated[rows].any() else rows for rows in stretches]
    rows = np.concatenate(kept)
    if len(rows) < len(columns.obs):
        counts.notes.append(f"{len(columns.obs) - len(rows)} steps after the task's end are left out")
    lengths = np.array([len(k) for k in kept])
    truncated = np.zeros(len(rows), dtype=bool)
    truncated[np.cumsum(lengths) - 1] = ~terminated[rows][np.cumsum(lengths) - 1]
    return Columns(
        columns.obs[rows], columns.action[rows], columns.reward[rows], terminated[rows], truncated,
        columns.next_obs[rows], lengths,
    )  # fmt: skip
