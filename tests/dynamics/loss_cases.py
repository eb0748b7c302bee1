"""A small data set, a model's errors on it, and values of it: what the tests of losses start from."""

from collections.abc import Callable
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from dynamics.ensemble import Ensemble, EnsembleConfig
from dynamics.fit import member_errors
from dynamics.losses import Errors, GradientCache, VaGraM
from policies.networks import generators

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
