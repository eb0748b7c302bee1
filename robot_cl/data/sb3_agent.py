"""Stable-Baselines3 agents as behaviours: weights only, architecture read from their shapes, no object unpickled."""

from __future__ import annotations

import io
import itertools
import json
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from robot_cl.data.behaviours import Behaviour, BehaviourCard
from robot_cl.data.statistics_pickle import read_statistics

_ACTIVATIONS = {"Tanh": "tanh", "ReLU": "relu", "SiLU": "silu", "GELU": "gelu", "Mish": "mish"}
_MAX_BYTES = 1 << 30
_NUMBER = re.compile(r"[-+]?\d+\.?\d*(?:e[-+]?\d+)?")
Arrays = dict[str, np.ndarray]
# Statistics are looked for beside the agent under these names, as Stable-Baselines3 and its zoo save them.
STATISTICS_FILES = ("vec_normalize.pkl", "vecnormalize.pkl")


def load_sb3(path: str | Path, statistics: str | Path | None = None) -> Behaviour:
    """An agent saved by `model.save` (PPO, A2C, TRPO, SAC, TQC, TD3, DDPG, ARS with MlpPolicy) -> behaviour.

    `statistics` is the file of its VecNormalize; None: the one beside the agent, if there is one. Actions come out in
    [-1, 1] whatever the limits of its environment were. Raises ValueError, naming the file, for anything else.
    """
    path = Path(path)
    weights, settings = _read(path)
    arrays, squash, default = _actor(path, weights)
    if squash == "clip":
        arrays = _to_unit(arrays, *_limits(path, settings, arrays))
    found = Path(statistics) if statistics is not None else _beside(path)
    notes: dict[str, Any] = {"format": "stable-baselines3"}
    clip = None
    if found is not None:
        mean, var, clip = read_statistics(found)
        arrays |= {"obs_mean": mean, "obs_var": var}
        notes["statistics"] = found.name
    card = BehaviourCard(
        name=path.stem,
        activation=_activation(path, settings, default),
        squash=squash,
        obs_clip=clip,
        source=path.name,
        notes=notes,
    )
    return Behaviour(arrays, card)


def is_sb3_zip(path: Path) -> bool:
    """Whether the file is a zip with an agent's weights."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return "policy.pth" in archive.namelist()


def _read(path: Path) -> tuple[Arrays, dict[str, Any]]:
    """The policy's arrays by name, and the plain text part of its settings."""
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = {info.filename: info.file_size for info in archive.infolist()}
            if "policy.pth" not in sizes:
                raise ValueError(f"{path} is not a Stable-Baselines3 agent: it has no policy.pth")
            if sizes["policy.pth"] > _MAX_BYTES:
                raise ValueError(f"{path} announces {sizes['policy.pth']} bytes of weights; {_MAX_BYTES} is the limit")
            stored = archive.read("policy.pth")
            settings = json.loads(archive.read("data")) if "data" in sizes else {}
    except (zipfile.BadZipFile, OSError, json.JSONDecodeError) as problem:
        raise ValueError(f"{path} is not a whole Stable-Baselines3 zip ({problem})") from None
    try:
        # weights_only admits tensors and containers of them; whatever else is pickled in there is refused, not run.
        weights = torch.load(io.BytesIO(stored), map_location="cpu", weights_only=True)
        arrays = {key: value.detach().numpy() for key, value in weights.items() if isinstance(value, torch.Tensor)}
    except (pickle.UnpicklingError, RuntimeError, EOFError, AttributeError, ValueError, KeyError) as problem:
        reason = str(problem).split("\n")[0][:120]
        raise ValueError(f"{path} holds weights that are not plain tensors ({reason}); it is not loaded") from None
    return arrays, settings if isinstance(settings, dict) else {}


def _actor(path: Path, weights: Arrays) -> tuple[Arrays, str, str]:
    """(arrays in the behaviour layout, squash, default activation) by the family its names tell."""
    extra = sorted(key for key in weights if "features_extractor" in key)
    if extra:
        raise ValueError(f"{path} reads images or several inputs ({extra[0]}); only MlpPolicy agents are supported")
    for signature, read, squash, default in _FAMILIES:
        if signature in weights:
            return read(path, weights), squash, default
    raise ValueError(f"{path} has no actor of a known form; its first weights are {', '.join(list(weights)[:4])}")


def _on_policy(path: Path, weights: Arrays) -> Arrays:
    stems = [*_stems(weights, "mlp_extractor.shared_net"), *_stems(weights, "mlp_extractor.policy_net"), "action_net"]
    arrays = _stack(path, weights, stems)
    log_std = weights.get("log_std")
    return arrays | ({"log_std": log_std} if log_std is not None and log_std.ndim == 1 else {})


def _soft(path: Path, weights: Arrays) -> Arrays:
    arrays = _stack(path, weights, [*_stems(weights, "actor.latent_pi"), "actor.mu"])
    return arrays | {"log_std_W": weights["actor.log_std.weight"], "log_std_b": weights["actor.log_std.bias"]}


def _deterministic(path: Path, weights: Arrays) -> Arrays:
    if any(key.startswith("actor.latent_pi") for key in weights):
        raise ValueError(f"{path} explores by a state-dependent noise (gSDE), which is not supported")
    return _stack(path, weights, _stems(weights, "actor.mu"))


def _random_search(path: Path, weights: Arrays) -> Arrays:
    return _stack(path, weights, _stems(weights, "action_net"))


# ARS keeps its network under action_net.<i>; it is looked for last, because PPO's action_net has no index.
_FAMILIES: tuple[tuple[str, Callable[[Path, Arrays], Arrays], str, str], ...] = (
    ("action_net.weight", _on_policy, "clip", "tanh"),
    ("actor.log_std.weight", _soft, "tanh", "relu"),
    ("actor.mu.0.weight", _deterministic, "tanh", "relu"),
    ("action_net.0.weight", _random_search, "tanh", "relu"),
)


def _stems(weights: Arrays, prefix: str) -> list[str]:
    """Names of the linear layers prefix.0, prefix.2, ... in order."""
    found = [re.fullmatch(re.escape(prefix) + r"\.(\d+)\.weight", key) for key in weights]
    return [f"{prefix}.{index}" for index in sorted(int(match[1]) for match in found if match)]


def _stack(path: Path, weights: Arrays, stems: list[str]) -> Arrays:
    arrays: Arrays = {}
    for i, stem in enumerate(stems):
        for short, long in (("W", "weight"), ("b", "bias")):
            if f"{stem}.{long}" not in weights and short == "b":
                arrays[f"b{i}"] = np.zeros(len(weights[f"{stem}.weight"]), dtype=np.float32)
                continue
            arrays[f"{short}{i}"] = weights[f"{stem}.{long}"]
    for before, after in itertools.pairwise(range(len(stems))):
        if arrays[f"W{before}"].shape[0] != arrays[f"W{after}"].shape[1]:
            raise ValueError(f"{path} has layers {stems[before]} and {stems[after]} that do not fit each other")
    return arrays


def _limits(path: Path, settings: dict[str, Any], arrays: Arrays) -> tuple[np.ndarray, np.ndarray]:
    """low, high (act_dim,) of the environment, from the readable text beside the pickled space."""
    space = settings.get("action_space")
    space = space if isinstance(space, dict) else {}
    if "Box" not in str(space.get(":type:")):
        raise ValueError(f"{path} does not act in a Box of numbers, but in {space.get(':type:', 'nothing recorded')}")
    count = len(arrays[f"b{_last(arrays)}"])
    low, high = (np.array([float(n) for n in _NUMBER.findall(str(space.get(side)))]) for side in ("low", "high"))
    if len(low) != count or len(high) != count or not (low < high).all():
        raise ValueError(f"{path} records limits {space.get('low')} to {space.get('high')} for {count} actions")
    return low, high


def _last(arrays: Arrays) -> int:
    """Index of the last layer."""
    return sum(re.fullmatch(r"W\d+", key) is not None for key in arrays) - 1


def _to_unit(arrays: Arrays, low: np.ndarray, high: np.ndarray) -> Arrays:
    """The same policy with its last layer giving [-1, 1] where it gave [low, high]."""
    last = _last(arrays)
    scale = 2.0 / (high - low)
    weight, bias = arrays[f"W{last}"], arrays[f"b{last}"]
    changed = {f"W{last}": weight * scale[:, None], f"b{last}": (bias - low) * scale - 1.0}
    if "log_std" in arrays:
        changed["log_std"] = arrays["log_std"] + np.log(scale)
    if (scale == 1.0).all() and (low == -1.0).all():
        return arrays
    return arrays | {key: value.astype(np.float32) for key, value in changed.items()}


def _activation(path: Path, settings: dict[str, Any], default: str) -> str:
    """From the text of policy_kwargs, else the family's default."""
    named = settings.get("policy_kwargs")
    text = str(named.get("activation_fn", "")) if isinstance(named, dict) else ""
    match = re.search(r"activation\.(\w+)", text)
    if match is None:
        return default
    if match[1] not in _ACTIVATIONS:
        raise ValueError(f"{path} uses the activation {match[1]}, supported are {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[match[1]]


def _beside(path: Path) -> Path | None:
    return next((path.parent / name for name in STATISTICS_FILES if (path.parent / name).is_file()), None)
