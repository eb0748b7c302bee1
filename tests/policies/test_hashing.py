import numpy as np
import pytest
import torch

from policies.adapter import Adapter, Factors
from policies.hashing import Sketch, content_digest, functional_hash, output_hash, relative_distance
from policies.lora import layer_shapes


@pytest.fixture
def sketch(base):
    return Sketch(layer_shapes(base))


def _rewritten(skill, seed=0):
    """The same ΔW from other factors: (A, B) → (R A, B R⁻¹), one empty rank added."""
    layers = {}
    for name, (down, up) in skill.layers.items():
        rng = torch.Generator().manual_seed(seed)
        turn = torch.randn(len(down), len(down), generator=rng, dtype=torch.float64) + 3 * torch.eye(len(down))
        new_down = torch.cat([(turn @ down.double()).float(), torch.ones(1, down.shape[1])])
        new_up = torch.cat([(up.double() @ turn.inverse()).float(), torch.zeros(len(up), 1)], 1)
        layers[name] = Factors(new_down, new_up)
    return Adapter(layers, skill.header)


def test_a_rewritten_skill_has_the_same_sketch_and_hash_but_another_content(base, sketch, make_skill):
    same_hash = 0
    for seed in range(10):
        skill = make_skill(base, seed)
        copy = _rewritten(skill, seed)
        assert content_digest(copy) != content_digest(skill)
        assert relative_distance(sketch(skill), sketch(copy)[None]) < 1e-5
        same_hash += functional_hash(sketch(skill)) == functional_hash(sketch(copy))
    assert same_hash >= 9


def test_different_skills_differ_and_the_sketch_measures_how_much(base, sketch, make_skill):
    skill, other = make_skill(base, 1), make_skill(base, 2)
    assert functional_hash(sketch(skill)) != functional_hash(sketch(other))
    assert relative_distance(sketch(skill), sketch(other)[None]) > 0.5
    nearly = skill.scaled(1.02)
    assert relative_distance(sketch(skill), sketch(nearly)[None]).item() == pytest.approx(0.02 / 1.02, rel=1e-3)
    assert functional_hash(sketch(skill)) != functional_hash(sketch(nearly))


def test_a_sketch_refuses_a_layer_the_base_lacks(sketch, make_skill, base):
    stranger = Adapter({"elbow": next(iter(make_skill(base, 1).layers.values()))})
    with pytest.raises(LookupError, match="no layer 'elbow'"):
        sketch(stranger)


def test_output_hashes_agree_only_on_equal_actions():
    obs = np.ones((3, 2))
    assert output_hash(lambda o: o * 2, obs) == output_hash(lambda o: o + o, obs)
    assert output_hash(lambda o: o * 2, obs) != output_hash(lambda o: np.nextafter(o * 2, 9, dtype=np.float32), obs)
