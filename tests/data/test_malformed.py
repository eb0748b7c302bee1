"""Whatever is wrong with a file: one clear sentence, and nothing half-written."""

import json
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from robot_cl.data.importers.detect import import_dataset
from robot_cl.data.recording import Recording
from robot_cl.data.store import write_dataset

KEYS = {"observations": "obs", "actions": "action", "rewards": "reward", "terminals": "terminated",
        "timeouts": "truncated", "next_observations": "next_obs"}  # fmt: skip


@dataclass
class Case:
    """`make(folder, data)` writes the malformed thing and returns its path; the error says `sentence`."""

    make: Callable[[Path, Recording], Path]
    sentence: str
    options: dict[str, Any] = field(default_factory=dict)


def hdf5(**changes: Any) -> Callable[[Path, Recording], Path]:
    """A good D4RL file with columns replaced by what `changes[key](column)` gives, or left out where it is None."""

    def make(folder: Path, data: Recording) -> Path:
        with h5py.File(folder / "x.hdf5", "w") as file:
            for key, name in KEYS.items():
                change = changes.get(key, lambda column: column)
                if change is not None:
                    file[key] = change(getattr(data, name))
        return folder / "x.hdf5"

    return make


def npz(**changes: Any) -> Callable[[Path, Recording], Path]:
    def make(folder: Path, data: Recording) -> Path:
        columns = {key: getattr(data, name) for key, name in KEYS.items()}
        changed = {key: changes[key](columns.get(key)) for key in changes if changes[key] is not None}
        kept = {key: value for key, value in columns.items() if key not in changes}
        np.savez(folder / "x.npz", **(kept | changed))
        return folder / "x.npz"

    return make


def cut(make: Callable[[Path, Recording], Path], share: float) -> Callable[[Path, Recording], Path]:
    def made(folder: Path, data: Recording) -> Path:
        path = make(folder, data)
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * share)])
        return path

    return made


def raw(name: str, content: bytes) -> Callable[[Path, Recording], Path]:
    def make(folder: Path, data: Recording) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return make


def with_nan(column: np.ndarray) -> np.ndarray:
    bad = column.copy()
    bad[len(bad) // 2] = np.nan
    return bad


def with_inf(column: np.ndarray) -> np.ndarray:
    bad = column.astype(np.float64)
    bad[3] = 1e300  # finite as float64, infinite as the float32 it is stored as
    return bad


def minari(damage: Callable[[Path], None], storage: str = "hdf5") -> Callable[[Path, Recording], Path]:
    """A Minari dataset with `damage` done to its data folder."""

    def make(folder: Path, data: Recording) -> Path:
        path = write_dataset("toy/a-v0", data, storage=storage, root=folder / "source").path
        damage(path / "data")
        return path

    return make


def overwrite(name: str, content: bytes) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / name).write_bytes(content)

    return damage


def edit_metadata(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        metadata = json.loads((folder / "metadata.json").read_text())
        change(metadata)
        (folder / "metadata.json").write_text(json.dumps(metadata))

    return damage


def shorten_rewards(folder: Path) -> None:
    with h5py.File(folder / "main_data.hdf5", "a") as file:
        rewards = file["episode_2/rewards"][:-3]
        del file["episode_2/rewards"]
        file["episode_2/rewards"] = rewards


def without_episode(folder: Path) -> None:
    with h5py.File(folder / "main_data.hdf5", "a") as file:
        del file["episode_1"]


def elsewhere(folder: Path, data: Recording) -> Path:
    with h5py.File(folder / "secret.hdf5", "w") as file:
        file["observations"] = data.obs
    path = hdf5(observations=None)(folder, data)
    with h5py.File(path, "a") as file:
        file["observations"] = h5py.ExternalLink("secret.hdf5", "/observations")
    return path


def announced_only(folder: Path, data: Recording) -> Path:
    path = hdf5(observations=None)(folder, data)
    with h5py.File(path, "a") as file:
        file.create_dataset("observations", (len(data), 5), "f4", chunks=(10, 5))
    return path


def zip_without_arrays(folder: Path, data: Recording) -> Path:
    with zipfile.ZipFile(folder / "x.npz", "w") as archive:
        archive.writestr("readme.txt", "nothing here")
    return folder / "x.npz"


def corrupt_npz(folder: Path, data: Recording) -> Path:
    path = npz()(folder, data)
    content = bytearray(path.read_bytes())
    content[200:260] = bytes(60)
    path.write_bytes(bytes(content))
    return path


def nothing_there(folder: Path, data: Recording) -> Path:
    return folder / "absent.hdf5"


def only_a_folder(folder: Path, data: Recording) -> Path:
    (folder / "sub").mkdir()
    return folder / "sub"


GOOD = hdf5()
CASES: dict[str, Case] = {
    "no such file": Case(nothing_there, "there is no file"),
    "a folder of something else": Case(only_a_folder, "without Minari's"),
    "an empty file": Case(raw("x.hdf5", b""), "is empty"),
    "text": Case(raw("x.hdf5", b"obs,action,reward\n1,2,3\n"), "is none of D4RL HDF5"),
    "a pickle": Case(raw("x.pkl", pickle.dumps({"observations": [1.0]})), "is a pickle, which can run code"),
    "a single array": Case(raw("x.npy", b"\x93NUMPY\x01\x00v\x00"), "is a single array"),
    "HDF5 cut in half": Case(cut(GOOD, 0.5), "is not a whole HDF5 file"),
    "HDF5 cut in its header": Case(cut(GOOD, 0.005), "is not a whole HDF5 file"),
    "no rewards": Case(hdf5(rewards=None), "lacks rewards; a D4RL file has them, this one has actions"),
    "no terminals": Case(hdf5(terminals=None), "lacks terminals"),
    "no timeouts": Case(hdf5(timeouts=None, next_observations=None), "no timeouts .* pass horizon=1000"),
    "NaN observation": Case(hdf5(observations=with_nan, next_observations=None), "obs has 5 NaN or infinite"),
    "NaN reward": Case(hdf5(rewards=with_nan), "reward has 1 NaN"),
    "NaN action": Case(hdf5(actions=with_nan), "action has NaN"),
    "too large for float32": Case(hdf5(rewards=with_inf), "reward has 1 NaN or infinite"),
    "actions out of bounds": Case(hdf5(actions=lambda a: a * 40), "nothing tells their limits"),
    "fewer actions than steps": Case(hdf5(actions=lambda a: a[:-5]), r"action has shape .* expected \(\d+, width\)"),
    "flat observations": Case(hdf5(observations=lambda o: o[:, 0]), "obs has shape"),
    "images": Case(hdf5(observations=lambda o: np.zeros((len(o), 8, 8, 3))), "obs has shape"),
    "next observations of another width": Case(hdf5(next_observations=lambda o: o[:, :3]), "next_obs has shape"),
    "terminals that are not flags": Case(hdf5(terminals=lambda t: t * 7), "must hold only 0 and 1, found 7"),
    "text for rewards": Case(hdf5(rewards=lambda r: np.array(["a"] * len(r), dtype="S1")), "expected numbers"),
    "no steps": Case(hdf5(**{key: lambda c: c[:0] for key in KEYS}), "not a single transition"),
    "shuffled steps": Case(
        hdf5(observations=lambda o: o[np.random.default_rng(0).permutation(len(o))]), "not in the order of time"
    ),
    "a link to another file": Case(elsewhere, "only plain arrays are read"),
    "announced but not stored": Case(announced_only, "stores none"),
    "npz with objects": Case(npz(extra=lambda _: np.array([{"a": 1}], dtype=object), rewards=lambda _: np.array(
        [object()] * 3, dtype=object)), "pickled objects, which can run code"),
    "npz cut off": Case(cut(npz(), 0.6), "is not a whole .npz"),
    "npz with damaged bytes": Case(corrupt_npz, "is not a whole .npz"),
    "npz without rewards": Case(npz(rewards=None), r"lacks reward \(reward or rewards\)"),
    "npz with both spellings": Case(npz(obs=lambda _: np.zeros((3, 5))), "mean the same; keep one"),
    "npz with dones": Case(npz(rewards=None, dones=lambda _: np.zeros(3)), "'dones' does not tell"),
    "episode lengths that do not sum": Case(npz(episode_lengths=lambda _: np.array([3, 4])), "sum to"),
    "a zip without arrays": Case(zip_without_arrays, "is a zip without arrays"),
    "Minari with broken JSON": Case(minari(overwrite("metadata.json", b"{")), "not readable JSON"),
    "Minari without spaces": Case(
        minari(edit_metadata(lambda m: m.pop("observation_space"))), "only datasets that state their spaces"
    ),
    "Minari of an unknown storage": Case(
        minari(edit_metadata(lambda m: m.update(data_format="csv"))), "cannot be read|damaged"
    ),
    "Minari with an episode missing": Case(minari(without_episode), "is damaged or not of Minari's form"),
    "Minari with a short column": Case(minari(shorten_rewards), "episode 2 has"),
    "Minari named out of the root": Case(
        minari(edit_metadata(lambda m: m.update(dataset_id="../../evil-v0"))), "outside the data root"
    ),
    "Minari arrow with a part cut": Case(
        minari(overwrite("1/part-0.arrow", b"ARROW1"), "arrow"), "cannot be read|damaged"
    ),
    "a name out of the root": Case(GOOD, "points outside the data root", {"name": "../../evil-v0"}),
    "an absolute name": Case(GOOD, "points outside the data root", {"name": "/tmp/evil-v0"}),
    "a name without version": Case(GOOD, "does not end in a version", {"name": "hopper/medium"}),
    "a name of a folder inside": Case(GOOD, "is a folder inside every dataset", {"name": "hopper/data/x-v0"}),
    "an empty name": Case(GOOD, "is empty|not a dataset name", {"name": " "}),
    "a name of D4RL's": Case(npz(), "is a D4RL name", {"name": "d4rl/hopper/medium-v2"}),
    "an unknown storage": Case(GOOD, "storage 'parquet' is unknown; one of hdf5, arrow", {"storage": "parquet"}),
    "a horizon of zero": Case(GOOD, "horizon is a number of steps", {"horizon": 0}),
    "a limit of zero": Case(GOOD, "limit is a number of steps", {"limit": 0}),
    "a misspelt task": Case(GOOD, "no task 'hoper'; did you mean 'hopper'", {"task": "hoper"}),
    "a task of other actions": Case(GOOD, "actions are 2 wide, task hopper has 3", {"task": "hopper"}),
}


def tree(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@pytest.mark.parametrize("name", CASES)
def test_a_malformed_input_gets_one_sentence_and_leaves_nothing(tmp_path: Path, clean: Recording, name: str) -> None:
    case = CASES[name]
    (tmp_path / "in").mkdir()
    path = case.make(tmp_path / "in", clean)
    before = tree(tmp_path)
    with pytest.raises((ValueError, LookupError, OSError), match=case.sentence) as caught:
        import_dataset(path, root=tmp_path / "root", **case.options)
    sentence = str(caught.value)
    assert "\n" not in sentence and 10 < len(sentence) < 420, sentence
    assert [path for path in tree(tmp_path) if path not in before] in ([], ["root"])


def test_the_unharmed_files_are_imported(tmp_path: Path, clean: Recording) -> None:
    """The cases above fail for what is wrong with them, not for what they have in common."""
    for number, make in enumerate((GOOD, npz(), minari(lambda folder: None), minari(lambda folder: None, "arrow"))):
        folder = tmp_path / str(number)
        folder.mkdir()
        assert import_dataset(make(folder, clean), root=folder / "root").dataset.meta.steps == len(clean)
