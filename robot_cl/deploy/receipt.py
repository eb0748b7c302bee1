"""A rehearsal receipt: proof that this very bundle and this very robot file passed the rehearsal."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from robot_cl.deploy.bundle import MAX_CONTRACT_BYTES, read_plain
from robot_cl.deploy.contract import CONTRACT_FILE, FLOW_FILE, MODEL_FILE

RECEIPT_FILE, GUARD_FILE = "rehearsal.json", "guard.json"


@dataclass(frozen=True)
class Receipt:
    """sha256 digests of the bundle and the robot file, whether the rehearsal passed, and what it consisted of."""

    bundle: str
    robot: str
    passed: bool
    when: str
    options: dict[str, Any] = field(default_factory=dict)
    checks: dict[str, bool] = field(default_factory=dict)


def bundle_digest(folder: Path | str) -> str:
    """sha256 over everything in a bundle that decides how it acts: contract, model, flow, guard."""
    digest, folder = hashlib.sha256(), Path(folder)
    for name in (CONTRACT_FILE, MODEL_FILE, FLOW_FILE, GUARD_FILE):
        if (folder / name).exists():
            digest.update(name.encode() + hashlib.sha256((folder / name).read_bytes()).digest())
    return digest.hexdigest()


def file_digest(path: Path | str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def write_receipt(
    folder: Path | str, digests: tuple[str, str], passed: bool, options: dict[str, Any], checks: dict[str, bool]
) -> Path:
    """Put a receipt into the bundle and return its path. `digests` of bundle and robot file are those from before the
    rehearsal: a file that was edited meanwhile has not been rehearsed."""
    when = datetime.now(UTC).isoformat(timespec="seconds")
    receipt = Receipt(*digests, passed, when, options, checks)
    path = Path(folder) / RECEIPT_FILE
    part = Path(folder) / f".{RECEIPT_FILE}.part"
    part.write_text(json.dumps(asdict(receipt), indent=1) + "\n")
    part.replace(path)
    return path


def require_receipt(folder: Path | str, robot: Path | str, max_speed: float = 0.0) -> Receipt:
    """The receipt that allows to arm this bundle on this robot, at no more than the share of its speed limits that it
    was rehearsed at. Raises ValueError saying what is missing."""
    remedy = f"run: robot-cl deploy rehearse {folder} robot={robot}"
    try:
        data = json.loads(read_plain(Path(folder), RECEIPT_FILE, MAX_CONTRACT_BYTES))
        receipt = Receipt(**data)
        if not (isinstance(receipt.options, dict) and isinstance(receipt.checks, dict)):
            raise ValueError("options and checks are mappings")
    except (OSError, ValueError, TypeError):
        raise ValueError(f"{folder} has no readable rehearsal receipt; {remedy}") from None
    if receipt.bundle != bundle_digest(folder):
        raise ValueError(f"the bundle changed after it was rehearsed; {remedy}")
    if receipt.robot != file_digest(robot):
        raise ValueError(f"it was rehearsed with another robot file, or this one changed since; {remedy}")
    if receipt.passed is not True:
        failed = ", ".join(name for name, good in receipt.checks.items() if not good)
        raise ValueError(f"the rehearsal did not pass ({failed}); mend that first, then {remedy}")
    share = receipt.options.get("max_speed")
    if not isinstance(share, int | float) or not max_speed <= share:
        raise ValueError(f"it was rehearsed at max_speed={share} and is to run at {max_speed:g}; {remedy}")
    return receipt
