"""Tiny real actors and adapters for the tests of skills."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from policies.adapter import Adapter, Factors, Header
from policies.lora import base_digest, layer_shape, linear_layers
from policies.networks import StackedMLP, generators

OBS, WIDTH, ACT = 5, 32, 3


class PlainNet(nn.Module):
    """Three torch.nn.Linear layers with LayerNorm and a side path, as a generative actor has."""

    def __init__(self, seed: int = 0):
        super().__init__()
        torch.manual_seed(seed)
        self.enter = nn.Linear(OBS, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.block = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.SiLU(), nn.Linear(2 * WIDTH, WIDTH))
        self.leave = nn.Linear(WIDTH, ACT)

    def forward(self, x: Tensor) -> Tensor:
        h = self.enter(x)
        return self.leave(torch.tanh(h + self.block(self.norm(h))))


SHAPES = {"net.0": (8, 6), "net.1": (3, 8)}
HEADER = Header("b" * 64, "i" * 64, "n" * 64)


def random_skill(seed: int) -> Adapter:
    """For a library of `SHAPES` and `HEADER`."""
    rng, layers = torch.Generator().manual_seed(seed), {}
    for name, (d_out, d_in) in SHAPES.items():
        layers[name] = Factors(torch.randn(2, d_in, generator=rng), torch.randn(d_out, 2, generator=rng))
    return Adapter(layers, HEADER)


@pytest.fixture(params=["stacked", "plain"])
def base(request: pytest.FixtureRequest) -> nn.Module:
    """An untrained base: stacked layers of population 1, or torch.nn.Linear."""
    if request.param == "plain":
        return PlainNet()
    return StackedMLP(OBS, (WIDTH, WIDTH), ACT, generators(0, 1), layer_norm=True)


@pytest.fixture
def plain_net() -> PlainNet:
    return PlainNet()


@pytest.fixture
def obs() -> Tensor:
    return torch.randn(7, OBS, generator=torch.Generator().manual_seed(99))


@pytest.fixture
def make_skill() -> Callable[..., Adapter]:
    """make_skill(base, seed, rank=4, layers=None): random factors on every linear layer (or those named)."""

    def make(base: nn.Module, seed: int, rank: int = 4, layers: list[str] | None = None) -> Adapter:
        rng = torch.Generator().manual_seed(seed)
        factors = {}
        for name, _, _, layer in linear_layers(base):
            d_out, d_in = layer_shape(layer)
            down = torch.randn(rank, d_in, generator=rng) / d_in**0.5
            factors[name] = Factors(down, torch.randn(d_out, rank, generator=rng) * 0.3)
        kept = {n: f for n, f in factors.items() if layers is None or n in layers}
        return Adapter(kept, Header(base_digest(base), "interface", "normalizer"))

    return make
