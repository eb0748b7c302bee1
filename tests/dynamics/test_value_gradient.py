"""Laws of the value-gradient loss, and planted defects of published code that each law must catch."""

from types import SimpleNamespace

import pytest
import torch
from loss_cases import DATA, B, Build, D, E, N, batch, build, critic, quadratic
from torch import Tensor, nn

from dynamics import losses
from dynamics.losses import Errors, GradientCache, VaGraM, value_gradient

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
