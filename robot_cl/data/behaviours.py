"""Behaviour policies as plain arrays: the agents that datasets are collected with.

Layers W0 b0 W1 b1 ... (out, in); optional obs_mean, obs_var: normalise as (obs − mean)/sqrt(var + 1e-8), clipped at
obs_clip; optional log_std (act_dim,), or log_std_W and log_std_b, a linear head on the last hidden layer. Files are
.npz with a manifest.json beside them, or .safetensors with the same facts in their header.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from robot_cl.data.naming import not_found

if TYPE_CHECKING:  # whoever only lists behaviours should not wait for torch
    from torch import Tensor

EMBEDDED = Path(__file__).parent / "embedded"
SQUASHES: dict[str, Callable[[Tensor], Tensor]] = {"tanh": lambda x: x.tanh(), "clip": lambda x: x.clamp(-1.0, 1.0)}
ACTIVATIONS = ("relu", "tanh", "silu", "mish", "gelu")  # by their names in policies.networks
_LOG_STD_RANGE = (-20.0, 2.0)
_EPS = 1e-8
_HEADER = "robot_cl.behaviour"


@dataclass(frozen=True)
class BehaviourCard:
    """What the arrays do not say. `mean_return`, `std_return` are of the deterministic policy, where measured."""

    name: str
    task: str | None = None
    activation: str = "relu"
    squash: str = "tanh"
    obs_clip: float | None = 10.0
    mean_return: float | None = None
    std_return: float | None = None
    source: str = ""
    notes: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for value, table, what in ((self.activation, ACTIVATIONS, "activation"), (self.squash, SQUASHES, "squash")):
            if value not in table:
                raise ValueError(f"behaviour {self.name!r}: {what} {value!r} is unknown; one of {', '.join(table)}")


class Behaviour:
    """A multi-layer perceptron policy on the CPU. Remembers nothing between steps.

    Raises ValueError, in one sentence, if the arrays do not form one.
    """

    def __init__(self, arrays: dict[str, np.ndarray], card: BehaviourCard):
        self.card, self.arrays = card, dict(arrays)
        self.layers = _layers(arrays, card.name)
        self.obs_dim, self.act_dim = self.layers[0][0].shape[0], self.layers[-1][0].shape[1]
        self._mean, self._scale = _statistics(arrays, self.obs_dim, card.name)
        self._check_log_std()

    @property
    def name(self) -> str:
        return self.card.name

    @property
    def digest(self) -> str:
        """sha256 hex of the arrays and of how they are read."""
        digest = hashlib.sha256(f"{self.card.activation}:{self.card.squash}:{self.card.obs_clip}".encode())
        for key in sorted(self.arrays):
            digest.update(f"{key}{self.arrays[key].shape}".encode() + np.ascontiguousarray(self.arrays[key]).tobytes())
        return digest.hexdigest()

    @property
    def stochastic(self) -> bool:
        """Whether the policy has a distribution of its own to sample from."""
        return "log_std" in self.arrays or "log_std_W" in self.arrays

    def act(self, obs: np.ndarray) -> np.ndarray:
        """obs (B, obs_dim) -> the mean action (B, act_dim) float32 in [-1, 1]."""
        return SQUASHES[self.card.squash](self._mean_and_hidden(obs)[0]).numpy()

    def sample(self, obs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """obs (B, obs_dim) -> an action (B, act_dim) float32 in [-1, 1] drawn from the policy's own distribution.

        Raises ValueError if it has none.
        """
        if not self.stochastic:
            raise ValueError(f"behaviour {self.name!r} has no log_std to sample with; give a noise level instead")
        import torch

        mean, hidden = self._mean_and_hidden(obs)
        noise = torch.from_numpy(rng.standard_normal(tuple(mean.shape), dtype=np.float32))
        log_std = self._log_std(hidden).clamp(*_LOG_STD_RANGE)
        return SQUASHES[self.card.squash](mean + log_std.exp() * noise).numpy()

    def reset(self, rows: np.ndarray | None = None) -> None:
        """Nothing to forget."""

    def _mean_and_hidden(self, obs: np.ndarray) -> tuple[Tensor, Tensor]:
        """Output before squashing (B, act_dim) and the last hidden layer (B, width), float32."""
        import torch

        from policies.networks import ACTIVATIONS

        x = np.asarray(obs)
        if self._mean is not None and self._scale is not None:
            x = (x - self._mean) * self._scale
            if self.card.obs_clip is not None:
                x = np.clip(x, -self.card.obs_clip, self.card.obs_clip)
        hidden = torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32))
        activation = ACTIVATIONS[self.card.activation]
        for weight, bias in self.layers[:-1]:
            hidden = activation(torch.addmm(bias, hidden, weight))
        weight, bias = self.layers[-1]
        return torch.addmm(bias, hidden, weight), hidden

    def _log_std(self, hidden: Tensor) -> Tensor:
        import torch

        if "log_std" in self.arrays:
            return torch.from_numpy(self.arrays["log_std"].astype(np.float32))
        weight, bias = (torch.from_numpy(self.arrays[f"log_std_{key}"].astype(np.float32)) for key in "Wb")
        return torch.addmm(bias, hidden, weight.T)

    def _check_log_std(self) -> None:
        hidden = self.layers[-1][0].shape[0]
        wanted = {"log_std": (self.act_dim,), "log_std_W": (self.act_dim, hidden), "log_std_b": (self.act_dim,)}
        for key, shape in wanted.items():
            if key in self.arrays and self.arrays[key].shape != shape:
                raise ValueError(f"behaviour {self.name!r}: {key} is {self.arrays[key].shape}, expected {shape}")
        if ("log_std_W" in self.arrays) != ("log_std_b" in self.arrays):
            raise ValueError(f"behaviour {self.name!r}: log_std_W and log_std_b belong together, one is missing")


def load_behaviour(name_or_path: str | Path) -> Behaviour:
    """An embedded behaviour by name ("halfcheetah-medium"), or one from an .npz or .safetensors file.

    Raises LookupError with near matches for an unknown name, ValueError for a file that holds none.
    """
    path = Path(name_or_path)
    if str(name_or_path) in list_behaviours():
        path = EMBEDDED / f"{name_or_path}.safetensors"
    elif not path.is_file():
        raise not_found("behaviour", str(name_or_path), list_behaviours(), "a path to .npz or .safetensors works too")
    arrays, card = _read_npz(path) if zipfile.is_zipfile(path) else _read_safetensors(path)
    return Behaviour(arrays, card)


def save_behaviour(path: Path, behaviour: Behaviour) -> None:
    """Writes a .safetensors file that `load_behaviour` reads; the card travels in its header."""
    from safetensors.numpy import save_file

    arrays = {key: np.ascontiguousarray(value) for key, value in behaviour.arrays.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    save_file(arrays, part, metadata={_HEADER: json.dumps(asdict(behaviour.card), sort_keys=True)})
    part.replace(path)


def list_behaviours() -> dict[str, BehaviourCard]:
    """Name -> card of every behaviour that ships with the package, sorted."""
    return {path.stem: _read_header(path) for path in sorted(EMBEDDED.glob("*.safetensors"))}


def _layers(arrays: dict[str, np.ndarray], name: str) -> list[tuple[Tensor, Tensor]]:
    """(weight (in, out), bias (out,)) of each layer, float32."""
    import torch

    count = sum(1 for _ in itertools.takewhile(lambda i: f"W{i}" in arrays, itertools.count()))
    if not count:
        raise ValueError(f"behaviour {name!r} has no layers W0, b0, ...; it has {', '.join(arrays) or 'nothing'}")
    layers: list[tuple[Tensor, Tensor]] = []
    for i in range(count):
        weight, bias = arrays[f"W{i}"], arrays.get(f"b{i}")
        if bias is None or weight.ndim != 2 or bias.shape != weight.shape[:1]:
            raise ValueError(f"behaviour {name!r}: W{i} is {weight.shape} and b{i} does not fit it")
        if layers and layers[-1][0].shape[1] != weight.shape[1]:
            raise ValueError(f"behaviour {name!r}: W{i} reads {weight.shape[1]} numbers, W{i - 1} gives another count")
        if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
            raise ValueError(f"behaviour {name!r}: layer {i} has NaN or infinite weights")
        transposed = np.ascontiguousarray(weight.T, dtype=np.float32)
        layers.append((torch.from_numpy(transposed), torch.from_numpy(bias.astype(np.float32))))
    return layers


def _statistics(arrays: dict[str, np.ndarray], width: int, name: str) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Mean and 1/sqrt(var + eps), each (obs_dim,) float64, or None twice."""
    mean, var = arrays.get("obs_mean"), arrays.get("obs_var")
    if mean is None and var is None:
        return None, None
    if mean is None or var is None or mean.shape != (width,) or var.shape != (width,) or (var < 0).any():
        raise ValueError(f"behaviour {name!r}: obs_mean and obs_var must both be ({width},) and the variance positive")
    return mean.astype(np.float64), 1.0 / np.sqrt(var.astype(np.float64) + _EPS)


def _read_npz(path: Path) -> tuple[dict[str, np.ndarray], BehaviourCard]:
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {key: stored[key] for key in stored.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as problem:
        raise ValueError(f"{path} is not a readable .npz of plain arrays ({problem})") from None
    manifest = path.parent / "manifest.json"
    entry = _manifest_entry(manifest, path.name) if manifest.exists() else None
    if entry is None:
        raise ValueError(f"{path} does not say its activation and squashing; expected an entry for it in {manifest}")
    env = entry.get("env")
    card = BehaviourCard(
        name=path.stem,
        task=str(env).rsplit("-v", 1)[0].lower() if env else None,
        activation=entry.get("hidden_activation", "relu"),
        squash=entry.get("squash_output", "tanh"),
        obs_clip=entry.get("obs_clip"),
        mean_return=entry.get("mean_return"),
        std_return=entry.get("std_return"),
        source=str(entry.get("made_by", "")),
        notes={key: entry[key] for key in ("algorithm", "env", "action_repeat", "returns") if key in entry},
    )
    return arrays, card


def _manifest_entry(manifest: Path, file: str) -> dict[str, Any] | None:
    try:
        listed = json.loads(manifest.read_text(encoding="utf-8"))
    except json.JSONDecodeError as problem:
        raise ValueError(f"{manifest} is not readable JSON ({problem})") from None
    entries = listed.get("policies", []) if isinstance(listed, dict) else listed
    return next((entry for entry in entries if entry.get("file") == file), None)


def _read_safetensors(path: Path) -> tuple[dict[str, np.ndarray], BehaviourCard]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    card = _read_header(path)
    try:
        return load_file(path), card
    except SafetensorError as problem:
        raise ValueError(f"{path} is not a readable safetensors file ({problem})") from None


def _read_header(path: Path) -> BehaviourCard:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as stored:
            header = (stored.metadata() or {}).get(_HEADER)
    except (SafetensorError, OSError) as problem:
        raise ValueError(f"{path} is not a readable safetensors file ({problem})") from None
    if header is None:
        raise ValueError(f"{path} is a safetensors file, but not a behaviour: its header has no {_HEADER!r}")
    try:
        return BehaviourCard(**json.loads(header))
    except (TypeError, json.JSONDecodeError) as problem:
        raise ValueError(f"{path} has a header that does not describe a behaviour ({problem})") from None
