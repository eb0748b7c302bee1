"""A dataset as a LeRobotDataset v3 folder, for tools that read that."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from robot_cl.data.store import StoredDataset

VERSION = "v3.0"
FILE = "chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"


def export_lerobot(dataset: StoredDataset, folder: Path | str) -> Path:
    """Write `folder`: meta/{info,stats}.json, meta/tasks.parquet, meta/episodes/ and data/, actions in the interface's
    units. The format has no place for the observation after an episode's last step. Raises OSError if it exists."""
    import pyarrow.parquet as pq

    folder = Path(folder)
    if folder.exists():
        raise FileExistsError(f"{folder} exists already; choose another folder")
    data, episodes = _steps(dataset), dataset.episodes()
    for part in ("meta/episodes/chunk-000", "data/chunk-000"):
        (folder / part).mkdir(parents=True)
    pq.write_table(_table(data), folder / "data" / "chunk-000" / "file-000.parquet")
    pq.write_table(_episode_table(dataset, episodes), folder / "meta" / "episodes" / "chunk-000" / "file-000.parquet")
    pq.write_table(_task_table(dataset), folder / "meta" / "tasks.parquet")
    _write(folder / "meta" / "stats.json", {key: _statistics(value) for key, value in data.items()})
    _write(folder / "meta" / "info.json", _info(dataset, data))
    return folder


def _steps(dataset: StoredDataset) -> dict[str, np.ndarray]:
    """One array per feature, (N, width) or (N,)."""
    recording, face = dataset.recording(), dataset.interface
    lengths = recording.lengths
    within = np.concatenate([np.arange(n) for n in lengths])
    return {
        "observation.state": recording.obs,
        "action": face.command(recording.action.astype(np.float64)).astype(np.float32),
        "next.reward": recording.reward,
        "next.done": recording.terminated | recording.truncated,
        "next.success": recording.terminated,
        "timestamp": (within * face.control_dt).astype(np.float32),
        "frame_index": within.astype(np.int64),
        "episode_index": np.repeat(np.arange(len(lengths)), lengths),
        "index": np.arange(len(recording)),
        "task_index": np.zeros(len(recording), dtype=np.int64),
    }


def _table(data: dict[str, np.ndarray]) -> Any:
    import pyarrow as pa

    def column(value: np.ndarray) -> Any:
        if value.ndim == 1:
            return pa.array(value)
        return pa.FixedSizeListArray.from_arrays(np.ascontiguousarray(value).reshape(-1), value.shape[1])

    return pa.table({key: column(value) for key, value in data.items()})


def _episode_table(dataset: StoredDataset, episodes: list[Any]) -> Any:
    import pyarrow as pa

    zeros = np.zeros(len(episodes), dtype=np.int64)
    places = ("data/chunk_index", "data/file_index", "meta/episodes/chunk_index", "meta/episodes/file_index")
    columns = {
        "episode_index": np.arange(len(episodes)), "tasks": [[_task(dataset)]] * len(episodes),
        "length": [len(e) for e in episodes], "dataset_from_index": [e.start for e in episodes],
        "dataset_to_index": [e.stop for e in episodes], **dict.fromkeys(places, zeros),
    }  # fmt: skip
    return pa.table(columns)


def _task_table(dataset: StoredDataset) -> Any:
    """Tasks as readers expect them: a frame whose index holds the sentences."""
    import pyarrow as pa

    table, index = pa.table({"task_index": [0], "task": [_task(dataset)]}), "task"
    kinds = {"task_index": ("int64", "int64"), index: ("unicode", "object")}
    columns = [{"name": n, "field_name": n, "pandas_type": p, "numpy_type": t, "metadata": None}
               for n, (p, t) in kinds.items()]  # fmt: skip
    about = {"index_columns": [index], "column_indexes": [], "columns": columns}
    return table.replace_schema_metadata({"pandas": json.dumps(about)})


def _info(dataset: StoredDataset, data: dict[str, np.ndarray]) -> dict[str, Any]:
    face, steps = dataset.interface, len(data["index"])
    names = {"observation.state": [c.name for c in face.obs], "action": [c.name for c in face.action]}
    features = {
        key: {"dtype": str(value.dtype), "shape": list(value.shape[1:]) or [1], "names": names.get(key)}
        for key, value in data.items()
    }
    episodes = int(data["episode_index"][-1]) + 1
    return {
        "codebase_version": VERSION, "robot_type": dataset.meta.task or "unknown", "total_episodes": episodes,
        "total_frames": steps, "total_tasks": 1, "chunks_size": 1000, "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 200, "fps": max(1, round(1.0 / face.control_dt)),
        "splits": {"train": f"0:{episodes}"}, "data_path": f"data/{FILE}", "video_path": None, "features": features,
    }  # fmt: skip


def _statistics(value: np.ndarray) -> dict[str, list[float]]:
    rows = value.reshape(len(value), -1).astype(np.float64)
    found = {"min": rows.min(0), "max": rows.max(0), "mean": rows.mean(0), "std": rows.std(0)}
    return {name: array.tolist() for name, array in found.items()} | {"count": [len(rows)]}


def _task(dataset: StoredDataset) -> str:
    return dataset.meta.task or dataset.name


def _write(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data, indent=4) + "\n", encoding="utf-8")
