"""Overrides and YAML become dataclasses, and every mistake is answered in one sentence."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import pytest

from robot_cl import config
from robot_cl.commands.helptext import REQUIRED, describe, option_lines
from robot_cl.commands.train import absolute_start


class Trainable(Enum):
    full = "full"
    adapter = "adapter"


@dataclass
class Options:
    data: str = REQUIRED  # a dataset
    task: str | None = None
    episodes: int = 20  # how many, at least 1
    rate: float = 0.5
    dry: bool = False
    hidden: tuple[int, ...] = (256, 256)
    trainable: Trainable = Trainable.full
    shift: dict[str, float] = field(default_factory=dict)
    anything: Any = None

    def __post_init__(self) -> None:
        if self.episodes < 1:
            raise ValueError(f"episodes must be at least 1, got {self.episodes}")


@dataclass
class Iql:
    expectile: float = 0.7
    hidden: tuple[int, ...] = (256, 256)


@dataclass
class Bc:
    lr: float = 3e-4


GROUPS = {"learner": {"iql": Iql, "bc": Bc}}


@pytest.fixture
def yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A configs/ folder with two presets and an experiment."""
    files = {
        "go.yaml": "defaults: [go_schema, _self_, learner: iql, experiment: null]\nepisodes: 7\n",
        "learner/iql_antmaze.yaml": "defaults: [iql]\nexpectile: 0.9\n",
        "experiment/smoke.yaml": "# @package _global_\ndefaults:\n  - override /learner: bc\nepisodes: 2\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(config, "config_dir", lambda: tmp_path)
    return tmp_path


def test_values_arrive_with_the_types_of_the_dataclass() -> None:
    words = ["data=hopper/medium-v0", "episodes=3", "hidden=[64,32]", "trainable=adapter", "dry=true", "rate=1"]
    got = config.read_options(Options, words)
    assert got == Options("hopper/medium-v0", None, 3, 1.0, True, (64, 32), Trainable.adapter)
    assert isinstance(got.hidden, tuple) and isinstance(got.rate, float)


def test_none_is_typed_as_help_writes_it() -> None:
    words = ["data=none", "task=none", "anything=none"]
    assert config.read_options(Options, words) == Options("none", None)  # data cannot be missing: a name like any
    assert config.read_options(Options, ["data=a", "task=hopper", "task=none"]).task is None
    assert absolute_start(["learner=bc", "base=none"]) == ["learner=bc", "init_from=none"]
    with pytest.raises(ValueError, match="episodes expects a whole number, got 'none'"):
        config.read_options(Options, ["data=a", "episodes=none"])


def test_maps_take_braces_and_dots() -> None:
    assert config.read_options(Options, ["data=a", "shift={friction: 0.5}"]).shift == {"friction": 0.5}
    assert config.read_options(Options, ["data=a", "shift.friction=0.5"]).shift == {"friction": 0.5}
    assert config.read_options(Options, ["data=a", "anything={a: [1, b]}"]).anything == {"a": [1, "b"]}


@pytest.mark.parametrize("path", ["../x/y.npz", "~/runs/a", "/tmp/a b(1).npz", "C:x", "a=b", "20ms", "a@b"])
def test_paths_need_no_quotes(path: str) -> None:
    assert config.read_options(Options, [f"data={path}"]).data == path


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["data=a", "episode=3"], "no option 'episode'; did you mean episodes?"),
        (["data=a", "zzz=3"], "no option 'zzz'; there are: anything, data"),
        (["data=a", "data.x=3"], "no option 'data.x'"),
        (["data=a", "episodes=abc"], "episodes expects a whole number, got 'abc'"),
        (["data=a", "episodes=1.5"], "episodes expects a whole number"),
        (["data=a", "dry=maybe"], "dry expects true or false"),
        (["data=a", "trainable=adaptr"], "one of full, adapter, got 'adaptr'; did you mean adapter?"),
        (["data=a", "shift={friction: high}"], "shift.* expects a number"),
        (["data=a", "episodes=0"], "at least 1, got 0"),
        (["episodes=3"], "data=... is needed"),
        (["data=a,b"], r"data takes one value here; write a list as data=\[a,b\]"),
        (["data=[a,b]"], "data does not take"),
        (["+data=a"], "without"),
        (["~data"], "without"),
        (["data=a", "hidden=[1,"], "cannot read"),
        (["data=a", "hydra.run.dir=x"], "no option 'hydra.run.dir'"),
        (["data=a", "_target_=os.system"], "no option '_target_'"),
    ],
)
def test_a_mistake_is_one_sentence(words: list[str], says: str) -> None:
    with pytest.raises((ValueError, LookupError), match=says) as caught:
        config.read_options(Options, words)
    assert "\n" not in str(caught.value)


def test_groups_presets_and_experiments_compose(yaml: Path) -> None:
    options, chosen = config.read_groups(Options, GROUPS, "go", ["data=a"])
    assert type(options) is Options and options.episodes == 7 and chosen["learner"] == ("iql", Iql())
    words = ["data=a", "learner=iql_antmaze", "learner.hidden=[8]"]
    assert config.read_groups(Options, GROUPS, "go", words)[1]["learner"] == ("iql", Iql(0.9, (8,)))
    options, chosen = config.read_groups(Options, GROUPS, "go", ["data=a", "experiment=smoke", "learner.lr=1"])
    assert options.episodes == 2 and chosen["learner"] == ("bc", Bc(1.0))
    assert config.choices("learner", GROUPS["learner"]) == ["bc", "iql", "iql_antmaze"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["learner=iqk"], "no learner 'iqk'; did you mean iql"),
        (["experiment=smok"], "no experiment 'smok'; did you mean smoke"),
        (["learner.expectil=1"], "no option 'learner.expectil'; did you mean learner.expectile"),
        (["learner=bc", "learner.expectile=1"], "no option 'learner.expectile'"),
        (["learner.expectile=high"], "learner.expectile expects a number"),
    ],
)
def test_a_misspelt_group_or_member_is_one_sentence(yaml: Path, words: list[str], says: str) -> None:
    with pytest.raises((ValueError, LookupError), match=says) as caught:
        config.read_groups(Options, GROUPS, "go", ["data=a", *words])
    assert "\n" not in str(caught.value)


def test_a_misspelt_key_in_yaml_is_refused(yaml: Path) -> None:
    (yaml / "learner/iql_antmaze.yaml").write_text("defaults: [iql]\nexpectil: 0.9\n")
    with pytest.raises(ValueError, match="expectil"):
        config.read_groups(Options, GROUPS, "go", ["data=a", "learner=iql_antmaze"])


def test_the_working_directory_stays(yaml: Path) -> None:
    before = Path.cwd(), sorted(Path.cwd().iterdir())
    config.read_groups(Options, GROUPS, "go", ["data=a"])
    assert (Path.cwd(), sorted(Path.cwd().iterdir())) == before


def test_commas_are_a_sweep() -> None:
    rows = config.expand(["learner=bc,iql", "seeds=3", "lr=1,2"])
    assert rows == [[f"learner={a}", "seeds=3", f"lr={b}"] for a in ("bc", "iql") for b in (1, 2)]
    assert config.expand(["hidden=[1,2]"]) == [["hidden=[1,2]"]]


def test_help_shows_defaults_as_one_types_them_and_the_comments_of_the_fields() -> None:
    lines = {o.name: o for o in describe(Options)}
    assert (lines["episodes"].default, lines["episodes"].meaning) == ("20", "how many, at least 1")
    assert (lines["hidden"].default, lines["hidden"].kind) == ("[256,256]", "[int,...]")
    assert (lines["task"].default, lines["data"].default, lines["dry"].default) == ("none", "", "false")
    assert lines["trainable"].kind == "full|adapter"
    assert "data=...          needed; a dataset" in option_lines(Options)
