"""A router's contributions as one safetensors file, to send to other robots."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from policies.routers.statistics import Contribution, Moments
from policies.skill_file import write_atomically


def save_contributions(contributions: Mapping[str, Contribution], path: Path) -> None:
    """Write robots' contributions; `load_contributions` gives them back bit for bit."""
    tensors: dict[str, Tensor] = {}
    index: dict[str, dict[str, object]] = {}
    for r, (robot, part) in enumerate(contributions.items()):
        counts = {skill: m.count for skill, m in part.moments.items()}
        index[robot] = {"at": r, "counter": part.counter, "counts": counts, "extra": list(part.extra)}
        for s, m in enumerate(part.moments.values()):
            tensors[f"{r}.{s}.mean"], tensors[f"{r}.{s}.m2"] = m.mean.contiguous(), m.m2.contiguous()
        tensors |= {f"{r}.{s}.extra": v.contiguous() for s, v in enumerate(part.extra.values())}
        if part.gram is not None:
            tensors[f"{r}.gram"] = part.gram.contiguous()
    data = safetensors.torch.save(tensors, {"contributions": json.dumps(index)})
    write_atomically(path, data, path.with_name(path.name + ".tmp"))


def load_contributions(path: Path) -> dict[str, Contribution]:
    """Raises ValueError for a file that is not a router's, does not fit itself or holds NaN."""
    try:
        with safe_open(path, "pt") as file:
            index = json.loads(file.metadata()["contributions"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        found = {robot: _contribution(tensors, entry) for robot, entry in index.items()}
    except (SafetensorError, KeyError, TypeError, AttributeError, ValueError, RecursionError):
        raise ValueError(f"{path} does not hold a router's contributions; send the file again") from None
    if not all(t.isfinite().all() for t in tensors.values()):
        raise ValueError(f"{path} holds NaN or infinity; leave that robot out")
    return found


def _contribution(tensors: Mapping[str, Tensor], entry: dict[str, object]) -> Contribution:
    r, counts, extra = entry["at"], entry["counts"], entry["extra"]
    if not isinstance(counts, dict) or not isinstance(extra, list):
        raise TypeError("counts or extra")
    moments = {
        skill: Moments(float(count), tensors[f"{r}.{s}.mean"], tensors[f"{r}.{s}.m2"])
        for s, (skill, count) in enumerate(counts.items())
    }
    own, gram = {skill: tensors[f"{r}.{s}.extra"] for s, skill in enumerate(extra)}, tensors.get(f"{r}.gram")
    widths = {tuple(t.shape) for m in moments.values() for t in (m.mean, m.m2)}
    square = {(*width, *width) for width in widths}
    seen = all(0.0 < m.count < float("inf") and bool((m.m2 >= 0).all()) for m in moments.values())
    if not seen or len(widths) > 1 or set(own) - set(moments) or (gram is not None and {tuple(gram.shape)} != square):
        raise ValueError("moments")
    return Contribution(int(str(entry["counter"])), moments, gram, own)
