"""Laws that every composer keeps, and broken ones that each law catches."""

import copy
import json

import numpy as np
import pytest
import torch

from policies.actor import ActorConfig, StackedGaussianActor
from policies.composed import ComposedActor
from policies.composers import COMPOSERS, Composer, CompositionShape
from policies.composers.preference import Preference, is_new, posterior
from policies.composers.self_activated import SelfActivated
from policies.hashing import Sketch, output_hash
from policies.lora import layer_shapes, merge_into
from policies.mixture import Mixture
from policies.networks import generators
from policies.normalizer import Normalizer
from policies.policy import Policy

OBS, ACT, SKILLS = 5, 3, 3


@pytest.fixture
def actor():
    """An untrained actor with statistics of its own."""
    normalizer = Normalizer(OBS).fit(torch.randn(50, OBS, generator=torch.Generator().manual_seed(4)) * 3 + 1)
    return StackedGaussianActor(OBS, ACT, generators(0, 1), ActorConfig(hidden=(32, 32)), normalizer)


@pytest.fixture
def skills(actor, make_skill):
    return {f"s{k}": make_skill(actor, k, rank=4) for k in range(SKILLS)}


def _settings(name, shape):
    if name != "preference":
        return {}
    rng = torch.Generator().manual_seed(2)
    return {"means": torch.randn(shape.skills, 6, generator=rng), "stds": torch.ones(shape.skills, 6)}


def _build(name, shape):
    return COMPOSERS[name](shape, **_settings(name, shape))


def _random(name, shape):
    """The composer with every number it learns drawn at random."""
    composer, rng = _build(name, shape), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in composer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=rng) * 0.3)
    return composer


def _constant(name, shape, weights):
    """The composer made to answer `weights` everywhere; None if it cannot."""
    settings = _settings(name, shape)
    if name in ("fixed", "supported"):
        return COMPOSERS[name](shape, weights=weights)
    if name == "preference":
        simplex = bool((weights >= 0).all()) and abs(float(weights.sum()) - 1) < 1e-6
        return COMPOSERS[name](shape, preference=weights, **settings) if simplex else None
    composer = COMPOSERS[name](shape, **settings)
    with torch.no_grad():
        if name == "anisotropic":
            composer.weights.copy_(weights[:, None].expand(-1, shape.layers))
        elif name == "context_gate":
            composer.net.layers[-1].bias.copy_(weights)
        elif name == "routed" and set(weights.tolist()) <= {0.0, 1.0} and weights.sum() <= 1:
            composer.weights[0] = torch.cat([1.0 - weights.sum(0, keepdim=True), weights])
        else:
            return None
    return composer


def _obs(rows=6):
    return np.random.default_rng(0).normal(size=(rows, OBS)).astype(np.float32) * 2


def _shape(mixture):
    return CompositionShape.of(mixture, OBS)


def _merged(actor, skills, weights):
    module = copy.deepcopy(actor)
    for skill, weight in zip(skills.values(), weights.tolist(), strict=True):
        merge_into(module, skill, weight)
    return module.mode(torch.as_tensor(_obs()))[0].detach().numpy()


def constant_coefficients_equal_the_merged_network(build, actor, skills):
    for weights in (*torch.eye(SKILLS), torch.tensor([0.5, 0.25, 0.25]), torch.tensor([2.0, -1.0, 0.5])):
        mixture = Mixture(actor, skills)
        composer = build(_shape(mixture), weights)
        if composer is not None:
            out = ComposedActor(mixture, composer).act(_obs())
            np.testing.assert_allclose(out, _merged(actor, skills, weights), rtol=1e-5, atol=1e-5)


def coefficients_zero_give_the_base_bit_for_bit(build, actor, skills):
    mixture = Mixture(actor, skills)
    composer = build(_shape(mixture), torch.zeros(SKILLS))
    if composer is not None:
        for rows in (1, 6):
            bare = actor.mode(torch.as_tensor(_obs(rows)))[0].detach().numpy()
            np.testing.assert_array_equal(ComposedActor(mixture, composer).act(_obs(rows)), bare)


def a_row_does_not_depend_on_its_batch(build, actor, skills):
    mixture = Mixture(actor, skills)
    composed = ComposedActor(mixture, build(_shape(mixture)))
    batch = composed.act(_obs())
    for i, row in enumerate(_obs()):
        np.testing.assert_allclose(composed.act(row[None])[0], batch[i], rtol=1e-5, atol=1e-6)


def a_lone_skill_at_its_own_weight_is_that_skill(build, actor, skills):
    mixture = Mixture(actor, {"only": skills["s1"]})
    composer = build(_shape(mixture), torch.ones(1))
    out = ComposedActor(mixture, composer).act(_obs())
    np.testing.assert_allclose(out, _merged(actor, {"only": skills["s1"]}, torch.ones(1)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", COMPOSERS)
def test_constant_coefficients_equal_the_merged_network(name, actor, skills):
    constant_coefficients_equal_the_merged_network(lambda s, w: _constant(name, s, w), actor, skills)


@pytest.mark.parametrize("name", COMPOSERS)
def test_coefficients_zero_give_the_base_bit_for_bit(name, actor, skills):
    coefficients_zero_give_the_base_bit_for_bit(lambda s, w: _constant(name, s, w), actor, skills)


@pytest.mark.parametrize("name", COMPOSERS)
def test_a_row_does_not_depend_on_its_batch(name, actor, skills):
    a_row_does_not_depend_on_its_batch(lambda s: _random(name, s), actor, skills)


@pytest.mark.parametrize("name", COMPOSERS)
def test_a_lone_skill_at_its_own_weight_is_that_skill(name, actor, skills):
    def build(shape, weights):
        return _build(name, shape) if name == "self_activated" else _constant(name, shape, weights)

    a_lone_skill_at_its_own_weight_is_that_skill(build, actor, skills)


@pytest.mark.parametrize("name", COMPOSERS)
def test_a_composer_is_built_again_from_its_settings_and_tensors(name, actor, skills):
    mixture = Mixture(actor, skills)
    shape, one = _shape(mixture), _random(name, _shape(mixture))
    again = COMPOSERS[name](shape, **json.loads(json.dumps(one.settings())))
    again.load_state_dict(one.state_dict())
    np.testing.assert_array_equal(ComposedActor(mixture, again).act(_obs()), ComposedActor(mixture, one).act(_obs()))


def company_changes_no_skill(serve, actor, skills, make_skill):
    """`serve(actor, company)` gives each skill's policy: the same bits, whatever is added, removed or trained again."""

    def hashes(company):
        return {name: output_hash(act, _obs()) for name, act in serve(actor, company).items()}

    before = hashes(skills)
    more = hashes({"new": make_skill(actor, 9), **skills})
    fewer = hashes({n: skills[n] for n in list(skills)[1:]})
    again = hashes({**skills, "s0": make_skill(actor, 10)})
    assert len(set(before.values())) == SKILLS
    assert {n: more[n] for n in before} == before
    assert fewer == {n: before[n] for n in fewer}
    assert {n: h for n, h in again.items() if n != "s0"} == {n: h for n, h in before.items() if n != "s0"}
    assert again["s0"] != before["s0"]


@pytest.mark.parametrize("name", COMPOSERS)
def test_adding_removing_or_retraining_skills_changes_no_other_skills_output(name, actor, skills, make_skill):
    """Each skill alone, as the library serves it, answers the same bits in whatever company it was stored."""

    def serve(actor, company):
        mixture = Mixture(actor, company)  # using them together must leave no trace
        ComposedActor(mixture, _random(name, _shape(mixture))).act(_obs())
        alone = {n: Mixture(actor, {n: s}) for n, s in company.items()}
        return {n: ComposedActor(m, COMPOSERS["fixed"](_shape(m), [1.0])).act for n, m in alone.items()}

    company_changes_no_skill(serve, actor, skills, make_skill)


# ------------------------------------------------------------------------------------------------ planted mutants
class _ReadsTheBatch(Composer):
    def forward(self, obs, task=None):
        return (obs - obs.mean(0)).sum(1, keepdim=True).expand(-1, self.shape.skills)


class _ScaleTwice(Composer):
    def __init__(self, shape, weights):
        super().__init__(shape)
        self.weights = weights

    def forward(self, obs, task=None):
        return (self.weights * self.weights.abs()).unsqueeze(0)


class _NeverQuiet(_ScaleTwice):
    def forward(self, obs, task=None):
        return (self.weights + 1e-7).unsqueeze(0)


def _shared_weights(actor, company):
    """All skills written into one network, each served from there, as fine-tuning one after the other would."""
    module = copy.deepcopy(actor)
    policies = {}
    for name, skill in company.items():
        merge_into(module, skill)
        policies[name] = ComposedActor(
            Mixture(module, {name: skill}), COMPOSERS["fixed"](_shape_of_one(module, skill))
        ).act
    return policies


def _shape_of_one(module, skill):
    return CompositionShape.of(Mixture(module, {"only": skill}), OBS)


def _share_of_the_company(actor, company):
    """Each skill at weight 1/K, as an average over everything in the library would."""
    alone = {n: Mixture(actor, {n: s}) for n, s in company.items()}
    return {n: ComposedActor(m, COMPOSERS["fixed"](_shape(m), [1 / len(company)])).act for n, m in alone.items()}


@pytest.mark.parametrize("mutant", [_shared_weights, _share_of_the_company])
def test_a_library_that_forgets_is_caught(mutant, actor, skills, make_skill):
    with pytest.raises(AssertionError):
        company_changes_no_skill(mutant, actor, skills, make_skill)


def test_broken_composers_are_caught(actor, skills):
    with pytest.raises(AssertionError):
        a_row_does_not_depend_on_its_batch(_ReadsTheBatch, actor, skills)
    with pytest.raises(AssertionError):
        constant_coefficients_equal_the_merged_network(_ScaleTwice, actor, skills)
    with pytest.raises(AssertionError):
        coefficients_zero_give_the_base_bit_for_bit(_NeverQuiet, actor, skills)
    with pytest.raises(AssertionError):
        a_lone_skill_at_its_own_weight_is_that_skill(lambda s, w: _ScaleTwice(s, 16 * w), actor, skills)


# ------------------------------------------------------------------------------------------------ levels
@pytest.mark.parametrize("level", ["parameter", "noise", "action"])
def test_at_every_level_zero_is_the_base_and_one_hot_is_the_skill(level, actor, skills):
    base = actor.mode(torch.as_tensor(_obs()))[0].detach().numpy()
    for weights, expected in (
        (torch.zeros(SKILLS), base),
        *((torch.eye(SKILLS)[k], _merged(actor, skills, torch.eye(SKILLS)[k])) for k in range(SKILLS)),
    ):
        mixture = Mixture(actor, skills)
        out = ComposedActor(mixture, COMPOSERS["fixed"](_shape(mixture), weights), level).act(_obs())
        np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)
    mixture = Mixture(actor, skills)
    zero = ComposedActor(mixture, COMPOSERS["fixed"](_shape(mixture), torch.zeros(SKILLS)), level).act(_obs())
    np.testing.assert_array_equal(zero, base)


@pytest.mark.parametrize("level", ["parameter", "noise", "action"])
def test_a_gate_learns_which_skill_the_demonstrations_show(level, actor, skills):
    obs = torch.as_tensor(_obs(64))
    target = torch.as_tensor(copy.deepcopy(merge_into(copy.deepcopy(actor), skills["s1"])).mode(obs)[0].detach())
    mixture = Mixture(actor, skills)
    composed = ComposedActor(mixture, COMPOSERS["context_gate"](_shape(mixture), hidden=(32,)), level)
    optimiser = torch.optim.Adam(composed.composer.parameters(), 1e-2)
    rng, losses = torch.Generator(), []
    for _ in range(60):
        loss = composed.loss(obs, target, rng)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.2 * losses[0]
    alpha = composed.coefficients(obs).mean(0)
    assert alpha.argmax() == 1
    assert all(p.grad is None for p in mixture.parameters())


def test_levels_below_whole_skills_need_one_coefficient_each(actor, skills):
    mixture = Mixture(actor, skills)
    with pytest.raises(ValueError, match="one coefficient per skill"):
        ComposedActor(mixture, COMPOSERS["anisotropic"](_shape(mixture)), "action").act(_obs())
    with pytest.raises(ValueError, match="level 'weights' is unknown; one of parameter"):
        ComposedActor(mixture, COMPOSERS["fixed"](_shape(mixture)), "weights")


# ------------------------------------------------------------------------------------------------ single members
def test_a_composed_actor_is_a_policy(actor, skills):
    mixture = Mixture(actor, skills)
    composed = ComposedActor(mixture, COMPOSERS["fixed"](_shape(mixture)))
    assert isinstance(composed, Policy)
    assert composed.act(_obs()).dtype == np.float32 and np.abs(composed.act(_obs())).max() <= 1
    with pytest.raises(ValueError, match=r"this policy reads \(B, 5\)"):
        composed.act(np.zeros((2, 4), np.float32))


def test_a_blind_gate_answers_the_same_everywhere(actor, skills):
    shape = CompositionShape(OBS, SKILLS)
    gate = COMPOSERS["context_gate"](shape, blind=True)
    with torch.no_grad():
        gate.net.layers[-1].weight.normal_(generator=torch.Generator().manual_seed(0))
    alpha = gate(torch.as_tensor(_obs()))
    torch.testing.assert_close(alpha, alpha[:1].expand_as(alpha), rtol=0.0, atol=1e-6)  # rows may round differently


def test_a_new_gate_starts_at_one_over_the_number_of_skills():
    for per_layer, expected in ((False, (6, 3)), (True, (6, 3, 4))):
        gate = COMPOSERS["context_gate"](CompositionShape(OBS, 3, layers=4), per_layer=per_layer)
        torch.testing.assert_close(gate(torch.as_tensor(_obs())), torch.full(expected, 1 / 3))


def test_self_activation_picks_the_ranks_whose_keys_match():
    composer = SelfActivated(CompositionShape(OBS, 2, layers=1, rank=2), temperature=0.05, top=2, threshold=0.1)
    h = torch.tensor([[5.0, -5.0, 0.1, 0.0], [0.0, 0.1, 4.0, 4.0], [9.0, 0.2, 0.1, 0.3]])
    out = composer.coefficients(h, None)
    torch.testing.assert_close(out[:2], torch.tensor([[1.0, 1, 0, 0], [0, 0, 1, 1]]), rtol=1e-3, atol=1e-3)
    assert out[2, 0] == 1.0 and (out[2, 1:] == 0).all()


def test_a_router_chooses_the_skill_that_is_right_where_and_the_base_where_none_is():
    shape = CompositionShape(OBS, 2)
    obs = torch.randn(600, OBS, generator=torch.Generator().manual_seed(0))
    right = torch.where(obs[:, 0] > 0.3, 1, torch.where(obs[:, 0] < -0.3, 2, 0))
    errors = 1.0 - torch.nn.functional.one_hot(right, 3).float()
    composer = COMPOSERS["routed"](shape)
    assert not composer(obs).any()  # nothing is known yet: the base
    composer.fit(obs, errors)
    chosen = composer(obs)
    assert set(chosen.sum(1).tolist()) <= {0.0, 1.0}
    picked = torch.where(chosen.any(1), 1 + chosen.argmax(1), 0)
    assert (picked == right).float().mean() > 0.9
    composer.fit(obs, errors + torch.tensor([9.0, 0.0, 9.0]))  # only the first skill is ever right
    assert torch.equal(composer(obs * 3), torch.tensor([1.0, 0.0]).expand(600, 2))
    with pytest.raises(ValueError, match="the base's, then each skill's"):
        composer.fit(obs, errors[:, 1:])


def test_a_preference_between_distant_skills_is_refused_and_between_close_ones_answered():
    shape, obs = CompositionShape(OBS, 2), torch.zeros(4, OBS)
    for gap, accepted in ((0.5, True), (50.0, False)):
        means = torch.stack([torch.zeros(6), torch.full((6,), gap)])
        composer = Preference(shape, means, torch.ones(2, 6))
        for vertex in torch.eye(2):
            assert torch.equal(composer(obs, vertex), vertex[None])
        if accepted:
            assert torch.equal(composer(obs), torch.full((1, 2), 0.5))
        else:
            with pytest.raises(ValueError, match="outside the highest-density region"):
                composer(obs)
    with pytest.raises(ValueError, match=r"preference \(4,\) does not fit 2 skills"):
        Preference(shape, means, torch.ones(2, 6), [0.25] * 4)
    for off in ([0.7, 0.7], [float("nan"), 1.0], [1.5, -0.5]):
        with pytest.raises(ValueError, match="not on the simplex"):
            composer(obs, torch.tensor(off))


def test_settings_no_composer_can_act_by_are_refused():
    shape = CompositionShape(5, 2)
    for odd in ({"temperature": float("nan")}, {"temperature": 0.0}, {"top": 0}):
        with pytest.raises(ValueError, match="expected positive numbers"):
            COMPOSERS["self_activated"](shape, **odd)
    for odd in ({"significance": float("nan")}, {"significance": 1.0}, {"samples": 0}, {"samples": 10**10}):
        with pytest.raises(ValueError, match=r"expected \(0, 1\), and up to a million"):
            Preference(shape, torch.zeros(2, 3), torch.ones(2, 3), **odd)


def test_a_skill_close_to_a_known_one_is_not_new(actor, make_skill):
    sketch = Sketch(layer_shapes(actor), size=32)
    known = posterior([make_skill(actor, 1).scaled(1 + 0.01 * i) for i in range(3)], sketch)
    again = posterior([make_skill(actor, 1).scaled(1.005 + 0.01 * i) for i in range(3)], sketch)
    other = posterior([make_skill(actor, 2).scaled(1 + 0.01 * i) for i in range(3)], sketch)
    means, stds = known[0][None], known[1][None]
    radius = 0.1 * float(known[0].norm())
    assert not is_new(*again, means, stds, radius)
    assert is_new(*other, means, stds, radius)
    assert is_new(*other, means[:0], stds[:0], radius)
