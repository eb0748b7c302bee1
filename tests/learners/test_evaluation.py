"""Advantages by policy evaluation: values of the policy and not of its data, and controls that a fake fails."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from small_task import SMALL_UNI_O4, Negated, Permuted, best_action, task
from torch import Tensor

from dynamics.ensemble import EnsembleConfig
from dynamics.fit import FitConfig
from policies.critics import CriticConfig
from policies.networks import generators
from robot_cl.data.sampler import Sampler
from robot_cl.learners.evaluation import Evaluation, EvaluationConfig
from robot_cl.learners.optim import FlatAdam
from robot_cl.learners.uni_o4 import UniO4
from robot_cl.learners.uni_o4_config import Advantage

SMALL = EvaluationConfig(critics=2, before=200, updates=2, lr=3e-3)
TINY = replace(
    SMALL_UNI_O4,
    advantage=Advantage.evaluated,
    evaluated=SMALL,
    critic_steps=0,
    dynamics=EnsembleConfig(2, 2, (16,), (8,)),
    fit=FitConfig(max_steps=100, batch=64),
    gate=replace(SMALL_UNI_O4.gate, reach=10.0),
)


# -- equations --------------------------------------------------------------------------------------------------------


def critics(**options) -> Evaluation:
    """Of two policies, for six one-hot states and one action."""
    torch.set_num_threads(1)
    return Evaluation(6, 1, generators(0, 2), replace(SMALL, **options), CriticConfig(hidden=(32,)))


def test_what_critics_disagree_about_is_taken_off():
    z, action = torch.eye(6).expand(2, -1, -1), torch.full((2, 6, 1), 0.3)
    for count, doubt in ((3, 0.0), (3, 2.0), (1, 2.0)):
        evaluation = critics(critics=count, doubt=doubt)
        q = evaluation.q(z, action)
        spread = q.std(1) if count > 1 else 0.0
        torch.testing.assert_close(evaluation(z, action), q.mean(1) - doubt * spread)


def test_the_loss_is_that_of_one_step_with_the_policys_own_next_action():
    evaluation, (z, after) = critics(), torch.randn(2, 2, 3, 6, generator=torch.Generator().manual_seed(0))
    action, following = torch.full((2, 3, 1), 0.2), torch.full((2, 3, 1), -0.7)
    reward, terminated = torch.tensor([[1.0, 2.0, 3.0]] * 2), torch.tensor([[0.0, 1.0, 0.0]] * 2)
    with torch.no_grad():
        for p in evaluation.target.parameters():
            p.mul_(1.5)  # the target's values, not those that learn
        q = evaluation.target(after, following)
        value = q.mean(1) - q.std(1)
        wanted = reward + 0.9 * (1.0 - terminated) * value
        by_hand = (evaluation.q(z, action) - wanted.unsqueeze(1)).square().mean(-1).sum(1)
    found = evaluation.loss(z, action, reward, terminated, after, following, 0.9)
    torch.testing.assert_close(found.detach(), by_hand)
    found.sum().backward()
    assert all(p.grad is None for p in evaluation.target.parameters())


def test_policies_are_worth_what_they_do_and_not_what_the_data_did():
    """Five states in a row that pay for actions above zero, as half of the data's are: one policy always goes above."""
    rng, one_hot = torch.Generator().manual_seed(0), torch.eye(6)
    evaluation = critics(doubt=0.0, tau=0.05)
    opt = FlatAdam(evaluation.q.parameters(), 2, 3e-3)
    following = torch.tensor([0.5, -0.5]).view(2, 1, 1).expand(2, 128, 1)
    for step in range(900):
        opt.lr = 3e-3 if step < 500 else 3e-4
        state = torch.randint(5, (2, 128), generator=rng)
        action = torch.rand(2, 128, 1, generator=rng) * 2 - 1
        reward, terminated = (action[..., 0] > 0).float(), (state == 4).float()
        evaluation.loss(one_hot[state], action, reward, terminated, one_hot[state + 1], following, 0.9).sum().backward()
        opt.step()
        evaluation.follow()
    found = evaluation(one_hot[:5].expand(2, -1, -1), torch.tensor([0.5, -0.5]).view(2, 1, 1).expand(2, 5, 1)).detach()
    above = torch.tensor([sum(0.9**k for k in range(5 - s)) for s in range(5)])
    torch.testing.assert_close(found, torch.stack([above, torch.zeros(5)]), atol=0.25, rtol=0.0)


# -- in the learner ---------------------------------------------------------------------------------------------------


def made(kind: type[UniO4], **options) -> UniO4:
    torch.set_num_threads(1)
    learner = kind(replace(TINY, **options), 2, 1, seeds=2)
    learner.attach_data(task())
    learner.prepare(task())
    return learner


@cache
def cloned() -> dict[str, Tensor]:
    """What a learner remembers whose clones and models are there."""
    learner = made(UniO4)
    sampler = Sampler.over(task(), learner.rng)
    while learner.step < learner.config.fit_steps:
        learner.update_offline(sampler.sample(64))
    learner.begin_improvement()
    return learner.state_dict()


def improved(kind: type[UniO4] = UniO4, **options) -> tuple[UniO4, float]:
    """By which share −E (a − best)² comes nearer to 0 when every tenth step is kept whatever it is."""
    learner = made(kind, **options)
    learner.load_state_dict(cloned())
    sampler = Sampler.over(task(), learner.rng)
    obs = torch.randn(500, 2, generator=torch.Generator().manual_seed(9))
    before = (learner.members.mode(obs) - best_action(obs)).square().mean().item()
    for done in range(learner.config.improve_steps or 0):
        learner.schedule()
        learner.improve(sampler.sample(64))
        learner.step += 1
        if done % 10 == 9:
            learner.policies.accept(torch.ones_like(learner.gate.made, dtype=torch.bool))
    return learner, 1.0 - (learner.members.mode(obs) - best_action(obs)).square().mean().item() / before


def test_evaluated_advantages_gain_permuted_ones_do_not_and_negated_ones_lose():
    assert improved()[1] > 0.5
    assert improved(Permuted)[1] < 0.2
    assert improved(Negated)[1] < -0.3


def test_critics_follow_the_policy_and_their_targets_the_critics():
    learner, _ = improved()
    begun, now = cloned(), learner.state_dict()
    names = [k for k in begun if k.startswith("nets.evaluation.") and k.endswith("weight")]
    assert any(".q." in k for k in names) and any(".target." in k for k in names)
    assert not any(torch.equal(begun[k], now[k]) for k in names)
    assert 0.0 < learner.opts["evaluation"].lr < 0.01 * SMALL.lr  # the last of a cosine


def test_a_doubt_that_outweighs_everything_keeps_policies_where_critics_agree():
    """With nothing else to climb, a policy goes where its critics agree, and not to the best action."""
    assert improved(evaluated=replace(SMALL, doubt=50.0))[1] < 0.5 * improved()[1]


def test_critics_begin_at_the_returns_of_the_data():
    learner = made(UniO4, evaluated=replace(SMALL, before=0))
    learner.source.begin(task())
    z = learner.policies.spread(learner.actor.normalizer(task().obs).expand(2, -1, -1))
    found = learner.source.critics(z, task().action.expand(4, -1, -1)).mean(1)
    mean = (task().reward.mean() * learner.extra["reward_scale"] / (1.0 - TINY.discount)).expand(4)
    torch.testing.assert_close(found, mean, rtol=0.1, atol=0.0)
    pairs = zip(learner.source.critics.q.parameters(), learner.source.critics.target.parameters(), strict=True)
    assert all(torch.equal(mine, target) for mine, target in pairs)


def test_what_is_evaluated_is_the_accepted_policy_in_the_unit_of_the_values():
    learner = made(UniO4)
    learner.load_state_dict(cloned())
    learner.extra["reward_scale"] = torch.tensor(3.0)
    last = learner.accepted.net.layers[-1]
    with torch.no_grad():
        last.bias[..., : learner.act_dim] += 0.4  # it has moved away from its clone
    seen = []
    learner.source.critics.loss = lambda *rows: seen.append(rows) or learner.source.critics.q(*rows[:2]).sum((1, 2))
    learner.source.evaluate(512)
    _, _, reward, _, after, following, _ = seen[0]
    with torch.no_grad():
        accepted, clones = (actor.heads(after)[0] for actor in (learner.accepted, learner.clones))
    assert (following - accepted).mean().abs() < 0.05 < 0.3 < (following - clones).mean()
    assert reward.mean().item() == pytest.approx(3.0 * task().reward.mean().item(), rel=0.1)


def test_a_run_that_goes_on_from_another_has_critics_of_its_own():
    first, learner = made(UniO4), made(UniO4)
    first.load_state_dict(cloned())
    mine = [p.clone() for p in learner.source.critics.parameters()]
    learner.adopt(first.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(mine, learner.source.critics.parameters(), strict=True))


@pytest.mark.parametrize(("behaviours", "least", "most"), [(1, 0.9, 1.0), (2, 0.0, 0.1)])
def test_they_are_trusted_where_one_behaviour_acted(behaviours, least, most):
    """Two behaviours that take turns by the episode: deviations then say who acts."""
    data = task()
    data.truncated[49::50] = 1.0
    if behaviours == 2:
        who = (torch.arange(len(data)) // 50) % 2 * 2.0 - 1.0
        data = replace(data, action=(0.1 * data.action + 0.3 * who.unsqueeze(-1)))
    learner = UniO4(TINY, 2, 1)
    learner.attach_data(data)
    learner.prepare(data)
    sampler = Sampler.over(data, learner.rng)
    while learner.step <= TINY.fit_steps:
        learner.update_offline(sampler.sample(64))
    assert ((least <= learner.gate.trust) & (learner.gate.trust <= most)).all(), learner.gate.trust


@pytest.mark.parametrize(
    ("options", "said"), [({"critics": 0}, "critics"), ({"doubt": -1.0}, "doubt"), ({"tau": 0.0}, "tau")]
)
def test_senseless_options_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        EvaluationConfig(**options)
