"""Stable-Baselines3 keeps observation statistics in a pickle: the one place where a pickle is parsed, by an allow-list.

Arrays are rebuilt by numpy's own constructor; every other object in the list becomes an inert record that runs nothing;
any other name ends the reading.
"""

from __future__ import annotations

import collections
import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np

_MAX_BYTES = 64 << 20
_INERT_PREFIXES = (
    "stable_baselines3.common.vec_env.vec_normalize",
    "stable_baselines3.common.running_mean_std",
    "gymnasium.spaces",
    "gym.spaces",
    "numpy.random",
)
_REBUILT: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("collections", "OrderedDict"): collections.OrderedDict,
}
for _module in ("numpy._core.multiarray", "numpy.core.multiarray"):
    _REBUILT[_module, "_reconstruct"] = np._core.multiarray._reconstruct  # type: ignore[attr-defined]
    _REBUILT[_module, "scalar"] = np._core.multiarray.scalar  # type: ignore[attr-defined]


class _Record:
    """Keeps what the pickle says of an object, and does nothing."""

    state: Any = None

    def __init__(self, *arguments: Any):
        self.arguments = arguments

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _AllowList(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _REBUILT:
            return _REBUILT[module, name]
        if any(module == prefix or module.startswith(prefix + ".") for prefix in _INERT_PREFIXES):
            return _Record
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("it refers to objects outside of itself")


def read_statistics(path: Path) -> tuple[np.ndarray, np.ndarray, float]:
    """(mean (obs_dim,), variance (obs_dim,), clip) of a saved VecNormalize.

    Raises ValueError, naming the file, if it holds anything but numpy arrays and running statistics; OSError if it
    cannot be opened.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    if path.stat().st_size > _MAX_BYTES:
        raise ValueError(f"{path} is too large for statistics ({path.stat().st_size} bytes)")
    try:
        top = _AllowList(io.BytesIO(path.read_bytes())).load()
    except pickle.UnpicklingError as problem:
        raise ValueError(f"{path} is not plain observation statistics ({problem}); it is not loaded") from None
    except (EOFError, AttributeError, TypeError, ValueError, LookupError, ImportError, OverflowError) as problem:
        raise ValueError(f"{path} is damaged ({problem}); save the statistics again") from None
    state = top.state if isinstance(top, _Record) else None
    running = state.get("obs_rms") if isinstance(state, dict) else None
    inner = running.state if isinstance(running, _Record) else None
    if not isinstance(state, dict) or not isinstance(inner, dict) or not {"mean", "var"} <= inner.keys():
        raise ValueError(f"{path} has no observation statistics (obs_rms with mean and var)")
    mean, var = (np.asarray(inner[key], dtype=np.float64) for key in ("mean", "var"))
    if mean.ndim != 1 or mean.shape != var.shape or not (np.isfinite(mean) & np.isfinite(var) & (var >= 0)).all():
        raise ValueError(f"{path} has statistics of shapes {mean.shape} and {var.shape} that are no mean and variance")
    return mean, var, float(state.get("clip_obs", 10.0))
