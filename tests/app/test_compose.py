"""The routes to a new task, and the choice between them: each is right where it should be, and the reason is true."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from policies.actor import ActorConfig, StackedGaussianActor
from policies.adapter import Header, distance
from policies.composed import ComposedActor
from policies.diffusion import DiffusionActor, GenerativeConfig
from policies.hashing import output_hash
from policies.lora import base_digest, merge_into
from policies.networks import generators
from policies.normalizer import Normalizer
from robot_cl import compose as composing
from robot_cl.checkpoint import load_policy
from robot_cl.compose import choose, good_enough, leave_one_out
from robot_cl.composition_files import write_route
from robot_cl.demonstrations import Demonstrations
from robot_cl.imitation import held_out_loss, train_adapter
from robot_cl.routes import Fitted, Known, RouteSettings, whole
from sim.spec import Channel, Interface

OBS, ACT, EPISODES = 4, 2, 5
QUICK = RouteSettings(steps=110, lr=7e-3, adapter_steps=110, adapter_lr=7e-3, rank=4, batch=128)
INTERFACE = Interface(
    tuple(Channel(f"o{i}", "1") for i in range(OBS)), tuple(Channel(f"a{i}", "1", -1.0, 1.0) for i in range(ACT)), 0.02
)


def _behaviour(seed: int, obs: Tensor) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.tanh(obs @ torch.randn(OBS, ACT, generator=rng))


def _demos(action: Any, rows: int = 400, seed: int = 0) -> Demonstrations:
    obs = torch.randn(rows, OBS, generator=torch.Generator().manual_seed(seed))
    return Demonstrations(obs, action(obs), torch.arange(rows) // (rows // EPISODES))


def _judged(known: Known, demos: Demonstrations, settings: RouteSettings = QUICK, **more: Any) -> composing.Choice:
    """The choice without fitting the chosen route again to all demonstrations."""
    return composing.choose(known, demos, settings, refit=False, **more)


@pytest.fixture(scope="module")
def known() -> Known:
    """An untrained base and two trained skills, "left" and "right"."""
    normalizer = Normalizer(OBS).fit(torch.randn(50, OBS, generator=torch.Generator().manual_seed(4)))
    base = StackedGaussianActor(OBS, ACT, generators(0, 1), ActorConfig(hidden=(16, 16)), normalizer)
    base.requires_grad_(False)
    header = Header(base_digest(base), INTERFACE.digest, normalizer.digest)
    skills = {}
    for k, name in enumerate(("left", "right")):
        demos = _demos(lambda obs, k=k: _behaviour(k, obs), seed=k)
        skills[name] = train_adapter(base, demos, 4, 160, 8e-3, 2.0, 128).with_header(header)
    return Known(base, skills)


def _either(obs: Tensor) -> Tensor:
    """Each skill is right in its own half of the state space."""
    return torch.where(obs[:, :1] > 0, _behaviour(0, obs), _behaviour(1, obs))


def test_demonstrations_of_one_skill_need_no_new_one(known: Known) -> None:
    choice = _judged(known, _demos(lambda obs: _behaviour(1, obs)), QUICK)
    assert choice.chosen.name == "zero_shot" and choice.chosen.route.weights == {"right": 1.0}
    assert "as good as the lowest" in choice.why and "cheaper" in choice.why


def test_two_skills_each_right_in_its_half_are_composed_by_context(known: Known) -> None:
    choice = _judged(known, _demos(_either), QUICK)
    loss = {judged.name: judged.loss for judged in choice.judged}
    assert loss["composition"] < 0.3 * loss["zero_shot"]
    blind = _judged(known, _demos(_either), replace(QUICK, composer="fixed"), routes=("composition",))
    assert loss["composition"] < 0.3 * blind.chosen.loss  # no constants do what the context does
    assert choice.chosen.name in ("composition", "residual")
    assert all(without > 2 * loss["composition"] for without in choice.left_out.values())  # both skills matter


def test_a_router_picks_each_skill_in_its_half(known: Known) -> None:
    routed = _judged(known, _demos(_either), replace(QUICK, composer="ridge"), routes=("zero_shot", "composition"))
    loss = {judged.name: judged.loss for judged in routed.judged}
    assert loss["composition"] < 0.3 * loss["zero_shot"] and routed.chosen.name == "composition"


def test_a_task_that_no_skill_knows_gets_a_new_adapter(known: Known) -> None:
    choice = _judged(known, _demos(lambda obs: _behaviour(9, obs)), QUICK)
    assert choice.chosen.name in ("residual", "fresh") and choice.chosen.route.adapter is not None
    assert choice.chosen.relative <= 1.0


def test_a_guarded_adapter_is_the_residual_near_demonstrations_and_the_skill_below_far_from_them(
    known: Known, tmp_path: Path
) -> None:
    demos = _demos(lambda obs: _behaviour(9, obs))
    fitted = Fitted(known, demos, replace(QUICK, steps=20, adapter_steps=60))
    guarded, residual = fitted.guarded, fitted.residual
    near, far = demos.obs[:50].numpy(), (demos.obs[:50] + 40.0).numpy()
    policy = guarded.policy(INTERFACE, "some-task")
    np.testing.assert_allclose(policy.act(near), residual.policy().act(near), atol=0.15)
    below = residual.below.mode(torch.as_tensor(far))[0].detach().numpy()
    np.testing.assert_allclose(policy.act(far), below, atol=1e-5)
    assert "where demonstrations are near" in guarded.said and whole(guarded, known.skills) is None
    card = {"step": 0, "task": "some-task", "interface": INTERFACE.to_dict()}
    write_route(tmp_path, guarded, known, card)
    np.testing.assert_array_equal(load_policy(tmp_path).act(near), policy.act(near))


def test_losses_are_of_demonstrations_that_were_not_learned_from(known: Known) -> None:
    """On pure noise nothing can be learned: held out, every route is as bad as the noise; a leak would look better."""
    noise = torch.Generator().manual_seed(3)
    demos = _demos(lambda obs: torch.rand(len(obs), ACT, generator=noise) * 2 - 1, rows=100)
    settings = replace(QUICK, adapter_steps=250, adapter_lr=2e-2, rank=8)
    train, held = demos.split(0.2)
    fitted = Fitted(known, train, settings)
    seen, unseen = (held_out_loss(fitted.fresh.module, part) for part in (train, held))
    assert seen < 0.75 * unseen
    assert choose(known, demos, settings, routes=("fresh",), refit=False).chosen.loss == pytest.approx(unseen, rel=1e-4)


def test_whole_episodes_are_held_out_and_a_single_one_is_divided_in_blocks() -> None:
    demos = _demos(lambda obs: obs[:, :ACT])
    train, held = demos.split(0.2)
    assert set(held.episode.tolist()) == {4} and set(train.episode.tolist()) == {0, 1, 2, 3}
    one = Demonstrations(demos.obs, demos.action, torch.zeros(400, dtype=torch.int64))
    train, held = one.split(0.2)
    assert len(held) == 75 and len(train) == 325 and torch.equal(held.obs[:25], one.obs[100:125])
    with pytest.raises(ValueError, match="cannot be divided"):
        one.where(torch.arange(400) < 1).split(0.2)
    with pytest.raises(ValueError, match="between 0 and 1"):
        demos.split(1.0)


def test_the_cheapest_route_that_is_good_enough() -> None:
    losses = {"zero_shot": 2.0, "composition": 1.04, "residual": 1.0, "fresh": 1.5}
    assert good_enough(losses, 3.0, 0.05) == "composition"
    assert good_enough(losses, 3.0, 0.01) == "residual"
    assert good_enough({"zero_shot": 0.004, "fresh": 0.001}, 1.0, 0.05) == "zero_shot"  # 99.7 % of the gap is closed
    assert good_enough({"zero_shot": 0.1, "fresh": 0.001}, 1.0, 0.05) == "fresh"
    assert good_enough({"residual": 0.004, "fresh": 0.001}, 1.0, 0.05) == "fresh"  # a new skill either way


def test_roll_outs_decide_where_they_are_allowed(known: Known) -> None:
    """The loss prefers the skill; the world pays for standing still, and the world is right."""
    played: list[str] = []

    def play(policy: Any) -> np.ndarray:
        played.append(policy.name)
        action = policy.act(np.ones((3, OBS), np.float32))
        return -np.abs(action).sum(1)

    choice = _judged(known, _demos(lambda obs: _behaviour(1, obs)), QUICK, play=play)
    assert played == ["zero_shot", "composition", "residual", "guarded", "fresh"]
    assert choice.chosen.mean_return == max(judged.mean_return for judged in choice.judged)
    assert "the highest" in choice.why and "3 episodes" in choice.why


def test_of_equal_returns_the_cheaper_route_wins(known: Known) -> None:
    choice = choose(known, _demos(_either), replace(QUICK, steps=5, adapter_steps=5), play=lambda policy: np.ones(2))
    assert choice.chosen.name == "zero_shot"


def test_the_same_seed_chooses_the_same_bit_for_bit(known: Known) -> None:
    settings, demos = replace(QUICK, steps=20, adapter_steps=20), _demos(_either)
    probes = demos.obs.numpy()
    first, again = (choose(known, demos, settings) for _ in range(2))
    for one, two in zip(first.judged, again.judged, strict=True):
        assert one.loss == two.loss
        assert output_hash(one.route.policy().act, probes) == output_hash(two.route.policy().act, probes)


def test_nothing_that_is_fitted_changes_base_or_skills(known: Known) -> None:
    """Forgetting is zero by proof: hashes of every skill's outputs on probe observations, before and after."""
    probes = _demos(_either).obs.numpy()

    def hashes() -> dict[str, str]:
        fitted = Fitted(known, _demos(_either), QUICK)
        alone = {n: fitted._constant(n, {n: 1.0}).policy() for n in known.skills}
        return {n: output_hash(policy.act, probes) for n, policy in alone.items()}

    before, digest = hashes(), base_digest(known.base)
    choose(known, _demos(lambda obs: _behaviour(9, obs)), replace(QUICK, steps=20, adapter_steps=20))
    assert hashes() == before and base_digest(known.base) == digest and len(set(before.values())) == 2


def test_a_residual_is_trained_on_the_best_constant_composition(known: Known) -> None:
    mostly = lambda obs: (0.9 * _behaviour(1, obs)).clamp(-1, 1)  # noqa: E731
    fitted = Fitted(known, _demos(mostly), QUICK)
    route = fitted.residual
    assert route.weights is not None and route.weights["right"] > 0.8 and route.adapter is not None
    alone = merge_into(StackedGaussianActor.from_spec(known.base.spec()), known.skills["right"])
    assert type(route.module) is type(alone)
    one = whole(route, known.skills)
    assert one is not None
    obs = _demos(mostly).obs
    again = merge_into(_copy(known.base), one)
    torch.testing.assert_close(again.mode(obs), route.module.mode(obs), rtol=1e-4, atol=1e-5)  # type: ignore[operator]
    assert distance(one, known.skills["right"]) > 1e-3


def _copy(base: StackedGaussianActor) -> StackedGaussianActor:
    return base.member(0)


def test_of_many_skills_those_are_kept_that_fit(known: Known) -> None:
    rng = torch.Generator().manual_seed(0)
    from policies.adapter import random_like

    many = {f"random{k}": random_like(known.skills["left"], rng) for k in range(6)}
    crowd = replace(known, skills={**many, **known.skills})
    fitted = Fitted(crowd, _demos(_either), replace(QUICK, keep=2))
    assert list(fitted.known.skills) == ["left", "right"]


def test_the_rank_follows_from_what_the_demonstrations_need(known: Known) -> None:
    """A shift of the output needs a few numbers, a new nonlinear behaviour many."""
    base = known.base
    near = lambda obs: (base.mode(obs)[0] * 0.5).detach()  # noqa: E731
    few = Fitted(known, _demos(near), replace(QUICK, rank=0))
    many = Fitted(known, _demos(lambda obs: _behaviour(9, obs.sin() * 3)), replace(QUICK, rank=0))
    assert 1 <= few.rank < many.rank
    assert max(few.fresh.adapter.ranks.values()) == few.rank  # type: ignore[union-attr]


def test_leaving_out_a_skill_that_is_not_used_costs_nothing(known: Known) -> None:
    fitted = Fitted(known, _demos(lambda obs: _behaviour(0, obs)), replace(QUICK, composer="fixed", steps=400))
    _, held = fitted.demos.split(0.2)
    loss = held_out_loss(fitted.composition.module, held)
    without = leave_one_out(fitted, held)
    assert without["right"] < loss + 0.05 and without["left"] > loss + 0.3


def test_a_generative_base_is_composed_by_its_own_loss(tmp_path: Path) -> None:
    config = GenerativeConfig(hidden=16, blocks=1, features=8, time_width=8, steps=3)
    base = DiffusionActor(OBS, ACT, generators(0, 1), config)
    base.requires_grad_(False)
    header = Header(base_digest(base), "", base.normalizer.digest)
    demos = _demos(lambda obs: _behaviour(0, obs), rows=100)
    skill = train_adapter(base, demos, 2, 40, 1e-2, 1.0, 64).with_header(header)
    settings = replace(QUICK, steps=10, adapter_steps=10)
    for level in ("parameter", "noise", "action"):
        choice = choose(Known(base, {"a": skill}), demos, replace(settings, level=level))
        assert ("own loss" in choice.measure) is (level != "action")
        assert all(np.isfinite(judged.loss) for judged in choice.judged)
        composed = next(judged.route for judged in choice.judged if judged.name == "composition")
        action = composed.policy().act(demos.obs[:7].numpy())
        assert action.shape == (7, ACT) and np.abs(action).max() <= 1.0
        folder = tmp_path / level
        folder.mkdir()
        write_route(folder, composed, Known(base, {"a": skill}), {"step": 0, "interface": INTERFACE.to_dict()})
        np.testing.assert_array_equal(load_policy(folder).act(demos.obs[:7].numpy()), action)


@pytest.fixture
def saved(known: Known, tmp_path: Path) -> Path:
    """A composition under a context gate, on disk."""
    route = Fitted(known, _demos(_either), replace(QUICK, steps=5)).composition
    write_route(tmp_path, route, known, {"step": 0, "task": None, "interface": INTERFACE.to_dict()})
    return tmp_path


def test_a_saved_composition_acts_as_it_did(known: Known, saved: Path) -> None:
    policy: Any = load_policy(saved)
    assert isinstance(policy, ComposedActor) and policy.interface == INTERFACE
    again = Fitted(known, _demos(_either), replace(QUICK, steps=5)).composition
    probes = _demos(_either).obs.numpy()
    assert output_hash(policy.act, probes) == output_hash(again.policy().act, probes)


def _card(folder: Path, change: Any) -> None:
    card = json.loads((folder / "policy.json").read_text())
    change(card["composition"])
    (folder / "policy.json").write_text(json.dumps(card))


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


MALFORMED = {
    "another composer": (lambda f: _card(f, lambda c: c["composer"].update(name="os.system")), "names the composer"),
    "another base": (lambda f: _card(f, lambda c: c.update(base="f" * 64)), "needs ffffffffffff"),
    "a skill more": (lambda f: _card(f, lambda c: c["skills"].append("ghost")), "at least one layer"),
    "a skill less": (lambda f: _card(f, lambda c: c["skills"].pop()), "other skills"),
    "unknown settings": (lambda f: _card(f, lambda c: c["composer"]["settings"].update(x=1)), "do not describe"),
    "a giant": (lambda f: _card(f, lambda c: c["composer"]["settings"].update(hidden=[40_000] * 3)), "larger than"),
    "no level": (lambda f: _card(f, lambda c: c.pop("level")), "do not describe"),
    "cut short": (
        lambda f: (f / "policy.safetensors").write_bytes((f / "policy.safetensors").read_bytes()[:-9]),
        "not",
    ),
    "no base": (lambda f: (f / "base" / "policy.safetensors").unlink(), "missing"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_composition_is_refused_with_a_sentence(case: str, saved: Path) -> None:
    damage, words = MALFORMED[case]
    damage(saved)
    with pytest.raises((ValueError, OSError), match=words) as caught:
        load_policy(saved)
    assert "\n" not in str(caught.value)


def test_a_choice_by_training_loss_would_be_noticed(known: Known, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: judging on what was learned from makes the largest adapter look best on noise."""
    whole_set = Demonstrations.split
    monkeypatch.setattr(Demonstrations, "split", lambda self, share: (whole_set(self, share)[0],) * 2)
    with pytest.raises(AssertionError):
        test_losses_are_of_demonstrations_that_were_not_learned_from(known)


def test_a_reason_without_its_numbers_would_be_noticed(known: Known, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(composing, "good_enough", lambda losses, bare, tolerance: "fresh")
    with pytest.raises(AssertionError):
        test_demonstrations_of_one_skill_need_no_new_one(known)
