"""A bundle is data, whole and unchanged, or it is refused with one sentence."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, load_model_from_string

from policies.policy import Policy
from robot_cl.deploy.bundle import PolicyBundle, read_contract
from robot_cl.deploy.contract import CONTRACT_FILE, MODEL_FILE, Contract
from robot_cl.deploy.onnx_check import MAX_MODEL_BYTES, check_model

MakeBundle = Callable[..., Path]


def first_sentence(folder: Path) -> str:
    with pytest.raises((ValueError, OSError)) as caught:
        PolicyBundle.load(folder)
    text = str(caught.value)
    assert "\n" not in text and len(text) < 400
    return text


def test_a_bundle_acts_alike_for_one_row_and_for_many(make_bundle: MakeBundle) -> None:
    bundle = PolicyBundle.load(make_bundle())
    obs = np.random.default_rng(1).standard_normal((5, 4)).astype(np.float32)
    together = bundle.act(obs)
    alone = np.concatenate([bundle.act(row[None]) for row in obs])
    assert isinstance(bundle, Policy) and together.shape == (5, 2) and together.dtype == np.float32
    np.testing.assert_allclose(together, alone, atol=1e-6)
    assert np.abs(together[0] - together[1]).max() > 1e-3


def test_an_action_stays_what_it_was_when_the_next_is_computed(make_bundle: MakeBundle) -> None:
    bundle = PolicyBundle.load(make_bundle())
    first = bundle.act(np.ones((1, 4), np.float32))
    kept = first.copy()
    bundle.act(-np.ones((1, 4), np.float32))
    assert (first == kept).all()


def test_acting_leaves_the_processors_floating_point_mode_alone(make_bundle: MakeBundle) -> None:
    PolicyBundle.load(make_bundle()).act(np.ones((1, 4), np.float32))
    assert np.float64(2.0**-1074) > 0 and float(np.float64(2.0**-1060) * np.float64(0.5)) > 0


def test_skill_weights_take_effect_with_the_next_action(make_bundle: MakeBundle) -> None:
    bundle = PolicyBundle.load(make_bundle(skills=("hop", "walk")))
    obs = np.zeros((1, 4), np.float32)
    before = bundle.act(obs)
    bundle.set_skills({"walk": 1.0})
    after = bundle.act(obs)
    assert np.abs(after - before).max() > 1e-3
    np.testing.assert_allclose(bundle.act(np.zeros((3, 4), np.float32))[2], after[0], atol=1e-6)
    bundle.set_skills([0.0, 7.0])
    assert bundle.weights.tolist() == [0.0, 1.0]
    with pytest.raises(LookupError, match="did you mean 'walk'"):
        bundle.set_skills({"wlk": 1.0})
    with pytest.raises(ValueError, match="2 finite skill weights"):
        bundle.set_skills([np.nan, 0.0])


def test_the_contract_reads_back_equal(make_bundle: MakeBundle) -> None:
    contract = read_contract(make_bundle(skills=("hop",)))
    assert Contract.from_json(contract.to_json()) == contract
    assert contract.interface.digest == contract.interface_digest


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda d: d["observation"].reverse(), "interface digest"),
        (lambda d: d["action"][0].update(scale=2.0), "scale 2.0"),
        (lambda d: d["action"][0].pop("unit"), "incomplete"),
        (lambda d: d.update(surprise=1), "unknown entries"),
        (lambda d: d.update(control_dt="soon"), "control_dt"),
        (lambda d: d.update(format=99), "another format"),
        (lambda d: d["observation"][0].update(history=True), "history"),
        (lambda d: d.update(control_dt=10**400), "incomplete or malformed"),
    ],
)
def test_a_changed_contract_is_refused(make_bundle: MakeBundle, change: Callable, sentence: str) -> None:
    folder = make_bundle()
    data = json.loads((folder / CONTRACT_FILE).read_text())
    change(data)
    (folder / CONTRACT_FILE).write_text(json.dumps(data))
    assert sentence in first_sentence(folder)


@pytest.mark.parametrize("text", ["", "[1, 2]", "[" * 100_000, '{"format": 1}', '{"format": 1, "skills": 3}', "\xff"])
def test_something_else_instead_of_a_contract_is_refused(make_bundle: MakeBundle, text: str) -> None:
    folder = make_bundle()
    (folder / CONTRACT_FILE).write_bytes(text.encode("latin-1"))
    first_sentence(folder)


def test_a_changed_or_shortened_model_is_refused(make_bundle: MakeBundle) -> None:
    folder = make_bundle()
    model = bytearray((folder / MODEL_FILE).read_bytes())
    (folder / MODEL_FILE).write_bytes(model[:-10])
    assert "copy the bundle again" in first_sentence(folder)
    model[len(model) // 2] ^= 1
    (folder / MODEL_FILE).write_bytes(model)
    assert "sha256" in first_sentence(folder)


class Evil:
    def __reduce__(self) -> tuple:
        return (os.system, ("touch /tmp/robot_cl_was_here",))


def test_pickles_zips_and_noise_are_refused_though_their_hash_fits(make_bundle: MakeBundle, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "model.zip", "w") as archive:
        archive.writestr("data.pkl", pickle.dumps(Evil()))
    assert "pickle" in first_sentence(make_bundle("a", model=pickle.dumps(Evil())))
    assert "zip" in first_sentence(make_bundle("b", model=(tmp_path / "model.zip").read_bytes()))
    assert "no ONNX file" in first_sentence(make_bundle("c", model=b"not a model at all"))
    assert "no ONNX file" in first_sentence(make_bundle("d", model=b""))


def test_links_and_stray_files_are_refused(make_bundle: MakeBundle, tmp_path: Path) -> None:
    folder = make_bundle("a")
    (folder / MODEL_FILE).rename(tmp_path / "elsewhere.onnx")
    (folder / MODEL_FILE).symlink_to(tmp_path / "elsewhere.onnx")
    assert MODEL_FILE in first_sentence(folder)
    folder = make_bundle("b")
    (folder / "weights.pkl").write_bytes(pickle.dumps(Evil()))
    assert "weights.pkl" in first_sentence(folder)
    (tmp_path / "link").symlink_to(make_bundle("c"))
    assert "not a folder" in first_sentence(tmp_path / "link")
    folder = make_bundle("d")
    (folder / CONTRACT_FILE).unlink()
    os.mkfifo(folder / CONTRACT_FILE)
    assert "not a plain file" in first_sentence(folder)


def test_an_oversized_model_is_refused_without_being_read(make_bundle: MakeBundle) -> None:
    folder = make_bundle()
    with (folder / MODEL_FILE).open("r+b") as file:
        file.truncate(MAX_MODEL_BYTES + 1)
    assert "more than" in first_sentence(folder)


def test_external_data_odd_operators_and_nested_graphs_are_refused(make_bundle: MakeBundle) -> None:
    good = (make_bundle("good") / MODEL_FILE).read_bytes()
    check_model(good)

    outside = load_model_from_string(good)
    tensor = outside.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "../../etc/passwd"
    assert "outside the file" in first_sentence(make_bundle("e", model=outside.SerializeToString()))

    loop = load_model_from_string(good)
    loop.graph.node.append(helper.make_node("Loop", ["a"], ["b"], body=helper.make_graph([], "g", [], [])))
    assert "nested graph" in first_sentence(make_bundle("f", model=loop.SerializeToString()))

    custom = load_model_from_string(good)
    custom.graph.node[0].domain = "evil.ops"
    assert "not among" in first_sentence(make_bundle("g", model=custom.SerializeToString()))
    custom = load_model_from_string(good)
    custom.graph.node[0].op_type = "RandomNormalLike"
    assert "RandomNormalLike" in first_sentence(make_bundle("h", model=custom.SerializeToString()))


def test_every_truncation_of_a_model_is_refused(make_bundle: MakeBundle) -> None:
    folder = make_bundle()
    contract, model = read_contract(folder), (folder / MODEL_FILE).read_bytes()
    for length in range(len(model)):
        with pytest.raises(ValueError):
            check_model(model[:length])
            PolicyBundle(contract, model[:length])


def test_a_graph_of_other_widths_than_the_contract_is_refused(make_bundle: MakeBundle, linear: Callable) -> None:
    assert "its contract says" in first_sentence(make_bundle(model=linear(5, 2)))


def test_deployment_never_imports_torch() -> None:
    """Every module of robot_cl.deploy whose own packages are installed, in a fresh interpreter."""
    code = """
import importlib, pathlib, sys
import robot_cl.deploy as package
for path in sorted(pathlib.Path(package.__path__[0]).glob("*.py")):
    try:
        importlib.import_module(f"robot_cl.deploy.{path.stem}")
    except ModuleNotFoundError as problem:
        assert problem.name.split(".")[0] in {"rclpy", "cyclonedds", "roslibpy", "rosbags", "mcap"}, problem
bad = {"torch", "hydra", "minari", "gymnasium"} & {m.split(".")[0] for m in sys.modules}
assert not bad, bad
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2], timeout=60)
