"""From a run to a skill to a composition to a merge and back, as typed: real tiny objects all the way."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robot_cl.routes import ROUTES

Cli = Callable[..., Any]
NET = ["learner.actor.hidden=[12]", "tensorboard=false", "eval_every=0"]
ADAPT = ["learner.trainable=adapter", "learner.rank=2", "tensorboard=false", "eval_every=0"]
SMALL = ["demos=3", "steps=20", "adapter_steps=20", "rank=2", "adapter_lr=0.01"]


def _line(cli: Cli, *words: str) -> Any:
    ran = cli(*words)
    assert ran.code == 0, ran
    return ran


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, place: Path) -> Path:
    """A working folder with demonstrations, a base and three runs that trained adapters on it, two of them skills."""
    folder = tmp_path_factory.mktemp("skills")
    shutil.copy(place / "walk.safetensors", folder)
    return folder


@pytest.fixture(scope="module")
def typed(home: Path, run_in: Cli) -> Cli:
    """The command line in the working folder, which is furnished here."""

    def cli(*words: str) -> Any:
        return run_in(home, *words)

    data = ["data=hopper/demo-v0", "task=hopper"]
    _line(cli, "data", "collect", "task=hopper", "policy=walk.safetensors", "name=hopper/demo-v0", "steps=400")
    _line(cli, "train", "learner=bc", *data, "offline_steps=20", "name=base", *NET)
    start = next(home.glob("runs/*-base")).relative_to(home)
    onward = [f"init_from={start}", *ADAPT]
    _line(cli, "train", "learner=ppo", "task=hopper", "online_steps=80", "num_worlds=2", "learner.horizon=20",
          "seeds=2", "name=hop", *onward)  # fmt: skip
    _line(cli, "train", "learner=bc", *data, "offline_steps=30", "learner.lr=0.01", "seeds=3", "name=kick", *onward)
    whole = [f"init_from={start}", *("learner.trainable=weights" if "trainable" in word else word for word in ADAPT)]
    _line(cli, "train", "learner=bc", *data, "offline_steps=30", "learner.lr=0.01", "seed=8", "name=lean", *whole)
    _line(cli, "evaluate", "hop", "episodes=2", "film=0")
    _line(cli, "skills", "add", "hop", "--name", "hop-low-gravity", "member=1")
    _line(cli, "skills", "add", "kick", "name=kick", "description=kicks in the air")
    return cli


def test_a_run_becomes_a_skill_whose_card_says_where_it_comes_from(typed: Cli) -> None:
    skill = _line(typed, "skills", "show", "hop-low-gravity", "--json").json["skill"]
    assert skill["learner"] == "ppo" and skill["seed"] == 1 and set(skill["ranks"].values()) == {2}
    assert list(skill["scores"]) == ["hopper"] and "mujoco" in skill["fingerprint"]
    assert skill["control_dt"] == pytest.approx(0.008) and len(skill["interface"]["obs"]) == 11
    assert all(len(skill["header"][part]) == 64 for part in ("base", "interface", "normalizer"))
    kick = _line(typed, "skills", "show", "kick", "--json").json["skill"]
    assert list(kick["datasets"]) == ["hopper/demo-v0"] and kick["spread"] > 0  # three training seeds
    assert kick["header"] == skill["header"]


def test_skills_are_listed_found_and_verified(typed: Cli) -> None:
    names = {skill["name"] for skill in _line(typed, "skills", "list", "--json").json["skills"]}
    assert {"hop-low-gravity", "kick"} <= names
    assert _line(typed, "skills", "search", "kicks air", "--json").json["found"][0]["name"] == "kick"
    near = _line(typed, "skills", "search", "like=kick", "--json").json["found"]
    assert near[0]["distance"] > 0 and "kick" not in [found["name"] for found in near]
    assert _line(typed, "skills", "check", "--json").json["problems"] == []


def test_a_published_skill_acts_as_its_run_does(typed: Cli, home: Path) -> None:
    from policies.library import Library
    from policies.library_base import bases
    from robot_cl.checkpoint import load_policy
    from robot_cl.skills import skill_policy

    library = Library(bases(home / "library")[0])
    obs = np.random.default_rng(0).normal(size=(5, 11)).astype(np.float32)
    trained = load_policy(next(home.glob("runs/*-hop")), member=1).act(obs)
    np.testing.assert_allclose(skill_policy(library, {"hop-low-gravity": 1.0}).act(obs), trained, rtol=1e-5, atol=1e-6)
    assert np.abs(skill_policy(library, {}).act(obs) - trained).max() > 1e-4


def test_brackets_in_a_description_are_shown_as_they_are(typed: Cli) -> None:
    _line(typed, "skills", "add", "kick", "name=odd", "member=2", "description='kicks [/b] at [red] 2'")
    assert "kicks [/b] at [red] 2" in _line(typed, "skills", "show", "odd").out
    _line(typed, "skills", "remove", "odd")


def test_an_operator_that_learns_takes_its_number_of_steps(typed: Cli) -> None:
    words = ["merge", "skills=[kick,hop-low-gravity]", "how=doge"]
    assert _line(typed, *words, "settings.steps=2", "--json").json["how"] == "doge"


def test_a_copy_is_refused_and_a_near_one_announced(typed: Cli) -> None:
    ran = typed("skills", "add", "kick", "name=again")
    assert ran.code == 2 and "does the same as 'kick'" in ran.err
    taken = typed("skills", "add", "lean", "name=kick")
    assert taken.code == 2 and "there is a skill 'kick' already" in taken.err
    answer = _line(typed, "skills", "add", "kick", "name=kick-1", "member=1", "--json").json
    assert answer["skill"]["name"] == "kick-1" and answer["skill"]["seed"] == 1
    _line(typed, "skills", "remove", "kick-1")


def test_a_composition_is_a_run_that_evaluate_and_report_read(typed: Cli, home: Path) -> None:
    answer = _line(typed, "compose", "data=hopper/demo-v0", "skills=[kick,hop-low-gravity]", *SMALL, "--json").json
    assert [route["name"] for route in answer["routes"]] == list(ROUTES)
    assert answer["why"] and set(answer["left_out"]) == {"kick", "hop-low-gravity"}
    assert answer["routes"][-1]["relative"] == 1.0
    run = Path(answer["wrote"])
    told = json.loads((home / run / "composition.json").read_text())
    assert told["chosen"] == answer["chosen"] and set(told["skills"]) == {"kick", "hop-low-gravity"}
    scored = _line(typed, "evaluate", str(run), "episodes=2", "film=0", "--json").json["evaluation"]
    assert scored["task"] == "hopper" and scored["label"].startswith(answer["chosen"].replace("_", "-"))
    page = Path(_line(typed, "report", str(run), "--json").json["wrote"])
    html = (home / page).read_text()
    assert "compose on hopper" in html and answer["why"].split(":")[0] in html
    assert "without kick" in html


def test_a_transfer_study_that_was_stopped_goes_on_to_the_same_table(
    typed: Cli, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from robot_cl.transfer_run import Parts

    words = ["transfer", "data=hopper/demo-v0", "skills=[kick,hop-low-gravity]", "demos=2", "draws=2", "counts=[1]",
             "episodes=2", "steps=5", "adapter_steps=5", "rank=2", "tasks=[hopper]"]  # fmt: skip
    whole = _line(typed, *words, "name=whole", "--json").json
    assert len(whole["rows"]) == 12 and set(whole["left_out"]) == {"", "kick", "hop-low-gravity"}
    assert set(whole["by_demonstrations"]["residual"]["mean"]) == {"1", "2"}
    assert set(whole["matrix"]["kick"]) == {"hopper"}
    told = list[str]()

    def stop_at_scratch(parts: Parts, key: str) -> None:
        told.append(key)
        if key == "scratch/2/1":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Parts, "_tell", stop_at_scratch)
        stopped = typed(*words, "name=stopped")
    assert stopped.code == 130 and "robot-cl transfer runs/" in stopped.err
    kept = next(home.glob("runs/*-stopped")) / "parts.json"
    parts = json.loads(kept.read_text())
    heard = ["kick by itself/choice", "hop-low-gravity by itself/choice"]
    assert list(parts) == [*heard, "base/2/0", "base/2/1", "best skill/2/0", "best skill/2/1", "scratch/2/0"]
    best = max(heard, key=lambda name: np.mean(parts[name]))
    assert whole["rows"][1]["what"].endswith(best.split()[0])
    parts["base/2/0"] = [7.0, 7.0]  # what is kept is not played again
    kept.write_text(json.dumps(parts))
    again = _line(typed, "resume", "stopped", "--json").json
    assert again["rows"][0]["returns"] == [[7.0, 7.0], parts["base/2/1"]] and not kept.exists()
    assert again["rows"][1:] == whole["rows"][1:] and again["left_out"] == whole["left_out"]
    assert "transfer study" in typed("transfer", "kick").err


def test_the_expert_of_a_study_is_what_was_demonstrated(typed: Cli, home: Path) -> None:
    from types import SimpleNamespace

    from robot_cl.data.store import open_dataset
    from robot_cl.demonstrations import Demonstrations, Pick
    from robot_cl.transfer_run import TransferOptions, expert_return

    data: Any = open_dataset("hopper/demo-v0", root=home / "datasets")
    returns = [episode.ret for episode in data.episodes() if episode.complete]
    for pick, expected in ((Pick.first, returns[:2]), (Pick.best, sorted(returns)[-2:])):
        options = TransferOptions(data=data.name, demos=1, draws=2, pick=pick)
        job: Any = SimpleNamespace(dataset=data)
        assert expert_return(job, options) == pytest.approx(np.mean(expected))
        demos = Demonstrations.of(data, 2, pick)
        assert len(demos) == sum(e.stop - e.start for e in data.episodes() if e.complete and e.ret in expected)


@pytest.mark.parametrize(
    "composer",
    ["psec", "psec level=noise", "psec level=action", "psec per_layer=true", "fixed", "atlas", "mora", "ridge"],
)
def test_every_composer_is_saved_and_acts_the_same_when_loaded(typed: Cli, home: Path, composer: str) -> None:
    from policies.composed import ComposedActor
    from policies.hashing import output_hash
    from robot_cl.checkpoint import load_policy
    from robot_cl.data.store import open_dataset
    from robot_cl.demonstrations import Demonstrations

    words = [f"composer={composer.split()[0]}", *composer.split()[1:], "routes=[composition]", "name=saved"]
    run = home / _line(typed, "compose", "data=hopper/demo-v0", "skills=[kick,hop-low-gravity]", *SMALL, *words,
                       "--json").json["wrote"]  # fmt: skip
    told = json.loads((run / "composition.json").read_text())
    policy = load_policy(run)
    assert isinstance(policy, ComposedActor) and policy.task == "hopper"
    demos = Demonstrations.of(open_dataset("hopper/demo-v0", root=home / "datasets"), 3)
    assert output_hash(policy.act, demos.obs[:64].numpy()) == told["outputs"]
    shutil.rmtree(run)


def test_what_cannot_be_a_skill_is_kept_as_a_run(typed: Cli, home: Path) -> None:
    words = ["data=hopper/demo-v0", "skills=[kick,hop-low-gravity]", *SMALL]
    gated = typed("compose", *words, "routes=[composition]", "publish=gated", "--json")
    assert gated.code == 1 and "weighs its skills by the observation" in gated.json["not_published"]
    assert (home / gated.json["wrote"] / "composition.json").exists()
    grown = _line(typed, "compose", *words, "routes=[residual]", "publish=grown", "--json").json
    card = _line(typed, "skills", "show", "grown", "--json").json["skill"]
    assert grown["skill"] == "grown" and card["parents"] and list(card["datasets"]) == ["hopper/demo-v0"]
    _line(typed, "skills", "remove", "grown")


def test_preferences_need_skills_with_several_training_seeds(typed: Cli) -> None:
    words = ["data=hopper/demo-v0", "composer=ibcl", "routes=[composition]", *SMALL]
    both = _line(typed, "compose", "skills=[kick,hop-low-gravity]", "preference=[0.75,0.25]", *words, "--json").json
    assert both["routes"][0]["made_of"] == "0.75 kick + 0.25 hop-low-gravity"
    off = typed("compose", "skills=[kick,hop-low-gravity]", "preference=[0.75,0.75]", *words)
    assert off.code == 2 and "not on the simplex" in off.err
    _line(typed, "skills", "add", "lean", "name=lean")
    alone = typed("compose", "skills=[kick,lean]", "preference=[0.5,0.5]", *words)
    assert alone.code == 2 and "'lean' comes from one training seed" in alone.err


def test_a_new_skill_grows_on_a_merge_and_outlives_what_it_grew_on(typed: Cli, home: Path) -> None:
    from policies.hashing import output_hash
    from policies.library import Library
    from policies.library_base import bases
    from robot_cl.skills import skill_policy

    merged = _line(typed, "merge", "skills=[kick,hop-low-gravity]", "how=average", "weights=[3,1]", "--json").json
    scored = _line(typed, "evaluate", merged["wrote"], "episodes=2", "film=0", "--json").json["evaluation"]
    assert scored["label"] == "average of kick, hop-low-gravity"
    _line(typed, "train", "learner=bc", "data=hopper/demo-v0", "task=hopper", "offline_steps=30", "learner.lr=0.01",
          f"init_from={merged['wrote']}", "name=ontop", *ADAPT)  # fmt: skip
    card = _line(typed, "skills", "add", "ontop", "name=ontop", "--json").json["skill"]
    assert {parent["skill"]: parent["coefficient"] for parent in card["parents"]} == pytest.approx(
        {"kick": 0.75, "hop-low-gravity": 0.25}
    )
    library = Library(bases(home / "library")[0])
    obs = np.random.default_rng(0).normal(size=(5, 11)).astype(np.float32)
    names = [n for n in library.names() if n != "kick"]
    before = {name: output_hash(skill_policy(library, {name: 1.0}).act, obs) for name in names}
    said = _line(typed, "skills", "remove", "kick")
    assert "ontop came from it, holds it whole" in said.out
    assert {name: output_hash(skill_policy(library, {name: 1.0}).act, obs) for name in names} == before
    assert typed("compose", "data=hopper/demo-v0", "skills=[kick]", *SMALL).code == 2
    _line(typed, "skills", "rollback", "kick")
    journal = _line(typed, "skills", "log", "--json").json["journal"]
    assert [(e["do"], e["skill"]) for e in journal][-2:] == [("remove", "kick"), ("publish", "kick")]


def test_a_skill_on_top_of_an_unknown_one_asks_for_that_first(typed: Cli, home: Path) -> None:
    below = next(home.glob("runs/*-lean")).relative_to(home)
    _line(typed, "train", "learner=bc", "data=hopper/demo-v0", "task=hopper", "offline_steps=10", "learner.lr=0.01",
          f"init_from={below}", "name=above", *ADAPT)  # fmt: skip
    if "lean" in {skill["name"] for skill in _line(typed, "skills", "list", "--json").json["skills"]}:
        _line(typed, "skills", "remove", "lean")
    refused = typed("skills", "add", "above", "name=above")
    assert refused.code == 2 and "in no library; add that one first" in refused.err
    _line(typed, "skills", "add", "lean", "name=lean")
    card = _line(typed, "skills", "add", "above", "name=above", "--json").json["skill"]
    assert [(p["skill"], p["coefficient"]) for p in card["parents"]] == [("lean", 1.0)]
    _line(typed, "skills", "remove", "above")  # instead it is to be the next version of the one below
    for rate, parents in (("1.0", ["lean"]), ("0.5", [])):
        _line(typed, "gate", "above", "skill=lean", f"rate={rate}", "episodes=5", "margin=0.9", "--json")
        now = _line(typed, "skills", "show", "lean", "--json").json["skill"]
        assert [p["skill"] for p in now["parents"]] == parents
        assert _line(typed, "skills", "rollback", "lean", "--json").json["skill"]["content"] != now["content"]


def test_a_skill_moves_to_a_new_base_or_stays_and_says_so(typed: Cli, home: Path) -> None:
    _line(typed, "train", "learner=bc", "data=hopper/demo-v0", "task=hopper", "offline_steps=20", "seed=4",
          "name=other", *NET)  # fmt: skip
    move = ["skills", "rebase", "hop-low-gravity", "to=other", "episodes=1", "steps=40"]
    refused = typed(*move, "gate=0.0001", "--json")
    assert refused.code == 1 and refused.json["moved"][0]["kept"] is False
    moved = _line(typed, *move, "force=true", "--json").json
    new = Path(moved["library"]).name
    found = [s for s in _line(typed, "skills", "list", "--json").json["skills"] if s["name"] == "hop-low-gravity"]
    assert len(found) == 2 and found[0]["header"]["base"] != found[1]["header"]["base"]
    twice = typed("skills", "show", "hop-low-gravity")
    assert twice.code == 2 and "in 2 libraries; add base=" in twice.err
    unclear = typed("compose", "data=hopper/demo-v0")
    assert unclear.code == 2 and "there must be one library in" in unclear.err
    shown = _line(typed, "skills", "show", "hop-low-gravity", f"base={new}", "--json").json["skill"]
    assert "moved from base" in shown["description"] and shown["scores"] == {}
    _line(typed, "skills", "remove", "hop-low-gravity", f"base={new}")


def test_adapters_travel_in_the_format_of_peft(typed: Cli) -> None:
    content = _line(typed, "skills", "show", "kick", "--json").json["skill"]["content"]
    _line(typed, "skills", "export", "kick", "out=kick-adapter")
    _line(typed, "skills", "remove", "kick")
    card = _line(typed, "skills", "import", "kick-adapter", "name=kick", "--json").json["skill"]
    assert card["content"] == content


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["skills", "add", "base", "name=x"], "holds no adapter; train a skill with trainable=adapter"),
        (["skills", "add", "hop"], "name=... is needed"),
        (["skills", "add", "hop", "name=../x"], "cannot name a skill"),
        (["skills", "add", "hop", "name=x", "member=7"], "no member 7"),
        (["skills", "show", "kik"], "did you mean kick?"),
        (["skills", "show", "kick", "base=ffff"], "one library of base 'ffff'"),
        (["skills", "search"], "say what to look for"),
        (["skills", "remove", "nothing-here"], "no skill 'nothing-here'"),
        (["skills", "rollback", "nothing-here"], "earlier version of 'nothing-here'"),
        (["skills", "import", "nowhere"], "there is no nowhere"),
        (["skills", "rebase", "kick", "to=nowhere"], "nowhere"),
        (["compose", "skills=[kick]"], "data=... is needed"),
        (["compose", "data=hopper/demo-v0", "composer=psek"], "did you mean psec?"),
        (["compose", "data=hopper/demo-v0", "skills=[kik]"], "did you mean kick?"),
        (["compose", "data=hopper/demo-v0", "skills=[kick]", "demos=4000"], "complete episodes"),
        (["compose", "data=hopper/demo-v0", "skills=[kick]", "routes=[fast]"], "no route 'fast'"),
        (["compose", "data=hopper/demo-v0", "level=joint"], "one of parameter, noise, action"),
        (["merge", "skills=[kick,kick]"], "named twice"),
        (["merge", "skills=[kick,hop-low-gravity]", "how=tiess"], "did you mean ties?"),
        (["merge", "skills=[kick,hop-low-gravity]", "settings.depth=1"], "ties has no setting 'depth'"),
        (["merge", "skills=[kick,hop-low-gravity]", "weights=[1]"], "2 skills need 2 weights"),
        (["merge", "skills=[kick,hop-low-gravity]", "how=doge", "settings.steps=1.5"], "expected a count"),
        (["merge", "skills=[kick,hop-low-gravity]", "rank=0"], "rank is 0; expected 1 or more"),
        (["merge"], "skills=... is needed"),
    ],
)
def test_a_mistake_is_one_sentence(typed: Cli, words: list[str], says: str) -> None:
    ran = typed(*words)
    assert ran.code == 2, ran
    assert ran.err.startswith("robot-cl: ") and ran.err.count("\n") == 1 and says in ran.err, ran.err


def test_another_base_is_refused_and_both_are_named(typed: Cli, home: Path) -> None:
    from policies.library import Library
    from policies.library_base import bases

    (other,) = [f for f in bases(home / "library") if len(Library(f)) == 0]
    skill = next(p for p in home.glob("library/*/kick/skill.safetensors"))
    ran = typed("skills", "import", str(skill), f"base={other.name}", "name=stray")
    assert ran.code == 2 and skill.parent.parent.name in ran.err and other.name in ran.err


def test_damage_is_named_by_check(typed: Cli, home: Path, tmp_path: Path, run_in: Cli) -> None:
    copy = tmp_path / "damaged"
    shutil.copytree(home / "library", copy / "library")
    skill = next(copy.glob("library/*/kick/skill.safetensors"))
    skill.write_bytes(skill.read_bytes()[:-8])
    base = next(copy.glob("library/*/.base/policy.safetensors"))
    base.write_bytes(base.read_bytes()[:-8])
    ran = run_in(copy, "skills", "check", "--json")
    assert ran.code == 1 and len(ran.json["problems"]) == 2
    assert any("kick" in problem for problem in ran.json["problems"])
    ran = run_in(copy, "merge", "skills=[kick]")
    assert ran.code == 2 and "skill 'kick' is damaged" in ran.err  # and not: no skill of that name
