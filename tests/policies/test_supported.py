"""A guarded skill acts where its demonstrations are near, and nowhere else."""

import numpy as np
import pytest
import torch

from policies.actor import ActorConfig, StackedGaussianActor
from policies.composed import ComposedActor
from policies.composers.composer import CompositionShape
from policies.composers.supported import Supported, nearest, reach_of, support
from policies.mixture import Mixture
from policies.networks import generators
from policies.normalizer import Normalizer

OBS, ACT = 4, 2


def _episodes(count: int = 5, steps: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    """Noisy copies of one path through the state space."""
    rng, time = torch.Generator().manual_seed(0), torch.linspace(0, 3, steps)
    path = torch.stack([torch.sin(time + phase) for phase in range(OBS)], 1)
    rows = torch.cat([path + 0.05 * torch.randn(path.shape, generator=rng) for _ in range(count)])
    return rows, torch.arange(count).repeat_interleave(steps)


def test_the_nearest_is_what_a_search_finds() -> None:
    rows, others = torch.randn(2, 6, OBS), torch.randn(2, 9, OBS)
    torch.testing.assert_close(nearest(rows, others), torch.cdist(rows, others).amin(-1), atol=1e-3, rtol=1e-4)


def test_what_was_shown_finds_itself_within_the_reach() -> None:
    rows, episode = _episodes()
    reach = reach_of(rows, episode)
    inside = torch.cat([nearest(rows[episode == k], rows[episode != k]) <= reach for k in range(5)])
    assert 0.93 < inside.float().mean() < 0.97
    single = reach_of(rows[:40], episode[:40])  # rows that are apart in time are farther apart in space
    assert single > reach
    with pytest.raises(ValueError, match="too few"):
        reach_of(rows[:1], episode[:1])


def test_support_falls_from_one_to_nothing() -> None:
    rows, episode = _episodes()
    away = rows[:1] + torch.arange(5.0).unsqueeze(1)
    share = support(away, rows, reach_of(rows, episode))
    assert share[0] > 0.9 and share[2:].max() < 1e-6
    assert (share[1:] <= share[:-1]).all()


@pytest.fixture
def mixture(make_skill) -> Mixture:
    norm = Normalizer(OBS).fit(torch.randn(50, OBS, generator=torch.Generator().manual_seed(4)))
    actor = StackedGaussianActor(OBS, ACT, generators(0, 1), ActorConfig(hidden=(16, 16)), norm)
    return Mixture(actor, {name: make_skill(actor, k, rank=3) for k, name in enumerate(("below", "new"))})


def test_far_from_demonstrations_only_the_skill_below_acts(mixture: Mixture) -> None:
    rows, episode = _episodes()
    composer = Supported(CompositionShape.of(mixture, OBS), [0.7, 1.0], [1])
    composed = ComposedActor(mixture, composer)
    raw = mixture.actor.normalizer.inverse(rows)  # type: ignore[union-attr, operator]
    everywhere = composed.act(raw.numpy())
    composer.fit(rows, episode)
    np.testing.assert_allclose(composed.act(raw.numpy()), everywhere, atol=0.05)
    far = raw + 30.0
    with mixture.using(torch.tensor([0.7, 0.0])) as actor:
        alone = actor.mode(far)[0].detach().numpy()  # type: ignore[operator]
    np.testing.assert_allclose(composed.act(far.numpy()), alone, atol=1e-6)
    assert composer(rows[:1] + 30.0)[0, 0] == pytest.approx(0.7)  # what is not guarded never fades


def test_what_was_fitted_comes_back(mixture: Mixture) -> None:
    shape, (rows, episode) = CompositionShape.of(mixture, OBS), _episodes()
    composer = Supported(shape, [0.7, 1.0], [1])
    composer.fit(rows, episode)
    back = Supported(shape, **composer.settings())
    back.load_state_dict(composer.state_dict())
    probes = torch.randn(20, OBS)
    assert torch.equal(back(probes), composer(probes))


def test_settings_that_do_not_fit_are_refused(mixture: Mixture) -> None:
    shape = CompositionShape.of(mixture, OBS)
    for weights, guarded in (([1.0], ()), ([1.0, 1.0], (2,))):
        with pytest.raises(ValueError, match="do not fit 2 skills"):
            Supported(shape, weights, guarded)
