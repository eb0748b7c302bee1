"""Advantages by imagination: what models say is earned, where they are sure, and controls that a fake fails."""

from dataclasses import replace
from functools import cache, partial

import pytest
import torch
from small_task import SMALL_UNI_O4, Negated, Permuted, best_action, task
from torch import Tensor

from dynamics.ensemble import EnsembleConfig
from dynamics.fit import FitConfig
from policies.networks import generators
from robot_cl.data.sampler import Sampler
from robot_cl.learners.draws import Draws
from robot_cl.learners.imagined import ImaginationConfig
from robot_cl.learners.uni_o4 import UniO4
from robot_cl.learners.uni_o4_config import Advantage

SMALL = ImaginationConfig(members=2, horizon=3, rollouts=32, every=10, minibatch=64, rare=0.25, reach=10.0)
TINY = replace(
    SMALL_UNI_O4,
    advantage=Advantage.imagined,
    imagined=SMALL,
    critic_steps=200,
    dynamics=EnsembleConfig(2, 2, (32,), (16,)),
    fit=FitConfig(max_steps=400, batch=64),
)


data_of = partial(task, worth=0.5)  # what states are worth beside actions


def made(kind: type[UniO4], **options) -> UniO4:
    torch.set_num_threads(1)
    learner = kind(replace(TINY, **options), 2, 1)
    learner.attach_data(data_of())
    learner.prepare(data_of())
    return learner


@cache
def fitted() -> dict[str, Tensor]:
    """What a learner remembers whose values, clones and models are there."""
    learner = made(UniO4)
    sampler = Sampler.over(data_of(), learner.rng)
    while learner.step < learner.config.fit_steps:
        learner.update_offline(sampler.sample(64))
    learner.begin_improvement()
    return learner.state_dict()


def begun(kind: type[UniO4] = UniO4, shuffled: bool = False, **options) -> UniO4:
    """A learner whose policies are about to be improved."""
    learner, data = made(kind, **options), data_of()
    learner.load_state_dict(fitted())
    if shuffled:
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
        learner.data = replace(data, action=data.action[order])
        learner.begin_improvement()
        learner.data = data
    return learner


def gain(learner: UniO4) -> float:
    """By which share −E (a − best)² comes nearer to 0 when every step is kept."""
    obs, batch = torch.randn(500, 2, generator=torch.Generator().manual_seed(9)), data_of(64)[None]
    before = (learner.members.mode(obs) - best_action(obs)).square().mean().item()
    for _ in range(learner.config.improve_steps):
        learner.schedule()
        learner.improve(batch)
        learner.step += 1
    return 1.0 - (learner.members.mode(obs) - best_action(obs)).square().mean().item() / before


def test_imagined_advantages_gain_permuted_ones_do_not_and_negated_ones_lose():
    assert gain(begun()) > 0.5
    assert abs(gain(begun(Permuted))) < 0.2
    assert gain(begun(Negated)) < -0.5


def test_models_of_shuffled_actions_give_no_gain():
    assert gain(begun(shuffled=True)) < 0.3  # some direction, by chance: -0.5 to 0.1 were seen


@pytest.fixture(scope="module")
def learner() -> UniO4:
    return begun()


def rollouts(learner: UniO4, ends=None) -> Tensor:
    imagination = learner.source.imagination
    how = (learner.members, learner.data, Draws(generators(3, 1)), learner.state_value, torch.ones(()), 0.5, ends)
    return imagination.rollouts(*how)


def test_advantages_are_what_models_pay_and_values_promise(learner):
    """Of one step: r + γ V(s') − V(s), with the reward that the models say and the policy's own V."""
    imagination = learner.source.imagination
    rollouts(learner)  # the first one says in which unit V lacks something
    imagination.config = replace(SMALL, horizon=1)
    rows = rollouts(learner)
    imagination.config = SMALL
    z, action, told = rows.split([2, 1, 4], -1)
    log_prob, advantage, lack, room = told.unbind(-1)
    obs = _raw(learner, z)
    said = imagination.judge(obs.view(1, -1, 2), action.reshape(1, -1, 1).clamp(-1, 1))
    paid = advantage + _short(learner, obs, said)
    torch.testing.assert_close(said.reward.view(2, -1), paid, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(log_prob, learner.members.log_prob(*learner.members.heads(z), action))
    torch.testing.assert_close(lack - advantage, imagination.lacking(z), atol=1e-5, rtol=1e-4)
    assert ((room >= 0) & (room <= 1)).all() and room.max() == 1.0


def _short(learner: UniO4, obs: Tensor, said) -> Tensor:
    """V(s) − γ V(s') of the states that each rollout's own model leads to."""
    imagination, norm = learner.source.imagination, learner.actor.normalizer
    own = (torch.arange(SMALL.rollouts) % SMALL.members).repeat(2).view(1, 1, -1, 1).expand(1, 1, -1, 2)
    after = obs.view(1, -1, 2) + said.delta.gather(1, own)[:, 0]
    low, high = imagination.models.obs_low, imagination.models.obs_high
    after = torch.maximum(torch.minimum(after, high + 0.1 * (high - low)), low - 0.1 * (high - low))

    def v(x: Tensor) -> Tensor:
        return learner.state_value(x).view(2, -1) + imagination.lacking(norm(x.view(2, -1, 2)))

    return v(obs.view(1, -1, 2)) - 0.5 * v(after)


# -- where models are sure --------------------------------------------------------------------------------------------


def test_room_shrinks_from_all_to_none_between_two_disagreements(learner):
    imagination = learner.source.imagination
    low, high = imagination.sure[0].tolist()
    assert 0.0 < low < high
    found = imagination.room(torch.tensor([[0.0, low, 0.5 * (low + high), high, 10.0 * high]]))
    torch.testing.assert_close(found, torch.tensor([[1.0, 1.0, 0.5, 0.0, 0.0]]))
    far = imagination.judge(torch.full((1, 4, 2), 8.0), torch.ones(1, 4, 1)).apart
    assert (imagination.room(far) == 0.0).all()  # nobody was ever there


def test_rare_states_begin_their_share_of_the_rollouts(learner):
    imagination = learner.source.imagination

    def apart(rare: float) -> Tensor:
        imagination.config = replace(SMALL, rollouts=400, rare=rare)
        obs = imagination.starts(learner.members, learner.data, Draws(generators(5, 1)))
        found = imagination.judge(obs.view(1, -1, 2), learner.members.mode(obs).view(1, -1, 1)).apart
        return found.view(2, 400)

    few, many = apart(0.0), apart(0.5)
    imagination.config = SMALL
    bound = few.quantile(0.9)
    assert (few > bound).float().mean() < 0.11 and (many > bound).float().mean() > 0.35


def test_a_rollout_that_ends_earns_nothing_from_there_and_begins_anew(learner):
    imagination = learner.source.imagination
    on, over = rollouts(learner), rollouts(learner, lambda obs: torch.ones(obs.shape[:-1], dtype=torch.bool))
    z, again = (rows[..., :2].view(2, SMALL.horizon, SMALL.rollouts, 2) for rows in (on, over))
    assert torch.equal(again[:, 0], again[:, 2]) and not torch.equal(z[:, 0], z[:, 2])
    values = learner.state_value(_raw(learner, over[..., :2]).view(1, -1, 2)).view(2, -1)
    told = over[..., -3] + values + imagination.lacking(over[..., :2])  # advantage + V is the reward alone
    said = imagination.judge(_raw(learner, over[..., :2]).view(1, -1, 2), over[..., 2:3].reshape(1, -1, 1).clamp(-1, 1))
    torch.testing.assert_close(told, said.reward.view(2, -1), atol=1e-3, rtol=1e-3)


def _raw(learner: UniO4, z: Tensor) -> Tensor:
    norm = learner.actor.normalizer
    return z * (norm.var + norm.eps).sqrt().float() + norm.mean.float()


def test_policies_stay_with_their_clones_where_models_are_not_sure():
    moved = []
    for sure in (None, torch.tensor([[0.0, 1e-6]])):
        learner = begun(improve_steps=60)
        if sure is not None:
            learner.source.imagination.sure.copy_(sure)
        gain(learner)
        z = learner.actor.normalizer(data_of(500).obs).expand(2, -1, -1)
        moved.append(learner.policies.distance(z, learner.members.heads(z)[0]).mean().item())
    assert moved[1] < 0.2 * moved[0]


def test_the_gate_judges_with_models_that_imagine_nothing(learner):
    judges = [model.state_net.layers[0].weight for model in learner.gate.models]
    dreamers = learner.source.imagination.models.state_net.layers[0].weight
    assert not any(torch.allclose(one, other) for judge in judges for one in judge for other in dreamers)
