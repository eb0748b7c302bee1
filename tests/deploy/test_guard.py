"""A guard keeps its promise, refuses one it cannot keep, and sees a robot that changed."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robot_cl.deploy.bundle import PolicyBundle
from robot_cl.deploy.guard import GuardConfig, adapted, calibrate, load_guard, run_guard, threshold
from robot_cl.deploy.modes import Mode
from robot_cl.deploy.novelty import Rollouts


def pendulum(count: int, seed: int, gain: float = 1.0, steps: int = 60, change_at: int = 0) -> Rollouts:
    """A damped oscillator under random forces: obs = [position, speed]; `gain` of its motor from `change_at` on."""
    rng = np.random.default_rng(seed)
    x, v = rng.uniform(-0.3, 0.3, (2, count))
    obs, action = np.zeros((count, steps, 2)), rng.uniform(-1, 1, (count, steps, 1))
    for t in range(steps):
        obs[:, t] = np.stack([x, v], 1)
        push = (gain if t >= change_at else 1.0) * action[:, t, 0]
        v = v + 0.05 * (push - 2.0 * x - 0.3 * v) + 0.004 * rng.standard_normal(count)
        x = x + 0.05 * v + 0.001 * rng.standard_normal(count)
    return Rollouts(obs, action)


def test_the_false_alarm_rate_is_the_one_stated() -> None:
    fresh, rates = pendulum(600, seed=99), []
    for seed in range(5):
        guard = calibrate(pendulum(120, seed), GuardConfig(alpha=0.1), seed)
        rates.append((run_guard(guard, fresh).max(1) > guard.threshold).mean())
    assert 0.07 <= np.mean(rates) <= 0.13
    pointwise = calibrate(pendulum(200, 0), GuardConfig(0.1))
    novelty = run_guard(pointwise, fresh)
    limits = np.quantile(run_guard(pointwise, pendulum(200, 5)), 0.9, axis=0)
    assert (novelty > limits).any(1).mean() > 0.3, "a threshold per step breaks the promise"


def test_a_weak_motor_is_noticed_soon_after_it_weakens() -> None:
    guard = calibrate(pendulum(100, 1), GuardConfig(0.05))
    crossed = run_guard(guard, pendulum(200, 7, gain=0.3, change_at=30)) > guard.threshold
    first = np.where(crossed.any(1), crossed.argmax(1), 60)
    assert ((first >= 30) & (first < 50)).mean() > 0.8


def test_too_few_rollouts_are_refused_with_the_number_needed() -> None:
    with pytest.raises(ValueError, match="at least 18 are needed"):
        calibrate(pendulum(16, 0), GuardConfig(0.1))
    assert len(calibrate(pendulum(18, 0), GuardConfig(0.1)).maxima) == 9
    with pytest.raises(ValueError, match="at least 198 are needed"):
        calibrate(pendulum(100, 0), GuardConfig(0.01))


def test_the_threshold_is_the_stated_order_statistic() -> None:
    maxima = np.random.default_rng(0).permutation(np.arange(1.0, 100.0))
    assert threshold(maxima, 0.1) == 90.0 and threshold(maxima, 0.01) == 99.0 and threshold(maxima, 0.5) == 50.0


def test_two_scores_that_must_agree_alarm_later_and_keep_the_promise() -> None:
    fresh = pendulum(1000, seed=77)
    one = calibrate(pendulum(300, 2), GuardConfig(0.1, ("surprise", "mahalanobis"), agree=1))
    both = calibrate(pendulum(300, 2), GuardConfig(0.1, ("surprise", "mahalanobis"), agree=2))
    for guard in (one, both):
        assert 0.04 <= (run_guard(guard, fresh).max(1) > guard.threshold).mean() <= 0.17
    assert (run_guard(both, fresh) <= run_guard(one, fresh) + 1e-12).all()


def test_alpha_follows_drift() -> None:
    assert adapted(0.1, 0.1, alarmed=True) == pytest.approx(0.1 - 0.02 * 0.9)
    assert adapted(0.1, 0.1, alarmed=False) == pytest.approx(0.1 + 0.02 * 0.1)
    assert 0 < adapted(0.001, 0.1, alarmed=True, rate=1.0) < 1


def test_after_a_false_alarm_a_guard_asks_for_more_and_never_for_more_than_it_can_promise(tmp_path: Path) -> None:
    guard = calibrate(pendulum(60, 3), GuardConfig(0.2))
    quiet, alarmed = guard.after(False), guard.after(True)
    assert quiet.config.alpha == pytest.approx(0.204) and alarmed.config.alpha == pytest.approx(0.184)
    assert quiet.threshold <= guard.threshold <= alarmed.threshold
    for _ in range(20):
        alarmed = alarmed.after(True)
    assert alarmed.config.alpha == pytest.approx(1 / 31) and alarmed.threshold == guard.maxima.max()
    alarmed.save(tmp_path)
    again = load_guard(tmp_path).after(False)
    assert again.config.target == 0.2 and again.config.alpha == pytest.approx(1 / 31 + 0.02 * 0.2)


def test_a_guard_reads_back_equal_from_its_bundle_and_refuses_damage(make_bundle: Callable[..., Path]) -> None:
    folder = make_bundle()
    guard = calibrate(pendulum(60, 3), GuardConfig(0.2, ("surprise", "mahalanobis"), 2))
    path = guard.save(folder)
    again = load_guard(folder)
    data = pendulum(20, 4)
    np.testing.assert_array_equal(run_guard(again, data), run_guard(guard, data))
    assert again.threshold == guard.threshold and PolicyBundle.load(folder).obs_dim == 4
    whole = json.loads(path.read_text())
    for key, value in (("std", [[0.0]]), ("maxima", []), ("scores", [{"kind": "x"}]), ("format", 9), ("alpha", "x"),
                       ("promised", 1.5), ("alpha", 10**400), ("agree", math.inf)):  # fmt: skip
        path.write_text(json.dumps({**whole, key: value}))
        with pytest.raises(ValueError, match="calibrate it again"):
            load_guard(folder)


@pytest.mark.parametrize("kind", ["surprise", "mahalanobis"])
def test_a_guard_whose_numbers_do_not_fit_is_refused_when_it_is_read(kind: str, tmp_path: Path) -> None:
    path = calibrate(pendulum(60, 3), GuardConfig(0.2, (kind,))).save(tmp_path)
    whole = json.loads(path.read_text())
    score = whole["scores"][0]
    for name in set(score) - {"kind"}:
        for odd in ([[1.0]], 1.0, np.full(np.shape(score[name]), np.nan).tolist()):
            path.write_text(json.dumps({**whole, "scores": [{**score, name: odd}]}))
            with pytest.raises(ValueError, match="calibrate it again"):
                load_guard(tmp_path)
    for flat in ([1.0], [[]]):
        path.write_text(json.dumps({**whole, "mean": flat, "std": flat}))
        with pytest.raises(ValueError, match="do not fit its 1 scores"):
            load_guard(tmp_path)


def test_rollouts_that_show_no_deviation_are_refused_with_what_is_needed() -> None:
    for data in (pendulum(2, 3), pendulum(60, 3, steps=1)):
        with pytest.raises(ValueError, match="4 rollouts of 2 steps are the least"):
            calibrate(data, GuardConfig(0.6))


def test_a_novelty_that_is_no_number_alarms() -> None:
    guard, data = calibrate(pendulum(60, 3)), pendulum(1, 8)
    guard.scores[0].weight[:] = math.nan  # as a damaged guard.json may say
    seen = [guard.alarm(data.obs[0, t][None], data.action[0, t], None) for t in range(3)]
    assert seen == [False, True, True]


def test_one_by_one_equals_side_by_side() -> None:
    guard, data = calibrate(pendulum(60, 3)), pendulum(3, 8)
    together = run_guard(guard, data)
    for row in range(3):
        guard.reset()
        alone = [guard.alarm(data.obs[row, t][None], data.action[row, t], None) for t in range(data.obs.shape[1])]
        assert alone == (together[row] > guard.threshold).tolist()


def test_the_action_really_taken_explains_the_change_and_another_does_not() -> None:
    guard, data = calibrate(pendulum(60, 3)), pendulum(1, 8)
    asked = -data.action[0]
    for taken, alarms in ((data.action[0], False), (asked, True)):
        guard.reset()
        steps = range(data.obs.shape[1])
        seen = [guard.alarm(data.obs[0, t][None], asked[t], taken[t - 1] if t else None) for t in steps]
        assert any(seen) == alarms


def test_an_alarm_holds_the_robot(make_rig: Callable[..., Any]) -> None:

    class Broken:
        """Joints that follow until a moment, then stand still."""

        def __init__(self, inner: Any):
            self.inner, self.ticks = inner, 0

        def signals(self) -> np.ndarray:
            return self.inner.signals()

        def step(self, command: np.ndarray) -> None:
            self.ticks += 1
            self.inner.step(command if self.ticks < 60 else self.inner.position)

    class Restless:
        obs_dim, act_dim = 4, 2

        def __init__(self, seed: int):
            self.rng = np.random.default_rng(seed)

        def act(self, obs: np.ndarray) -> np.ndarray:
            return self.rng.uniform(-0.5, 0.5, (1, 2)).astype(np.float32)

        def reset(self, rows: np.ndarray | None = None) -> None:
            pass

    rollouts = []
    for seed in range(40):
        steps: list[Any] = []
        listener = type("Keep", (), {"step": lambda self, step, steps=steps: steps.append(step)})()
        make_rig(policy=Restless(seed), listeners=(listener,)).drive(2.0)
        rollouts.append((np.concatenate([s.obs for s in steps]), np.stack([s.taken for s in steps])))
    data = Rollouts(np.stack([o for o, _ in rollouts]), np.stack([a for _, a in rollouts]))
    guard = calibrate(data, GuardConfig(0.05))
    rig = make_rig(policy=Restless(999), guard=guard)
    rig.plant = rig.loopback.plant = Broken(rig.plant)
    rig.drive(2.0)
    assert rig.runner.mode is Mode.HOLD and "guard" in rig.runner.reason
    assert 59 * 0.02 < rig.first("hold") < 59 * 0.02 + 0.5
