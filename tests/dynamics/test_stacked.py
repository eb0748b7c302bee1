"""A stack of ensembles is its ensembles: the same networks, statistics, predictions and rollouts."""

import pytest
import torch
from torch import Tensor

from dynamics.ensemble import Ensemble, EnsembleConfig
from dynamics.imagine import imagine
from dynamics.stacked import EnsembleStack
from policies.networks import generators

D, A, P, N = 4, 2, 3, 60


def rows(seed: int = 0, count: int = N) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """obs, action, reward, next_obs of three seeds whose data differ in scale."""
    rng = torch.Generator().manual_seed(seed)
    scale = torch.tensor([1.0, 10.0, 0.1]).view(P, 1, 1)
    obs = torch.randn(P, count, D, generator=rng) * scale + 2.0
    action = torch.rand(P, count, A, generator=rng) * 2 - 1
    reward = 5.0 * torch.randn(P, count, generator=rng) * scale[..., 0]
    return obs, action, reward, obs + 0.1 * scale * torch.randn(P, count, D, generator=rng)


def config(gaussian: bool) -> EnsembleConfig:
    return EnsembleConfig(4, 2, (16, 16), (8,), gaussian=gaussian, angles=(1,))


def stack(gaussian: bool = True) -> EnsembleStack:
    model = EnsembleStack(D, A, config(gaussian), generators(5, P))
    model.measure(*rows())
    model.choose_elites(torch.tensor([3.0, 1, 2, 0, 0, 1, 2, 3, 2, 0, 3, 1]))
    return model


def alone(p: int, gaussian: bool = True) -> Ensemble:
    g = torch.Generator().manual_seed(5 + p)
    model = Ensemble(D, A, config(gaussian), [g] * 4)
    model.measure(*(x[p] for x in rows()))
    model.elites.copy_(torch.tensor([[1, 3], [0, 1], [1, 3]])[p])
    return model


@pytest.mark.parametrize("gaussian", [True, False])
def test_every_ensemble_of_a_stack_predicts_as_it_would_alone(gaussian: bool) -> None:
    model, (obs, action, *_) = stack(gaussian), rows(1)
    member = model.route(N, [torch.Generator().manual_seed(p) for p in range(P)])
    for sampled in (False, True):
        rngs = [torch.Generator().manual_seed(p) for p in range(P)]
        after, reward = model.predict(obs, action, member, rngs if sampled else None)
        for p in range(P):
            own, rng = alone(p, gaussian), torch.Generator().manual_seed(p)
            assert torch.equal(member[p] - 4 * p, own.route(N, torch.Generator().manual_seed(p)))
            wanted = own.predict(obs[p], action[p], member[p] - 4 * p, rng if sampled else None)
            torch.testing.assert_close(after[p], wanted[0], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(reward[p], wanted[1], rtol=1e-4, atol=1e-5)


def test_one_ensemble_taken_out_is_the_lone_one() -> None:
    model = stack()
    for p in range(P):
        taken, own = model.one(p), alone(p)
        for name, value in own.state_dict().items():
            torch.testing.assert_close(taken.state_dict()[name], value, msg=name)
    with pytest.raises(LookupError, match="0 to 2"):
        model.one(3)


def test_a_stack_imagines_what_its_ensembles_imagine() -> None:
    model, start = stack(), rows(2)[0]
    rngs = [torch.Generator().manual_seed(p) for p in range(P)]
    got = imagine(model, lambda s: torch.tanh(s[..., :A]), start, 4, rngs)
    for p in range(P):
        rng = torch.Generator().manual_seed(p)
        wanted = imagine(alone(p), lambda s: torch.tanh(s[..., :A]), start[p], 4, rng)
        torch.testing.assert_close(got.next_obs[:, p], wanted.next_obs, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(got.reward[:, p], wanted.reward, rtol=1e-3, atol=1e-3)


def test_disagreement_is_the_largest_distance_of_an_elite_in_units_of_the_data() -> None:
    model, (obs, action, *_) = stack(), rows(1)
    found = model.disagreement(obs, action)
    for p in range(P):
        own = alone(p)
        delta = own(obs[p], action[p]).delta[own.elites] / own.delta_scale
        wanted = (delta - delta.mean(0)).square().mean(-1).max(0).values.sqrt()
        torch.testing.assert_close(found[p], wanted, rtol=1e-4, atol=1e-5)
