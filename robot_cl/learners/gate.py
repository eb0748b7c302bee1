"""Judging a policy without the world: values along rollouts in learned dynamics, and a test whether a change helped.

Uni-O4 (Lei et al. 2024), section 4.2, scores a policy by the mean of min Q over the states that it visits in the model
(AM-Q) and accepts a new policy whose score is higher. On data of several behaviours that mean is highest where the
best of them once began, whatever the policy does there; so by default a score is what a rollout earns by the model's
rewards, and V where it ends (Feinberg et al. 2018, "Model-Based Value Expansion"). Old and new start from the same
states with the same noise, the difference must be larger than what the models disagree about, and the policy must not
have gone farther from its clone than the data tells of: values and models that saw one narrow behaviour agree on what
they do not know.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import torch
from torch import Tensor, nn

from dynamics.ensemble import Ensemble, EnsembleConfig
from dynamics.fit import FitConfig, fit
from dynamics.imagine import widened
from dynamics.losses import nll
from dynamics.repeat import Repeated
from robot_cl.batch import Transitions
from robot_cl.learners.ends import EndModel

Act = Callable[[Tensor], Tensor]
Value = Callable[[Tensor, Tensor], Tensor]
Ends = Callable[[Tensor], Tensor]
Away = Callable[[Tensor, Tensor], Tensor]
DOUBT_ROWS, RARE = 5000, 0.001  # rows of the data that say how far models disagree there; the share that is rare


class Score(StrEnum):
    """`values`: the mean of min Q along a rollout, as published; `returns`: its rewards, then V of its last state."""

    values = "values"
    returns = "returns"


@dataclass(frozen=True)
class Earning:
    """How rollouts earn: `scale` () brings the models' rewards to the unit of `value`, raw obs (P, R, ·) -> (P, R).

    `price` (P,) is what a unit of `disagreement` costs at each step, in the models' reward; None: nothing.
    """

    scale: Tensor
    discount: float
    value: Callable[[Tensor], Tensor]
    price: Tensor | None = None


@dataclass
class GateConfig:
    """Options of the gate. Published: horizon 1000 (locomotion), 50 to 200 (antmaze), 5 to 100 (manipulation)."""

    score: Score = Score.returns  # returns, or values as published
    every: int = 100  # improvement steps between two tests
    horizon: int = 300  # steps of each imagined rollout
    starts: int = 32  # start states from the data, the same for all tests
    confidence: float = 1.0  # standard deviations over the models that a gain must exceed; 0: any gain
    reach: float = 0.5  # farthest mean distance from the clone, in its own deviations, times the trust in advantages
    margin: float = 0.1  # share of the data's range by which imagined states may leave it
    noise: bool = True  # draw the models' noise, the same for all policies; false: their mean
    doubt: float = 0.0  # what models that disagree as at the rarest thousandth of the data cost, in rewards' deviations
    end_steps: int = 1500  # gradient steps of the model of where episodes end, if the data has such ends

    def __post_init__(self) -> None:
        if min(self.every, self.horizon, self.starts, self.end_steps) < 1:
            raise ValueError("gate.every, gate.horizon, gate.starts and gate.end_steps must be at least 1")
        for name in ("confidence", "margin", "reach", "doubt"):
            if getattr(self, name) < 0.0:
                raise ValueError(f"gate.{name} is {getattr(self, name)}; it must not be negative")


@dataclass
class Scores:
    """`each` (P, n, E): policy n of seed p in model e. `clamped` (P, n): share of steps brought back to the data.

    `away` (P, n): root mean square distance from the clones over the visited states, 0 where nobody measured it.
    """

    each: Tensor
    clamped: Tensor
    away: Tensor


@torch.no_grad()
def scores(
    models: Sequence[Ensemble],
    act: Act,
    value: Value,
    starts: Tensor,
    policies: int,
    config: GateConfig,
    noise_seeds: Sequence[int],
    ends: Ends | None = None,
    away: Away | None = None,
    earning: Earning | None = None,
) -> Scores:
    """AM-Q of P·n policies in the E members of their seed's model: Σ_t alive · min Q(s_t, π(s_t)) / horizon.

    With `earning` it is Σ_t alive · γ^t r_t + alive · γ^H V(s_H) instead.

    `act` maps raw observations (P·n, R, obs_dim) to actions in [-1, 1], policy by policy; `value` maps raw observations
    and actions (P, R, ·) to (P, R); `ends` raw next observations (P, R, obs_dim) to bool (P, R), after which a rollout
    earns nothing; `away` raw observations and actions (P·n, R, ·) to squared distances (P·n, R); starts
    (P, K, obs_dim). All policies of seed p meet the noise of noise_seeds[p], in every call.
    """
    P, K, width = starts.shape
    n, E = policies, models[0].config.members
    rngs = [torch.Generator().manual_seed(seed) for seed in noise_seeds]
    low, high = widened(models[0].obs_low, models[0].obs_high, config.margin)
    obs = starts[:, None, None].repeat(1, E, n, 1, 1)
    alive = torch.ones(P, E, n, K, device=starts.device)
    total, clamped, steps, far = (torch.zeros_like(alive) for _ in range(4))
    weight = torch.ones((), device=starts.device)
    drawn = torch.zeros(P, E, 1, K, width, device=starts.device)
    ahead = [torch.stack([torch.randn(drawn.shape[1:], generator=g) for g in rngs]) for _ in range(config.horizon)]
    every = torch.stack(ahead).to(starts.device) if config.noise else None  # (T, P, E, 1, K, width)

    def forward() -> None:
        seen = obs.transpose(1, 2).reshape(P * n, E * K, width)
        done = act(seen)
        action = done.view(P, n, E, K, -1).transpose(1, 2)
        if away is not None:
            far.add_(alive * away(seen, done).view(P, n, E, K).transpose(1, 2))
        if earning is None:
            total.add_(alive * value(obs.reshape(P, -1, width), action.reshape(P, E * n * K, -1)).view(P, E, n, K))
        else:
            reward = torch.stack([_reward(models[p], obs[p], action[p]) for p in range(P)])
            if earning.price is not None:
                doubt = torch.stack([disagreement(models[p], obs[p], action[p]) for p in range(P)])
                reward = reward - earning.price.view(P, 1, 1, 1) * doubt
            total.add_(alive * weight * earning.scale * reward)
            weight.mul_(earning.discount)
        raw = torch.stack([_advance(models[p], obs[p], action[p], drawn[p], config.noise) for p in range(P)])
        raw = torch.where(raw.isfinite(), raw, obs)
        obs.copy_(torch.maximum(torch.minimum(raw, high), low))
        clamped.add_(alive * (obs != raw).any(-1))
        steps.add_(alive)
        if ends is not None:
            alive.mul_(~ends(obs.reshape(P, -1, width)).view(P, E, n, K))

    step = Repeated(forward, starts.device)
    for t in range(config.horizon):
        if every is not None:
            drawn.copy_(every[t])
        step()
    if earning is None:
        total = total / config.horizon
    else:
        total = total + alive * weight * earning.value(obs.reshape(P, -1, width)).view(P, E, n, K)
    each = total.mean(-1).transpose(1, 2)
    lived = steps.sum((1, 3))
    return Scores(each, clamped.sum((1, 3)) / lived, (far.sum((1, 3)) / lived).sqrt())


def _advance(model: Ensemble, obs: Tensor, action: Tensor, noise: Tensor, noisy: bool) -> Tensor:
    """Every member its own rows: obs (E, n, K, obs_dim), action likewise, noise (E, 1, K, obs_dim) -> next obs."""
    E, n, K, width = obs.shape
    delta, log_var = model.changes(obs.reshape(E, n * K, width), action.reshape(E, n * K, -1))
    delta = delta.view(obs.shape)
    if noisy and log_var is not None:
        delta = delta + noise * torch.exp(0.5 * log_var.view(obs.shape)) * model.delta_scale
    return model.advance(obs, delta)


def _reward(model: Ensemble, obs: Tensor, action: Tensor) -> Tensor:
    """What every member pays its own rows, the mean: (E, n, K, ·) twice -> (E, n, K)."""
    E, n, K, _ = obs.shape
    x = model.input_norm(model.features(obs.reshape(E, n * K, -1), action.reshape(E, n * K, -1)))
    return model.reward_norm.inverse(model.reward_net(x)[..., :1]).view(E, n, K)


def disagreement(model: Ensemble, obs: Tensor, action: Tensor) -> Tensor:
    """How far one member is at most from the mean of all, about the same rows: (..., ·) twice -> (...).

    Root mean square over the dimensions, in deviations of the data's changes: what members were not shown they do not
    know alike (Yu et al. 2020, "MOPO", whose penalty this is with an ensemble's spread).
    """
    rows = obs.reshape(1, -1, obs.shape[-1]), action.reshape(1, -1, action.shape[-1])
    said = model.changes(*(x.expand(model.config.members, -1, -1) for x in rows))[0] / model.delta_scale
    return (said - said.mean(0)).square().mean(-1).sqrt().amax(0).view(obs.shape[:-1])


def lower_bound(difference: Tensor, confidence: float) -> Tensor:
    """Mean over the models minus `confidence` standard deviations of their disagreement: (..., E) -> (...)."""
    spread = difference.std(-1) if difference.shape[-1] > 1 else torch.zeros_like(difference[..., 0])
    return difference.mean(-1) - confidence * spread


def accepts(new: Tensor, old: Tensor, confidence: float) -> Tensor:
    """Whether the paired gain new − old (..., E) is surely above zero, (...) bool."""
    return lower_bound(new - old, confidence) > 0.0


def spearman(x: Tensor, y: Tensor) -> float:
    """Rank correlation of x and y (N,); ties get their mean rank. NaN if one of them is constant."""
    a, b = (_ranks(v.double()) for v in (x, y))
    a, b = a - a.mean(), b - b.mean()
    return float((a * b).sum() / (a.norm() * b.norm()))


def _ranks(x: Tensor) -> Tensor:
    _, group, count = torch.unique(x, return_inverse=True, return_counts=True)
    last = count.cumsum(0).double()
    return (last - 0.5 * (count - 1))[group]


# -- what a learner keeps of it ---------------------------------------------------------------------------------------


class Gate(nn.Module):
    """Models, starts and noise that candidates are judged with, and how many passed.

    Remembers E elite models per seed, the model of where episodes end, start states (P, K, obs_dim), the scores of the
    accepted policies (P, n, E), the tests made and passed (P, n), and the trust in the advantages (P, n). All of it is
    drawn from the seeds' generators.
    """

    starts: Tensor
    noise_seeds: Tensor
    scores: Tensor
    made: Tensor
    passed: Tensor
    trust: Tensor

    def __init__(
        self, obs_dim: int, act_dim: int, seeds: int, policies: int, config: GateConfig, dynamics: EnsembleConfig,
        normalizer: nn.Module,
    ):  # fmt: skip
        super().__init__()
        self.config, self.dynamics, self.policies = config, dynamics, policies
        keep, empty = replace(dynamics, members=dynamics.elites), [torch.Generator()] * max(seeds, dynamics.elites)
        self.models = nn.ModuleList(Ensemble(obs_dim, act_dim, keep, empty[: keep.members]) for _ in range(seeds))
        self.ends = EndModel(obs_dim, empty[:seeds], normalizer)
        self.register_buffer("starts", torch.zeros(seeds, config.starts, obs_dim))
        self.register_buffer("noise_seeds", torch.zeros(seeds, dtype=torch.int64))
        self.register_buffer("scores", torch.zeros(seeds, policies, dynamics.elites))
        self.register_buffer("made", torch.zeros(seeds, policies))
        self.register_buffer("passed", torch.zeros(seeds, policies))
        self.register_buffer("trust", torch.ones(seeds, policies))
        self.requires_grad_(False)

    def fit(self, data: Transitions, config: FitConfig, rngs: Sequence[torch.Generator]) -> list[float]:
        """Fit the models to raw transitions and draw starts and noise. Returns each seed's worst elite's loss."""
        losses = []
        for p, rng in enumerate(rngs):
            seed = int(torch.randint(2**31, (), generator=rng))
            own = [torch.Generator().manual_seed(seed + e) for e in range(self.dynamics.members)]
            model = Ensemble(data.obs_dim, data.act_dim, self.dynamics, own).to(self.starts.device)
            report = fit(model, data, nll, config, own[0])
            losses.append(sorted(report.best)[self.dynamics.elites - 1])
            self.models[p].load_state_dict(model.subset(model.elites).state_dict())
        self.ends.fit(data, rngs, self.config.end_steps)
        for p, rng in enumerate(rngs):
            rows = torch.randint(len(data), (self.config.starts,), generator=rng)
            self.starts[p] = data.obs[rows.to(data.obs.device)].to(self.starts)
            self.noise_seeds[p] = torch.randint(2**31, (), generator=rng)
        return losses

    @torch.no_grad()
    def price(self, data: Transitions) -> Tensor | None:
        """`Earning.price` on raw data (N,): `doubt` deviations of the reward for what is rare there; None without."""
        if not self.config.doubt:
            return None
        rows = torch.linspace(0, len(data) - 1, min(len(data), DOUBT_ROWS), device=data.obs.device).long()
        models = [m for m in self.models if isinstance(m, Ensemble)]
        rare = [disagreement(m, data.obs[rows], data.action[rows]).quantile(1.0 - RARE) for m in models]
        return torch.stack([self.config.doubt * m.reward_scale / r for m, r in zip(models, rare, strict=True)])

    def judge(self, act: Act, value: Value, away: Away | None = None, earning: Earning | None = None) -> Scores:
        """Scores of all P·n policies; see `scores`."""
        models = [m for m in self.models if isinstance(m, Ensemble)]
        ends = self.ends if bool(self.ends.log_odds.isfinite()) else None
        seeds = self.noise_seeds.tolist()
        return scores(models, act, value, self.starts, self.policies, self.config, seeds, ends, away, earning)

    def test(self, found: Scores, paired: bool = True) -> Tensor:
        """Which candidates pass (P, n); their scores become those to beat. Not paired: any higher mean passes."""
        gain = found.each.mean(-1) > self.scores.mean(-1)
        sure = accepts(found.each, self.scores, self.config.confidence) & (found.away <= self.reach)
        passed = sure if paired else gain
        self.scores = torch.where(passed.unsqueeze(-1), found.each, self.scores)
        self.made += 1.0
        self.passed += passed.float()
        return passed

    @property
    def reach(self) -> Tensor:
        """How far each policy may go from its clone, (P, n)."""
        return self.config.reach * self.trust

    def best(self) -> Tensor:
        """The policy of each seed with the highest score, (P,)."""
        return self.scores.mean(-1).argmax(1)
