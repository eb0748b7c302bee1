"""Random generators of worlds: one kind per family of originals, and their state as plain uint64 numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

WORD = (1 << 64) - 1
NOISE_STREAM = 0x5E4503  # keeps sensor noise apart from the draws of initial states


def gymnasium_rng(seed: int) -> np.random.Generator:
    """What `gymnasium.utils.seeding.np_random(seed)` gives."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed)))


def dm_control_rng(seed: int) -> np.random.RandomState:
    """What dm_control makes of a seed; of one larger than it takes (a run's times its worlds), its digest."""
    return np.random.RandomState(seed if seed < 1 << 32 else np.random.SeedSequence(seed).generate_state(4))


def noise_rng(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, NOISE_STREAM])))


MAKE_RNG: dict[str, Callable[[int], Any]] = {"gymnasium": gymnasium_rng, "dm_control": dm_control_rng}


def pack(rng: Any) -> np.ndarray:
    """State of a PCG64 generator (6,) or an MT19937 RandomState (627,) as uint64."""
    if isinstance(rng, np.random.RandomState):
        _, key, position, has_gauss, gauss = rng.get_state(legacy=True)
        tail = np.array([position, has_gauss, np.float64(gauss).view(np.uint64)], dtype=np.uint64)
        return np.concatenate([np.asarray(key, dtype=np.uint64), tail])
    s = rng.bit_generator.state
    words = [w for value in (s["state"]["state"], s["state"]["inc"]) for w in (value & WORD, value >> 64)]
    return np.array([*words, s["has_uint32"], s["uinteger"]], dtype=np.uint64)


def unpack(rng: Any, packed: np.ndarray) -> None:
    """Put `rng` into a state made by `pack` of the same kind."""
    if isinstance(rng, np.random.RandomState):
        gauss = float(packed[-1:].astype(np.uint64).view(np.float64)[0])
        rng.set_state(("MT19937", packed[:624].astype(np.uint32), int(packed[624]), int(packed[625]), gauss))
        return
    w = [int(v) for v in packed]
    rng.bit_generator.state = {
        "bit_generator": "PCG64",
        "state": {"state": w[0] | w[1] << 64, "inc": w[2] | w[3] << 64},
        "has_uint32": w[4],
        "uinteger": w[5],
    }
