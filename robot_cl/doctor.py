"""What this machine has and lacks: one line each, and the fix where something is missing."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, distribution, requires, version
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

OK, NOTE, BAD = "ok", "note", "bad"
CHECKOUT = Path(__file__).resolve().parents[1]  # or the folder that this is installed in
NEEDED_MEMORY_GB, NEEDED_DISK_GB = 3.0, 5.0
EXTRAS = {
    "suites": "more tasks: dm_control, gymnasium-robotics, Meta-World, OGBench",
    "dds": "robots over DDS, logs in MCAP",
    "rosbridge": "robots over rosbridge",
    "scale": "sweeps over many machines",
}


@dataclass(frozen=True)
class Finding:
    """`state`: "ok", "note" (works without it) or "bad" (something will not run); `fix` is what to type."""

    name: str
    state: str
    found: str
    fix: str = ""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def examine() -> list[Finding]:
    """Every check, in the order a newcomer needs them. None of them raises or changes anything."""
    findings = []
    for check in CHECKS:
        try:
            made = check()
        except Exception as problem:  # a check that breaks is itself a finding, not the end of the others
            made = Finding(check.__name__.removeprefix("check_"), BAD, f"could not be examined: {problem}")
        findings += made if isinstance(made, list) else [made]
    return findings


def check_python() -> Finding:
    found = f"{platform.python_version()} at {sys.executable}"
    if (3, 11) <= sys.version_info[:2] < (3, 14):
        return Finding("python", OK, found)
    return Finding("python", BAD, found, "use Python 3.11, 3.12 or 3.13: make PYTHON=python3.11 install")


def check_torch() -> Finding:
    import torch

    cores = len(os.sched_getaffinity(0))
    found = f"{torch.__version__}, {torch.get_num_threads()} threads on {cores} cores"
    if torch.get_num_threads() > cores:
        return Finding("torch", NOTE, found, f"export OMP_NUM_THREADS={cores}")
    return Finding("torch", OK, found)


def check_gpu() -> Finding:
    import torch

    if torch.cuda.is_available():
        names = {torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())}
        return Finding("gpu", OK, ", ".join(sorted(names)))
    card = shutil.which("nvidia-smi")
    if card and torch.version.cuda is None:
        fix = "this torch was built without CUDA; install the CUDA build of the pinned version, see pytorch.org"
        return Finding("gpu", NOTE, "a driver, but torch cannot use it", fix)
    return Finding("gpu", NOTE, "none; everything runs on the CPU")


def check_mujoco() -> Finding:
    here, pinned = version("mujoco"), _pinned("mujoco")
    if pinned and here not in Requirement(pinned).specifier:
        fix = f"pip install '{pinned}' (another version moves differently)"
        return Finding("mujoco", BAD, f"{here}, but results are made with {pinned}", fix)
    return Finding("mujoco", OK, f"{here}, as pinned")


def check_opengl() -> Finding:
    from sim import render

    made = render.backend()
    if not made.advice:
        return Finding("opengl", OK, f"{made.name}: films are rendered")
    found = f"none: films are drawn ({made.name}), training is not affected"
    return Finding("opengl", NOTE, found, made.advice)


def check_ffmpeg() -> Finding:
    try:
        import imageio_ffmpeg

        return Finding("ffmpeg", OK, f"{imageio_ffmpeg.get_ffmpeg_version()} (bundled)")
    except (ImportError, RuntimeError):
        return Finding("ffmpeg", BAD, "missing: no film can be written", "pip install imageio-ffmpeg")


def check_extras() -> list[Finding]:
    return [_extra(name, purpose) for name, purpose in EXTRAS.items()]


def _extra(name: str, purpose: str) -> Finding:
    missing = [r for r in _requirements(name) if not _installed(r)]
    if not missing:
        return Finding(f"[{name}]", OK, purpose)
    lacks = ", ".join(r.name for r in missing)
    fix = f"pip install 'robot-cl[{name}]'"
    if (CHECKOUT / "constraints.txt").exists():
        fix = f"pip install -c {CHECKOUT}/constraints.txt -e '{CHECKOUT}[{name}]'"
    return Finding(f"[{name}]", NOTE, f"{purpose}; lacks {lacks}", fix)


def check_ros() -> Finding:
    distro = os.environ.get("ROS_DISTRO")
    if importlib.util.find_spec("rclpy") is not None:
        return Finding("ros", OK, f"rclpy, ROS 2 {distro or '(ROS_DISTRO is not set)'}")
    if distro:
        fix = "run with the Python that ROS was built for"
        return Finding("ros", NOTE, f"ROS 2 {distro} is sourced, but this Python has no rclpy", fix)
    return Finding("ros", NOTE, "none; robots are reached over DDS or rosbridge without it")


def check_disk() -> Finding:
    usage = shutil.disk_usage(Path.cwd())
    found = f"{usage.free / 1e9:.0f} GB free in {Path.cwd()}"
    if usage.free / 1e9 < NEEDED_DISK_GB:
        return Finding("disk", BAD, found, f"free {NEEDED_DISK_GB:.0f} GB, or set ROBOT_CL_DATA to another disk")
    return Finding("disk", OK, found)


def check_memory() -> Finding:
    total, free = (os.sysconf(name) * os.sysconf("SC_PAGE_SIZE") / 1e9 for name in ("SC_PHYS_PAGES", "SC_AVPHYS_PAGES"))
    available = _meminfo("MemAvailable") or free
    found = f"{available:.1f} of {total:.1f} GB available"
    if available < NEEDED_MEMORY_GB:
        return Finding("memory", BAD, found, f"the demo needs {NEEDED_MEMORY_GB:.0f} GB; close something")
    return Finding("memory", OK, found)


def check_commit() -> Finding:
    """Which source this is, so that a report of trouble says it."""
    git = shutil.which("git")
    if git and (CHECKOUT / ".git").exists():
        done = subprocess.run([git, "describe", "--always", "--dirty"], cwd=CHECKOUT, capture_output=True, text=True)
        return Finding("robot-cl", OK, f"{version('robot-cl')}, checkout {done.stdout.strip() or 'without commits'}")
    return Finding("robot-cl", OK, f"{version('robot-cl')}, installed in {CHECKOUT}")


CHECKS: tuple[Callable[[], Finding | list[Finding]], ...] = (
    check_commit,
    check_python,
    check_torch,
    check_mujoco,
    check_opengl,
    check_ffmpeg,
    check_gpu,
    check_extras,
    check_ros,
    check_disk,
    check_memory,
)


def _requirements(extra: str) -> list[Requirement]:
    every = [Requirement(text) for text in requires("robot-cl") or []]
    return [r for r in every if r.marker and f'extra == "{extra}"' in str(r.marker).replace("'", '"')]


def _pinned(package: str) -> str:
    for text in requires("robot-cl") or []:
        requirement = Requirement(text)
        if requirement.name == package and requirement.marker is None:
            return text
    return ""


def _installed(requirement: Requirement) -> bool:
    try:
        return distribution(requirement.name).version in requirement.specifier
    except PackageNotFoundError:
        return False


def _meminfo(field: str) -> float | None:
    """A field of /proc/meminfo in GB, None where there is no such file."""
    path = Path("/proc/meminfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((int(line.split()[1]) / 1e6 for line in lines if line.startswith(field + ":")), None)
