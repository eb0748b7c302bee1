"""Value-gradient losses with all kinds of critics, value difference, and losses that know no value."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from loss_cases import DATA, B, D, E, N, batch, build, critic
from torch import Tensor, nn

from dynamics import losses
from dynamics.losses import Errors, GradientTable, VaGraM, ValueDifference, value_gradient
from policies.normalizer import Normalizer

# -- critics on normalised observations, actors, value difference -----------------------------------------------------


def chain_rule(wrapper: Callable) -> None:
    norm = Normalizer(D).fit(DATA.obs * torch.tensor([1.0, 10.0, 0.1, 3.0]) + 2.0)
    net, e = critic(), batch()
    g = build([wrapper(net, norm)], quantile=1.0).weights(e)[0]
    z = (e.next_obs - norm.mean.float()) / norm.var.sqrt().float()
    inside = (z.abs() < norm.clip).all(-1)
    expected = value_gradient(net, norm(e.next_obs))[1] / norm.var.sqrt().float()
    torch.testing.assert_close(g[inside], expected[inside], rtol=1e-4, atol=1e-5)


def test_chain_rule_goes_through_the_critics_own_normaliser() -> None:
    chain_rule(losses.on_normalised)


def test_planted_missing_chain_rule_is_caught() -> None:
    def forgets(net: nn.Module, norm: Normalizer) -> Callable[[Tensor], Tensor]:
        return lambda x: net(x + (norm(x) - x).detach())

    with pytest.raises(AssertionError):
        chain_rule(forgets)


def detached_action(make: Callable) -> None:
    value = make(lambda x, a: (x[:, :1] * a[:, :1]).sum(-1), lambda x: 5.0 * x)
    states = torch.randn(7, D, generator=torch.Generator().manual_seed(1))
    gradient = value_gradient(value, states)[1]
    torch.testing.assert_close(gradient[:, 0], 5.0 * states[:, 0])


def test_value_of_a_state_moves_with_the_state_and_not_with_the_action() -> None:
    detached_action(losses.state_value)


def test_planted_gradient_through_the_actor_is_caught() -> None:
    with pytest.raises(AssertionError):
        detached_action(lambda q, actor: lambda x: q(x, actor(x)))


def value_difference_law(make: Callable[[list], Callable[[Errors], Tensor]]) -> None:
    net, e = critic(), batch()
    e.state, e.reward = e.state.detach().requires_grad_(), e.reward.detach()
    loss = make([net])(e)
    loss.sum().backward()
    assert all(p.grad is None for p in net.parameters())
    x = e.state.detach().clone().requires_grad_()
    frozen = critic().requires_grad_(False)
    diff = frozen((e.next_obs + x).reshape(-1, D)) - frozen(e.next_obs.reshape(-1, D))
    by_hand = diff.reshape(E, B).square().mean(-1) + e.reward.square().mean(-1)
    by_hand.sum().backward()
    torch.testing.assert_close(loss, by_hand)
    torch.testing.assert_close(e.state.grad, x.grad)


def test_value_difference_is_the_formula_and_leaves_the_critic_alone() -> None:
    value_difference_law(ValueDifference)


def test_planted_value_difference_that_trains_the_critic_is_caught() -> None:
    def leaky(value_fns: list) -> Callable[[Errors], Tensor]:
        def loss(e: Errors) -> Tensor:
            diff = value_fns[0]((e.next_obs + e.state).reshape(-1, D)) - value_fns[0](e.next_obs.reshape(-1, D))
            return diff.reshape(E, B).square().mean(-1) + e.reward.square().mean(-1)

        return loss

    with pytest.raises(AssertionError):
        value_difference_law(leaky)


def test_value_difference_ignores_the_next_state_where_the_episode_ended() -> None:
    ended = SimpleNamespace(**{**vars(DATA), "terminated": torch.ones(N)})
    e = batch(rows=ended)
    torch.testing.assert_close(ValueDifference([critic()])(e), e.reward.square().mean(-1))


def test_plain_error_is_added_while_the_critic_means_nothing() -> None:
    net, e = critic(), batch()
    difference = build([net], plain=True)(e) - build([net])(e)
    torch.testing.assert_close(difference, losses.normalised_mse(e))


def test_forgotten_rows_of_the_data_set_are_evaluated_anew() -> None:
    net, e = critic(), batch()
    loss = build([net], quantile=1.0)
    loss.weights(e)
    e.next_obs = e.next_obs + 1.0
    loss.cache.forget(e.index.unique())
    torch.testing.assert_close(loss.weights(e)[0], value_gradient(net, e.next_obs)[1])


def table(rows: Callable[[Tensor], Tensor]) -> VaGraM:
    """Gradients of the whole data set known beforehand; `rows` says where a batch's index reads them."""
    gradients = GradientTable(value_gradient(critic(), DATA.next_obs)[1].unsqueeze(0))
    return VaGraM(lambda index, next_obs: gradients(rows(index), next_obs), quantile=1.0, floor=0.0)


def test_a_table_of_gradients_gives_what_the_cache_gives() -> None:
    e = batch()
    torch.testing.assert_close(table(lambda index: index)(e), build([critic()], quantile=1.0)(e))


def test_planted_table_read_by_place_in_the_batch_is_caught() -> None:
    e = batch()
    with pytest.raises(AssertionError):
        by_place = table(lambda index: torch.arange(B).expand_as(index))
        torch.testing.assert_close(by_place(e), build([critic()], quantile=1.0)(e))


def test_a_value_without_a_gradient_is_refused() -> None:
    with pytest.raises(ValueError, match="no gradient"):
        build([lambda x: x.detach().sum(-1)])(batch())


# -- losses without a value -------------------------------------------------------------------------------------------


def test_normalised_error_of_predicting_the_mean_is_one_per_term() -> None:
    e = batch()
    change = DATA.next_obs - DATA.obs
    e.state = (change.mean(0) - change).expand(E, N, D)
    e.reward = (DATA.reward.mean() - DATA.reward).expand(E, N)
    torch.testing.assert_close(losses.normalised_mse(e), torch.full((E,), 2.0), rtol=1e-4, atol=0.0)


def test_raw_error_follows_units_and_normalised_error_does_not() -> None:
    e = batch()
    raw, normal = losses.mse(e), losses.normalised_mse(e)
    scale = torch.tensor([1.0, 100.0, 1.0, 1.0])
    e.state, e.state_scale = e.state * scale, e.state_scale * scale
    torch.testing.assert_close(losses.normalised_mse(e), normal)
    assert (losses.mse(e) > 100 * raw).all()


def test_likelihood_is_the_gaussian_one_up_to_its_constant() -> None:
    e = batch()
    rng = torch.Generator().manual_seed(3)
    e.state_log_var, e.reward_log_var = torch.randn(E, B, D, generator=rng), torch.randn(E, B, generator=rng)
    zero = torch.zeros(())
    state = -torch.distributions.Normal(zero, torch.exp(0.5 * e.state_log_var)).log_prob(e.state / e.state_scale)
    reward = -torch.distributions.Normal(zero, torch.exp(0.5 * e.reward_log_var)).log_prob(e.reward / e.reward_scale)
    constant = 0.5 * torch.log(torch.tensor(2 * torch.pi))
    by_hand = (state - constant).mean((-1, -2)) + (reward - constant).mean(-1)
    torch.testing.assert_close(losses.nll(e), by_hand)


def test_likelihood_of_a_deterministic_model_is_refused() -> None:
    with pytest.raises(ValueError, match="gaussian=True"):
        losses.nll(batch())
