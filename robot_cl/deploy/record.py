"""What a robot did, as an MCAP file that standard viewers open, and back as arrays to learn from.

Every stream is a sensor_msgs/JointState whose `name` lists the channels, so that any plotting tool shows them by name.
"""

from __future__ import annotations

import json
import queue
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from robot_cl.deploy.cdr import ReadTemplate, WriteTemplate, decode, encode
from robot_cl.deploy.contract import Contract
from robot_cl.deploy.messages import SCHEMAS, blank, split_type
from robot_cl.deploy.modes import Mode, Step
from robot_cl.deploy.robot import RobotSpec

JOINT_STATE, STRING = "sensor_msgs/msg/JointState", "std_msgs/msg/String"
STREAMS = ("signals", "observation", "action", "taken", "command", "goals", "weights")
STATUS, PREFIX, METADATA = "status", "/robot_cl/", "robot_cl"
QUEUE_STEPS = 4096
CHUNK_BYTES = 64 * 1024  # what a crash may lose


def definition(kind: str) -> str:
    """The .msg text of a type followed by those it contains, as the ros2msg encoding wants them."""
    parts, todo, done = [], [kind], {kind}
    while todo:
        current = todo.pop(0)
        lines = []
        for inner, name in SCHEMAS[current]:
            element, _ = split_type(inner)
            lines.append(f"{inner.replace('/msg/', '/')} {name}")
            if element in SCHEMAS and element not in done:
                done.add(element)
                todo.append(element)
        head = "" if current == kind else f"{'=' * 80}\nMSG: {current.replace('/msg/', '/')}\n"
        parts.append(head + "\n".join(lines) + "\n")
    return "".join(parts)


def observation_names(contract: Contract) -> list[str]:
    """One name per number of the observation; past samples as "name@-2"."""
    names = []
    for t in contract.observation:
        names += [t.name if h == t.history - 1 else f"{t.name}@-{t.history - 1 - h}" for h in range(t.history)]
    return names


class Recorder:
    """A listener of the runner that writes MCAP in a thread of its own.

    The control thread only puts a reference into a bounded queue; when that is full, or the disk takes no more, the
    step is dropped and counted in `dropped`; `problem` says why writing ended early. `skills` names those of every
    policy that may drive (default: the contract's). `close` writes what is left. Raises OSError if the file exists or
    cannot be written.
    """

    def __init__(
        self, path: Path | str, contract: Contract, spec: RobotSpec, size: int = QUEUE_STEPS,
        skills: Sequence[str] | None = None,
    ):  # fmt: skip
        from mcap.writer import CompressionType, Writer

        self.path = Path(path)
        if self.path.exists():
            raise OSError(f"{self.path} exists already; recordings are never overwritten")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        names = {
            "signals": list(spec.signals),
            "observation": observation_names(contract),
            "action": [t.name for t in contract.action],
            "taken": [t.name for t in contract.action],
            "command": [c.name for c in spec.channels],
            "goals": list(spec.goals),
            "weights": [s.name for s in contract.skills] if skills is None else list(skills),
        }
        self.dropped, self.problem, self._skills = 0, "", names["weights"]
        self._file = self.path.open("wb")
        self._writer = Writer(self._file, chunk_size=CHUNK_BYTES, compression=CompressionType.ZSTD)
        self._writer.start(profile="ros2", library="robot-cl")
        described = {"contract": contract.to_json(), "robot": spec.name, "streams": json.dumps(names)}
        self._writer.add_metadata(METADATA, described)
        self._templates = {s: _template(n) for s, n in names.items()}
        self._channels = self._register()
        self._file.flush()
        self._offset: float | None = None  # of the time of day from the loop's clock, as the first step was written
        self._count = 0
        self._queue: queue.Queue[Step | None] = queue.Queue(size)
        self._thread = threading.Thread(target=self._work, name="recorder", daemon=True)
        self._thread.start()

    def step(self, step: Step) -> None:
        try:
            self._queue.put_nowait(step)
        except queue.Full:
            self.dropped += 1

    def close(self) -> None:
        """Write what is queued, then the index."""
        if self._file.closed:
            return
        self._queue.put(None)
        self._thread.join()
        with suppress(OSError):  # whatever the disk did not take was counted
            if not self.problem:
                self._writer.finish()
            self._file.close()

    def _register(self) -> dict[str, int]:
        schemas = {
            kind: self._writer.register_schema(kind, "ros2msg", definition(kind).encode())
            for kind in (JOINT_STATE, STRING)
        }
        channels = {}
        for stream in (*STREAMS, STATUS):
            schema = schemas[STRING if stream == STATUS else JOINT_STATE]
            channels[stream] = self._writer.register_channel(PREFIX + stream, "cdr", schema)
        return channels

    def _work(self) -> None:
        while (step := self._queue.get()) is not None:
            if self.problem:
                self.dropped += 1
                continue
            try:
                self._write(step)
                self._file.flush()  # of what was written a crash loses no more than the chunk that is being filled
            except OSError as problem:
                self.problem = problem.strerror or str(problem)
                self.dropped += 1

    def _write(self, step: Step) -> None:
        if self._offset is None:
            self._offset = time.time() - step.time
        seconds = self._offset + step.time
        weights = self._by_name(step)
        arrays = (step.values, step.obs, step.action, step.taken, step.command, step.goals, weights)
        for stream, array in zip(STREAMS, arrays, strict=True):
            if array is not None and array.size:
                self._put(stream, self._templates[stream].write(np.asarray(array).reshape(-1), seconds), seconds)
        age = step.age if np.isfinite(step.age) else None
        status = {"tick": self._count, "mode": str(step.mode), "reason": step.reason, "age": age}
        self._put(STATUS, encode(STRING, {"data": json.dumps(status)}), seconds)
        self._count += 1

    def _by_name(self, step: Step) -> np.ndarray | None:
        """Weights in the order of the recording, NaN for skills that the present policy does not have."""
        if step.weights is None or not step.skills:
            return None
        given = dict(zip(step.skills, step.weights.tolist(), strict=True))
        return np.array([given.get(name, np.nan) for name in self._skills])

    def _put(self, stream: str, data: bytes, seconds: float) -> None:
        nanos = int(seconds * 1e9)
        self._writer.add_message(self._channels[stream], nanos, data, nanos, self._count)


def _template(names: list[str]) -> WriteTemplate:
    message: dict[str, Any] = blank(JOINT_STATE)
    message["name"], message["position"] = names, [0.0] * len(names)
    return WriteTemplate(JOINT_STATE, message, [("position", i) for i in range(len(names))])


@dataclass
class Log:
    """A recording as arrays over N ticks; NaN rows where a stream had nothing to say.

    time (N,) seconds since the first tick, mode (N,) names, obs (N, obs_dim), action and taken (N, act_dim) in
    [-1, 1] (what the policy said, what the sent command amounts to), command (N, n_commands), signals (N, n_signals),
    goals (N, n_goals) the operator had set, weights (N, n_skills).
    """

    contract: Contract
    robot: str
    names: dict[str, list[str]]
    time: np.ndarray
    mode: np.ndarray
    obs: np.ndarray
    action: np.ndarray
    taken: np.ndarray
    command: np.ndarray
    signals: np.ndarray
    goals: np.ndarray
    weights: np.ndarray
    whole: bool = True  # False: the recording was cut short, and this is what is left


@dataclass
class Drives:
    """The stretches a policy really drove, one after another, ready to become episodes.

    obs, next_obs (M, obs_dim), action (M, act_dim) as taken, time (M,) seconds, lengths (E,) summing to M. There is no
    reward in a log: whoever imports it computes one from these. The last step of a stretch is a truncation.
    """

    obs: np.ndarray
    action: np.ndarray
    next_obs: np.ndarray
    time: np.ndarray
    lengths: np.ndarray


def read_log(path: Path | str) -> Log:
    """A recording of `Recorder`. Raises OSError, or ValueError with one sentence if the file is something else."""
    described, messages, whole = _records(Path(path))
    if not described:
        raise ValueError(f"{path} is no recording of robot-cl: there is no contract inside")
    none, modes = np.empty(0), np.empty(0, dtype="U8")
    try:
        names = {stream: [str(n) for n in listed] for stream, listed in dict(json.loads(described["streams"])).items()}
        contract, robot = Contract.from_json(described["contract"]), described["robot"]
        log = Log(contract, robot, names, none, modes, none, none, none, none, none, none, none, whole)
        return _fill(log, messages)
    except (LookupError, TypeError, ValueError) as problem:
        raise ValueError(f"{path} is a damaged recording: {problem}") from None


def _records(path: Path) -> tuple[dict[str, str], list[tuple[str, Any]], bool]:
    """The description, the messages by stream, and whether the file was ended properly: one that a crash cut short
    still gives everything up to its last complete chunk."""
    from mcap.exceptions import McapError
    from mcap.records import Channel, Footer, Message, Metadata
    from mcap.stream_reader import StreamReader

    described: dict[str, str] = {}
    channels: dict[int, str] = {}
    messages: list[tuple[str, Any]] = []
    whole = False
    with path.open("rb") as file:
        try:
            for record in StreamReader(file).records:
                if isinstance(record, Metadata) and record.name == METADATA:
                    described = dict(record.metadata)
                elif isinstance(record, Channel):
                    channels[record.id] = record.topic.removeprefix(PREFIX)
                elif isinstance(record, Message):
                    messages.append((channels[record.channel_id], record))
                whole = isinstance(record, Footer)
        except (McapError, EOFError, KeyError, struct.error, ValueError) as problem:
            if not described:
                raise ValueError(f"{path} cannot be read as MCAP ({str(problem) or type(problem).__name__})") from None
    return described, messages, whole


def _fill(log: Log, messages: list[tuple[str, Any]]) -> Log:
    ticks = 1 + max((m.sequence for _, m in messages), default=-1)
    if ticks > len(messages):
        raise ValueError(f"{len(messages)} messages cannot be {ticks} ticks")
    found = {s: np.full((ticks, len(log.names.get(s, ()))), np.nan) for s in STREAMS}
    times, modes = np.full(ticks, np.nan), np.full(ticks, "", dtype="U8")
    templates: dict[str, ReadTemplate] = {}
    for stream, message in messages:
        if stream in found:
            found[stream][message.sequence] = _positions(templates, stream, message.data)
        elif stream == STATUS:
            modes[message.sequence] = json.loads(decode(STRING, message.data)["data"])["mode"]
            times[message.sequence] = 1e-9 * message.log_time
    log.time, log.mode = times - times[0] if ticks else times, modes
    log.obs, log.action, log.taken = found["observation"], found["action"], found["taken"]
    log.command, log.signals = found["command"], found["signals"]
    log.goals, log.weights = found["goals"], found["weights"]
    return log


def _positions(templates: dict[str, ReadTemplate], stream: str, data: bytes) -> Any:
    """Numbers of one message: an hour's recording has millions, nearly all shaped like the one before."""
    found = templates[stream].read(data) if stream in templates else None
    if found is not None:
        return found[1]
    positions = decode(JOINT_STATE, data)["position"]
    if data[1] == 1:
        paths: list[tuple[str | int, ...]] = [("position", i) for i in range(len(positions))]
        templates[stream] = ReadTemplate(JOINT_STATE, data, paths)
    return positions


def drives(log: Log, shortest: int = 2) -> Drives:
    """The stretches of at least `shortest` steps in which the policy was active, each tick seen and acted upon.

    Raises ValueError if there is none.
    """
    parts = [p for p in _stretches(log) if len(p) > shortest]
    if not parts:
        raise ValueError("the policy never drove in this recording; there is nothing to learn from")
    rows, after = (np.concatenate([p[k : len(p) - 1 + k] for p in parts]) for k in (0, 1))
    # A loop faster than the policy sends several commands per action: what was taken is their mean.
    taken = np.stack([log.taken[a:b].mean(0) for a, b in zip(rows, after, strict=True)])
    lengths = np.array([len(p) - 1 for p in parts])
    return Drives(log.obs[rows], taken, log.obs[after], log.time[rows], lengths)


def _stretches(log: Log) -> Iterator[np.ndarray]:
    """Rows in which the policy was asked, in runs without another mode, goal or a missed period in between."""
    driving = (log.mode == str(Mode.ACTIVE)) & np.isfinite(log.taken).all(1)
    moved = np.zeros(len(driving), dtype=bool)
    moved[1:] = (log.goals[1:] != log.goals[:-1]).any(1)  # the next observation would be of another goal
    stretch = np.cumsum(~driving | moved)
    run: list[int] = []
    for row in np.flatnonzero(driving & np.isfinite(log.obs).all(1)):
        late = run and log.time[row] - log.time[run[-1]] > 1.5 * log.contract.control_dt
        if run and (late or stretch[row] != stretch[run[-1]]):
            yield np.array(run)
            run = []
        run.append(int(row))
    yield np.array(run, dtype=np.intp)
