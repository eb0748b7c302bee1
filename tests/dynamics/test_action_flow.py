from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from dynamics import action_flow, pairs
from dynamics.action_flow import ActionFlow, FlowConfig, RegimePool

K = 8


def evidence_of(v: SimpleNamespace, gain: tuple[float, float], rows: int, seed: int, k: int = K) -> Tensor:
    """K transitions of a vehicle with this gain for each of `rows`, (rows, K, W)."""
    obs, action = v.poses(rows * k, seed), v.actions(rows * k, seed + 1)
    difference = v.wrapped(v.with_gains(*gain)(obs, action) - v.drive(obs, action))
    return v.coder.evidence(obs, action, difference).unflatten(0, (rows, k))


def miss(v: SimpleNamespace, flow: ActionFlow | None, told: dict | None = None, rows: int = 200, k: int = K) -> float:
    """Mean distance of where the answered action leads from where the planned one was to lead, over the gains.

    `told` says of which gain the evidence is that the flow sees (by default of the true one).
    """
    total = 0.0
    for n, gain in enumerate(v.gains):
        obs, planned = v.poses(rows, 100 + n), v.actions(rows, 200 + n)
        seen = evidence_of(v, (told or {}).get(gain, gain), rows, 300 + n, k)
        with torch.no_grad():
            answer = planned if flow is None else flow(planned, v.coder.features(obs), seen, full(rows, k)).clamp(-1, 1)
        error = v.wrapped(v.with_gains(*gain)(obs, answer) - v.drive(obs, planned))
        total += float(error.norm(dim=-1).mean()) / len(v.gains)
    return total


def full(rows: int, k: int = K) -> Tensor:
    return torch.ones(rows, k, dtype=torch.bool)


def test_a_flow_lands_where_planned_from_evidence_of_other_actions(vehicle: SimpleNamespace, flow: ActionFlow) -> None:
    assert miss(vehicle, flow) < 0.1
    assert miss(vehicle, None) > 0.25


def test_evidence_of_another_regime_loses_the_gain(vehicle: SimpleNamespace, flow: ActionFlow) -> None:
    others = dict(zip(vehicle.gains, vehicle.gains[1:] + vehicle.gains[:1], strict=True))
    assert miss(vehicle, flow, others) > 2.5 * miss(vehicle, flow)


def test_an_unchanged_robot_is_left_alone(vehicle: SimpleNamespace, flow: ActionFlow) -> None:
    obs, planned = vehicle.poses(300, 1), vehicle.actions(300, 2)
    seen = evidence_of(vehicle, (1.0, 1.0), 300, 3)
    with torch.no_grad():
        answer = flow(planned, vehicle.coder.features(obs), seen, full(300))
    assert (answer - planned).norm(dim=-1).mean() < 0.2




def test_the_leak_detector_tells_a_query_inside_its_evidence_from_independent_draws(pool: RegimePool) -> None:
    evidence, planned = action_flow.leak_batch(pool, K, torch.Generator().manual_seed(0))
    assert action_flow.leak(evidence, planned) < 0.05
    evidence[:, 3, 1:3] = planned
    assert action_flow.leak(evidence, planned) > 0.9


def leaking(v: SimpleNamespace, pool: RegimePool) -> RegimePool:
    """The same queries; transition q of a regime's evidence is what query q's own planned action did."""
    rows = []
    for gain, planned in zip(v.regimes, pool.planned, strict=True):
        obs = v.poses(len(planned), 8)
        difference = v.wrapped(v.with_gains(*gain)(obs, planned) - v.drive(obs, planned))
        rows.append(v.coder.evidence(obs, planned, difference))
    return RegimePool(torch.stack(rows), pool.features, pool.planned, pool.answer)


def own_transition(pool: RegimePool, rows: int, k: int, rng: torch.Generator) -> tuple[Tensor, ...]:
    """Draws every query with its own transition as evidence, as published code does."""
    regime = torch.randint(len(pool.planned), (rows,), generator=rng)
    at = (regime, torch.randint(pool.planned.shape[1], (rows,), generator=rng))
    return pool.evidence[at].unsqueeze(1), full(rows, 1), pool.features[at], pool.planned[at], pool.answer[at]


def test_a_flow_is_not_fitted_to_leaking_evidence(
    vehicle: SimpleNamespace, pool: RegimePool, trainer: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(action_flow, "draw", own_transition)
    with pytest.raises(ValueError, match="independently"):
        trainer(leaking(vehicle, pool), 1, updates=1)


def test_a_leak_makes_the_loss_tiny_and_the_miss_worse_than_doing_nothing(
    vehicle: SimpleNamespace, pool: RegimePool, trainer: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = trainer(pool, 1, updates=500)
    monkeypatch.setattr(action_flow, "draw", own_transition)
    cheat = trainer(leaking(vehicle, pool), 1, check_leak=False, updates=500)
    assert sum(cheat.losses[-50:]) < 0.1 * sum(honest.losses[-50:])
    assert miss(vehicle, cheat, k=1) > miss(vehicle, None) > 1.5 * miss(vehicle, honest, k=1)


def test_order_of_evidence_and_what_is_masked_do_not_matter(vehicle: SimpleNamespace, flow: ActionFlow) -> None:
    seen, mask = evidence_of(vehicle, (2.0, 0.5), 5, 0), full(5)
    mask[:, 5:] = False
    latent = flow.encode(seen, mask)
    order = torch.tensor([4, 2, 0, 1, 3, 7, 6, 5])
    torch.testing.assert_close(flow.encode(seen[:, order], mask), latent)
    seen[:, 5:] = 7.0
    torch.testing.assert_close(flow.encode(seen, mask), latent)
    assert flow.encode(seen, torch.zeros_like(mask)).abs().max() == 0.0


def test_the_loss_is_that_of_the_straight_path(flow: ActionFlow, pool: RegimePool) -> None:
    batch = action_flow.draw(pool, 50, K, torch.Generator().manual_seed(0))
    evidence, mask, features, planned, answer = batch
    t = torch.full((50, 1), 0.25)
    said = flow.velocity(t, 0.75 * planned + 0.25 * answer, features, flow.encode(evidence, mask))
    by_hand = ((said - (answer - planned)) ** 2).sum(-1).mean()
    torch.testing.assert_close(action_flow.flow_loss(flow, batch, t), by_hand)


def test_one_step_is_the_velocity_at_the_start_and_more_steps_follow_the_field(flow: ActionFlow) -> None:
    planned, features = torch.rand(4, 2), torch.zeros(4, 1)
    seen, mask = torch.randn(4, K, 6, generator=torch.Generator().manual_seed(0)), full(4)
    latent, start = flow.encode(seen, mask), torch.zeros(4, 1)
    first = flow.velocity(start, planned, features, latent)
    torch.testing.assert_close(flow(planned, features, seen, mask), planned + first)
    half = planned + 0.5 * first
    second = half + 0.5 * flow.velocity(start + 0.5, half, features, latent)
    torch.testing.assert_close(flow(planned, features, seen, mask, steps=2), second)


def test_a_saved_flow_comes_back_bit_for_bit(flow: ActionFlow, tmp_path: Path) -> None:
    flow.save(tmp_path / "flow.safetensors")
    back = ActionFlow.load(tmp_path / "flow.safetensors")
    assert back.config == flow.config
    arguments = (torch.rand(3, 2), torch.zeros(3, 1), torch.rand(3, K, 6), full(3))
    assert torch.equal(back(*arguments), flow(*arguments))
    with pytest.raises(OSError, match="no action flow"):
        ActionFlow.load(tmp_path / "none.safetensors")
    whole = (tmp_path / "flow.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[:-4])
    with pytest.raises(ValueError, match="is damaged"):
        ActionFlow.load(tmp_path / "cut.safetensors")
    length = len(whole).to_bytes(8, "little")
    (tmp_path / "long.safetensors").write_bytes(length + whole[8:])
    with pytest.raises(ValueError, match="is damaged"):
        ActionFlow.load(tmp_path / "long.safetensors")


def test_an_action_that_never_varies_is_no_leak_and_wide_evidence_gets_more_rows(pool: RegimePool) -> None:
    still = RegimePool(pool.evidence, pool.features, torch.zeros_like(pool.planned), pool.answer)
    assert action_flow.leak(*action_flow.leak_batch(still, K, torch.Generator().manual_seed(0))) == 0.0
    wide = RegimePool(torch.rand(2, 9, 130), torch.rand(2, 5, 1), torch.rand(2, 5, 2), torch.rand(2, 5, 2))
    seen, planned = action_flow.leak_batch(wide, 3, torch.Generator().manual_seed(0), rows=16)
    assert len(seen) == len(planned) == 4 * 3 * 130  # `leak` refuses fewer than twice the numbers of evidence


def test_a_single_step_is_trained_where_it_is_taken() -> None:
    begun = action_flow.times(FlowConfig(batch=100, begin=0.3), torch.Generator().manual_seed(0))
    assert (begun == 0.0).sum() == 30
    assert 0.3 < begun[30:].mean() < 0.7
    assert (action_flow.times(FlowConfig(batch=100, steps=2), torch.Generator().manual_seed(0)) > 0.0).all()


@pytest.mark.parametrize("options", [{"evidence": 0}, {"lr": 0.0}, {"steps": 0}, {"begin": 1.5}])
def test_an_impossible_flow_is_refused(options: dict) -> None:
    with pytest.raises(ValueError, match=r"."):
        FlowConfig(**options)


# -- coders and pairs -------------------------------------------------------------------------------------------------


def test_in_the_body_frame_an_error_ahead_is_the_same_at_every_heading(vehicle: SimpleNamespace) -> None:
    obs, action = vehicle.poses(50, 0), vehicle.actions(1, 1).expand(50, 2)
    difference = vehicle.wrapped(vehicle.with_gains(2.0, 1.0)(obs, action) - vehicle.drive(obs, action))
    residual = vehicle.coder.residual(obs, difference)
    torch.testing.assert_close(residual, residual[:1].expand(50, 3), atol=1e-4, rtol=1e-3)
    assert difference[:, :2].std(0).min() > 0.05


def test_an_answer_has_the_planned_effect_where_that_is_possible(vehicle: SimpleNamespace) -> None:
    obs, planned = vehicle.poses(200, 0), vehicle.actions(200, 1)
    for gain in ((-1.0, 2.0), (2.0, -2.0), (0.5, 1.0)):
        family = vehicle.family([gain])
        answer = pairs.answers(family, family.regimes[0], obs, planned)
        assert answer.abs().max() <= 1.0
        torch.testing.assert_close(answer, (planned / torch.tensor(gain)).clamp(-1, 1), atol=2e-3, rtol=0)


def test_an_answer_at_a_bound_goes_as_far_beyond_it_as_it_would(vehicle: SimpleNamespace) -> None:
    obs, planned = vehicle.poses(200, 0), vehicle.actions(200, 1)
    gain = torch.tensor([0.6, -0.7])
    step, target, scale = vehicle.with_gains(0.6, -0.7), vehicle.drive(obs, planned), torch.ones(3)
    answer = pairs.answers(vehicle.family([(0.6, -0.7)]), step, obs, planned)
    further = pairs.beyond(lambda a: step(obs, a), target, answer, scale, vehicle.wrapped)
    inside = (planned / gain).abs().amax(-1) < 0.99
    torch.testing.assert_close(further[inside], answer[inside], atol=0, rtol=0)
    alone = (planned / gain).abs() > 1.01  # the other dimension inside: nothing else is to make up for
    alone &= (planned / gain).flip(1).abs() < 0.99
    assert alone.any()
    torch.testing.assert_close(further[alone], (planned / gain)[alone], atol=0.08, rtol=0)
    weak = pairs.beyond(lambda a: vehicle.drive(obs, 0.1 * a), target, planned.sign(), scale, vehicle.wrapped)
    assert weak.abs().max() == 2.0


def test_hindsight_finds_the_plan_that_what_was_done_answers(vehicle: SimpleNamespace) -> None:
    obs, done = vehicle.poses(100, 0), vehicle.actions(100, 1)
    after = vehicle.with_gains(-2.0, 0.5)(obs, done)
    planned, rest = pairs.hindsight(vehicle.drive, obs, done, after, torch.ones(3), vehicle.wrapped)
    torch.testing.assert_close(planned, done * torch.tensor([-2.0, 0.5]), atol=2e-3, rtol=0)
    assert rest.max() < 1e-3


def test_pools_of_different_regimes_are_refused() -> None:
    with pytest.raises(ValueError, match="same regimes"):
        RegimePool(torch.zeros(2, 3, 6), torch.zeros(3, 3, 1), torch.zeros(3, 3, 2), torch.zeros(3, 3, 2))
