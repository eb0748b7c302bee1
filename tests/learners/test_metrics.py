"""Metrics: NaN is named, rows survive a resume exactly as far as the checkpoint knows."""

import numpy as np
import pytest
import torch

from robot_cl.metrics import DivergedError, MetricLog, MetricWriter, read_metrics


def test_a_nan_is_reported_with_learner_metric_update_and_member():
    log = MetricLog("iql")
    for update in range(100, 105):
        bad = float("nan") if update == 103 else 1.0
        log.add(update, {"v_loss": torch.ones(2), "q_loss": torch.tensor([1.0, bad])})
    with pytest.raises(DivergedError, match=r"iql: q_loss became nan at update 103 \(member 1\)"):
        log.flush()


def test_a_metric_that_is_not_in_every_update_is_reported_at_its_own_update():
    log = MetricLog("sac")
    for update in range(10):
        log.add(update, {"q_loss": torch.ones(1)} | ({"actor_loss": torch.tensor([np.inf])} if update == 4 else {}))
    with pytest.raises(DivergedError, match="actor_loss became inf at update 4 "):
        log.flush()


def test_a_flush_gives_means_per_member_and_starts_anew():
    log = MetricLog("bc")
    log.add(1, {"loss": torch.tensor([1.0, 10.0])})
    log.add(2, {"loss": torch.tensor([3.0, 30.0])})
    assert log.flush()["loss"].tolist() == [2.0, 20.0]
    assert log.flush() == {}


def test_rows_are_written_per_member_and_new_metrics_add_columns(tmp_path):
    writer = MetricWriter(tmp_path, tensorboard=False)
    writer.write(10, "offline", 1.0, {"loss": np.array([1.0, 2.0])})
    writer.write(20, "online", 2.0, {"return": np.array([5.0, np.nan]), "loss": np.array([0.5, 0.25])})
    read = read_metrics(tmp_path)
    assert read["step"].tolist() == [10, 10, 20, 20] and read["member"].tolist() == [0, 1, 0, 1]
    assert read["phase"].tolist() == ["offline", "offline", "online", "online"]
    assert read["loss"].tolist() == [1.0, 2.0, 0.5, 0.25]
    np.testing.assert_array_equal(read["return"], [np.nan, np.nan, 5.0, np.nan])


def test_a_resumed_writer_keeps_the_rows_of_the_checkpoint_and_drops_half_a_line(tmp_path):
    writer = MetricWriter(tmp_path, tensorboard=False)
    writer.write(10, "offline", 1.0, {"loss": np.array([1.0])})
    rows = writer.rows
    writer.write(20, "offline", 2.0, {"loss": np.array([2.0])})
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("30,offl")
    again = MetricWriter(tmp_path, rows, tensorboard=False)
    again.write(20, "offline", 3.0, {"loss": np.array([7.0])})
    assert read_metrics(tmp_path)["loss"].tolist() == [1.0, 7.0]


def test_events_are_written_for_tensorboard(tmp_path):
    writer = MetricWriter(tmp_path)
    assert not list(tmp_path.glob("events.*"))  # not before there is something to write
    writer.write(1, "online", 0.0, {"loss": np.array([1.0])})
    writer.close()
    assert [path.stat().st_size > 0 for path in tmp_path.glob("events.*")] == [True]


@pytest.mark.parametrize("row", ["1,offline,0,1,abc", "1,offline,,1,2", "1,offline,-1,1,2", ",offline,0,1,2"])
def test_a_damaged_row_is_a_sentence_that_names_the_file(tmp_path, row):
    (tmp_path / "metrics.csv").write_text(f"step,phase,member,time_s,loss\n{row}\n")
    with pytest.raises(ValueError, match=r"metrics\.csv is damaged"):
        read_metrics(tmp_path)


def test_a_folder_without_metrics_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="not a run folder"):
        read_metrics(tmp_path)
