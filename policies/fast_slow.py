"""Two adapters at two speeds: the fast one learns online, the slow one is deployed and moves only through a gate."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from policies.adapter import Adapter, Factors, Header, compress, linear_combination
from policies.lora import LowRank, attach, extract, linear_layers, load_into


def part_way(slow: Adapter, fast: Adapter, rate: float, rank: int | None = None) -> Adapter:
    """(1 − rate) ΔW_slow + rate ΔW_fast, cut back to `rank` (None: as much as it takes). Raises ValueError for a rate
    outside (0, 1] or adapters of different bases."""
    if not 0.0 < rate <= 1.0:
        raise ValueError(f"rate is {rate}; expected a share in (0, 1]")
    return compress(linear_combination([slow, fast], [1.0 - rate, rate]), rank).with_header(slow.header)


class FastSlow:
    """OFS (Qi et al. 2024, online fast-slow preference optimisation), for skills on a robot.

    `fast` parameters are attached to `module` and trained by whoever owns the optimiser. `slow` follows by
    ΔW_slow ← (1 − rate) ΔW_slow + rate ΔW_fast, formed from the products and cut back to `rank` (averaging the factors
    would add cross terms), and only if the gate accepts that candidate. Remembers the slow adapter.
    """

    def __init__(
        self,
        module: nn.Module,
        rank: int,
        rngs: Sequence[torch.Generator],
        start: Adapter | None = None,
        rate: float = 0.2,
        scale: float = 1.0,
        header: Header | None = None,
    ):
        """`start` is the skill deployed now (its layers and ranks are those adapted); None: the bare base."""
        if not 0.0 < rate <= 1.0:
            raise ValueError(f"rate is {rate}; expected a share in (0, 1]")
        self.module, self.rank, self.rate = module, rank, rate
        self.header = start.header if start is not None else header or Header()
        self.fast = attach(module, rank, rngs, scale, None if start is None else list(start.layers))
        if start is not None:
            load_into(module, start)
        self.slow = start or self._empty()

    def _empty(self) -> Adapter:
        return Adapter({n: Factors(f.down, torch.zeros_like(f.up)) for n, f in extract(self.module).layers.items()},
                       self.header)  # fmt: skip

    def candidate(self) -> Adapter:
        """Where the slow adapter would move: part of the way to the fast one."""
        return part_way(self.slow, extract(self.module, header=self.header), self.rate, self.rank)

    def promote(self, gate: Callable[[Adapter, Adapter], bool]) -> bool:
        """Move the slow adapter if `gate(candidate, slow)` accepts; else it stays bit for bit. Returns the verdict."""
        candidate = self.candidate()
        accepted = bool(gate(candidate, self.slow))
        if accepted:
            self.slow = candidate
        return accepted

    def restart(self) -> None:
        """The fast adapter falls back to the slow one, keeping what it needs to learn again."""
        ranks = {name: layer.down.shape[1] for name, _, _, layer in linear_layers(self.module)
                 if isinstance(layer, LowRank)}  # fmt: skip
        fresh = extract(self.module)
        layers = {}
        for name, rank in ranks.items():
            down, up = self.slow.layers[name]
            spare = fresh.layers[name].down[len(down) : rank]  # directions to learn along, changing nothing yet
            layers[name] = Factors(torch.cat([down, spare]), nn.functional.pad(up, (0, len(spare))))
        load_into(self.module, Adapter(layers, self.header))
