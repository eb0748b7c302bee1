"""Promotion of a new policy or skill: both sides on the same starts, task by task, through the release gate."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import numpy as np

from policies.actor import ActorPolicy
from policies.adapter import Adapter
from policies.card import SkillCard
from policies.library import Library
from policies.lora import merge_into
from policies.policy import Policy
from robot_cl.continual.release_gate import GateConfig, GateVerdict, judge
from robot_cl.evaluate import evaluate
from sim.shift import parse


def read_task(text: str) -> tuple[str, str | None]:
    """ "halfcheetah" or "halfcheetah:gravity0.6" -> task and shift. Raises ValueError for an unknown shift."""
    task, _, shift = text.partition(":")
    parse(shift or "none")
    return task, shift or None


def paired_returns(
    policy: Policy, tasks: Sequence[str], episodes: int, seed: int, threads: int | None = None
) -> dict[str, np.ndarray]:
    """Returns (episodes,) of each task ("task" or "task:shift"), episode k from seed + k on whatever side is asked."""
    found = {}
    for text in tasks:
        task, shift = read_task(text)
        found[text] = np.array(evaluate(policy, task, episodes, seed, shift, threads=threads).returns)
    return found


def gate_policies(
    new: Policy, old: Policy, tasks: Sequence[str], episodes: int, seed: int, config: GateConfig,
    threads: int | None = None,
) -> GateVerdict:  # fmt: skip
    """Whether `new` may take the place of `old`."""
    ours, theirs = (paired_returns(policy, tasks, episodes, seed, threads) for policy in (new, old))
    return judge(ours, theirs, config, np.random.default_rng(seed))


def skill_policy(base: ActorPolicy, adapter: Adapter) -> ActorPolicy:
    """The base with one skill at weight 1."""
    actor = merge_into(copy.deepcopy(base.actor), adapter)
    return ActorPolicy(actor, 0, base.interface, base.task, base.name)  # type: ignore[arg-type]


def promote_skill(
    library: Library, base: ActorPolicy, name: str, adapter: Adapter, card: SkillCard, tasks: Sequence[str],
    episodes: int, seed: int, config: GateConfig, parents: Mapping[str, float] | None = None,
    threads: int | None = None,
) -> GateVerdict:  # fmt: skip
    """A new version of a skill, published only if no task gets worse by it; the version before stays in the history,
    so that `Library.rollback` brings it back. With `parents` the adapter is a residual on them, as in
    `Library.publish`. Raises LookupError if there is no such skill yet, ValueError for an adapter of another base."""
    whole = library.whole(adapter, parents)[0] if parents else adapter
    library.check_fit(name, whole)
    old, new = skill_policy(base, library.adapter(name)), skill_policy(base, whole)
    verdict = gate_policies(new, old, tasks, episodes, seed, config, threads)
    if verdict.promoted:
        library.publish(name, adapter, card.filled(name=name), replace=True, parents=parents)
    return verdict
