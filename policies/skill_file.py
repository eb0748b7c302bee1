"""One skill in one safetensors file: the factors as tensors, the card in the metadata. Reading never runs code."""

from __future__ import annotations

import json
import os
import struct
from dataclasses import replace
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from policies.adapter import Adapter, Factors
from policies.card import SkillCard
from policies.hashing import content_digest

FORMAT = "robot-cl skill 1"
LARGEST_HEADER = 16 << 20  # bytes; a longer header is not a skill's


def as_stored(adapter: Adapter) -> Adapter:
    """The adapter in the precision, and in the memory, that its digest is taken of."""
    layers = {n: Factors(*(part.detach().float().cpu().contiguous() for part in f)) for n, f in adapter.layers.items()}
    return replace(adapter, layers=layers)


def skill_bytes(adapter: Adapter, card: SkillCard) -> bytes:
    tensors: dict[str, Tensor] = {}
    for name, (down, up) in as_stored(adapter).layers.items():
        tensors[f"{name}.down"], tensors[f"{name}.up"] = down, up
    return safetensors.torch.save(tensors, {"format": FORMAT, "card": card.to_json()})


def read_skill(path: Path) -> tuple[Adapter, SkillCard]:
    """The skill in a file, its content digest verified. Raises OSError if it cannot be read, and ValueError (one
    sentence, naming the file) for anything but a whole, finite, untampered skill."""
    data = path.read_bytes()
    try:
        card = card_of(header_of(data))
        adapter = Adapter(_factors(safetensors.torch.load(data)), card.header)
    except SafetensorError:
        raise ValueError(f"{path} is damaged or cut short; copy the skill again") from None
    except ValueError as problem:
        raise ValueError(f"{path}: {problem}") from None
    found = content_digest(adapter)
    if found != card.content:
        raise ValueError(
            f"{path}: the weights have digest {found[:12]}, its card says {card.content[:12] or 'none'}; "
            "the file was changed after it was published"
        )
    if card.ranks != adapter.ranks:
        raise ValueError(f"{path}: the weights have ranks {adapter.ranks}, its card says {card.ranks}; copy it again")
    return adapter, card


def read_card(path: Path) -> SkillCard:
    """Only the card, without reading the weights."""
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        data = start + file.read(min(length, LARGEST_HEADER))
    try:
        return card_of(header_of(data))
    except ValueError as problem:
        raise ValueError(f"{path}: {problem}") from None


def header_of(data: bytes) -> dict[str, str]:
    """The metadata of a safetensors file's bytes. Raises ValueError saying what the bytes are instead."""
    length = struct.unpack("<Q", data[:8])[0] if len(data) >= 8 else 0
    if not 0 < length <= min(LARGEST_HEADER, len(data) - 8):
        if data[:2] in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
            raise ValueError("this is a pickle or a zip of pickles, which could run code; only safetensors are read")
        raise ValueError("this is not a whole safetensors file; copy or export the skill again")
    try:
        header = json.loads(data[8 : 8 + length])
        metadata = header["__metadata__"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ValueError("this safetensors file is not a skill: it carries no card") from None
    return metadata if isinstance(metadata, dict) else {}


def card_of(metadata: dict[str, str]) -> SkillCard:
    if metadata.get("format") != FORMAT or "card" not in metadata:
        raise ValueError(f"the file's format is {metadata.get('format', 'none')!r}, expected {FORMAT!r}")
    return SkillCard.from_json(metadata["card"])


def _factors(tensors: dict[str, Tensor]) -> dict[str, Factors]:
    names = {key.rsplit(".", 1)[0] for key in tensors}
    for key, tensor in tensors.items():
        if not key.endswith((".down", ".up")) or tensor.dtype != torch.float32:
            raise ValueError(f"tensor {key!r} ({tensor.dtype}) is not a skill's; expected float32 LAYER.down, LAYER.up")
    halves = sorted(name for name in names if f"{name}.down" not in tensors or f"{name}.up" not in tensors)
    if halves:
        raise ValueError(f"layer {halves[0]!r} has only one of its two factors")
    return {name: Factors(tensors[f"{name}.down"], tensors[f"{name}.up"]) for name in sorted(names)}


def write_atomically(path: Path, data: bytes, temporary: Path, durable: bool = True) -> None:
    """The file holds either what it held before or all of `data`, whenever the process or the power fails."""
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        if durable:
            os.fsync(file.fileno())
    temporary.replace(path)
    if durable:
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
