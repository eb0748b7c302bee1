"""Samples in peft_samples/ were written by peft 0.21.2; expected_deltas are its own get_delta_weight."""

import json
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch

from policies.adapter import Adapter, distance
from policies.peft_io import export_peft, import_peft

SAMPLES = Path(__file__).parent / "peft_samples"


@pytest.mark.parametrize("kind", ["plain", "rank_stabilised"])
def test_an_adapter_written_by_peft_has_the_change_peft_says(kind):
    adapter = import_peft(SAMPLES / kind)
    expected = safetensors.torch.load_file(SAMPLES / kind / "expected_deltas.safetensors")
    assert set(adapter.layers) == set(expected)
    assert adapter.ranks == {"enter": 2, "block.0": 2, "block.2": 4, "leave": 2}
    for name, delta in expected.items():
        torch.testing.assert_close(adapter.delta(name), delta)


def test_an_exported_adapter_comes_back_the_same(base, make_skill, tmp_path):
    skill = make_skill(base, 1)
    again = import_peft(export_peft(skill, tmp_path / "out"))
    assert distance(again, skill) == 0 and again.header == skill.header
    assert import_peft(SAMPLES / "plain").header.base == ""
    (tmp_path / "out/robot_cl_header.json").write_text("[1]")
    with pytest.raises(ValueError, match="is damaged"):
        import_peft(tmp_path / "out")


def test_alpha_taken_for_the_scale_would_be_noticed(tmp_path):
    shutil.copytree(SAMPLES / "plain", tmp_path / "p")
    config = json.loads((tmp_path / "p/adapter_config.json").read_text())
    (tmp_path / "p/adapter_config.json").write_text(json.dumps({**config, "use_rslora": True}))
    assert distance(import_peft(tmp_path / "p"), import_peft(SAMPLES / "plain")) > 0.1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "bias = 'all'"),
        ({"modules_to_save": ["leave"]}, "modules_to_save"),
        ({"peft_type": "IA3"}, "only LORA"),
        ({"alpha_pattern": {"(a+)+b": 3}}, "regular expression"),
        ({"init_lora_weights": "pissa_niter_16"}, "moves the base's weights"),
        ({"lora_alpha": None}, "no numbers"),
        ({"lora_alpha": "16"}, "no numbers"),
        ({"alpha_pattern": ["enter"]}, "no numbers"),
        ({"alpha_pattern": {"enter": "x"}}, "no numbers"),
    ],
)
def test_what_is_more_than_low_rank_is_refused(change, words, tmp_path):
    shutil.copytree(SAMPLES / "plain", tmp_path / "p")
    config = json.loads((tmp_path / "p/adapter_config.json").read_text())
    (tmp_path / "p/adapter_config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(ValueError, match=words):
        import_peft(tmp_path / "p")


def test_pickled_or_damaged_weights_are_refused(tmp_path):
    shutil.copytree(SAMPLES / "plain", tmp_path / "p")
    weights = tmp_path / "p/adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(ValueError, match="damaged"):
        import_peft(tmp_path / "p")
    weights.rename(tmp_path / "p/adapter_model.bin")
    with pytest.raises(ValueError, match="pickled weights"):
        import_peft(tmp_path / "p")
    extra = {"base_model.model.enter.lora_magnitude_vector.weight": torch.ones(3, 1)}
    safetensors.torch.save_file(extra, weights)
    with pytest.raises(ValueError, match="not a linear layer's lora_A or lora_B"):
        import_peft(tmp_path / "p")


def test_peft_reads_what_is_exported(tmp_path, make_skill, plain_net):
    peft = pytest.importorskip("peft")
    skill = Adapter({**make_skill(plain_net, 1).layers, **make_skill(plain_net, 2, 6, ["block.0"]).layers})
    export_peft(skill, tmp_path / "out")
    loaded = peft.PeftModel.from_pretrained(plain_net, str(tmp_path / "out"))
    for name in skill.layers:
        delta = loaded.get_submodule("base_model.model." + name).get_delta_weight("default")
        torch.testing.assert_close(delta, skill.delta(name))
