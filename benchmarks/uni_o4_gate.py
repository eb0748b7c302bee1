"""Uni-O4's gate: does it rank policies as the world does, how often does it accept, and how fast is it.

    python benchmarks/uni_o4_gate.py           on the 200k datasets of offline_online (trains what is missing)
    python benchmarks/uni_o4_gate.py --quick   on its small quick dataset, in minutes; the ranking then says little

The policies are clones stopped early, the learner's own candidates and these with noise on their weights. The peers
of the two speed ratios are the published code's way written down here: one network after the other, every state sent
through every model, a number fetched from the device per step; same sizes, same batch, one thread.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import offline_cells as table
import torch
from common import Claim, arguments, report
from common import table as markdown
from torch import Tensor, nn

from dynamics.ensemble import Ensemble, EnsembleConfig
from policies.actor import ActorPolicy, StackedGaussianActor
from policies.critics import CriticConfig, StackedQ
from policies.networks import StackedMLP, generators
from robot_cl.checkpoint import checkpoint_folder, load_resume
from robot_cl.data.sampler import Sampler
from robot_cl.evaluate import evaluate
from robot_cl.learners import gate
from robot_cl.learners.gate import GateConfig, spearman
from robot_cl.learners.optim import FlatAdam
from robot_cl.learners.uni_o4 import Profile, UniO4, UniO4Config
from robot_cl.learners.uni_o4_losses import behaviour_loss
from robot_cl.run_config import read_config

EARLY = (30, 100, 300, 1000)  # updates after which a clone is stopped
NOISE = (0.03, 0.06, 0.12, 0.25)  # of the weights, relative to each layer's deviation


def load_learner(run: Path) -> UniO4:
    """The learner of a finished run, as it was at the end of its offline part."""
    config, options = read_config(run)
    assert isinstance(options, UniO4Config)
    state = load_resume(checkpoint_folder(run))[0]
    obs_dim = state["nets.actor.normalizer.mean"].shape[-1]
    act_dim = state["nets.q.net.layers.0.weight"].shape[-1] - obs_dim
    learner = UniO4(options, obs_dim, act_dim, config.seeds)
    learner.load_state_dict(state)
    return learner


# -- ranking ----------------------------------------------------------------------------------------------------------


def candidates(learner: UniO4, data_name: str, plan: table.Plan) -> list[StackedGaussianActor]:
    """Lone actors from bad to good, judged with seed 0's models and values."""
    own = [learner.accepted.member(m) for m in range(learner.config.behaviours)]
    data = table.dataset(data_name, plan.steps).transitions()
    rngs, snapshots = generators(11, 1), []
    clone = StackedGaussianActor(learner.obs_dim, learner.act_dim, rngs, own[0].config, learner.actor.normalizer)
    opt, sampler = FlatAdam(clone.parameters(), 1, 3e-4), Sampler.over(data, rngs)
    for step in range(1, EARLY[-1] + 1):
        batch = sampler.sample(256)
        (-clone.log_prob(*clone(batch.obs), batch.action).mean()).backward()
        opt.step()
        if step in EARLY:
            snapshots.append(clone.member(0))
    return [*snapshots, *own, *(shaken(own[0], level, k) for k, level in enumerate(NOISE))]


@torch.no_grad()
def shaken(actor: StackedGaussianActor, level: float, seed: int) -> StackedGaussianActor:
    rng, copy = torch.Generator().manual_seed(100 + seed), actor.member(0)
    for p in copy.parameters():
        p += level * p.std() * torch.randn(p.shape, generator=rng)
    return copy


def ranking(
    learner: UniO4, actors: list[StackedGaussianActor], task: str, episodes: int
) -> tuple[Tensor, dict[int, Tensor]]:
    """True mean returns (N,), and by horizon the gate's scores (N,)."""
    true = [evaluate(ActorPolicy(a), task, episodes, threads=1).mean for a in actors]
    models = [m for m in learner.gate.models if isinstance(m, Ensemble)][:1]
    starts, seeds = learner.gate.starts[:1], learner.gate.noise_seeds[:1].tolist()

    def act(obs: Tensor) -> Tensor:
        return torch.cat([a.mode(obs[i : i + 1]) for i, a in enumerate(actors)])

    def value(obs: Tensor, action: Tensor) -> Tensor:
        z = learner.actor.normalizer(obs).expand(learner.seeds, -1, -1)
        return learner.q(z, action.expand(learner.seeds, -1, -1)).amin(1)[:1]

    ends = learner.gate.ends if bool(learner.gate.ends.log_odds.isfinite()) else None
    found = {}
    for horizon in (learner.config.gate.horizon // 4, learner.config.gate.horizon, learner.config.gate.horizon * 4):
        config = replace(learner.config.gate, horizon=horizon)
        first_only = None if ends is None else lambda obs: ends(obs.expand(learner.seeds, -1, -1))[:1]
        each = gate.scores(models, act, value, starts, len(actors), config, seeds, first_only).each
        found[horizon] = each[0].mean(-1)
    return torch.tensor(true), found


# -- speed ------------------------------------------------------------------------------------------------------------


def seconds(work: Callable[[], None], repeats: int) -> float:
    """Median of single calls after one to warm up."""
    work()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return float(np.median(times))


def mlp(widths: tuple[int, ...], activation: type[nn.Module]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(widths):
        layers += [nn.Linear(a, b), activation()]
    return nn.Sequential(*layers[:-1])


def behaviour_speed(obs_dim: int, act_dim: int, repeats: int, batch: int = 512, members: int = 4) -> float:
    """Four cloned policies of 256 x 3: one network and one Adam after the other, against the stack."""
    config = UniO4Config(profile=Profile.reference).actor
    obs, action = torch.randn(batch, obs_dim), torch.rand(batch, act_dim) * 2 - 1
    nets = [mlp((obs_dim, 256, 256, 256, 2 * act_dim), nn.ReLU) for _ in range(members)]
    opts = [torch.optim.Adam(net.parameters(), lr=1e-4) for net in nets]

    def log_prob(net: nn.Module) -> Tensor:
        mean, raw = net(obs).chunk(2, -1)
        std = torch.exp(-5.0 + 2.5 * (torch.tanh(raw) + 1.0))
        return torch.distributions.Normal(torch.tanh(mean), std).log_prob(action).sum(-1)

    def one_by_one() -> None:
        for i, opt in enumerate(opts):
            mine = log_prob(nets[i])
            with torch.no_grad():
                others = torch.stack([log_prob(net) for j, net in enumerate(nets) if j != i]).amax(0)
            loss = -(mine + 0.1 * (mine - others)).mean()
            opt.zero_grad()
            loss.backward()
            opt.step()

    stack = StackedGaussianActor(obs_dim, act_dim, generators(0, members), config)
    adam = FlatAdam(stack.parameters(), members, 1e-4)

    def stacked() -> None:
        found = stack.log_prob(*stack.heads(obs.expand(members, -1, -1)), action.expand(members, -1, -1))
        behaviour_loss(found.unsqueeze(0), 0.1).sum().backward()
        adam.step()

    return seconds(one_by_one, repeats) / seconds(stacked, repeats)


def gate_speed(
    obs_dim: int, act_dim: int, q_width: int, repeats: int, rows: int = 60, policies: int = 4, horizon: int = 20
) -> float:
    """Scoring four policies on `rows` rollouts each: policy after policy through all 7 models, against the gate."""
    shape = EnsembleConfig(7, 5, (200, 200, 200, 200), (200, 200))
    model = Ensemble(obs_dim, act_dim, shape, generators(0, 7))
    elites = model.subset(model.elites)
    actor = StackedGaussianActor(obs_dim, act_dim, generators(0, policies), UniO4Config().actor)
    q = StackedQ(obs_dim, act_dim, generators(0, 1), 2, CriticConfig(hidden=(q_width, q_width)))
    twins = [mlp((obs_dim + act_dim, q_width, q_width, 1), nn.ReLU) for _ in range(2)]
    alone = [actor.member(i) for i in range(policies)]
    starts = torch.randn(rows, obs_dim)
    joint = StackedMLP(obs_dim + act_dim, (200, 200, 200, 200), 2 * (obs_dim + 1), generators(0, 7), "silu")

    @torch.no_grad()
    def one_by_one() -> None:
        for policy in alone:
            obs, total = starts, 0.0
            for _ in range(horizon):
                action = policy.mode(obs)[0]
                x = torch.cat([obs, action], -1)
                mean, log_var = joint(x).chunk(2, -1)  # all 7 see every state; one of the elites answers
                drawn = mean + torch.randn_like(mean) * torch.exp(0.5 * log_var.clamp(-10.0, 0.5))
                chosen = torch.randint(5, (len(obs),))
                total += torch.minimum(twins[0](x), twins[1](x)).mean().item()
                obs = obs + 0.01 * drawn[chosen, torch.arange(len(obs)), :obs_dim]

    config = GateConfig(horizon=horizon, starts=rows // 5)

    def ours() -> None:
        gate.scores(
            [elites], actor.mode, lambda s, a: q(s, a).amin(1), starts[None, : rows // 5], policies, config, [0]
        )

    with torch.no_grad():
        return seconds(one_by_one, repeats) / seconds(ours, repeats)


def main() -> None:
    args = arguments(
        __doc__ or "",
        [
            ("--datasets", {"default": "halfcheetah-ppo,halfcheetah-mixture"}),
            ("--sizes", {"default": "small", "choices": list(table.SIZES)}),
            ("--ranking", {"action": "store_true", "help": "no speeds: they want a quiet machine"}),
        ],
    )
    torch.set_num_threads(1)
    plan, names, episodes = table.Plan(args.sizes), args.datasets.split(","), 4
    if args.quick:
        plan, names, episodes = table.QUICK, ["halfcheetah-ppo"], 2
    claims, rows = [], []
    for name in names:
        record = table.measure(plan, name, "uni_o4")
        learner, task = load_learner(plan.kept / record["run"]), table.DATASETS[name].task
        true, found = ranking(learner, candidates(learner, name, plan), task, episodes)
        chance = [spearman(torch.rand(len(true), generator=torch.Generator().manual_seed(i)), true) for i in range(200)]
        correlations = {horizon: spearman(score, true) for horizon, score in found.items()}
        rows += [(name, h, len(true), c, float(true.min()), float(true.max())) for h, c in correlations.items()]
        accepted = float((learner.gate.passed / learner.gate.made).mean())
        claims += [
            Claim(f"{name}: rank correlation of gate and true return", correlations[learner.config.gate.horizon], 0.6),
            Claim(f"{name}: mean rank correlation of a random gate", abs(float(np.mean(chance))), 0.1, at_least=False),
            Claim(f"{name}: share of candidates accepted", accepted, 0.1),
            Claim(f"{name}: share of candidates accepted", accepted, 0.7, at_least=False),
        ]
    print(markdown(("dataset", "horizon", "policies", "rank correlation", "worst return", "best return"), rows))
    if args.ranking:
        return report("uni_o4_gate", claims, args.json, rows)
    repeats = 5 if args.quick else 20
    claims.append(Claim("cloning four policies of 256 x 3, times faster", behaviour_speed(17, 6, repeats), 2.0))
    for width in (256, 1024):
        claims.append(Claim(f"the gate with Q of {width} x 2, times faster", gate_speed(17, 6, width, repeats), 5.0))
    report("uni_o4_gate", claims, args.json)


if __name__ == "__main__":
    main()
