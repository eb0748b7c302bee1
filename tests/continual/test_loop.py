"""A stream learned in one go and one that was killed come out the same; what is written can be read back."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from policies.normalizer import Normalizer
from robot_cl.batch import Transitions
from robot_cl.continual import summary
from robot_cl.continual.actors import side_by_side
from robot_cl.continual.change import ChangeWatch
from robot_cl.continual.detector import DetectorConfig
from robot_cl.continual.hidden import HiddenLibrary
from robot_cl.continual.life import Life, member_setup, run_hidden
from robot_cl.continual.loop import Measuring, run_method
from robot_cl.continual.method import SEEDS_PER_STAGE, MethodConfig, Setup
from robot_cl.continual.route import Tried
from robot_cl.continual.run import is_continual, proceed, read_continual
from robot_cl.continual.stage_training import saved
from robot_cl.continual.stage_worlds import Played, score, stage_world
from robot_cl.continual.trials import Snapshots, scores
from robot_cl.learners.base import Learner
from robot_cl.learners.rollout import Collector
from sim.stream import Stage

QUICK = Measuring(episodes=2, points=1, curve_episodes=1, save_every=64)
MakeSetup = Callable[..., Setup]
TINY_RUN = {
    "stream": "vehicle_regimes", "methods": ["packnet"], "seeds": 1, "steps": 128, "base_steps": 32, "tasks": 2,
    "num_worlds": 4, "threads": 1,
    "measuring": {"episodes": 2, "points": 1, "curve_episodes": 1, "save_every": 32},
    "learner": {
        "name": "ppo", "horizon": 8, "minibatch": 32, "epochs": 1,
        "actor": {"hidden": [8], "activation": "tanh", "squash_mean": False, "init": "orthogonal"},
        "critic": {"hidden": [8], "activation": "tanh"},
    },
}  # fmt: skip


class Killed(BaseException):
    """Stands for the end of the process: nothing of ours catches it."""


def interrupted(name: str, setup: Setup, after: int) -> None:
    """Run until `after` rounds of training have been reported, then die."""
    left = after

    def die(what: str, done: float, total: float) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise Killed

    with pytest.raises(Killed):
        run_method(name, setup, QUICK, die)


def matrix_of(rows: list[dict]) -> tuple:
    return [row["scores"] for row in rows], [row["curve"] for row in rows], [row["steps"] for row in rows]


@pytest.mark.parametrize(("name", "checks"), [("library", 0), ("library", 3), ("fresh", 3), ("packnet", 0)])
def test_a_method_stopped_within_a_task_goes_on_to_the_same_matrix(
    name: str, checks: int, make_setup: MakeSetup
) -> None:
    def made(folder: str) -> Setup:
        setup = make_setup(folder, tasks=2)
        return replace(setup, config=replace(setup.config, checks=checks))

    whole, setup = run_method(name, made("whole"), QUICK), made("stopped")
    for after in (2, 3):
        interrupted(name, setup, after)
    assert saved(setup.folder / "progress" / "00") or (setup.folder / "00").exists()
    assert matrix_of(run_method(name, setup, QUICK)) == matrix_of(whole)


def test_the_time_of_a_process_that_was_killed_counts(make_setup: MakeSetup) -> None:
    setup = make_setup("stopped", tasks=1)
    interrupted("packnet", setup, 3)
    (spent,) = (setup.folder / "progress" / "00").glob("*/spent.json")
    assert json.loads(spent.read_text())["wall_s"] > 0.0
    spent.write_text('{"wall_s": 1000.0}')
    assert run_method("packnet", setup, QUICK)[0]["wall_s"] > 1000.0


def test_a_run_killed_with_sigkill_is_finished_by_another_process_with_the_same_numbers(tmp_path: Path) -> None:
    folders = [tmp_path / "whole", tmp_path / "killed"]
    for folder in folders:
        folder.mkdir()
        (folder / "config.yaml").write_text(yaml.safe_dump({"kind": "continual", **TINY_RUN}, sort_keys=False))
    assert is_continual(folders[0]) and read_continual(folders[0])[0].tasks == 2
    proceed(folders[0])
    script = "import sys; from robot_cl.continual.run import proceed; proceed(__import__('pathlib').Path(sys.argv[1]))"
    command, quiet = [sys.executable, "-c", script, str(folders[1])], os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=quiet)
    while process.poll() is None and not list(folders[1].glob("methods/packnet/progress/*/*")):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() != 0, "it was done before it could be killed"
    proceed(folders[1])
    one, two = (summary.read(folder)["methods"]["packnet"] for folder in folders)
    assert one["R"] == two["R"] and one["curves"] == two["curves"]


def test_the_file_holds_every_number_with_its_interval(make_setup: MakeSetup, tmp_path: Path) -> None:
    setup = make_setup(tasks=2)
    stages = setup.stream.stages
    untrained = score([setup.base] * 2, stages, 2, 0).mean(-1)
    rows = {name: run_method(name, replace(setup, folder=tmp_path / name), QUICK) for name in ("reset", "fresh")}
    alone = summary.curves(rows["reset"])
    entries = {n: summary.method_entry(r, untrained, stages, alone, {}, True) for n, r in rows.items()}
    summary.write(tmp_path, setup.stream, [0, 1], untrained, entries, 1, "test")
    entry = summary.read(tmp_path)["methods"]["fresh"]
    R = np.array(entry["R"])
    assert R.shape == (2, 3, 2) and np.array(entry["curves"]).shape == (2, 2, 2)
    np.testing.assert_array_equal(R[:, 0], untrained)
    assert entry["metrics"]["acc"]["estimate"] == pytest.approx(R[:, 2].mean())
    assert entry["metrics"]["forgetting"]["estimate"] == 0.0
    for number in entry["metrics"].values():
        assert number["low"] <= number["estimate"] <= number["high"] and len(number["per_seed"]) == 2
    assert summary.read(tmp_path)["methods"]["reset"]["metrics"]["forward_transfer"]["estimate"] == 0.0


def test_terms_average_to_the_numbers_of_the_matrix() -> None:
    from robot_cl.continual import metrics

    rng = np.random.default_rng(0)
    R, ours, alone = rng.random((2, 4, 3)), rng.random((2, 3, 5)), 0.5 * rng.random((2, 3, 5))
    terms = summary.contributions(R, ours, alone)
    square = R[:, 1:]
    wanted = {
        "acc": metrics.accuracy(square), "forgetting": metrics.forgetting(square),
        "bwt": metrics.backward_transfer(square), "forward_transfer": metrics.forward_transfer(ours, alone),
    }  # fmt: skip
    for name, values in wanted.items():
        np.testing.assert_allclose(terms[name].mean(-1), values)
    expected = np.mean([square[:, 0, 1] - R[:, 0, 1], square[:, 1, 2] - R[:, 0, 2]], axis=0)
    np.testing.assert_allclose(terms["jump_start"].mean(-1), expected)


def test_a_task_that_is_solved_alone_at_once_costs_only_the_forward_transfer() -> None:
    """It may turn out so after hours; every other number, and every other method, must still come out."""
    rng = np.random.default_rng(0)
    alone = 0.5 * rng.random((2, 3, 5))
    alone[1, 2] = 1.1
    terms = summary.contributions(rng.random((2, 4, 3)), rng.random((2, 3, 5)), alone)
    assert set(terms) == {"acc", "forgetting", "bwt", "jump_start"}


def test_the_interval_knows_that_a_seed_goes_through_all_tasks() -> None:
    """Three seeds that are good or bad at everything are three draws, not eighteen."""
    terms = np.repeat([[0.2], [0.5], [0.8]], 6, axis=1)
    found = summary.interval(terms)
    assert found["estimate"] == pytest.approx(0.5)
    assert found["low"] < 0.3 and found["high"] > 0.7  # of single draws: 0.5 ± 0.11


def test_episodes_of_a_score_do_not_depend_on_the_company_they_are_played_in(make_setup: MakeSetup) -> None:
    setup = make_setup()
    stages = list(setup.stream.stages[:2])
    together = score([setup.base, setup.base], stages, 3, 5)
    np.testing.assert_allclose(together[:, 1:], score([setup.base], stages[1:], 3, 5), atol=1e-9)
    assert together.shape == (2, 2, 3)


# -- nobody announces --------------------------------------------------------------------------------------------------


def test_the_library_without_announcements_yields_a_matrix_and_its_alarms(make_setup: MakeSetup) -> None:
    setup = make_setup(seeds=1, tasks=2)
    rows, facts = run_hidden(replace(setup, stream=setup.stream.hidden()), QUICK)
    assert np.shape(rows[-1]["scores"]) == (1, 2, 2)
    assert len(facts["alarms"]) == 1 and len(facts["contexts"]) == 1
    assert rows[0]["bytes"] > 0  # nothing is published yet, but what is being learned is played
    again, _ = run_hidden(replace(setup, stream=setup.stream.hidden()), QUICK)
    assert matrix_of(again) == matrix_of(rows)


def test_a_skill_hardly_trained_is_trained_on_even_where_it_does(make_setup: MakeSetup) -> None:
    method = HiddenLibrary(make_setup(seeds=1))
    stage = method.setup.stream.stages[0]
    route = replace(method._route(stage, 0, Tried("skill", {"a": 1.0}, np.ones(1))), reached=True)
    assert not method._settled(route, stage)
    method.trained = {"a": stage.steps}
    assert method._settled(route, stage)


def alarmed(setup: Setup) -> tuple[Life, Collector, Stage, Stage]:
    """A life whose watch rings at every rollout but the two after an alarm, in the first of two worlds."""
    life, (here, other) = Life(setup, QUICK, setup.folder), setup.stream.stages[:2]
    config = DetectorConfig(window=4, warmup=2, drift=0.0, threshold=1e-9)
    life.watch = ChangeWatch(Normalizer(4), 2, config=config, updates=1)
    life.method.here = here
    life._meet()
    return life, Collector(stage_world([here] * 4), 1, 3), here, other


def test_after_a_false_alarm_learning_goes_on_and_after_a_true_one_begins_anew(make_setup: MakeSetup) -> None:
    life, collector, here, other = alarmed(make_setup(seeds=1))
    method, learner, steps = life.method, life.learner, 0
    while len(life.alarms) < 2:
        alarms = len(life.alarms)
        taken = life._round(collector, here, 0, steps)
        steps += taken
        more, played = (taken - 8 * collector.worlds) % 15, method.heard.size  # 15 of what is being learned
        assert more == (4 if len(life.alarms) > alarms else 0), "looking again is paid for"
        assert (life.learner, life.trained, method.learning) == (learner, steps, learner)
    assert (len(method.contexts), len(method.routes), len(method.libraries[0])) == (1, 0, 0)
    assert played == 1
    method.here = other
    while len(life.alarms) < 3:
        life._round(collector, other, 1, 0)
    assert life.learner is not learner and life.trained == 0
    assert (len(method.contexts), len(method.routes), len(method.libraries[0])) == (2, 1, 1)
    assert method.trained["context-1"] > steps


def test_a_life_plays_where_it_is(make_setup: MakeSetup) -> None:
    setup = member_setup(make_setup(seeds=1), 0)
    life = Life(setup, QUICK, setup.folder)
    for k, stage in enumerate(life.setup.stream.stages[:2]):
        life.live(k, stage, None)
        assert life.method.here == stage


def plays_in(method: HiddenLibrary) -> list[str]:
    """The shifts of the worlds in which the method plays from now on."""
    found, play = list[str](), method.trials.play

    def noted(actor: Any, stage: Stage, steps: int | None, number: int = 0) -> Played:
        found.append(stage.shift)
        return play(actor, stage, steps, number)

    method.trials.play = noted
    return found


@pytest.mark.parametrize("checks", [0, 2])
def test_nothing_plays_in_a_world_that_is_gone(checks: int, make_setup: MakeSetup) -> None:
    setup = make_setup(seeds=1)
    life, collector, here, other = alarmed(replace(setup, config=replace(setup.config, checks=checks)))
    shifts, method, steps = plays_in(life.method), life.method, 0
    while len(life.alarms) < 1 or not (method.heard.size or method.snapshots.looked):
        steps += life._round(collector, here, 0, steps)
    assert set(shifts) == {here.shift} != {other.shift}
    shifts.clear()
    method.here, method.hearings, method.heard = other, Snapshots(0, []), method.heard + 1.0
    while len(method.contexts) == 1:
        level = method.snapshots.levels[0] if checks else method.heard.mean()
        life._round(collector, other, 1, 0)
    assert set(shifts) == {other.shift}
    (ended,) = method.routes[0]
    assert ended.level == (pytest.approx(level) if ended.learned else 0.0)


def test_a_change_that_rings_no_alarm_is_met_by_looking_unless_the_world_never_does_the_same(
    make_setup: MakeSetup,
) -> None:
    paid = []
    for look, noise, met in ((64, 0.0, True), (0, 0.0, False), (64, 1.0, False)):
        setup = make_setup(f"look-{look}-{noise}", seeds=1)
        life, collector, here, other = alarmed(replace(setup, config=replace(setup.config, look=look)))
        life.watch.detector.config.threshold = np.inf
        rng, meet = np.random.default_rng(0), life.method._meet

        def noisy(stage: Stage, meet=meet, rng=rng, noise=noise) -> tuple[np.ndarray, int, np.ndarray]:
            found, spent, sketch = meet(stage)
            return found, spent, sketch + noise * rng.normal(size=sketch.shape)

        life.method._meet = noisy
        paid.append(life._meet())
        steps = sum(life._round(collector, here, 0, 0) for _ in range(4))
        assert (len(life.alarms), len(life.method.contexts)) == (0, 2) and life.trained == steps
        life.method.here = other
        for _ in range(3):
            life._round(collector, other, 1, 0)
        assert (len(life.alarms), len(life.method.contexts)) == ((1, 3) if met else (0, 2))
        assert (len(life.watch._past) < 3) == met
    assert paid[0] == paid[1] + 4 > 4  # the base's steps, once more to see whether the world repeats itself


def test_after_an_alarm_every_world_begins_an_episode(make_setup: MakeSetup) -> None:
    setup = make_setup(seeds=1)
    life, collector, here, _ = alarmed(setup)
    begun = list[bool]()
    for _ in range(8):
        alarms = len(life.alarms)
        life._round(collector, here, 0, 0)
        start = Collector(stage_world([here] * 4), 1, setup.seed + SEEDS_PER_STAGE + 1).obs
        begun.append(bool((collector.obs == start).all()))
        assert begun[-1] == (len(life.alarms) > alarms)
    assert any(begun) and not all(begun)


def test_where_nobody_says_which_task_it_is_the_best_of_whole_episodes_goes_on(make_setup: MakeSetup) -> None:
    method = HiddenLibrary(make_setup(seeds=1, config=MethodConfig(trial_worlds=2, trial_steps=40)))
    here = method.setup.stream.stages[0]
    learner, _ = method.meet()
    assert learner is not None
    improve(method, learner, here)
    actors = side_by_side([method._composed([{}]), method.current(-1, learner), method.policy(0)])
    base, present, chosen = scores(method.trials.play(actors, here, None), here).mean(-1)
    assert base != present and chosen == pytest.approx(max(base, present))


def improve(method: HiddenLibrary, learner: Learner, stage: Stage) -> None:
    """Weights drawn at random until they do better than what learning began with."""
    rng, weights = torch.Generator().manual_seed(0), [p for p in learner.actor.parameters() if p.requires_grad]
    before, start = method.trials.long(learner.policy(), stage)[0].mean(), [w.detach().clone() for w in weights]
    while method.trials.long(learner.policy(), stage)[0].mean() < before + 0.2 * abs(before):
        for weight, first in zip(weights, start, strict=True):
            weight.data.copy_(first + 0.3 * torch.randn(first.shape, generator=rng))


def test_a_changed_world_is_noticed_by_the_errors_of_a_model_of_the_old_one(make_setup: MakeSetup) -> None:
    setup = make_setup(seeds=1)
    learner = method_learner(setup)
    config = DetectorConfig(threshold=10.0, window=4, warmup=12, memory=0.9)
    watch = ChangeWatch(Normalizer(4), 2, config=config, updates=50)
    same, other = (Collector(stage_world([stage] * 32), 1, 3) for stage in setup.stream.stages[:2])
    assert [watch.see(same.collect(learner, 32)) for _ in range(6)] == [False] * 6
    assert watch.see(other.collect(learner, 32))


def rollout(reach: float, sign: float, rng: torch.Generator) -> Transitions:
    """32 steps of 32 worlds, all over a square that reaches so far, where actions act with this sign."""
    obs = reach * (2 * torch.rand(1, 32, 32, 2, generator=rng) - 1)
    action = torch.rand(1, 32, 32, 1, generator=rng) - 0.5
    after = obs + 0.1 * (3 * obs).sin() + 0.05 * sign * action
    ends = torch.zeros(1, 32, 32)
    return Transitions(obs, action, ends, after, ends, ends)


def test_new_states_are_no_new_world_and_a_new_world_is_noticed_among_known_states() -> None:
    rng, config = torch.Generator().manual_seed(0), DetectorConfig(window=4, warmup=12, threshold=10.0, memory=0.9)
    watch, reach = ChangeWatch(Normalizer(2), 1, config=config, updates=100), 1.0
    for _ in range(8):
        assert not watch.see(rollout(reach, 1.0, rng))
    for _ in range(6):  # the policy moves on, farther each time
        reach *= 1.12
        assert not watch.see(rollout(reach, 1.0, rng))
    assert watch.see(rollout(reach, -1.0, rng))


def method_learner(setup: Setup):  # type: ignore[no-untyped-def]
    from robot_cl.continual.methods import method_class

    learner, _ = method_class("reset")(setup).begin(0)
    return learner
