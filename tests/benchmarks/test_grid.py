"""How cells of the offline grid become processes, and what the GPU's benchmark claims of what it found."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import gpu  # noqa: E402
import offline_online  # noqa: E402
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
    awaited = offline_workers.ALL["wsrl"].start
    assert all(len(job) == 1 for job in with_wsrl if awaited is not None and job[0][1] == awaited)


def test_chains_begin_before_lone_cells_however_long_these_are() -> None:
    """Where they came after them, `bc` had begun so late that nothing could go on from it."""
    cells = [(data, method) for data in ("a", "b") for method in offline_workers.ALL]
    order = offline_workers._order(offline_workers._jobs(cells, together=True))
    place = {cell: at for at, job in enumerate(order) for cell in job}
    starts = {cell: (cell[0], method.start) for cell in cells if (method := offline_workers.ALL[cell[1]]).start}
    links = {*starts, *starts.values()}
    assert {cell for job in order[: len(links)] for cell in job} == links
    assert all(place[start] < place[cell] for cell, start in starts.items())
    lone = [sum(offline_workers.ALL[method].cost for _, method in job[:1]) for job in order[len(links) :]]
    assert lone == sorted(lone, reverse=True) and len(lone) > 5


def test_curves_are_compared_where_both_were_evaluated() -> None:
    """A run that was cut is not held against what the other one reached after that."""
    cut = {"steps": [0, 10, 20], "curves": [[0.0, 4.0, 8.0], [0.0, 6.0, 12.0]]}
    whole = {"steps": [0, 10, 20, 30], "curves": [[0.0, 2.0, 4.0, 90.0], [0.0, 2.0, 4.0, 90.0]]}
    assert offline_online.ahead(whole, cut) == (-3.0, 20)
    assert offline_online.ahead(cut, whole) == (3.0, 20)


def test_nothing_is_claimed_of_a_policy_that_hardly_went_on() -> None:
    begun = {"scores": [50.0], "start": [48.0], "curves": [[48.0]], "steps": [0], "cut_at": 0}
    found = {"halfcheetah-ppo": {"wsrl": begun | {"cut_at": None}, "ppo from bc": begun}}
    assert [claim.claim.partition(",")[0] for claim in offline_online.claims(found)] == ["halfcheetah-ppo: wsrl"] * 2


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


def test_passes_of_several_first_seeds_are_one_table_of_all_their_seeds():
    def one(*area: float, until: int = 20) -> dict:
        curves = [[0.0, 2.0 * a] for a in area]
        counts = {"minutes": 4.0, "episodes_for_selection": 1.0}
        return {"steps": [0, until], "curves": curves, "area": list(area)} | counts

    first = {"hopper-mixture": {"moorl": one(1.0, 2.0), "sac + lookahead": one(5.0), "rlpd": one(1.0)}}
    second = {"hopper-mixture": {"moorl": one(6.0), "sac + lookahead": one(1.0, 3.0), "rlpd": one(1.0, until=10)}}
    found = offline_online.pooled([first, second])["hopper-mixture"]
    assert list(found) == ["moorl", "sac + lookahead"]  # the others stopped at different steps
    assert found["moorl"]["area"] == [1.0, 2.0, 6.0] and len(found["moorl"]["curves"]) == 3
    assert offline_online.ahead(found["moorl"], found["sac + lookahead"]) == (0.0, 20)
    assert offline_online.pooled([first]) == first
