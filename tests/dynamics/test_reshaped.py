import copy
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from dynamics.action_flow import ActionFlow
from dynamics.adaptation import GainsConfig, RecursiveGains, RowModels
from dynamics.fit import OnlineConfig
from dynamics.reshaped import ReshapeConfig, ReshapedPolicy
from policies.policy import Policy

GOAL = np.array([3.0, 3.0])


class Seeker:
    """Turns to the goal and drives to it."""

    obs_dim, act_dim = 3, 2

    def act(self, obs: np.ndarray) -> np.ndarray:
        away = GOAL - obs[:, :2]
        turn = np.arctan2(away[:, 1], away[:, 0]) - obs[:, 2]
        turn = (turn + np.pi) % (2 * np.pi) - np.pi
        speed = np.clip(np.linalg.norm(away, axis=1), 0, 1) * np.cos(turn)
        return np.stack([speed, np.clip(2 * turn, -1, 1)], 1).astype(np.float32)

    def reset(self, rows: np.ndarray | None = None) -> None:
        pass


def wander(v: SimpleNamespace, policy: Policy, gains: list[tuple[float, float]], steps: int = 45) -> np.ndarray:
    """Distance to the goal at the end, one row per gain, which holds from step 5 on."""
    obs, change = v.poses(len(gains), 50), torch.tensor(gains)
    for t in range(steps):
        action = torch.as_tensor(policy.act(obs.numpy()))
        obs = v.drive(obs, action * change if t >= 5 else action)
    return np.linalg.norm(obs[:, :2].numpy() - GOAL, axis=1)


@pytest.fixture
def reshaped(vehicle: SimpleNamespace, flow: ActionFlow) -> ReshapedPolicy:
    return ReshapedPolicy(Seeker(), vehicle.model, flow, vehicle.coder)


def test_it_is_a_policy(reshaped: ReshapedPolicy) -> None:
    assert isinstance(reshaped, Policy)


def test_a_changed_robot_still_arrives(vehicle: SimpleNamespace, reshaped: ReshapedPolicy) -> None:
    gains = [(-1.0, -1.0), (-1.0, 2.0), (-1.0, 1.0)]
    assert wander(vehicle, Seeker(), gains).min() > 1.0
    assert wander(vehicle, reshaped, gains).max() < 0.6


def test_an_unchanged_robot_is_never_touched(vehicle: SimpleNamespace, reshaped: ReshapedPolicy) -> None:
    obs = vehicle.poses(20, 1)
    for _ in range(30):
        action = reshaped.act(obs.numpy())
        np.testing.assert_array_equal(action, Seeker().act(obs.numpy()))
        assert not reshaped.last.active.any() and (reshaped.last.surprise < 3).all()
        obs = vehicle.drive(obs, torch.as_tensor(action))


def test_evidence_begins_at_the_first_surprise_and_ends_when_it_is_over(
    vehicle: SimpleNamespace, reshaped: ReshapedPolicy
) -> None:
    obs = torch.tensor([[0.0, 0.0, 0.5]])
    for t in range(20):
        action = torch.as_tensor(reshaped.act(obs.numpy()))
        assert bool(reshaped.last.active[0]) == (6 <= t < 12), t
        assert bool(reshaped.last.followed[0]) == (6 <= t < 12)
        gain = torch.tensor([-1.0, 1.0]) if 5 <= t < 10 else torch.ones(2)
        obs = vehicle.drive(obs, action * gain)


def test_the_change_of_an_action_stays_in_the_trust_region(vehicle: SimpleNamespace, flow: ActionFlow) -> None:
    for trust in (0.1, 0.4):
        policy, moved = ReshapedPolicy(Seeker(), vehicle.model, flow, vehicle.coder, ReshapeConfig(trust=trust)), []
        obs = vehicle.poses(10, 2)
        for _ in range(12):
            action = torch.as_tensor(policy.act(obs.numpy()))
            assert np.abs(action.numpy() - Seeker().act(obs.numpy())).max() <= trust + 1e-6
            moved.append(policy.last.moved.max())
            obs = vehicle.drive(obs, -action)
        assert moved[1] <= 0.76 * trust < max(moved)  # a part of the region at the first evidence, all of it later


class Exactly:
    """A judge that knows what the robot does."""

    def __init__(self, step: Callable[[Tensor, Tensor], Tensor]):
        self.step, self.leads = step, torch.zeros(0, dtype=torch.bool)

    def observe(self, obs: Tensor, action: Tensor, next_obs: Tensor, fresh: Tensor) -> None:
        pass

    def predict(self, obs: Tensor, action: Tensor) -> Tensor:
        return self.step(obs, action)

    def forget(self, rows: Tensor) -> None:
        pass

    def reset(self, rows: np.ndarray | None = None) -> None:
        pass


def test_an_answer_the_judge_expects_to_miss_more_is_rejected(vehicle: SimpleNamespace, flow: ActionFlow) -> None:
    wild = copy.deepcopy(flow)
    with torch.no_grad():
        wild.field.layers[-1].bias += 3.0  # type: ignore[index,operator]
    change, config = vehicle.with_gains(0.8, 1.0), ReshapeConfig(apprenticeship=2)

    def followed(judge: Exactly | None) -> np.ndarray:
        policy, rows = ReshapedPolicy(Seeker(), vehicle.model, wild, vehicle.coder, config, judge), []
        obs = vehicle.poses(20, 3)
        for _ in range(10):
            obs = change(obs, torch.as_tensor(policy.act(obs.numpy())))
            rows.append(policy.last.followed)
        return np.stack(rows)[4:]

    assert followed(None).mean() > 0.5
    assert followed(Exactly(change)).mean() < 0.2 * followed(None).mean()  # the first tries of late rows count
    # A judge that predicts worse than the model has no say.
    assert followed(Exactly(lambda o, a: o + 1.0)).mean() == followed(None).mean()


def test_a_judge_that_never_saw_the_flow_try_cannot_forbid_it(vehicle: SimpleNamespace, flow: ActionFlow) -> None:
    change = vehicle.with_gains(-1.0, 1.0)
    # Right about what was done, wrong about everything else: a model that has seen one action only.
    seen: list[Tensor] = []

    def narrow(obs: Tensor, action: Tensor) -> Tensor:
        if not seen or not torch.equal(action, seen[-1]):
            return obs + 1.0
        return change(obs, action)

    config = ReshapeConfig(apprenticeship=1)
    policy = ReshapedPolicy(Seeker(), vehicle.model, flow, vehicle.coder, config, Exactly(narrow))
    obs = vehicle.poses(5, 3)
    for _ in range(2):
        seen.append(torch.as_tensor(policy.act(obs.numpy())))
        obs = change(obs, seen[-1])
    assert policy.last.active.sum() >= 3 and (policy.last.followed == policy.last.active).all()


def test_a_planner_learns_what_the_flow_cannot_reach(vehicle: SimpleNamespace, flow: ActionFlow) -> None:
    gains, rows = vehicle.with_gains(-0.5, 1.0), RowModels(vehicle.model, OnlineConfig(steps=8), vehicle.rng())

    class Eager(Seeker):
        def act(self, obs: np.ndarray) -> np.ndarray:
            asked.append(rows.leads.clone())
            return np.tile(np.array([1.0, 0.1], dtype=np.float32), (len(obs), 1))

    asked: list[Tensor] = []
    policy = ReshapedPolicy(Eager(), vehicle.model, flow, vehicle.coder, learner=rows)
    obs = vehicle.poses(3, 3)
    for t in range(40):
        before, step = obs, gains if t >= 5 else vehicle.drive
        obs = step(before, torch.as_tensor(policy.act(before.numpy())))
    assert not torch.stack(asked[:7]).any() and asked[-1].all()
    with torch.no_grad():
        planned = torch.tensor([[1.0, 0.1]]).repeat(3, 1)
        learned = (rows.predict(before, planned) - obs).norm(dim=-1)
        nominal = (vehicle.model.belief(before, planned)[0] - obs).norm(dim=-1)
    assert learned.max() < 0.3 * nominal.min()


def test_a_change_is_over_only_once_the_flow_would_have_been_wrong(vehicle: SimpleNamespace, flow: ActionFlow) -> None:
    for trust, active in ((2.0, 0), (1e-6, 5)):  # a flow that moves nothing expects what the model expects
        policy = ReshapedPolicy(Seeker(), vehicle.model, flow, vehicle.coder, ReshapeConfig(trust=trust))
        obs = torch.tensor([[0.1 * k, 0.0, 0.6] for k in range(5)])
        for t in range(10):
            assert t != 5 or policy.last.active.all()
            step = vehicle.with_gains(-1.0, 1.0) if t < 5 else vehicle.drive
            obs = step(obs, torch.as_tensor(policy.act(obs.numpy())))
        assert policy.last.active.sum() == active


def test_reset_forgets_these_rows_only(vehicle: SimpleNamespace, reshaped: ReshapedPolicy) -> None:
    obs = vehicle.poses(2, 4)
    for _ in range(4):
        obs = vehicle.with_gains(-1.0, 1.0)(obs, torch.as_tensor(reshaped.act(obs.numpy())))
    assert reshaped.last.active.all()
    reshaped.reset(np.array([True, False]))
    reshaped.act(obs.numpy())
    assert reshaped.last.active.tolist() == [False, True]


# -- nothing that is not finite ever leaves ---------------------------------------------------------------------------

POISON = (np.nan, np.inf, -np.inf, 1e38, -1e38, 1e-45, 0.0)


class Fuzzed(Seeker):
    """A policy whose actions are broken at random."""

    def __init__(self, rng: np.random.Generator):
        self.rng = rng

    def act(self, obs: np.ndarray) -> np.ndarray:
        action = super().act(obs) * self.rng.choice([1.0, 100.0])
        broken = self.rng.random(action.shape) < 0.2
        return np.where(broken, self.rng.choice(POISON, action.shape), action).astype(np.float32)


@pytest.mark.parametrize("judged", [False, True])
def test_no_nan_ever_leaves_whatever_comes_in(vehicle: SimpleNamespace, flow: ActionFlow, judged: bool) -> None:
    rng, broken_flow = np.random.default_rng(0), copy.deepcopy(flow)
    with torch.no_grad():
        broken_flow.field.layers[-1].bias[..., 0] = torch.nan  # type: ignore[index]
    small = OnlineConfig(capacity=8, batch=4)
    online = [RowModels(vehicle.model, small, vehicle.rng()) if judged else None for _ in range(2)]
    for kind, count in ((flow, 160), (broken_flow, 40)):
        policy = ReshapedPolicy(Fuzzed(rng), vehicle.model, kind, vehicle.coder, None, *online)
        obs = vehicle.poses(5, 5).numpy()
        for _ in range(count):
            with np.errstate(all="ignore"):
                hit = rng.random(obs.shape) < 0.05
                action = policy.act(np.where(hit, rng.choice(POISON, obs.shape), obs))
            assert np.isfinite(action).all() and (np.abs(action) <= 1.0).all()
            obs = vehicle.drive(torch.as_tensor(obs), -torch.as_tensor(action)).numpy()
            policy._evidence[rng.integers(5), rng.integers(8), rng.integers(6)] = rng.choice(POISON)


def test_a_flow_that_broke_leaves_the_policys_own_action(vehicle: SimpleNamespace, flow: ActionFlow) -> None:
    broken = copy.deepcopy(flow)
    with torch.no_grad():
        broken.encoder.layers[0].weight[:] = torch.nan  # type: ignore[index]
    policy, obs = ReshapedPolicy(Seeker(), vehicle.model, broken, vehicle.coder), vehicle.poses(4, 6)
    for _ in range(6):
        action = policy.act(obs.numpy())
        np.testing.assert_array_equal(action, Seeker().act(obs.numpy()))
        obs = vehicle.drive(obs, -torch.as_tensor(action))
    assert policy.last.active.all() and not policy.last.followed.any()


# -- other ways to adapt ----------------------------------------------------------------------------------------------


def test_recursive_least_squares_finds_the_gains_and_the_robot_arrives(vehicle: SimpleNamespace) -> None:
    gains = [(-1.0, 2.0), (2.0, 2.0), (-1.0, -1.0), (1.0, 1.0)]
    policy = RecursiveGains(Seeker(), vehicle.model, GainsConfig(forgetting=0.8))
    assert wander(vehicle, policy, gains).max() < 0.6
    rng, obs = np.random.default_rng(0), vehicle.poses(4, 7)
    policy = RecursiveGains(Scripted(rng), vehicle.model, GainsConfig(offset=True))
    for _ in range(40):
        obs = vehicle.drive(obs, torch.as_tensor(policy.act(obs.numpy())) * torch.tensor(gains) + 0.2)
    gain, offset = policy.gains()
    np.testing.assert_allclose(gain.numpy(), gains, atol=0.15)
    np.testing.assert_allclose(offset.numpy(), 0.2, atol=0.1)


def test_without_offsets_one_steady_command_is_enough_to_find_a_gain(vehicle: SimpleNamespace) -> None:
    policy, obs = RecursiveGains(Steady(), vehicle.model), vehicle.poses(2, 7)
    for _ in range(10):
        obs = vehicle.drive(obs, torch.as_tensor(policy.act(obs.numpy())) * torch.tensor([[-1.0, 0.5], [1.0, 2.0]]))
    np.testing.assert_allclose(policy.gains()[0].numpy(), [[-1.0, 0.5], [1.0, 2.0]], atol=0.1)


class Steady(Seeker):
    """Always the same."""

    def act(self, obs: np.ndarray) -> np.ndarray:
        return np.full((len(obs), 2), 0.4, dtype=np.float32)


class Scripted(Seeker):
    """Random actions."""

    def __init__(self, rng: np.random.Generator):
        self.rng = rng

    def act(self, obs: np.ndarray) -> np.ndarray:
        return self.rng.uniform(-0.5, 0.5, (len(obs), 2)).astype(np.float32)


def test_every_row_has_a_model_that_learns_from_its_own_robot_alone(vehicle: SimpleNamespace) -> None:
    models = RowModels(vehicle.model, OnlineConfig(steps=8, batch=32, lr=3e-3), vehicle.rng())
    gains = torch.tensor([[1.0, 1.0], [-1.0, 1.0], [1.0, -1.0]])

    def miss() -> Tensor:
        obs, action = vehicle.poses(3, 9), torch.full((3, 2), 0.7)
        return vehicle.wrapped(models.predict(obs, action) - vehicle.drive(obs, action * gains)).norm(dim=-1)

    first, fresh = miss(), torch.tensor([True, True, False])
    for t in range(40):
        obs, action = vehicle.poses(3, 100 + t), vehicle.actions(3, 200 + t)
        models.observe(obs, action, vehicle.drive(obs, action * gains), fresh)
    after = miss()
    assert first[0] < 0.05 and after[0] < 0.05
    assert after[1] < 0.3 * first[1]
    torch.testing.assert_close(after[2], first[2])  # the row without transitions has learned nothing
    models.reset(np.array([False, True, False]))
    torch.testing.assert_close(miss()[1], first[1])


def test_a_row_learns_as_it_would_alone_whenever_its_neighbour_learns(vehicle: SimpleNamespace) -> None:
    config, gains = OnlineConfig(capacity=16, batch=8, lr=3e-3, steps=3), vehicle.with_gains(-1.0, 1.0)
    pair, alone = (RowModels(vehicle.model, config, vehicle.rng()) for _ in range(2))
    pair.predict(vehicle.poses(2, 0), vehicle.actions(2, 1))
    for t in range(40):  # the neighbour begins 20 steps earlier, and then takes turns with the row
        obs, action = vehicle.poses(2, t), vehicle.actions(2, 100 + t)
        after, mine = gains(obs, action), t >= 20 and t % 3 != 0
        pair.observe(obs, action, after, torch.tensor([mine, t % 3 != 1]))
        if t == 30:
            pair.forget(torch.tensor([True, False]))
            alone.forget(torch.tensor([True]))
        alone.observe(obs[:1], action[:1], after[:1], torch.tensor([mine]))
    for both, one in zip(pair.models.parameters(), alone.models.parameters(), strict=True):
        torch.testing.assert_close(both[:1], one)
    pair.reset(np.array([True, False]))
    for both, original in zip(pair.models.parameters(), pair.nominal.parameters(), strict=True):
        assert torch.equal(both[:1], original)


def test_rows_may_begin_with_models_of_their_own(vehicle: SimpleNamespace) -> None:
    start, obs, action = vehicle.model.subset(torch.tensor([1, 0])), vehicle.poses(2, 0), vehicle.actions(2, 1)
    rows = RowModels(vehicle.model, OnlineConfig(lr=0.05), vehicle.rng(), start)
    with torch.no_grad():
        said = start.advance(obs, start.means(obs.unsqueeze(1), action.unsqueeze(1), with_reward=False)[0][:, 0])
    torch.testing.assert_close(rows.predict(obs, action), said)
    rows.observe(obs, action, obs + 1.0, torch.ones(2, dtype=torch.bool))
    rows.reset(np.array([1]))
    now = rows.predict(obs, action)
    torch.testing.assert_close(now[1], said[1])
    assert (now[0] - said[0]).abs().max() > 0.01
    with pytest.raises(ValueError, match="2 models for 3 rows"):
        rows.predict(vehicle.poses(3, 0), vehicle.actions(3, 1))


def test_rows_that_do_not_lead_plan_with_the_nominal_model(vehicle: SimpleNamespace) -> None:
    rows, obs = RowModels(vehicle.model, OnlineConfig(lr=0.05, steps=20), vehicle.rng()), vehicle.poses(2, 0)
    action = vehicle.actions(2, 1)
    nominal = RowModels(vehicle.model, OnlineConfig(), vehicle.rng())
    rows.observe(obs, action, vehicle.with_gains(-1.0, -1.0)(obs, action), torch.ones(2, dtype=torch.bool))
    rows.leads = torch.tensor([True, False])
    plans = vehicle.actions(2 * 3 * 4, 2).reshape(2, 3, 4, 2)
    mine, usual = (m.returns(lambda o, a, n: n[:, 0])(obs, plans) for m in (rows, nominal))
    torch.testing.assert_close(mine[1], usual[1])
    few = rows.returns(lambda o, a, n: n[:, 0]).among(torch.tensor([1]))
    torch.testing.assert_close(few(obs[1:], plans[1:]), usual[1:])
    assert (mine[0] - usual[0]).abs().max() > 0.01
    rows.forget(torch.tensor([True, False]))
    assert rows._held.tolist() == [0, 1]


def test_a_planner_rolls_every_row_through_its_own_model(vehicle: SimpleNamespace) -> None:
    models = RowModels(vehicle.model, OnlineConfig(), vehicle.rng())
    obs, actions = vehicle.poses(2, 1), torch.rand(2, 5, 3, 2, generator=vehicle.rng()) * 2 - 1
    models.predict(obs, actions[:, 0, 0])
    with torch.no_grad():
        models.models.state_net.layers[-1].bias[1] += 0.5  # type: ignore[index]
    got = models.returns(lambda o, a, n: n[:, 0])(obs, actions)
    for b in range(2):
        for k in range(5):
            state, total = obs.clone(), 0.0
            for h in range(3):
                state = models.predict(state, actions[:, k, h])
                total += float(state[b, 0])
            assert float(got[b, k]) == pytest.approx(total, abs=1e-4)
