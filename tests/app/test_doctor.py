"""The doctor of the machine finds what is missing, says the fix, and never stops at a broken check."""

from __future__ import annotations

from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from robot_cl import doctor
from robot_cl.doctor import BAD, NOTE, OK, Finding


def test_every_line_of_the_brief_is_there() -> None:
    names = {finding.name for finding in doctor.examine()}
    wanted = {"python", "torch", "mujoco", "opengl", "ffmpeg", "gpu", "ros", "disk", "memory"}
    assert names >= wanted | {f"[{extra}]" for extra in doctor.EXTRAS}


def test_what_is_not_well_has_a_fix() -> None:
    for finding in doctor.examine():
        assert finding.state in (OK, NOTE, BAD) and finding.found
        assert finding.fix or finding.state != BAD


def test_another_mujoco_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.check_mujoco().state == OK
    real = metadata.version
    monkeypatch.setattr(doctor, "version", lambda name: "3.12.0" if name == "mujoco" else real(name))
    found = doctor.check_mujoco()
    assert found.state == BAD and "3.12.0" in found.found and "mujoco==3.11.0" in found.fix


def test_a_full_disk_and_a_full_memory_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "NEEDED_DISK_GB", 1e9)
    monkeypatch.setattr(doctor, "NEEDED_MEMORY_GB", 1e9)
    assert doctor.check_disk().state == BAD and "ROBOT_CL_DATA" in doctor.check_disk().fix
    assert doctor.check_memory().state == BAD


def test_a_missing_extra_names_what_it_lacks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor, "requires", lambda name: ['no-such-package>=1; extra == "suites"', "numpy>=2"])
    (found,) = [f for f in doctor.check_extras() if f.name == "[suites]"]
    assert found.state == NOTE and "no-such-package" in found.found
    assert found.fix == f"pip install -c {doctor.CHECKOUT}/constraints.txt -e '{doctor.CHECKOUT}[suites]'"
    monkeypatch.setattr(doctor, "CHECKOUT", tmp_path)  # of a wheel there is no checkout
    (found,) = [f for f in doctor.check_extras() if f.name == "[suites]"]
    assert found.fix == "pip install 'robot-cl[suites]'"


def test_without_opengl_the_advice_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    from sim import render

    monkeypatch.setattr(render, "backend", lambda: render.Backend("skeleton", render.ADVICE))
    found = doctor.check_opengl()
    assert found.state == NOTE and "apt-get install" in found.fix


def test_ros_without_rclpy_is_told_apart_from_no_ros(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)
    monkeypatch.delenv("ROS_DISTRO", raising=False)
    assert "none" in doctor.check_ros().found
    monkeypatch.setenv("ROS_DISTRO", "jazzy")
    assert "jazzy" in doctor.check_ros().found and doctor.check_ros().fix


def test_a_check_that_breaks_is_a_finding_among_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def check_luck() -> Finding:
        raise RuntimeError("out of luck")

    monkeypatch.setattr(doctor, "CHECKS", (check_luck, doctor.check_python))
    luck, python = doctor.examine()
    assert (luck.name, luck.state) == ("luck", BAD) and "out of luck" in luck.found and python.state == OK


def test_the_verb_ends_with_1_where_something_must_be_fixed(
    cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "CHECKS", (doctor.check_python,))
    assert cli("doctor").code == 0 and cli("doctor", "--json").json["ok"] is True
    monkeypatch.setattr(doctor, "CHECKS", (lambda: Finding("x", BAD, "[bold]missing", "do this"),))
    ran = cli("doctor")
    assert ran.code == 1 and "[bold]missing" in ran.out and "fix: do this" in ran.out
