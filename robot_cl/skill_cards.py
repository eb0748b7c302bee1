"""What a run says about the skill it has trained: the facts that go on the skill's card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from policies.card import SkillCard
from policies.hashing import content_digest
from robot_cl.checkpoint import ADAPTER, CHECKPOINTS, checkpoint_folder, read_card
from robot_cl.plain_files import read_json, read_yaml


def card_of_run(checkpoint: Path, member: int = 0) -> SkillCard:
    """Learner, seed, datasets, scores and simulator of a checkpoint's run, as far as its folder tells."""
    said, run = read_card(checkpoint), _run_of(checkpoint)
    if run is None:
        return SkillCard("unnamed", learner=str(said.get("learner", "")))
    record = _read(run / "provenance.json")
    data = record.get("dataset")
    where = " · ".join(str(said[key]) for key in ("task", "shift") if said.get(key))
    scores, fingerprint = _scores(run, int(said["step"]), member, where, record.get("simulator"))
    return SkillCard(
        "unnamed",
        learner=str(said.get("learner", "")),
        seed=int(record.get("seed", 0)) + member,
        datasets={str(data["id"]): str(data["hash"])} if data else {},
        scores=scores,
        fingerprint=fingerprint,
    )


def composition_below(checkpoint: Path, member: int = 0) -> tuple[str, dict[str, float]]:
    """Digest of the base and {skill: coefficient} of what an adapter was trained on; "" and {} if that was a base.

    It is what a composition or merge says of itself, or the skill that another run with an adapter has left. Raises
    ValueError if that skill is in no library.
    """
    own = read_card(checkpoint).get("composition")
    if own is not None:
        return _parts(own)
    run = _run_of(checkpoint)
    start = _config(run).get("init_from") if run is not None else None
    if run is None or not start:
        return "", {}
    there = [path for path in (Path(start), run.resolve().parent.parent / start) if path.exists()]
    if not there:
        return "", {}
    source = checkpoint_folder(there[0])
    if (source / ADAPTER).exists():
        return _known_skill(source, member)
    return _parts(read_card(source).get("composition") or {})


def _parts(made_of: dict[str, Any]) -> tuple[str, dict[str, float]]:
    return str(made_of.get("base", "")), {str(n): float(w) for n, w in made_of.get("weights", {}).items()}


def _known_skill(checkpoint: Path, member: int) -> tuple[str, dict[str, float]]:
    """The library's name for the skill of a checkpoint."""
    from robot_cl.skills import open_libraries, run_skill

    skill = run_skill(checkpoint, member if int(read_card(checkpoint)["actor"]["population"]) > 1 else 0)
    base = skill.below or skill.adapter.header.base
    content = content_digest(skill.adapter)
    for library in open_libraries():
        if library.header.base == base:
            for name in library.names():
                if not skill.parents and library.card(name).content == content:
                    return base, {name: 1.0}
    raise ValueError(
        f"this skill was trained on top of that of {checkpoint}, which is in no library; "
        f"add that one first: robot-cl skills add {checkpoint} name=NAME"
    )


def _config(run: Path) -> dict[str, Any]:
    return read_yaml(run / "config.yaml")


def _scores(run: Path, step: int, member: int, where: str, simulator: str | None) -> tuple[dict[str, float], str]:
    """Mean return per task (and shift) of the checkpoint's own evaluations, else of the last one while it trained,
    in `where`."""
    from robot_cl.curves import load_metrics
    from robot_cl.scores import read_scores

    entries = [e for e in read_scores(run) if e.step == step and member < e.members]
    if entries:
        scores = {f"{e.task} · {e.shift}" if e.shift else e.task: float(np.mean(e.returns[member])) for e in entries}
        return scores, entries[-1].simulator
    metrics = load_metrics(run)
    if not where or "eval_return" not in metrics.names:
        return {}, ""
    _, values = metrics.series("eval_return")
    found = float(values[-1][member])
    return ({where: found}, simulator or "") if np.isfinite(found) else ({}, "")


def _run_of(checkpoint: Path) -> Path | None:
    run = checkpoint.parent.parent
    return run if checkpoint.parent.name == CHECKPOINTS and (run / "config.yaml").exists() else None


def _read(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}
