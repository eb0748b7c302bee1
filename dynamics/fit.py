"""Fitting an ensemble to data, offline to early stopping and online with an optimiser that stays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from dynamics.ensemble import Ensemble
from dynamics.losses import Errors, Loss, errors, normalised_mse
from dynamics.repeat import Repeated
from policies.networks import StackedLinear


class Data(Protocol):
    """N transitions as tensors: obs, next_obs (N, obs_dim), action (N, act_dim), reward and terminated (N,)."""

    @property
    def obs(self) -> Tensor: ...
    @property
    def action(self) -> Tensor: ...
    @property
    def reward(self) -> Tensor: ...
    @property
    def next_obs(self) -> Tensor: ...
    @property
    def terminated(self) -> Tensor: ...


@dataclass
class FitConfig:
    """How to fit; weight decay per layer, first to last, from MBPO (the last value serves any further layer)."""

    lr: float = 1e-3
    batch: int = 256  # rows per member and step
    weight_decay: tuple[float, ...] = (2.5e-5, 5e-5, 7.5e-5, 7.5e-5, 1e-4)
    holdout: float = 0.1  # share of the data no member trains on
    max_holdout: int = 5000  # rows
    bootstrap: bool = True  # each member draws its own training rows with replacement
    patience: int = 5  # epochs without any member improving
    improvement: float = 0.01  # relative, what counts as one
    max_steps: int = 100_000  # gradient steps
    min_epochs: int = 1
    keep_statistics: bool = False  # True: fit on with the normalisers of an earlier fit

    def __post_init__(self) -> None:
        self.weight_decay = tuple(self.weight_decay)
        if not 0.0 < self.holdout < 1.0:
            raise ValueError(f"holdout is a share between 0 and 1, got {self.holdout}")
        if min(self.batch, self.max_holdout, self.patience, self.max_steps) < 1 or self.lr <= 0.0:
            raise ValueError("batch, max_holdout, patience and max_steps must be at least 1 and lr positive")
        if not self.weight_decay or min(self.weight_decay) < 0.0:
            raise ValueError(f"weight_decay needs one non-negative number per layer, got {self.weight_decay}")


@dataclass
class FitReport:
    """What a fit did: gradient steps, epochs, each member's best held-out score and the scores of each epoch."""

    steps: int
    epochs: int
    best: list[float]
    elites: list[int]
    history: list[list[float]] = field(default_factory=list)


def optimiser(model: Ensemble, lr: float, weight_decay: Sequence[float]) -> torch.optim.Adam:
    """Adam with the L2 penalty of each layer's weights by layer; biases are not decayed."""
    groups: dict[float, list[nn.Parameter]] = {}
    for net in (model.state_net, model.reward_net):
        for i, layer in enumerate(net.layers):
            assert isinstance(layer, StackedLinear)
            groups.setdefault(weight_decay[min(i, len(weight_decay) - 1)], []).append(layer.weight)
            groups.setdefault(0.0, []).append(layer.bias)
    listed = [{"params": params, "weight_decay": decay} for decay, params in groups.items()]
    # fused: one call per group instead of a dozen small ones; capturable: a graph may hold it
    return torch.optim.Adam(listed, lr=lr, fused=True, capturable=model.elites.is_cuda)


def member_errors(model: Ensemble, data: Data, index: Tensor) -> Errors:
    """Errors of member k on the rows index[k]; index (E, B) into the data."""
    obs = data.obs[index]
    said = model(obs, data.action[index])
    return errors(model, said, obs, data.reward[index], data.next_obs[index], data.terminated[index], index)


def gradient_step(model: Ensemble, opt: torch.optim.Optimizer, loss: Loss, data: Data, index: Tensor) -> Tensor:
    """One step of every member on its own rows index (E, B). Returns the losses (E,)."""
    each = loss(member_errors(model, data, index))
    opt.zero_grad(set_to_none=True)
    each.sum().backward()  # a sum: members share no parameter, so each sees only its own loss
    opt.step()
    return each.detach()


def score(model: Ensemble, data: Data, rows: Tensor, loss: Loss) -> Tensor:
    """Loss of every member on the same rows (B,), (E,)."""
    with torch.no_grad():
        return loss(member_errors(model, data, rows.expand(model.config.members, -1)))


def split(data: Data, config: FitConfig, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Rows to train on and rows held out, both shuffled."""
    count = len(data.obs)
    held = min(max(1, round(config.holdout * count)), config.max_holdout)
    if count - held < 1:
        raise ValueError(f"{count} transitions cannot be split into training and held-out rows; collect more")
    order = torch.randperm(count, generator=rng)
    return order[held:], order[:held]


def fit(model: Ensemble, data: Data, loss: Loss, config: FitConfig, rng: torch.Generator) -> FitReport:
    """Fit until no member improves on held-out data; every member keeps its best weights, the best become elites.

    Continues from the weights the model has (warm start). Deterministic given `rng`.
    Raises ValueError on fewer than two transitions.
    """
    train_rows, held_rows = (rows.to(data.obs.device) for rows in split(data, config, rng))
    if not config.keep_statistics:
        model.measure(data.obs, data.action, data.reward, data.next_obs)
    opt = optimiser(model, config.lr, config.weight_decay)
    index = _bootstraps(train_rows, model.config.members, config.bootstrap, rng)
    best = _Best(model, score(model, data, held_rows, loss))
    rows = torch.zeros(len(index), config.batch, dtype=torch.int64, device=index.device)
    step = Repeated(lambda: gradient_step(model, opt, loss, data, rows), rows.device)
    steps, epochs, patience, history = 0, 0, config.patience, []
    while steps < config.max_steps and (patience > 0 or epochs < config.min_epochs):
        index = _shuffled(index, rng)
        for start in range(0, index.shape[1], config.batch):
            part = index[:, start : start + config.batch]
            if part.shape == rows.shape:
                rows.copy_(part)
                step()
            else:
                gradient_step(model, opt, loss, data, part)
            steps += 1
            if steps == config.max_steps:
                break
        epochs += 1
        now = score(model, data, held_rows, loss)
        patience = config.patience if best.update(now, config.improvement) else patience - 1
        history.append(now.tolist())
    best.restore()
    model.elites.copy_(torch.argsort(best.score)[: len(model.elites)].sort().values)
    return FitReport(steps, epochs, best.score.tolist(), model.elites.tolist(), history)


def _bootstraps(rows: Tensor, members: int, bootstrap: bool, rng: torch.Generator) -> Tensor:
    """(E, N) rows of each member; without bootstrap all have the same ones."""
    if not bootstrap:
        return rows.repeat(members, 1)
    return rows[torch.randint(len(rows), (members, len(rows)), generator=rng).to(rows.device)]


def _shuffled(index: Tensor, rng: torch.Generator) -> Tensor:
    """Every member's rows in a new order of its own."""
    order = torch.rand(index.shape, generator=rng).argsort(1).to(index.device)
    return index.gather(1, order)


class _Best:
    """Each member's weights at its best held-out score."""

    def __init__(self, model: Ensemble, first: Tensor):
        self.model, self.score = model, first.clone()
        self.weights = [p.detach().clone() for p in model.parameters()]

    def update(self, now: Tensor, improvement: float) -> bool:
        """Keep the members that got better; True if one got better by more than the relative `improvement`."""
        better = now < self.score
        enough = (self.score - now) > improvement * self.score.abs()
        for kept, p in zip(self.weights, self.model.parameters(), strict=True):
            kept[better] = p.detach()[better]
        self.score = torch.where(better, now, self.score)
        return bool(enough.any())

    def restore(self) -> None:
        with torch.no_grad():
            for kept, p in zip(self.weights, self.model.parameters(), strict=True):
                p.copy_(kept)


@dataclass
class OnlineConfig:
    """Keeping up with a world that changes: a short memory and a few steps per transition."""

    capacity: int = 256  # transitions remembered, the newest
    batch: int = 64  # rows per member and step
    lr: float = 1e-3
    steps: int = 1  # gradient steps per update

    def __post_init__(self) -> None:
        if min(self.capacity, self.batch, self.steps) < 1 or self.lr <= 0.0:
            raise ValueError("capacity, batch and steps must be at least 1 and lr positive")


class OnlineFit:
    """Updates an ensemble from the newest transitions; remembers them and the optimiser's moments between calls."""

    def __init__(self, model: Ensemble, config: OnlineConfig, rng: torch.Generator, loss: Loss = normalised_mse):
        self.model, self.config, self.rng, self.loss = model, config, rng, loss
        self.opt = optimiser(model, config.lr, (0.0,))
        size, like = config.capacity, model.obs_low
        self.obs, self.next_obs = like.new_zeros(size, model.obs_dim), like.new_zeros(size, model.obs_dim)
        self.action = like.new_zeros(size, model.act_dim)
        self.reward, self.terminated = like.new_zeros(size), like.new_zeros(size)
        self.seen = 0

    def observe(self, obs: Tensor, action: Tensor, reward: Tensor, next_obs: Tensor) -> None:
        """Remember transitions (N, ...); the oldest make room."""
        keep = min(len(obs), self.config.capacity)
        rows = (self.seen + torch.arange(len(obs) - keep, len(obs))) % self.config.capacity
        for store, new in ((self.obs, obs), (self.action, action), (self.reward, reward), (self.next_obs, next_obs)):
            store[rows] = new[len(obs) - keep :].to(store)
        self.seen += len(obs)

    def update(self) -> Tensor:
        """`steps` gradient steps of every member on its own draws from the memory. Returns the last losses (E,)."""
        held = min(self.seen, self.config.capacity)
        if held == 0:
            raise ValueError("nothing has been observed yet; call observe before update")
        losses = torch.zeros(self.model.config.members)
        for _ in range(self.config.steps):
            shape = (self.model.config.members, self.config.batch)
            index = torch.randint(held, shape, generator=self.rng).to(self.obs.device)
            losses = gradient_step(self.model, self.opt, self.loss, self, index)
        return losses
