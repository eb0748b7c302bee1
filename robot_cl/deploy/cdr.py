"""CDR (XCDR1, plain) for the messages of `messages.py`: a general codec, and templates that patch numbers in place.

Every float64 of an XCDR1 body lies on a multiple of eight bytes after the four-byte header. So a message whose strings
and counts do not change is an array of 8-byte slots: reading it is one `frombuffer` and one index, writing it is one
assignment. A template learns the slots from one real message and compares everything else before it trusts them.
Source: OMG DDS-XTYPES 1.3, 7.4.1 (PLAIN_CDR).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from robot_cl.deploy.messages import SCHEMAS, Message, split_type

HEADER_LE, HEADER_BE = b"\x00\x01\x00\x00", b"\x00\x00\x00\x00"
ORIGIN = 4
_FORMAT = {"int32": "i", "uint32": "I", "float64": "d"}
_SIZE = {"int32": 4, "uint32": 4, "float64": 8}
_SMALLEST = {**_SIZE, "string": 5}
MAX_ELEMENTS = 65536


@dataclass
class Layout:
    """Where things lie in one encoded message: float64 slots by path, and spans whose bytes are structure."""

    slots: dict[tuple[str | int, ...], int] = field(default_factory=dict)
    spans: list[tuple[int, int]] = field(default_factory=list)
    stamp: int | None = None


def encode(kind: str, message: Message) -> bytes:
    """Little-endian CDR of a message, header included. Raises LookupError for a missing field."""
    out = bytearray(HEADER_LE)
    try:
        _encode(kind, message, out)
    except KeyError as problem:
        raise LookupError(f"a {kind} message needs the field {problem}") from None
    return bytes(out)


def _encode(kind: str, value: Any, out: bytearray) -> None:
    element, count = split_type(kind)
    if count is not None:
        if count >= 0 and len(value) != count:
            raise ValueError(f"{kind} needs {count} values, got {len(value)}")
        if count < 0:
            _align(out, 4)
            out += struct.pack("<I", len(value))
        if element == "float64":
            if len(value):
                _align(out, 8)
                out += np.asarray(value, dtype="<f8").tobytes()
            return
        for item in value:
            _encode(element, item, out)
    elif element == "string":
        text = value.encode("utf-8") + b"\0"
        _align(out, 4)
        out += struct.pack("<I", len(text)) + text
    elif element in _FORMAT:
        _align(out, _SIZE[element])
        out += struct.pack("<" + _FORMAT[element], value)
    else:
        for inner, name in SCHEMAS[element]:
            _encode(inner, value[name], out)


def _align(out: bytearray, size: int) -> None:
    out += b"\0" * (-(len(out) - ORIGIN) % size)


def decode(kind: str, data: bytes, layout: Layout | None = None) -> Message:
    """Message of CDR bytes, either byte order. Fills `layout` if given (little-endian offsets).

    Raises ValueError for anything truncated, oversized, not XCDR1 or not UTF-8; never reads beyond the data.
    """
    if data[:2] not in (HEADER_LE[:2], HEADER_BE[:2]) or len(data) < ORIGIN:
        raise ValueError(f"not a plain XCDR1 message: it starts with {bytes(data[:4]).hex()}")
    reader = _Reader(data, "<" if data[1] == 1 else ">", layout)
    return reader.read(kind, ())


class _Reader:
    """Walks a type over bytes. Remembers the position and what it notes into a layout."""

    def __init__(self, data: bytes, order: str, layout: Layout | None):
        self.data, self.order, self.layout, self.at = data, order, layout, ORIGIN

    def read(self, kind: str, path: tuple[str | int, ...]) -> Any:
        element, count = split_type(kind)
        if count is not None:
            return self._many(element, count, path)
        if element == "string":
            return self._string(path)
        if element in _FORMAT:
            at = self._claim(_SIZE[element], _SIZE[element])
            if self.layout is not None:
                self._note(element, at, path)
            return struct.unpack_from(self.order + _FORMAT[element], self.data, at)[0]
        return {name: self.read(inner, (*path, name)) for inner, name in SCHEMAS[element]}

    def _note(self, element: str, at: int, path: tuple[str | int, ...]) -> None:
        assert self.layout is not None
        if element == "float64":
            self.layout.slots[path] = (at - ORIGIN) // 8
        elif path[-2:-1] != ("stamp",):
            self.layout.spans.append((at, at + _SIZE[element]))
        elif path[-1] == "sec":
            self.layout.stamp = at

    def _many(self, element: str, count: int, path: tuple[str | int, ...]) -> Any:
        if count < 0:
            at = self._claim(4, 4)
            count = struct.unpack_from(self.order + "I", self.data, at)[0]
            if self.layout is not None:
                self.layout.spans.append((at, at + 4))
            if count > MAX_ELEMENTS or count * _SMALLEST.get(element, 1) > len(self.data):
                raise ValueError(f"a sequence claims {count} elements in a message of {len(self.data)} bytes")
        if element != "float64":
            return [self.read(element, (*path, i)) for i in range(count)]
        if not count:
            return []
        at = self._claim(8, 8 * count)
        if self.layout is not None:
            self.layout.slots.update({(*path, i): (at - ORIGIN) // 8 + i for i in range(count)})
        return np.frombuffer(self.data, self.order + "f8", count, at).tolist()

    def _string(self, path: tuple[str | int, ...]) -> str:
        start = self._claim(4, 4)
        length = struct.unpack_from(self.order + "I", self.data, start)[0]
        at = self._claim(1, length)
        if self.layout is not None:
            self.layout.spans.append((start, at + length))
        raw = bytes(self.data[at : at + length])
        if length and raw[-1]:
            raise ValueError("a string does not end with zero")
        try:
            return raw[:-1].decode("utf-8")
        except UnicodeDecodeError:
            raise ValueError("a string is not UTF-8") from None

    def _claim(self, alignment: int, size: int) -> int:
        at = self.at + (-(self.at - ORIGIN) % alignment)
        if at + size > len(self.data):
            raise ValueError(f"truncated: {at + size} bytes needed, {len(self.data)} there")
        self.at = at + size
        return at


class ReadTemplate:
    """Numbers of chosen paths from messages shaped like a first one. Remembers that one's structure.

    `read(data)` gives (stamp in seconds or None, values (n,)), or None where anything but numbers and stamp differs
    (other names, counts, length, byte order): then the general decoder must be asked.
    """

    def __init__(self, kind: str, example: bytes, paths: list[tuple[str | int, ...]]):
        layout = Layout()
        decode(kind, example, layout)
        if example[:2] != HEADER_LE[:2]:
            raise ValueError("templates are little-endian")
        self.length, self.stamp = len(example), layout.stamp
        self.checks = [(a, b, bytes(example[a:b])) for a, b in _merge(layout.spans)]
        self.slots = np.array([layout.slots[p] for p in paths], dtype=np.intp)
        self.words = (self.length - ORIGIN) // 8

    def read(self, data: bytes) -> tuple[float | None, np.ndarray] | None:
        if len(data) != self.length or data[:2] != HEADER_LE[:2]:
            return None
        for start, stop, wanted in self.checks:
            if data[start:stop] != wanted:
                return None
        values = np.frombuffer(data, "<f8", self.words, ORIGIN)[self.slots]
        if self.stamp is None:
            return None, values
        seconds, nanos = struct.unpack_from("<iI", data, self.stamp)
        return seconds + 1e-9 * nanos or None, values


class WriteTemplate:
    """Bytes of a message whose chosen numbers (and stamp) change and nothing else. Remembers one buffer."""

    def __init__(self, kind: str, message: Message, paths: list[tuple[str | int, ...]]):
        layout = Layout()
        self.buffer = bytearray(encode(kind, message))
        decode(kind, bytes(self.buffer), layout)
        self.stamp = layout.stamp
        self.slots = np.array([layout.slots[p] for p in paths], dtype=np.intp)
        self.words = np.frombuffer(self.buffer, "<f8", (len(self.buffer) - ORIGIN) // 8, ORIGIN)

    def write(self, values: np.ndarray, stamp: float = 0.0) -> bytes:
        self.words[self.slots] = values
        if self.stamp is not None:
            whole = int(stamp // 1)
            struct.pack_into("<iI", self.buffer, self.stamp, whole, int((stamp - whole) * 1e9))
        return bytes(self.buffer)


def _merge(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Neighbouring spans as one, the padding of at most three bytes between them included: fewer comparisons.

    A peer that pads with changing bytes is then read by the general decoder, which is slower and never wrong.
    """
    merged: list[tuple[int, int]] = []
    for start, stop in sorted(spans):
        if merged and start - merged[-1][1] < 4:
            merged[-1] = (merged[-1][0], stop)
        else:
            merged.append((start, stop))
    return merged
