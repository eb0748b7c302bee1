"""How cells of the offline grid become processes, and what the GPU's benchmark claims of what it found."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import gpu  # noqa: E402
import offline_workers  # noqa: E402
import run_all  # noqa: E402
import torch  # noqa: E402

CELLS = [(data, method) for data in ("a", "b") for method in ("iql", "bc", "near-best bc", "ppo from bc", "sac")]


def test_only_cheap_offline_cells_that_nothing_waits_for_share_a_process() -> None:
    together = offline_workers._jobs(CELLS, together=True)
    assert [job for job in together if len(job) > 1] == [
        (("a", "iql"), ("b", "iql")),
        (("a", "near-best bc"), ("b", "near-best bc")),
    ]
    assert sorted(cell for job in together for cell in job) == sorted(CELLS)
    assert [len(job) for job in offline_workers._jobs(CELLS, together=False)] == [1] * len(CELLS)
    with_wsrl = offline_workers._jobs([*CELLS, ("a", "wsrl")], together=True)
    awaited = offline_workers.METHODS["wsrl"].start
    assert all(len(job) == 1 for job in with_wsrl if awaited is not None and job[0][1] == awaited)


def test_what_fails_on_a_gpu_is_counted_and_the_rest_still_claimed() -> None:
    found = {
        "captured:bc": [{"phase": "offline", "difference": 2e-4, "refused": {}}, {"error": "no memory"}],
        "stacked:bc": [{"seeds": 1, "rate": 10.0}, {"seeds": 8, "rate": 120.0, "over_eager": 12.0}],
        "worlds:halfcheetah": [{"worlds": 4, "acting": 100.0}, {"worlds": 1024, "acting": 350.0}],
    }
    by_name = {claim.claim: claim for claim in gpu.claims(found)}
    assert by_name["measurements that failed, or updates that were not captured"].value == 1.0
    assert by_name["8 stacked over the eager loop, least of 1 learners"].value == 12.0
    assert by_name["1024 worlds with a policy over the processor's cores"].value == pytest.approx(3.5)
    assert len(by_name) == 4


def test_a_benchmark_for_gpus_is_skipped_without_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run_all.run("gpu", quick=True)
    assert "skipped, because torch sees no GPU here" in capsys.readouterr().out
