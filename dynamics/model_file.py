"""Models on disk: one safetensors file whose metadata say what its tensors are, refused unless they fit."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def read_model(path: Path | str, key: str, what: str, maker: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What the file says of itself under `key`, and its tensors. Raises OSError if there is no such file, ValueError if
    it holds something else than `what`, is damaged or has NaN in it."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"no {what} at {path}; {maker}.save writes one")
    try:
        with safe_open(str(path), framework="pt") as file:
            about = (file.metadata() or {}).get(key)
            if about is None:
                raise ValueError(f"{path} holds no {what}; expected a file written by {maker}.save")
            tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118  (the handle is no dict)
        told = json.loads(about)
    except (SafetensorError, json.JSONDecodeError, RecursionError):
        raise ValueError(f"{path} is damaged or no safetensors file; make it again") from None
    for name, tensor in tensors.items():
        if tensor.isnan().any():
            raise ValueError(f"{path} has NaN in {name!r}; make it again")
    return dict(told) if isinstance(told, dict) else {}, tensors


def restored(path: Path | str, tensors: Mapping[str, Tensor], make: Callable[[], ModuleT]) -> ModuleT:
    """What `make` builds, with these tensors in it. Raises ValueError if they do not fit each other."""
    try:
        model = make()
        model.load_state_dict(dict(tensors))
    except (KeyError, TypeError, ValueError, RuntimeError) as problem:
        text = " ".join(str(problem).split())[:160]
        raise ValueError(f"{path} does not hold the model that it describes ({text}); make it again") from None
    return model


def check_room(tensors: Mapping[str, Tensor], copies: int, *widths: Sequence[int]) -> None:
    """Raises ValueError if networks of these widths, `copies` each, need more numbers than the tensors hold: before
    memory is taken for them."""
    pairs = [pair for layers in widths for pair in itertools.pairwise(layers)]
    needed, held = copies * sum(a * b for a, b in pairs), sum(t.numel() for t in tensors.values())
    if needed > held or min(itertools.chain([copies], *pairs)) < 1:
        raise ValueError(f"networks of {', '.join(str(list(w)) for w in widths)} cannot be in {held} numbers")


def check_finite(tensors: Mapping[str, Tensor], but: Sequence[str] = ()) -> None:
    """Raises ValueError for infinity anywhere `but` there."""
    for name, tensor in tensors.items():
        if name not in but and torch.isinf(tensor).any():
            raise ValueError(f"infinity in {name!r}")
