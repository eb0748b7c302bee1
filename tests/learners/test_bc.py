"""Cloning: the loss is −log π of the data, and the data is what is learned."""

import numpy as np
import pytest
import torch

from policies.actor import ActorConfig, Sigma
from robot_cl.batch import Transitions
from robot_cl.learners.bc import BC, BCConfig, CloningLoss

ACTOR = ActorConfig(hidden=(16,))


def test_the_loss_and_its_gradient_are_those_computed_by_hand(transitions):
    learner, batch = BC(BCConfig(actor=ACTOR), 4, 2, seed=3), transitions(1, 32)
    loss = learner.loss(batch)
    loss.sum().backward()
    actor = learner.actor
    with torch.no_grad():
        mean = actor(batch.obs)[0][0].double().numpy()
    action, sigma = batch.action[0].double().numpy(), np.exp(actor.log_std[0, 0].detach().double().numpy())
    by_hand = (0.5 * ((action - mean) / sigma) ** 2 + np.log(sigma) + 0.5 * np.log(2 * np.pi)).sum(1).mean()
    assert loss.item() == pytest.approx(by_hand, abs=1e-5)
    d_log_std = (1.0 - ((action - mean) / sigma) ** 2).mean(0)
    np.testing.assert_allclose(actor.log_std.grad[0, 0].numpy(), d_log_std, atol=1e-5)
    d_bias = (-(action - mean) / sigma**2 * (1 - mean**2)).mean(0)  # through the tanh of the mean
    np.testing.assert_allclose(actor.net.layers[-1].bias.grad[0, 0].numpy(), d_bias, atol=1e-5)


@pytest.mark.parametrize("loss", list(CloningLoss))
def test_cloning_recovers_a_linear_policy_and_its_noise(loss, transitions):
    data = transitions(2000)
    wanted = 0.2 * data.obs[:, :2] - 0.1 * data.obs[:, 2:]
    noise = 0.1 * torch.randn(2000, 2, generator=torch.Generator().manual_seed(1))
    data = Transitions(data.obs, wanted + noise, *(getattr(data, n) for n in ("reward", "next_obs")),
                       data.terminated, data.truncated)  # fmt: skip
    config = BCConfig(actor=ActorConfig(hidden=(32,), squash_mean=False, sigma=Sigma.head), loss=loss, lr=3e-3)
    learner = BC(config, 4, 2)
    learner.prepare(data)
    rng = torch.Generator().manual_seed(0)
    for _ in range(400):
        learner.update_offline(data[torch.randint(2000, (1, 128), generator=rng)])
    mean, log_std = learner.actor(data.obs)
    assert (mean[0] - wanted).square().mean().sqrt() < 0.05
    if loss is CloningLoss.nll:
        assert log_std.exp().mean().item() == pytest.approx(0.1, rel=0.25)


def test_bc_refuses_to_learn_online_and_bad_options(transitions):
    with pytest.raises(NotImplementedError, match="BC does not learn online"):
        BC(BCConfig(actor=ACTOR), 4, 2).update_online(transitions(1, 8), None)
    with pytest.raises(ValueError, match=r"lr is 0\.0; expected a positive number"):
        BCConfig(lr=0.0)
