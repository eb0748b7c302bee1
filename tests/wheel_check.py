"""Builds the wheel, installs it into a clean environment and uses it from another folder. Run by `make wheel-check`.

The clean environment borrows the third-party packages of this one through a .pth file, so that nothing is downloaded;
the four packages of this project must come from the wheel.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OURS = ("robot_cl", "sim", "policies", "dynamics")
NEEDED = ("robot_cl/_configs/train.yaml", "robot_cl/templates/report.html.j2")


def build(out: Path) -> Path:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    (wheel,) = out.glob("*.whl")
    return wheel


def check_contents(wheel: Path) -> None:
    """What the commands need at run time is inside, and nothing of the tests is."""
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    missing = [name for name in NEEDED if name not in names]
    assert not missing, f"the wheel lacks {missing}"
    tops = {name.split("/")[0] for name in names}
    assert all(top in OURS or top.endswith(".dist-info") for top in tops), f"the wheel holds {sorted(tops)}"


def install(wheel: Path, folder: Path) -> Path:
    """A clean environment with the wheel -> its bin folder."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    install_wheel = [python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel]
    subprocess.run([*map(str, install_wheel)], check=True)
    site = subprocess.run(
        [str(python), "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    # A path behind the environment's own: the third-party packages are found, the editable checkout is not,
    # because .pth files inside an added folder are not read.
    (Path(site) / "borrowed.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return folder / "bin"


def run(bin_folder: Path, elsewhere: Path, *words: str) -> str:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [str(bin_folder / "robot-cl"), *words], cwd=elsewhere, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, f"robot-cl {' '.join(words)} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
    return done.stdout


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        base = Path(temporary)
        wheel = build(base / "dist")
        check_contents(wheel)
        bin_folder = install(wheel, base / "venv")
        elsewhere = base / "elsewhere"
        elsewhere.mkdir()
        where = subprocess.run(
            [str(bin_folder / "python"), "-c", f"import {', '.join(OURS)}; print(robot_cl.__file__)"],
            cwd=elsewhere,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert str(base) in where, f"robot_cl was imported from {where}, not from the wheel"
        assert "evaluate" in run(bin_folder, elsewhere, "--help")
        listed = json.loads(run(bin_folder, elsewhere, "list", "--json"))
        assert listed["tasks"] and listed["learners"] and listed["behaviours"], listed
        assert "mujoco" in run(bin_folder, elsewhere, "doctor")
        assert "expectile" in run(bin_folder, elsewhere, "train", "--help", "learner=iql")
        print(f"{wheel.name}: installs into a clean environment and runs from elsewhere")


if __name__ == "__main__":
    main()
