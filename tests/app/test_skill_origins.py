"""What a skill was made of and for: it is what its card says, or it is refused."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from policies.actor import ActorConfig, StackedGaussianActor
from policies.adapter import Adapter, Factors
from policies.card import SkillCard
from policies.library import Library
from policies.lora import layer_shapes
from policies.networks import generators
from policies.normalizer import Normalizer
from policies.peft_io import export_peft
from robot_cl.checkpoint import load_policy
from robot_cl.compose_run import publish
from robot_cl.composition_files import write_route, write_run
from robot_cl.data.collect import UniformPolicy, collect
from robot_cl.demonstrations import Demonstrations
from robot_cl.merge_run import MergeOptions, merge
from robot_cl.moving import import_skill, move_skill
from robot_cl.routes import Fitted, Known, RouteSettings, whole
from robot_cl.skills import RunSkill, add_run, base_policy, header_of, library_of, residual_of, skill_policy
from sim.spec import Channel, Interface

OBS, ACT = 4, 2
INTERFACE = Interface(
    tuple(Channel(f"o{i}", "1") for i in range(OBS)), tuple(Channel(f"a{i}", "1", -1.0, 1.0) for i in range(ACT)), 0.02
)
QUICK = RouteSettings(steps=5, adapter_steps=20, rank=2, composer="fixed", batch=32)


@pytest.fixture
def base() -> StackedGaussianActor:
    normalizer = Normalizer(OBS).fit(torch.randn(50, OBS, generator=torch.Generator().manual_seed(4)))
    return StackedGaussianActor(OBS, ACT, generators(0, 1), ActorConfig(hidden=(16, 16)), normalizer)


def _skill(base: StackedGaussianActor, seed: int, interface: Interface = INTERFACE) -> Adapter:
    rng, layers = torch.Generator().manual_seed(seed), {}
    for name, (d_out, d_in) in layer_shapes(base).items():
        layers[name] = Factors(torch.randn(2, d_in, generator=rng) / 2, torch.randn(d_out, 2, generator=rng) / 2)
    return Adapter(layers, header_of(base, interface))


@pytest.fixture
def library(base: StackedGaussianActor, tmp_path: Path) -> Library:
    made = library_of(base, INTERFACE, "vehicle-waypoint", tmp_path / "library")
    for seed, name in enumerate(("left", "right")):
        card = SkillCard(name, interface=INTERFACE.to_dict(), control_dt=0.02)
        made.publish(name, _skill(base, seed), card)
    return made


@pytest.fixture
def demos() -> Demonstrations:
    rng = torch.Generator().manual_seed(7)
    obs = torch.randn(60, OBS, generator=rng)
    return Demonstrations(obs, torch.rand(60, ACT, generator=rng) * 2 - 1, torch.arange(60) // 20)


def _known(library: Library, *names: str) -> Known:
    return Known(base_policy(library).actor, {name: library.adapter(name) for name in names})


def test_a_residual_is_not_added_to_other_skills_than_it_was_trained_on(
    library: Library, base: StackedGaussianActor, demos: Demonstrations, tmp_path: Path
) -> None:
    known, run, obs = _known(library, "left"), tmp_path / "runs" / "onward", demos.obs.numpy()
    route, card = Fitted(known, demos, QUICK).route("residual"), {"step": 0, "interface": INTERFACE.to_dict()}
    run.mkdir(parents=True)
    write_run(run, INTERFACE, {}, "{}\n", lambda folder: write_route(folder, route, known, card))
    library.publish("left", _skill(base, 9), replace=True)
    with pytest.raises(ValueError, match=r"left, which the library .* has not as it was then"):
        add_run(run, "onward", tmp_path / "library")
    library.rollback("left")
    found, _ = add_run(run, "onward", tmp_path / "library")
    acts = skill_policy(found, {"onward": 1.0}).act(obs)
    np.testing.assert_allclose(acts, load_policy(run).act(obs), rtol=1e-4, atol=1e-5)


def test_a_residual_belongs_to_the_library_of_its_base(library: Library, base: StackedGaussianActor) -> None:
    skill = RunSkill(_skill(base, 3), SkillCard("x"), base, INTERFACE, "vehicle-waypoint", {"left": 1.0}, "f" * 64)
    with pytest.raises(ValueError, match="belongs to base ffffffffffff, the library is of base"):
        residual_of(skill, library)


@pytest.mark.parametrize("level", ["parameter", "noise", "action"])
def test_a_composition_is_one_skill_only_where_weights_are_mixed(
    level: str, library: Library, demos: Demonstrations
) -> None:
    known = _known(library, "left", "right")
    route = Fitted(known, demos, replace(QUICK, level=level)).route("composition")
    found = whole(route, known.skills)
    if level == "parameter":
        library.publish("both", found.with_header(library.header))  # type: ignore[union-attr]
        acts = skill_policy(library, {"both": 1.0}).act(demos.obs.numpy())
        np.testing.assert_allclose(acts, route.policy().act(demos.obs.numpy()), rtol=1e-4, atol=1e-5)
        return
    assert found is None and route.said == "left, right by Fixed"
    job: Any = SimpleNamespace(known=known, options=SimpleNamespace(publish="both"))
    with pytest.raises(ValueError, match=f"mixes at the level of {level}s and is no skill of its own"):
        publish(job, route)


def test_a_skill_is_not_moved_by_observations_of_another_robot(library: Library, tmp_path: Path) -> None:
    other = collect("hopper", UniformPolicy(11, 3), 20, "hopper/few-v0", root=tmp_path, stochastic=True).path
    with pytest.raises(ValueError, match=r"has 11 observations, base .* reads 4"):
        move_skill(library, "left", library, Move(data=str(other)))


def test_a_merge_that_is_published_acts_as_the_skill_does(
    library: Library, demos: Demonstrations, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROBOT_CL_LIBRARY", str(tmp_path / "library"))
    names, obs = ["left", "right"], demos.obs.numpy()
    options = MergeOptions(skills=names, how="ties", rank=1, publish="both", out=str(tmp_path / "runs"))
    merged = merge(options)
    acts = skill_policy(library, {"both": 1.0}).act(obs)
    np.testing.assert_allclose(load_policy(merged.folder).act(obs), acts, rtol=1e-4, atol=1e-5)
    card = library.card("both")
    assert card.interface == INTERFACE.to_dict() and card.control_dt == INTERFACE.control_dt


def test_a_merge_that_is_refused_leaves_neither_run_nor_skill(
    library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROBOT_CL_LIBRARY", str(tmp_path / "library"))
    options = {"skills": ["left", "right"], "out": str(tmp_path / "runs")}
    with pytest.raises(ValueError, match="one folder name"):
        merge(MergeOptions(**options, publish="both", name="a/b"))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'left' already"):
        merge(MergeOptions(**options, publish="left"))  # type: ignore[arg-type]
    assert library.names() == ["left", "right"] and not list((tmp_path / "runs").glob("*"))


def test_an_imported_adapter_has_the_interface_of_its_base(
    library: Library, base: StackedGaussianActor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROBOT_CL_LIBRARY", str(tmp_path / "library"))
    folder = export_peft(_skill(base, 9), tmp_path / "adapter")
    found, _ = import_skill(folder, SimpleNamespace(name="far", base=None, description="", overwrite=False))
    assert found.card("far").interface == INTERFACE.to_dict()


@dataclass
class Move:
    """Options of `skills rebase`."""

    data: str | None = None
    episodes: int = 1
    gate: float = 10.0
    steps: int = 1
    force: bool = False
    overwrite: bool = False
    seed: int = 0


def test_a_skill_moves_to_another_interface_only_by_force_and_its_card_says_which(
    library: Library, base: StackedGaussianActor, demos: Demonstrations, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("robot_cl.moving.probes", lambda library, name, options: demos.obs)
    other = copy.deepcopy(base)
    with torch.no_grad():
        next(other.parameters()).add_(0.01)
    slower = Interface(INTERFACE.obs, INTERFACE.action, 0.05)
    target = library_of(other, slower, "vehicle-waypoint", tmp_path / "library")
    with pytest.raises(ValueError, match=r"control period 0\.02 s against 0\.05 s\); force=true"):
        move_skill(library, "left", target, Move())
    assert move_skill(library, "left", target, Move(force=True))[1]
    card = target.card("left")
    assert card.control_dt == 0.05 and card.interface == slower.to_dict() and card.header == target.header
