"""Adapters in the format of the `peft` library, both ways: adapter_model.safetensors and adapter_config.json.

There a layer's change is scaling · B A with scaling = alpha / r (alpha / √r for rank-stabilised adapters); here the
scale is inside the factors, so import multiplies it in and export states alpha = r.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from policies.adapter import Adapter, Factors, Header

PREFIX = "base_model.model."
HEADER = "robot_cl_header.json"
MOVED = ("pissa", "olora", "corda", "loftq")  # beginnings that take something out of the base's weights
_KEY = re.compile(r"(?P<layer>.+)\.lora_(?P<part>[AB])(\.[^.]+)?\.weight")


def export_peft(adapter: Adapter, folder: Path, base_name: str = "") -> Path:
    """Write the adapter for `peft.PeftModel.from_pretrained`; ΔW is unchanged. Returns the folder."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for name, (down, up) in adapter.layers.items():
        tensors[f"{PREFIX}{name}.lora_A.weight"] = down.detach().float().contiguous()
        tensors[f"{PREFIX}{name}.lora_B.weight"] = up.detach().float().contiguous()
    safetensors.torch.save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    rank = Counter(adapter.ranks.values()).most_common(1)[0][0]
    others = {f"^{re.escape(name)}": r for name, r in adapter.ranks.items() if r != rank}
    config = {
        "peft_type": "LORA", "task_type": None, "base_model_name_or_path": base_name, "inference_mode": True,
        "r": rank, "lora_alpha": rank, "rank_pattern": others, "alpha_pattern": others, "lora_dropout": 0.0,
        "target_modules": sorted(adapter.layers), "bias": "none", "use_rslora": False, "use_dora": False,
        "fan_in_fan_out": False, "modules_to_save": None,
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True))
    (folder / HEADER).write_text(json.dumps(vars(adapter.header), indent=2))  # peft does not read this, import does
    return folder


def import_peft(folder: Path, header: Header | None = None) -> Adapter:
    """The adapter in a peft folder, its scaling folded into the factors. It belongs to `header`, or to what the folder
    says if we exported it; one from elsewhere names no base, and whoever imports it vouches for that.

    Raises OSError if a file is missing, and ValueError for what is not plain low-rank: DoRA, trained biases, fully
    trained modules, embeddings, transposed layers, other methods than LoRA, pickled weights.
    """
    folder = Path(folder)
    config = _config(folder)
    weights = folder / "adapter_model.safetensors"
    if not weights.exists() and (folder / "adapter_model.bin").exists():
        raise ValueError(f"{folder} holds pickled weights, which could run code; save them as safetensors first")
    try:
        tensors = safetensors.torch.load(weights.read_bytes())
    except SafetensorError:
        raise ValueError(f"{weights} is damaged or not a safetensors file; export the adapter again") from None
    pairs = _pairs(tensors, folder)
    layers = {}
    for name, (down, up) in pairs.items():
        layers[name] = Factors(down.float(), up.float() * _scaling(config, name, down.shape[0]))
    return Adapter(layers, header or _header(folder))


def _header(folder: Path) -> Header:
    path = folder / HEADER
    if not path.exists():
        return Header()
    try:
        return Header(**{key: str(value) for key, value in json.loads(path.read_text()).items()})
    except (ValueError, TypeError, AttributeError):
        raise ValueError(f"{path} is damaged; export the adapter again") from None


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "adapter_config.json"
    try:
        config = json.loads(path.read_text())
        kind = config["peft_type"]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path} is not an adapter configuration of peft") from None
    if kind != "LORA":
        raise ValueError(f"{path} describes {kind}, only LORA adapters can be read")
    for key, plain in (("use_dora", False), ("bias", "none"), ("fan_in_fan_out", False), ("modules_to_save", None)):
        if config.get(key, plain) not in (plain, [], None):
            raise ValueError(f"{path} has {key} = {config[key]!r}; such an adapter is more than low-rank factors")
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(MOVED):
        raise ValueError(
            f"{path} has init_lora_weights = {start!r}, which moves the base's weights too; save it converted to LoRA"
        )
    patterns = config.get("alpha_pattern") or {}
    alphas = [config.get("lora_alpha", 8), *(patterns.values() if isinstance(patterns, dict) else [None])]
    if not all(isinstance(alpha, (int, float)) and abs(alpha) < 1e9 for alpha in alphas):
        raise ValueError(f"{path} has lora_alpha or alpha_pattern that are no numbers; export the adapter again")
    return config


def _pairs(tensors: Mapping[str, Tensor], folder: Path) -> dict[str, tuple[Tensor, Tensor]]:
    parts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        match = _KEY.fullmatch(key.removeprefix(PREFIX))
        if not match or tensor.dim() != 2:
            raise ValueError(f"{folder}: tensor {key!r} {tuple(tensor.shape)} is not a linear layer's lora_A or lora_B")
        parts.setdefault(match["layer"], {})[match["part"]] = tensor
    for name, found in parts.items():
        if len(found) != 2:
            raise ValueError(f"{folder}: layer {name!r} has only one of lora_A and lora_B")
    return {name: (found["A"], found["B"]) for name, found in sorted(parts.items())}


def _scaling(config: Mapping[str, Any], layer: str, rank: int) -> float:
    """alpha / r, or alpha / √r; the rank is the tensor's own, so rank_pattern is not needed."""
    alpha = float(config.get("lora_alpha", 8))
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        if _names(pattern, layer):
            alpha = float(value)
            break
    return alpha / (rank**0.5 if config.get("use_rslora") else rank)


def _names(pattern: str, layer: str) -> bool:
    """Whether a pattern key means this layer. Keys are names, whole (with ^) or endings at a dot; what is a true
    regular expression is refused, because a foreign one can take forever to match."""
    plain = re.sub(r"\\(.)", r"\1", pattern.removeprefix("^").removesuffix("$"))
    if re.search(r"[*+?\[\](){}|^$]", plain):
        raise ValueError(f"alpha_pattern {pattern!r} is a regular expression; only layer names can be read")
    return layer == plain or (not pattern.startswith("^") and layer.endswith("." + plain))
