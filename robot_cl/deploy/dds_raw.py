"""The private calls of cyclonedds: whole samples as CDR bytes, past its pure-Python codec. The only file that does so.

A 12-joint JointState costs the public path more than 100 µs each way, this one a few. `available` is checked when a
node opens; where it is false everything still works through the public path.
"""

from __future__ import annotations

from typing import Any

try:
    from cyclonedds import _clayer
    from cyclonedds.core import InstanceState, SampleState, ViewState

    _MASK = SampleState.Any | ViewState.Any | InstanceState.Any
    available = callable(getattr(_clayer, "ddspy_take", None)) and callable(getattr(_clayer, "ddspy_write", None))
except (ImportError, AttributeError):
    available = False


def take(reader: Any, count: int) -> list[tuple[bytes, int]]:
    """Up to `count` valid samples as (CDR bytes, publication handle). A dying writer's empty samples are left out.

    Raises OSError if the library reports an error code.
    """
    found = _clayer.ddspy_take(reader._ref, _MASK, count)
    if isinstance(found, int):
        raise OSError(f"DDS could not read (code {found})")
    return [(data, info.publication_handle) for data, info in found if info.valid_data]


def write(writer: Any, data: bytes) -> None:
    """Publish one sample of CDR bytes; the library wants a multiple of four. Raises OSError."""
    code = _clayer.ddspy_write(writer._ref, data.ljust(-(-len(data) // 4) * 4, b"\0"))
    if code < 0:
        raise OSError(f"DDS could not write (code {code})")


def flush(writer: Any, seconds: float) -> None:
    """Wait until matched readers acknowledged everything, at most so long. The public call trips over its time-out."""
    writer._wait_for_acks(writer._ref, round(1e9 * seconds))
