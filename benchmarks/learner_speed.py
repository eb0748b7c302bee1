"""IQL updates per second against a plain eager IQL of the same mathematics, and five seeds at once against one by one.

    python benchmarks/learner_speed.py [--quick] [--json] [--threads 2]

Batch 256, networks of 256×2, HalfCheetah's widths, 100k random transitions, batches drawn within the measured time. The
peer is written the way a single-file implementation is: nn.Sequential networks, one torch.optim.Adam with its defaults
per network, three backward passes, a target update per parameter. Both are first shown to compute the same update from
the same weights and batches. Ours is timed as it comes and with compile=true. Blocks of updates of both are interleaved
and the median block of each counts, so that a neighbour on the machine disturbs both alike.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable

import common
import torch
from torch import Tensor, nn

from robot_cl.batch import Transitions
from robot_cl.data.sampler import Sampler
from robot_cl.learners.graph import Captured, Updates
from robot_cl.learners.iql import IQL, IQLConfig
from robot_cl.seeding import cores

OBS, ACT, BATCH, ROWS = 17, 6, 256, 100_000
DECAY = 1_000_000  # updates over which the policy's learning rate falls, as the authors have it
SEEDS = 5


def mlp(d_in: int, d_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(d_in, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, d_out)
    )


class EagerIQL:
    """Implicit Q-learning as one would write it down, for one seed."""

    def __init__(self) -> None:
        self.q1, self.q2, self.v, self.mean = mlp(OBS + ACT, 1), mlp(OBS + ACT, 1), mlp(OBS, 1), mlp(OBS, ACT)
        self.log_std = nn.Parameter(torch.zeros(ACT))
        self.q = nn.ModuleList([self.q1, self.q2])
        self.target = copy.deepcopy(self.q).requires_grad_(False)
        self.q_adam = torch.optim.Adam(self.q.parameters(), lr=3e-4)
        self.v_adam = torch.optim.Adam(self.v.parameters(), lr=3e-4)
        self.actor_adam = torch.optim.Adam([*self.mean.parameters(), self.log_std], lr=3e-4)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.actor_adam, DECAY)

    def update(self, obs: Tensor, action: Tensor, reward: Tensor, next_obs: Tensor, terminated: Tensor) -> None:
        x = torch.cat([obs, action], dim=1)
        with torch.no_grad():
            target_q = torch.min(self.target[0](x), self.target[1](x)).squeeze(-1)
            next_v = self.v(next_obs).squeeze(-1)
        advantage = target_q - self.v(obs).squeeze(-1)
        v_loss = (torch.abs(0.7 - (advantage < 0).float()) * advantage**2).mean()
        self.v_adam.zero_grad()
        v_loss.backward()
        self.v_adam.step()
        y = reward + 0.99 * (1.0 - terminated) * next_v
        q_loss = sum(nn.functional.mse_loss(q(x).squeeze(-1), y) for q in self.q) / 2
        self.q_adam.zero_grad()
        q_loss.backward()
        self.q_adam.step()
        for p, t in zip(self.q.parameters(), self.target.parameters(), strict=True):
            t.data.copy_(0.995 * t.data + 0.005 * p.data)
        policy = torch.distributions.Normal(torch.tanh(self.mean(obs)), self.log_std.clamp(-5.0, 2.0).exp())
        weight = torch.exp(3.0 * advantage.detach()).clamp(max=100.0)
        actor_loss = -(weight * policy.log_prob(action).sum(-1)).mean()
        self.actor_adam.zero_grad()
        actor_loss.backward()
        self.actor_adam.step()
        self.schedule.step()

    def copy_from(self, learner: IQL) -> None:
        """The same weights as member 0 of ours."""
        stacks = ((learner.q.net, 0, self.q1), (learner.q.net, 1, self.q2), (learner.v.net, 0, self.v),
                  (learner.actor.net, 0, self.mean), (learner.target_q.net, 0, self.target[0]),
                  (learner.target_q.net, 1, self.target[1]))  # fmt: skip
        with torch.no_grad():
            for stack, member, plain in stacks:
                linear = [layer for layer in plain if isinstance(layer, nn.Linear)]
                for ours, theirs in zip(stack.layers, linear, strict=True):
                    theirs.weight.copy_(ours.weight[member])
                    theirs.bias.copy_(ours.bias[member, 0])


def random_data() -> Transitions:
    rng = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng)

    over = (torch.rand(ROWS, generator=rng) < 0.01).float()
    return Transitions(
        normal(ROWS, OBS), normal(ROWS, ACT).clamp(-1, 1), normal(ROWS), normal(ROWS, OBS), over, torch.zeros(ROWS)
    )


def build(data: Transitions, seeds: int, compiled: bool = False) -> tuple[IQL, Sampler]:
    learner = IQL(IQLConfig(reward_scale=1.0, decay=DECAY), OBS, ACT, seeds)
    learner.captured = Captured(learner, compiled=compiled)
    learner.actor.normalizer.freeze()  # the identity, as the peer's data is already standard normal
    return learner, Sampler.over(data, learner.rng)


def difference(data: Transitions, updates: int, compiled: bool = False) -> float:
    """Largest difference of any parameter after the same updates, over how far that parameter has moved."""
    learner, sampler = build(data, 1)
    fused = Updates(*build(data, 1, True), None, BATCH) if compiled else None
    start = [p.detach().clone() for p in learner.actor.net.parameters()]
    eager = EagerIQL()
    eager.copy_from(learner)
    for _ in range(updates):
        b = sampler.sample(BATCH)
        eager.update(*(x[0] for x in (b.obs, b.action, b.reward, b.next_obs, b.terminated)))
        if fused is None:
            learner.update_offline(b)
        else:
            fused.offline()  # draws the same batches
    if fused is not None:
        assert isinstance(fused.learner, IQL)
        learner = fused.learner
    theirs = EagerIQL()
    theirs.copy_from(learner)
    nets = ((eager.q, theirs.q), (eager.v, theirs.v), (eager.mean, theirs.mean), (eager.target, theirs.target))
    gap = max(
        float((a - b).detach().abs().max())
        for mine, ours in nets
        for a, b in zip(mine.parameters(), ours.parameters(), strict=True)
    )
    moved = max(float((a - b).detach().abs().max()) for a, b in zip(start, learner.actor.net.parameters(), strict=True))
    return gap / moved


def interleaved(works: dict[str, Callable[[], None]], blocks: int, updates: int) -> dict[str, float]:
    """Median seconds per call of each, over interleaved blocks."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for block in range(blocks + 1):
        for name, work in works.items():
            began = time.perf_counter()
            for _ in range(updates):
                work()
            if block:  # the first warms up
                times[name].append((time.perf_counter() - began) / updates)
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    flags = [("--threads", {"type": int, "default": cores(), "help": "of torch, for all alike"})]
    args = common.arguments(__doc__ or "", flags)
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    data = random_data()
    gap, fused_gap = difference(data, 20), difference(data, 20, compiled=True)
    fused = Updates(*build(data, 1, True), None, BATCH)
    fused.offline()  # compiles
    eager, columns = EagerIQL(), (data.obs, data.action, data.reward, data.next_obs, data.terminated)
    (one, one_sampler), (many, many_sampler) = build(data, 1), build(data, SEEDS)

    def eager_update() -> None:
        index = torch.randint(ROWS, (BATCH,))
        eager.update(*(x[index] for x in columns))

    works: dict[str, Callable[[], None]] = {
        "eager": eager_update,
        "ours": lambda: one.update_offline(one_sampler.sample(BATCH)) and None,
        "ours, compiled": lambda: fused.offline() and None,
        "ours, five seeds": lambda: many.update_offline(many_sampler.sample(BATCH)) and None,
    }
    seconds = interleaved(works, 10 if args.quick else 40, 20)
    rows = [(name, 1.0 / value) for name, value in seconds.items()]
    print(f"torch threads: {args.threads}\n" + common.table(("IQL, batch 256, 256×2", "updates/s"), rows))
    stacked = SEEDS * seconds["ours"] / seconds["ours, five seeds"]
    against_eager = SEEDS * seconds["eager"] / seconds["ours, five seeds"]
    claims = [
        common.Claim("IQL updates per second over a plain eager IQL", seconds["eager"] / seconds["ours"], 1.5),
        common.Claim("the same, compiled", seconds["eager"] / seconds["ours, compiled"], 1.5),
        common.Claim("five stacked seeds over five runs of ours one by one", stacked, 1.0),
        common.Claim("five stacked seeds over five eager runs one by one", against_eager, 1.5),
        common.Claim("difference from the eager update after 20 updates, over the largest move", gap, 0.01, False),
        common.Claim("the same, compiled: difference", fused_gap, 0.01, False),
    ]
    common.report("learner_speed", claims, args.json, {"threads": args.threads, "updates_per_s": dict(rows)})


if __name__ == "__main__":
    main()
