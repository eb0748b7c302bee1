import os
import struct
import sys
import threading
import time
from pathlib import Path

import pytest

from robot_cl.deploy import realtime
from robot_cl.deploy.clock import MonotonicClock


def open_files() -> set[str]:
    return {str(fd.readlink()) for fd in Path("/proc/self/fd").iterdir() if fd.exists()}


def test_cores_are_kept_awake_as_long_as_the_loop_runs(tmp_path, monkeypatch):
    file = tmp_path / "cpu_dma_latency"
    file.touch()
    monkeypatch.setattr(realtime, "WAKEFULNESS", file)
    interval = sys.getswitchinterval()
    with realtime.punctual() as refusal:
        assert refusal is None and sys.getswitchinterval() < interval
        assert str(file) in open_files() and struct.unpack("i", file.read_bytes()) == (0,)
    assert str(file) not in open_files() and sys.getswitchinterval() == interval


def test_the_thread_on_whose_answers_the_loop_waits_is_scheduled_one_below_it():
    over = threading.Event()
    policy = threading.Thread(target=over.wait)
    policy.start()
    with realtime.punctual(30, (policy.native_id,)) as refusal:
        if refusal is None:
            assert os.sched_getscheduler(policy.native_id) == os.SCHED_FIFO
            assert [os.sched_getparam(i).sched_priority for i in (0, policy.native_id)] == [30, 29]
    assert {os.sched_getscheduler(i) for i in (0, policy.native_id)} == {os.SCHED_OTHER}
    over.set()
    policy.join()
    if refusal is not None:
        pytest.skip(refusal)


@pytest.mark.skipif(not hasattr(time, "CLOCK_BOOTTIME"), reason="a clock of Linux")
def test_a_state_from_before_the_machine_slept_is_old(monkeypatch):
    clock, slept, ask = MonotonicClock(), 0.0, time.clock_gettime
    monkeypatch.setattr(time, "clock_gettime", lambda which: ask(which) + slept * (which == time.CLOCK_BOOTTIME))
    before = clock.now()
    slept = 60.0
    assert clock.now() >= before + 60.0


def test_a_system_that_does_not_permit_it_is_no_failure(tmp_path, monkeypatch):
    monkeypatch.setattr(realtime, "WAKEFULNESS", tmp_path / "nowhere" / "cpu_dma_latency")
    assert realtime.stay_awake() is None
    with realtime.punctual() as refusal:
        assert refusal is None
