"""The way from a policy to a robot and back: latency of every transport, inference, jitter of the loop, fuzzing.

Round trip: a command of 12 numbers leaves here, a second process answers with a JointState of 12 joints, and the time
counts until the transport's `read` gives it back, at 50 to 500 Hz. On shared machines these times say as much about the
neighbours as about the code: the load average stands beside them.

    python benchmarks/bridge.py --quick
    python benchmarks/bridge.py --only fuzz
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

import numpy as np  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from common import Claim, arguments, report, table  # noqa: E402

from benchmarks.bridge_parts import echo, fuzz, inference  # noqa: E402
from robot_cl.deploy.bundle import PolicyBundle  # noqa: E402
from robot_cl.deploy.caller import ThreadCaller  # noqa: E402
from robot_cl.deploy.cdr import ReadTemplate, WriteTemplate, encode  # noqa: E402
from robot_cl.deploy.clock import MonotonicClock, VirtualClock  # noqa: E402
from robot_cl.deploy.extract import command_paths, command_template, state_paths, write_state  # noqa: E402
from robot_cl.deploy.loopback import Loopback  # noqa: E402
from robot_cl.deploy.modes import RunnerConfig  # noqa: E402
from robot_cl.deploy.realtime import punctual  # noqa: E402
from robot_cl.deploy.record import Recorder  # noqa: E402
from robot_cl.deploy.runner import Runner  # noqa: E402
from robot_cl.deploy.transport import open_transport  # noqa: E402
from robot_cl.export import export_policy  # noqa: E402

RATES = (50.0, 100.0, 200.0, 500.0)
POLL_S, PRIORITY = 0.0001, 50
PARTS = ("codec", "round_trip", "inference", "loop", "fuzz")


@contextmanager
def far_side(*words: str) -> Iterator[None]:
    command = [sys.executable, str(ROOT / "benchmarks" / "bridge_parts" / "echo.py"), *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        yield
    finally:
        process.kill()
        process.wait()


def trip_times(transport: Any, hertz: float, count: int) -> np.ndarray:
    """Milliseconds from `write` until `read` shows the answer; NaN where none came within a tenth of a second."""
    clock, found = MonotonicClock(), np.full(count, np.nan)
    value = np.zeros(12)
    begin = clock.now()
    for k in range(count):
        clock.sleep_until(begin + k / hertz)
        value[:] = 0.001 * (k + 1)
        start = time.perf_counter()
        transport.write(value)
        while time.perf_counter() < start + 0.1:
            state = transport.read()
            if state is not None and state.values[0] == value[0]:
                found[k] = 1e3 * (time.perf_counter() - start)
                break
            time.sleep(POLL_S)
    return found


def connected(transport: Any) -> Any:
    """The transport once an answer has come through it."""
    end = time.monotonic() + 15
    while np.isnan(trip_times(transport, 50.0, 1)[0]):
        if time.monotonic() > end:
            raise RuntimeError("the far side does not answer")
    return transport


class Echoing:
    """A plant that is at once where it is told to be."""

    def __init__(self) -> None:
        self.values = np.zeros(24)

    def signals(self) -> np.ndarray:
        return self.values

    def step(self, command: np.ndarray) -> None:
        self.values[:12] = command


def round_trips(seconds: float) -> tuple[list[list[object]], list[Claim]]:
    rows, claims = [], []
    for codec in ("fast", "public"):
        place = echo.network(echo.free_domain())
        with far_side("dds", str(place["domain"]), codec):
            transport = connected(open_transport("dds", echo.spec(100.0), codec=codec, **place))
            for hertz in RATES:
                rows.append(_row(f"dds {codec}", hertz, trip_times(transport, hertz, int(seconds * hertz))))
                if codec == "fast":
                    claims.append(Claim(f"dds round trip p50 at {hertz:g} Hz, ms", rows[-1][2], 1.0, False))
                    claims.append(Claim(f"dds round trip p99 at {hertz:g} Hz, ms", rows[-1][3], 3.0, False))
            transport.close()
    more_rows, more_claims = real_time_trips(seconds)
    rows, claims = rows + more_rows, claims + more_claims
    with socket_port() as port, far_side("rosbridge", str(port)):
        transport = connected(open_transport("rosbridge", echo.spec(50.0), port=port))
        rows += [_row("rosbridge stand-in", hz, trip_times(transport, hz, int(seconds * hz))) for hz in RATES[:2]]
        claims.append(Claim("rosbridge stand-in round trip p99 at 50 Hz, ms", rows[-2][3], 50.0, False))
        transport.close()
    rows += [_row("loopback (computing only)", hertz, loopback_times(hertz, int(seconds * hertz))) for hertz in RATES]
    return rows, claims


def real_time_trips(seconds: float) -> tuple[list[list[object]], list[Claim]]:
    """The same through DDS with both ends under SCHED_FIFO; nothing where that is not permitted."""
    rows, claims, place = [], [], echo.network(echo.free_domain())
    with far_side("dds", str(place["domain"]), "fast", str(PRIORITY)), punctual(PRIORITY) as refusal:
        if refusal:
            print(refusal)
            return [], []
        transport = connected(open_transport("dds", echo.spec(100.0), **place))
        for hertz in RATES[1::2]:
            rows.append(_row("dds fast, SCHED_FIFO", hertz, trip_times(transport, hertz, int(seconds * hertz))))
            claims.append(Claim(f"dds round trip p99 at {hertz:g} Hz, SCHED_FIFO, ms", rows[-1][3], 1.0, False))
        transport.close()
    return rows, claims


def loopback_times(hertz: float, count: int) -> np.ndarray:
    """Milliseconds of computing from `write` to the answer one period of virtual time later."""
    clock, found, value = VirtualClock(), np.empty(count), np.zeros(12)
    loopback = Loopback(echo.spec(hertz), Echoing(), clock)
    for k in range(count):
        value[:] = 0.001 * (k + 1)
        start = time.perf_counter()
        loopback.write(value)
        clock.advance(1.0 / hertz)
        state = loopback.read()
        found[k] = 1e3 * (time.perf_counter() - start)
        assert state is not None and state.values[0] == value[0]
    return found


@contextmanager
def socket_port() -> Iterator[int]:
    """A port that was free a moment ago."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    yield port


def _row(name: str, hertz: float, times: np.ndarray) -> list[Any]:
    heard = times[np.isfinite(times)]
    p50, p99, most = (float(v) for v in (*np.percentile(heard, [50, 99]), heard.max()))
    return [name, f"{hertz:g}", p50, p99, most, int(np.isnan(times).sum())]


def codec_times(count: int) -> dict[str, float]:
    """Microseconds per message of 12 joints, read and write, median."""
    robot = echo.spec(100.0)
    states, commands = robot.state[0], robot.command[0]
    message = write_state(states, np.arange(24.0), 1.5)
    data = encode(states.type, message)
    reading = ReadTemplate(states.type, data, state_paths(states, message))
    template = command_template(commands, 0.01)
    writing = WriteTemplate(commands.type, template, command_paths(commands))
    values = np.arange(12.0)
    return {"read": _each(lambda: reading.read(data), count), "write": _each(lambda: writing.write(values), count)}


def _each(call: Callable[[], Any], count: int) -> float:
    times = []
    for _ in range(count):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return 1e6 * float(np.median(times))


def loop_times(hertz: float, seconds: float, priority: int | None) -> dict[str, float] | None:
    """Milliseconds of wake lateness and of the whole tick; None if FIFO is not permitted.

    A tick reads a robot in another process through DDS, asks an exported network of 512×512×512 in its own thread,
    judges, limits, sends and records.
    """
    robot, contract, place = fuzz.robot(hertz), fuzz.contract(hertz), echo.network(echo.free_domain())
    actor = inference.gaussian((512, 512, 512), 24, 12)
    with tempfile.TemporaryDirectory() as folder, far_side("robot", str(place["domain"]), str(hertz)):
        bundle = PolicyBundle.load(export_policy(actor, Path(folder) / "bundle", contract.interface).folder)
        clock, transport = MonotonicClock(), open_transport("dds", robot, **place)
        recorder = Recorder(Path(folder) / "a.mcap", contract, robot)
        config = RunnerConfig(stale_s=0.4, late_hold=1000, late_damp=10_000)
        runner = Runner(bundle, contract, transport, clock, config, ThreadCaller(bundle, clock), (recorder,))
        with punctual(priority) as refusal:
            if refusal is None:
                while transport.read() is None or transport.age() > 0.1:
                    time.sleep(0.002)
                runner.enable()
                runner.start()
                runner.run(seconds)
        recorder.close()
        transport.close()
        if refusal:
            return None
        found = {f"{q}_p{p}": 1e3 * runner.stats.percentile(q, p) for q in ("late", "tick") for p in (50, 99)}
        return found | {"missed": runner.stats.events["missed"], "dropped": recorder.dropped}


def main() -> None:
    extra = [("--only", {"choices": PARTS, "nargs": "*", "default": list(PARTS), "help": "these parts"})]
    args = arguments(__doc__ or "", extra)
    claims: list[Claim] = []
    details: dict[str, Any] = {"load_before": os.getloadavg()[0]}
    print(f"load average {os.getloadavg()[0]:.2f} on {len(os.sched_getaffinity(0))} cores")
    if "codec" in args.only:
        details["codec_us"] = found = codec_times(20_000)
        names = {"read": "reading a JointState of 12 joints, µs", "write": "writing a command of 12 joints, µs"}
        claims += [Claim(names[way], us, 20.0, False) for way, us in found.items()]
    if "round_trip" in args.only:
        rows, more = round_trips(4.0 if args.quick else 20.0)
        details["round_trip_ms"], claims = rows, claims + more
        print(table(("transport", "Hz", "p50 ms", "p99 ms", "max ms", "lost"), rows))
    if "inference" in args.only:
        claims += measure_inference(args.quick, details)
    if "loop" in args.only:
        claims += measure_loop(args.quick, details)
    if "fuzz" in args.only:
        claims += measure_fuzz(args.quick, details)
    details["load_after"] = os.getloadavg()[0]
    print(f"load average {os.getloadavg()[0]:.2f} at the end")
    report("bridge", claims, args.json, details)


def measure_inference(quick: bool, details: dict[str, Any]) -> list[Claim]:
    found = details["inference_us"] = inference.measure(400 if quick else 3000)
    head = ("policy", "torch p50 µs", "torch p99", "onnx p50", "onnx p99", "max |torch − onnx|")
    keys = ("torch_p50", "torch_p99", "onnx_p50", "onnx_p99", "parity")
    print(table(head, [[kind, *(row[k] for k in keys)] for kind, row in found.items()]))
    bare, mixed = found["gaussian 512×512×512"], found["4 skills un-merged"]
    return [
        Claim("inference 512×512×512 p99, ms", bare["onnx_p99"] / 1e3, 1.0, False),
        Claim("4 un-merged skills against the bare policy, p50", mixed["onnx_p50"] / bare["onnx_p50"], 1.5, False),
    ]


def measure_loop(quick: bool, details: dict[str, Any]) -> list[Claim]:
    claims, seconds = [], 5.0 if quick else 30.0
    for hertz, priority in ((50.0, None), (200.0, None), (200.0, 50), (500.0, 50)):
        found = loop_times(hertz, seconds, priority)
        name = f"{hertz:g} Hz{' SCHED_FIFO' if priority else ''}"
        details[f"loop_ms {name}"] = found
        if found is None:
            print(f"loop at {name}: not permitted here")
            continue
        print(f"loop at {name}: " + ", ".join(f"{k} {v:.3g}" for k, v in found.items()))
        claims.append(Claim(f"wake lateness p99 at {name}, ms", found["late_p99"], 0.3 if priority else 2.0, False))
        if hertz == 200.0 and not priority:
            claims.append(Claim("whole tick p99 at 200 Hz, share of the period", found["tick_p99"] / 5.0, 0.25, False))
    return claims


def measure_fuzz(quick: bool, details: dict[str, Any]) -> list[Claim]:
    messages = fuzz.sensor_messages(100_000 if quick else 1_000_000)
    frames = fuzz.bridge_frames(1_000 if quick else 10_000)
    details["fuzz"] = {"sensor_messages": messages, "bridge_frames": frames}
    for found in (messages, frames):
        print(", ".join(f"{k} {v:g}" for k, v in found.items()))
    return [
        Claim("damaged sensor messages survived", messages["messages"], messages["messages"]),
        Claim("commands outside their box meanwhile", messages["outside"], 0, False),
        Claim("nonsense bridge frames survived", frames["frames"], frames["frames"]),
        Claim("commands outside their box meanwhile (bridge)", frames["outside"], 0, False),
        Claim("share of ticks that drove while being fuzzed", messages["driving_share"], 0.2),
    ]


if __name__ == "__main__":
    main()
