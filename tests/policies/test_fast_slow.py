import copy

import pytest
import torch

from policies.adapter import distance
from policies.fast_slow import FastSlow
from policies.lora import detach, extract, merge_into
from policies.networks import generators


def _learn(pair, obs, steps=20):
    optimiser = torch.optim.Adam(pair.fast, 1e-2)
    for _ in range(steps):
        loss = ((pair.module(obs) - 1.0) ** 2).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


def test_the_deployed_adapter_moves_only_through_the_gate(base, obs):
    bare = copy.deepcopy(base)
    pair = FastSlow(base, 4, generators(0, 1), scale=2.0)
    start = merge_into(copy.deepcopy(bare), pair.slow)(obs)
    assert torch.equal(start, bare(obs))
    _learn(pair, obs)
    before = pair.slow
    assert pair.promote(lambda candidate, slow: False) is False and pair.slow is before
    seen = []
    assert pair.promote(lambda candidate, slow: not seen.append((candidate, slow)))
    assert seen[0][0] is pair.slow and seen[0][1] is before


def test_the_slow_adapter_goes_part_of_the_way_in_weights_not_in_factors(base, obs, make_skill):
    start = make_skill(base, 1, rank=4)
    pair = FastSlow(base, 4, generators(0, 1), start, rate=0.25)
    _learn(pair, obs)
    fast = extract(base)
    candidate = pair.candidate()
    full = FastSlow.candidate
    assert max(candidate.ranks.values()) <= 4 and candidate.header == start.header
    pair.rank = 8  # enough for the exact sum
    for name, factors in full(pair).layers.items():
        expected = 0.75 * start.delta(name) + 0.25 * fast.delta(name)
        torch.testing.assert_close(factors.delta, expected, rtol=1e-4, atol=1e-5)


def test_a_restart_brings_the_fast_adapter_back_to_the_deployed_one(base, obs, make_skill):
    bare, start = copy.deepcopy(base), make_skill(base, 1, rank=4)
    pair = FastSlow(base, 4, generators(0, 1), start, scale=3.0)
    _learn(pair, obs)
    assert distance(extract(base), start) > 1e-3
    pair.restart()
    assert distance(extract(base), start) < 1e-5
    assert torch.equal(detach(base)(obs), bare(obs))
    with pytest.raises(ValueError, match="rate is 0"):
        FastSlow(bare, 2, generators(0, 1), rate=0.0)
