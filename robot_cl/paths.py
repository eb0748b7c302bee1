"""Where datasets and runs live. Read from the environment at each call, so that nothing is remembered at import."""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path

DATA_VARIABLE = "ROBOT_CL_DATA"
LIBRARY_VARIABLE = "ROBOT_CL_LIBRARY"


def data_root() -> Path:
    """The folder of all datasets: `$ROBOT_CL_DATA`, else ./datasets. It need not exist yet."""
    return Path(os.environ.get(DATA_VARIABLE) or "datasets").expanduser().absolute()


def runs_root() -> Path:
    """The folder of all training runs: ./runs. It need not exist yet."""
    return Path("runs").absolute()


def library_root() -> Path:
    """The folder of all skills, one per base below it: `$ROBOT_CL_LIBRARY`, else ./library. It need not exist."""
    return Path(os.environ.get(LIBRARY_VARIABLE) or "library").expanduser().absolute()


def config_dir() -> Path:
    """The checkout's configs/ if this is a checkout, else the copy inside the installed package."""
    checkout = Path(__file__).resolve().parents[1] / "configs"
    return checkout if checkout.is_dir() else Path(__file__).resolve().parent / "_configs"


def new_run_folder(root: Path, label: str) -> Path:
    """root/<date>-<label>, made, with a number where that is taken. Raises ValueError for a label that is no name."""
    if "/" in label or label.startswith("."):
        raise ValueError(f"name is {label!r}; a run's name is one folder name")
    stem = f"{datetime.now():%Y-%m-%d-%H%M%S}-{label}"
    for number in range(1000):
        folder = root / (stem if not number else f"{stem}-{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder
    raise OSError(f"cannot find a free name for {stem} in {root}")
