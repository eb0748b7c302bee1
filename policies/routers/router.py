"""What every router is: cheap running state, scores per skill, and the right to say "none of these"."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from policies.gates import SDMGate, SoftmaxGate
from policies.routers.statistics import Contribution, newest, total


class Selection(NamedTuple):
    """For B contexts: indices (B, k) into `Router.skills`, best first, −1 where none fits; their scores (B, k), the
    gate's probabilities or the router's own; the exemplar (B,) each one resembles, −1 without a gate."""

    indices: Tensor
    scores: Tensor
    exemplar: Tensor


class Router:
    """Base of the routers; a subclass defines `logits`, and `features` and `learn` where it needs them.

    Remembers what each robot has contributed (`contributions`) and a gate once one is fitted; everything else follows
    from these. `width` is the context's dimension; contexts should be of order one (normalise them).
    """

    def __init__(self, width: int, robot: str = "robot"):
        self.width, self.robot = width, robot
        self.contributions: dict[str, Contribution] = {}
        self.gate: SoftmaxGate | None = None
        self.raw = slice(0, width)  # where the context itself stands among the features
        self._gate_skills: list[str] = []
        self._gate_factor = torch.empty(0)
        self._total: Contribution | None = None

    @property
    def skills(self) -> list[str]:
        """Known skills, sorted by name: the order of indices and logits."""
        return list(self.total.moments)

    @property
    def total(self) -> Contribution:
        if self._total is None:
            self._total = total(self.contributions)
        return self._total

    def features(self, context: Tensor) -> Tensor:
        """Frozen features (B, d) of contexts (B, width)."""
        return context.double()

    def logits(self, context: Tensor) -> Tensor:
        """(B, K) float64, larger for skills that fit better."""
        raise NotImplementedError

    def observe(self, context: Tensor, skill: str, outcome: Tensor | None = None) -> None:
        """Learn that `skill` fits these contexts (B, width). `outcome` (B,) true where it succeeded; others say
        nothing about it. Raises ValueError for NaN or another width."""
        rows = self._checked(context)
        rows = rows if outcome is None else rows[outcome.reshape(-1).bool()]
        if len(rows):
            before = self.contributions.get(self.robot, Contribution())
            self.contributions[self.robot] = self.learn(before, self.features(rows), skill)
            self._changed()

    def learn(self, before: Contribution, features: Tensor, skill: str) -> Contribution:
        return before.observe(skill, features)

    def _changed(self) -> None:
        self._total = None

    def merge(self, other: Router) -> None:
        """Take over what other robots know. Order and repetition do not matter: a robot's counter only grows."""
        if type(other) is not type(self) or other.width != self.width:
            raise ValueError(f"a {type(self).__name__} of width {self.width} cannot merge {type(other).__name__} "
                             f"of width {other.width}")  # fmt: skip
        self.contributions = newest(self.contributions, other.contributions)
        self._changed()

    def fit_gate(self, context: Tensor, label: list[str], gate: SoftmaxGate | None = None) -> SoftmaxGate:
        """Fit a gate (the similarity-distance-magnitude one unless given) on contexts (N, width) whose right skill is
        known and that were not observed. Raises LookupError for a skill that was never observed."""
        unknown = sorted(set(label) - set(self.skills))
        if unknown:
            raise LookupError(f"skill {unknown[0]!r} was never observed; skills: {', '.join(self.skills)}")
        index = torch.tensor([self.skills.index(name) for name in label])
        rows = self._checked(context)
        self.gate = (gate or SDMGate()).fit(self.whitened(rows), self.logits(rows), index)
        self._gate_skills, self._gate_factor = self.skills, self._factor()
        return self.gate

    def select(self, context: Tensor, k: int = 1) -> Selection:
        """The k best skills for contexts (B, width). Raises LookupError if none was observed yet, or one was added
        since the gate was fitted: an unjudged skill is not admitted silently."""
        if not self.skills:
            raise LookupError("the router has not observed any skill yet")
        rows = self._checked(context)
        logits = self.logits(rows)
        if self.gate is None:
            best = logits.topk(min(k, len(self.skills)), 1)
            return Selection(best.indices, best.values, torch.full((len(rows),), -1))
        if self.skills != self._gate_skills:
            raise LookupError(f"the gate knows {', '.join(self._gate_skills)}; fit it again, the skills have changed")
        whitened = torch.linalg.solve_triangular(self._gate_factor, rows.T, upper=False).T
        verdict = self.gate(whitened, logits)
        best = self.gate.probability(whitened, logits).topk(min(k, len(self.skills)), 1)
        return Selection(best.indices.where(verdict.admitted[:, None], -1), best.values, verdict.exemplar)

    def whitened(self, context: Tensor) -> Tensor:
        """Contexts in units of their deviation within a skill, so that distances mean the same in all directions."""
        return torch.linalg.solve_triangular(self._factor(), context.double().T, upper=False).T

    def open_set_score(self, context: Tensor) -> Tensor:
        """(B,) Mahalanobis distance, among the features, to the nearest skill's mean: large for contexts that no skill
        knows. Serves to reject and ask, to choose what to demonstrate, and to choose what to replay."""
        every = slice(None)
        factor, means = self._factor(every), torch.stack([m.mean for m in self.total.moments.values()])
        rows = self.features(self._checked(context))
        near, centre = (torch.linalg.solve_triangular(factor, x.T, upper=False).T for x in (rows, means))
        return torch.cdist(near, centre).min(1).values

    def _factor(self, part: slice | None = None) -> Tensor:
        """Cholesky factor (d, d) of the shared covariance within skills, shrunk to its diagonal: of the contexts, or of
        a part of the features."""
        known, part = self.total, part or self.raw
        assert known.gram is not None
        gram = known.gram[part, part]
        means = torch.stack([m.mean[part] for m in known.moments.values()])
        counts = torch.tensor([m.count for m in known.moments.values()], dtype=torch.float64)
        between = (means.T * counts) @ means
        covariance = (gram - between) / max(float(counts.sum()) - len(counts), 1.0)
        diagonal = covariance.diagonal().clamp_min(1e-6)
        return torch.linalg.cholesky(0.95 * covariance + torch.diag(0.05 * diagonal + 1e-6))

    def _checked(self, context: Tensor) -> Tensor:
        rows = context.reshape(-1, context.shape[-1]).double()
        if rows.shape[1] != self.width:
            raise ValueError(f"contexts have width {rows.shape[1]}, this router reads {self.width}")
        if not rows.isfinite().all():
            raise ValueError("a context is NaN or infinite")
        return rows
