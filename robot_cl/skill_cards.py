"""What a run says about the skill it has trained: the facts that go on the skill's card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from policies.card import SkillCard
from robot_cl.checkpoint import CHECKPOINTS, checkpoint_folder, read_card


def card_of_run(checkpoint: Path, member: int = 0) -> SkillCard:
    """Learner, seed, datasets, scores and simulator of a checkpoint's run, as far as its folder tells."""
    said, run = read_card(checkpoint), _run_of(checkpoint)
    if run is None:
        return SkillCard("unnamed", learner=str(said.get("learner", "")))
    record = _read(run / "provenance.json")
    data = record.get("dataset")
    scores, fingerprint = _scores(run, int(said["step"]), member, said.get("task"), record.get("simulator"))
    return SkillCard(
        "unnamed",
        learner=str(said.get("learner", "")),
        seed=int(record.get("seed", 0)) + member,
        datasets={str(data["id"]): str(data["hash"])} if data else {},
        scores=scores,
        fingerprint=fingerprint,
    )


def composition_below(checkpoint: Path) -> tuple[str, dict[str, float]]:
    """Digest of the base and {skill: coefficient} of the composition that a run continued; "" and {} if it was none."""
    run = _run_of(checkpoint)
    if run is None:
        return "", {}
    import yaml

    start = (yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8")) or {}).get("init_from")
    if not start or not Path(start).exists():
        return "", {}
    below = read_card(checkpoint_folder(start)).get("composition") or {}
    return str(below.get("base", "")), {str(n): float(w) for n, w in below.get("weights", {}).items()}


def _scores(run: Path, step: int, member: int, task: str | None, simulator: str | None) -> tuple[dict[str, float], str]:
    """Mean return per task (and shift) of the checkpoint's own evaluations, else of the last one while it trained."""
    from robot_cl.curves import load_metrics
    from robot_cl.scores import read_scores

    entries = [e for e in read_scores(run) if e.step == step and member < e.members]
    if entries:
        scores = {f"{e.task} · {e.shift}" if e.shift else e.task: float(np.mean(e.returns[member])) for e in entries}
        return scores, entries[-1].simulator
    metrics = load_metrics(run)
    if task is None or "eval_return" not in metrics.names:
        return {}, ""
    _, values = metrics.series("eval_return")
    found = float(values[-1][member])
    return ({task: found}, simulator or "") if np.isfinite(found) else ({}, "")


def _run_of(checkpoint: Path) -> Path | None:
    run = checkpoint.parent.parent
    return run if checkpoint.parent.name == CHECKPOINTS and (run / "config.yaml").exists() else None


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
