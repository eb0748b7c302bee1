"""Laws of the value-gradient losses, and planted defects of published code that each law must catch."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from dynamics import losses
from dynamics.ensemble import Ensemble, EnsembleConfig
from dynamics.fit import member_errors
from dynamics.losses import Errors, GradientCache, GradientTable, VaGraM, ValueDifference, value_gradient
from policies.networks import generators
from policies.normalizer import Normalizer

D, A, N, E, B = 4, 2, 300, 3, 200
Build = Callable[..., VaGraM]


def data(seed: int = 0) -> SimpleNamespace:
    rng = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng)

    obs = draw(N, D)
    return SimpleNamespace(
        obs=obs, action=draw(N, A), reward=draw(N), next_obs=obs + 0.3 * draw(N, D), terminated=torch.zeros(N)
    )


DATA = data()


def model() -> Ensemble:
    config = EnsembleConfig(members=E, elites=2, hidden=(16,), reward_hidden=(8,), gaussian=False)
    net = Ensemble(D, A, config, generators(0, E))
    net.measure(DATA.obs, DATA.action, DATA.reward, DATA.next_obs)
    return net


def batch(seed: int = 0, rows: SimpleNamespace = DATA) -> Errors:
    """Errors of three members, each on distinct rows of its own."""
    rng = torch.Generator().manual_seed(seed)
    index = torch.stack([torch.randperm(N, generator=rng)[:B] for _ in range(E)])
    return member_errors(model(), rows, index)


def quadratic(seed: int = 0) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    half = torch.randn(D, D, generator=torch.Generator().manual_seed(seed))
    matrix = half + half.T
    return lambda x: 0.5 * (x @ matrix * x).sum(-1), matrix


def critic(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(D, 16), nn.Tanh(), nn.Linear(16, 1), nn.Flatten(0))


def build(value_fns: list, **options: object) -> VaGraM:
    cache = GradientCache(value_fns)
    cache.refresh(0)
    return VaGraM(cache, **{"floor": 0.0, **options})  # type: ignore[arg-type]


# -- laws: each takes a way to build the loss and asserts one sentence ----------------------------------------------


def law_quadratic_critic_weighs_with_a_times_next_state(build: Build) -> None:
    value, matrix = quadratic()
    e = batch()
    torch.testing.assert_close(build([value], quantile=1.0).weights(e)[0], e.next_obs @ matrix)


def law_weights_agree_with_finite_differences(build: Build) -> None:
    net, e, step = critic().double(), batch(), 1e-5
    e.next_obs = e.next_obs.double()
    g = build([net], quantile=1.0).weights(e)[0]
    for d in range(D):
        shift = torch.zeros(D, dtype=torch.float64)
        shift[d] = step
        flat = e.next_obs.reshape(-1, D)
        slope = ((net(flat + shift) - net(flat - shift)) / (2 * step)).reshape(E, B)
        torch.testing.assert_close(g[..., d], slope, rtol=1e-5, atol=1e-7)


def law_critic_receives_no_gradient(build: Build) -> None:
    net = critic()
    build([net]).__call__(batch()).sum().backward()
    assert all(p.grad is None for p in net.parameters())


def law_exactly_five_percent_of_rows_are_shortened(build: Build) -> None:
    value, matrix = quadratic()
    e = batch()
    full, clipped = (e.next_obs @ matrix).norm(dim=-1), build([value]).weights(e)[0].norm(dim=-1)
    shortened = clipped < full * (1 - 1e-5)
    assert shortened.sum(-1).tolist() == [B // 20] * E
    for k in range(E):  # and to the same norm, which no row that was left alone exceeds
        limit = clipped[k][shortened[k]]
        assert torch.allclose(limit, limit[0].expand_as(limit), rtol=1e-4)
        assert (full[k][~shortened[k]] <= limit[0] * (1 + 1e-5)).all()


def law_order_of_critics_is_irrelevant(build: Build) -> None:
    nets, e = [critic(s) for s in range(4)], batch()
    torch.testing.assert_close(build(nets)(e), build(nets[::-1])(e))


def law_four_equal_critics_are_one_critic(build: Build) -> None:
    net, e = critic(), batch()
    torch.testing.assert_close(build([net] * 4).state_term(e), build([net]).state_term(e))


def law_member_uses_its_own_rows_in_every_epoch(build: Build) -> None:
    net = critic()
    loss = build([net], quantile=1.0)
    truth = value_gradient(net, DATA.next_obs)[1]
    for epoch in range(3):
        e = batch(epoch)
        torch.testing.assert_close(loss.weights(e)[0], truth[e.index])


def law_scaling_the_value_by_c_scales_the_state_term_by_c_squared(build: Build) -> None:
    net, e = critic(), batch()
    for floor in (0.0, 0.1):
        one = build([net], floor=floor).state_term(e)
        three = build([lambda x: 3.0 * net(x)], floor=floor).state_term(e)
        torch.testing.assert_close(three, 9.0 * one)


def law_terminal_rows_have_no_weight(build: Build) -> None:
    ended = SimpleNamespace(**{**vars(DATA), "terminated": (torch.arange(N) % 3 == 0).float()})
    e = batch(rows=ended)
    weights = build([critic()]).weights(e)[0]
    assert (weights[e.terminated == 1] == 0).all()
    assert (weights[e.terminated == 0].norm(dim=-1) > 0).all()


def law_floor_keeps_a_dimension_the_value_ignores(build: Build) -> None:
    e = batch()
    e.state = e.state.detach().requires_grad_()
    build([lambda x: x[:, 0] ** 3], floor=1e-3).state_term(e).sum().backward()
    assert (e.state.grad[..., 1:].abs().sum((0, 1)) > 0).all()
    assert e.state.grad[..., 0].abs().sum() > 100 * e.state.grad[..., 1].abs().sum()


def law_a_new_critic_version_is_evaluated_anew(build: Build) -> None:
    net, e = critic(), batch()
    loss = build([net], quantile=1.0)
    loss.weights(e)
    with torch.no_grad():
        net[0].weight.mul_(2.0)
    loss.cache.refresh(1)
    torch.testing.assert_close(loss.weights(e)[0], value_gradient(net, e.next_obs)[1])


def law_state_term_is_the_formula(build: Build) -> None:
    value, matrix = quadratic()
    e = batch()
    hand = ((e.next_obs @ matrix) * e.state).square().sum(-1).mean(-1) + e.reward.square().mean(-1)
    torch.testing.assert_close(build([value], quantile=1.0)(e), hand)


LAWS = {name.removeprefix("law_"): f for name, f in list(globals().items()) if name.startswith("law_")}


@pytest.mark.parametrize("law", LAWS)
def test_law(law: str) -> None:
    LAWS[law](build)


# -- planted defects ------------------------------------------------------------------------------------------------


class GradientAtDelta(VaGraM):
    def weights(self, e: Errors) -> Tensor:
        delta = e.next_obs - DATA.obs[e.index]
        return losses.clip_norm(self.cache(e.index, delta), self.quantile)


class GradientOfTheScaledState(VaGraM):
    def weights(self, e: Errors) -> Tensor:
        return losses.clip_norm(self.cache(e.index, e.next_obs) * e.state_scale, self.quantile)


class DirectionOnly(VaGraM):
    def weights(self, e: Errors) -> Tensor:
        return nn.functional.normalize(self.cache(e.index, e.next_obs), dim=-1)


class ClipNever(VaGraM):
    def weights(self, e: Errors) -> Tensor:
        g = self.cache(e.index, e.next_obs)
        return g * (g.norm(dim=-1, keepdim=True).max() / g.norm(dim=-1, keepdim=True)).clamp_max(1.0)


class ClipByComponent(VaGraM):
    def weights(self, e: Errors) -> Tensor:
        g = self.cache(e.index, e.next_obs)
        return torch.minimum(g, torch.quantile(g, self.quantile, dim=2, keepdim=True))


class TerminalsWeighted(VaGraM):
    def weights(self, e: Errors) -> Tensor:
        return losses.clip_norm(self.cache(e.index, e.next_obs), self.quantile)


class NoFloor(VaGraM):
    def state_term(self, e: Errors) -> Tensor:
        return (self.weights(e) * e.state).square().sum(-1).mean(-1).mean(0)


class FloorOfItsOwnScale(VaGraM):
    def state_term(self, e: Errors) -> Tensor:
        plain = self.floor * (e.state / e.state_scale).square().sum(-1).mean(-1)
        return (self.weights(e) * e.state).square().sum(-1).mean(-1).mean(0) + plain


class SquareOfTheSum(VaGraM):
    def state_term(self, e: Errors) -> Tensor:
        return (self.weights(e) * e.state).sum(-1).square().mean(-1).mean(0)


class AbsoluteError(VaGraM):
    def state_term(self, e: Errors) -> Tensor:
        return (self.weights(e) * e.state).abs().sum(-1).mean(-1).mean(0)


class GradientsAccumulate(GradientCache):
    def __call__(self, index: Tensor, next_obs: Tensor) -> Tensor:
        return super().__call__(index, next_obs).cumsum(0)


class CachedByPosition(GradientCache):
    def __call__(self, index: Tensor, next_obs: Tensor) -> Tensor:
        positions = torch.arange(index.numel()).reshape(index.shape)
        return super().__call__(positions, next_obs)


class CachedForTheFirstMember(GradientCache):
    def __call__(self, index: Tensor, next_obs: Tensor) -> Tensor:
        return super().__call__(index[:1].expand_as(index), next_obs)


class NeverRefreshed(GradientCache):
    def refresh(self, version: int) -> None:
        self.version = version


class FirstCriticOnly(GradientCache):
    def __call__(self, index: Tensor, next_obs: Tensor) -> Tensor:
        return super().__call__(index, next_obs)[:1]


class BackwardThroughTheCritic(GradientCache):
    def __call__(self, index: Tensor, next_obs: Tensor) -> Tensor:
        rows = []
        for value_fn in self.value_fns:
            x = next_obs.reshape(-1, D).detach().requires_grad_()
            value_fn(x).sum().backward()
            rows.append(x.grad.reshape(next_obs.shape))
        return torch.stack(rows)


def mutant(loss: type[VaGraM] = VaGraM, cache: type[GradientCache] = GradientCache) -> Build:
    def make(value_fns: list, **options: object) -> VaGraM:
        store = cache(value_fns)
        store.refresh(0)
        return loss(store, **{"floor": 0.0, **options})  # type: ignore[arg-type]

    return make


DEFECTS: dict[str, tuple[Build, str]] = {
    "gradient at the delta": (mutant(GradientAtDelta), "quadratic_critic_weighs_with_a_times_next_state"),
    "gradient of the scaled state": (mutant(GradientOfTheScaledState), "weights_agree_with_finite_differences"),
    "direction without size": (mutant(DirectionOnly), "weights_agree_with_finite_differences"),
    "a clip that never clips": (mutant(ClipNever), "exactly_five_percent_of_rows_are_shortened"),
    "a clip per component": (mutant(ClipByComponent), "exactly_five_percent_of_rows_are_shortened"),
    "terminals weighted": (mutant(TerminalsWeighted), "terminal_rows_have_no_weight"),
    "no floor": (mutant(NoFloor), "floor_keeps_a_dimension_the_value_ignores"),
    "absolute floor": (mutant(FloorOfItsOwnScale), "scaling_the_value_by_c_scales_the_state_term_by_c_squared"),
    "square of the sum": (mutant(SquareOfTheSum), "state_term_is_the_formula"),
    "absolute error": (mutant(AbsoluteError), "scaling_the_value_by_c_scales_the_state_term_by_c_squared"),
    "gradients accumulate": (mutant(cache=GradientsAccumulate), "four_equal_critics_are_one_critic"),
    "accumulation by order": (mutant(cache=GradientsAccumulate), "order_of_critics_is_irrelevant"),
    "one critic of four": (mutant(cache=FirstCriticOnly), "order_of_critics_is_irrelevant"),
    "cached by position": (mutant(cache=CachedByPosition), "member_uses_its_own_rows_in_every_epoch"),
    "first member's cache": (mutant(cache=CachedForTheFirstMember), "member_uses_its_own_rows_in_every_epoch"),
    "stale critic": (mutant(cache=NeverRefreshed), "a_new_critic_version_is_evaluated_anew"),
    "critic trained along": (mutant(cache=BackwardThroughTheCritic), "critic_receives_no_gradient"),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_planted_defect_is_caught(defect: str) -> None:
    make, law = DEFECTS[defect]
    with pytest.raises(AssertionError):
        LAWS[law](make)


def test_accumulating_over_four_critics_would_weigh_the_state_seven_and_a_half_times() -> None:
    net, e = critic(), batch()
    ratio = mutant(cache=GradientsAccumulate)([net] * 4).state_term(e) / build([net]).state_term(e)
    torch.testing.assert_close(ratio, torch.full((E,), 7.5))


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
