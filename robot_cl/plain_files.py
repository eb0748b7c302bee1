"""JSON, YAML and other text on disk: written whole, read back or one sentence about which file is damaged."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import yaml


def read_json(path: Path, kind: type = dict) -> Any:
    """What the file holds, of type `kind`. Raises FileNotFoundError, or ValueError that names the file."""
    try:
        data = json.loads(_text(path))
    except json.JSONDecodeError as problem:
        raise ValueError(f"{path} is damaged ({problem}); copy it again from where it was whole") from None
    if not isinstance(data, kind):
        raise ValueError(f"{path} is damaged (it holds a {type(data).__name__}); copy it again from where it was whole")
    return data


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping that the file holds. Raises FileNotFoundError, or ValueError that names the file."""
    try:
        data = yaml.safe_load(_text(path))
    except yaml.YAMLError as problem:
        raise ValueError(f"{path} is not YAML of plain data ({' '.join(str(problem).split())})") from None
    if not isinstance(data, dict):
        held = "nothing" if data is None else f"a {type(data).__name__}"
        raise ValueError(f"{path} is damaged (it holds {held}); expected lines of key: value")
    return data


def write_whole(path: Path, text: str) -> None:
    """A file that is either the old one or the new one, whatever kills the writer."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError:  # a full disk; what is left of the new one only takes room
        part.unlink(missing_ok=True)
        raise


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is missing; copy it again from where it was whole") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path} is damaged (it is not text); copy it again from where it was whole") from None
