"""The import table of docs/architecture.md: lower packages never import upper ones."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HEAVY = {"torch", "hydra", "omegaconf", "stable_baselines3", "minari"}
FORBIDDEN = {
    "sim": {"policies", "dynamics", "robot_cl"} | HEAVY,
    "policies": {"sim", "dynamics", "robot_cl", "mujoco", "gymnasium"} | HEAVY - {"torch"},
    "dynamics": {"sim", "robot_cl", "gymnasium"} | HEAVY - {"torch"},
}
# sim/env.py may hand a world to Stable-Baselines3: the one place where sim touches it, inside a function.
ALLOWED = {("sim/env.py", "stable_baselines3")}
HYDRA_HOME = "robot_cl/config.py"


def imported_packages(source: str) -> set[str]:
    """Top-level package names imported anywhere in a module, function bodies included."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("package", sorted(FORBIDDEN))
def test_no_upward_import(package: str) -> None:
    for path in sorted((ROOT / package).rglob("*.py")):
        relative = path.relative_to(ROOT).as_posix()
        upward = {
            name
            for name in imported_packages(path.read_text()) & FORBIDDEN[package]
            if (relative, name) not in ALLOWED
        }
        assert not upward, f"{relative} imports {sorted(upward)}, which {package}/ may not"


def test_hydra_lives_in_one_module() -> None:
    for path in sorted((ROOT / "robot_cl").rglob("*.py")):
        relative = path.relative_to(ROOT).as_posix()
        if relative != HYDRA_HOME:
            assert not imported_packages(path.read_text()) & {"hydra", "omegaconf"}, relative


def test_the_walk_sees_an_import_inside_a_function() -> None:
    assert imported_packages("def f():\n    from robot_cl.data import x\n    import torch.nn") == {"robot_cl", "torch"}
