"""Uni-O4's gate: does it rank policies as the world does, and how often does it accept.

    python benchmarks/uni_o4_gate.py           on the 200k datasets of offline_online (trains what is missing)
    python benchmarks/uni_o4_gate.py --quick   on its small quick dataset, in minutes; the ranking then says little

The policies go from bad to good by construction: clones stopped early, the learner's accepted policy, and that one with
noise on its weights, in ten even steps up to as much as the weights themselves. The gate judges them as it does by
default, and with what models disagree about taken off; DOUBT was chosen on the development sets of offline_data, which
`--datasets` takes too.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import offline_cells as table
import torch
from common import Claim, arguments, report
from common import table as markdown
from offline_data import DATASETS, DEVELOPMENT, dataset
from torch import Tensor

from dynamics.ensemble import Ensemble
from policies.actor import ActorPolicy, StackedGaussianActor
from policies.networks import generators
from robot_cl.batch import Transitions
from robot_cl.checkpoint import checkpoint_folder, load_resume
from robot_cl.data.sampler import Sampler
from robot_cl.evaluate import evaluate
from robot_cl.learners import gate
from robot_cl.learners.gate import Earning, Score, spearman
from robot_cl.learners.optim import FlatAdam
from robot_cl.learners.uni_o4 import UniO4
from robot_cl.learners.uni_o4_config import UniO4Config
from robot_cl.run_config import read_config

EARLY = (30, 100, 300, 1000)  # updates after which a clone is stopped
NOISE = tuple(round(0.1 * k, 1) for k in range(1, 11))  # of the weights, relative to each layer's deviation
DOUBT = 20.0  # `gate.doubt` of the second judgement


def load_learner(run: Path) -> UniO4:
    """The learner of a finished run, as it was at the end of its offline part."""
    config, options = read_config(run)
    assert isinstance(options, UniO4Config)
    state = load_resume(checkpoint_folder(run))[0]
    obs_dim = state["nets.actor.normalizer.mean"].shape[-1]
    act_dim = state["nets.q.net.layers.0.weight"].shape[-1] - obs_dim
    learner = UniO4(options, obs_dim, act_dim, config.seeds)
    for name, copy in ((n, n.split(".", 2)) for n in learner.state_dict()):
        if name not in state and copy[0] == "nets":  # older cells lack copies of the policy for the online part
            state[name] = state[f"nets.actor.{copy[2]}"]
    learner.load_state_dict(state)
    return learner


# -- ranking ----------------------------------------------------------------------------------------------------------


def candidates(learner: UniO4, data_name: str, plan: table.Plan) -> list[StackedGaussianActor]:
    """Lone actors from bad to good, judged with seed 0's models and values."""
    own = learner.accepted.member(0)
    data = dataset(data_name, plan.steps).transitions()
    rngs, snapshots = generators(11, 1), []
    clone = StackedGaussianActor(learner.obs_dim, learner.act_dim, rngs, own.config, learner.actor.normalizer)
    opt, sampler = FlatAdam(clone.parameters(), 1, 3e-4), Sampler.over(data, rngs)
    for step in range(1, EARLY[-1] + 1):
        batch = sampler.sample(256)
        (-clone.log_prob(*clone(batch.obs), batch.action).mean()).backward()
        opt.step()
        if step in EARLY:
            snapshots.append(clone.member(0))
    return [*snapshots, own, *(shaken(own, level, k) for k, level in enumerate(NOISE))]


@torch.no_grad()
def shaken(actor: StackedGaussianActor, level: float, seed: int) -> StackedGaussianActor:
    rng, copy = torch.Generator().manual_seed(100 + seed), actor.member(0)
    for p in copy.parameters():
        p += level * p.std() * torch.randn(p.shape, generator=rng)
    return copy


def names_of() -> list[str]:
    """What the candidates are, in their order."""
    return [*(f"clone after {n}" for n in EARLY), "accepted", *(f"accepted, noise {level}" for level in NOISE)]


def ranking(
    learner: UniO4, actors: list[StackedGaussianActor], data: Transitions
) -> dict[tuple[float, int], Tensor]:
    """By doubt and horizon the gate's scores (N,)."""
    models = [m for m in learner.gate.models if isinstance(m, Ensemble)][:1]
    starts, seeds = learner.gate.starts[:1], learner.gate.noise_seeds[:1].tolist()

    def act(obs: Tensor) -> Tensor:
        return torch.cat([a.mode(obs[i : i + 1]) for i, a in enumerate(actors)])

    def value(obs: Tensor, action: Tensor) -> Tensor:
        z = learner.actor.normalizer(obs).expand(learner.seeds, -1, -1)
        return learner.q(z, action.expand(learner.seeds, -1, -1)).amin(1)[:1]

    def after(obs: Tensor) -> Tensor:
        return learner.v(learner.actor.normalizer(obs).expand(learner.seeds, -1, -1))[:1]

    returns = learner.config.gate.score is Score.returns
    ends = learner.gate.ends if bool(learner.gate.ends.log_odds.isfinite()) else None
    first_only = None if ends is None else lambda obs: ends(obs.expand(learner.seeds, -1, -1))[:1]
    found, own = {}, learner.config.gate
    for doubt, horizon in ((0.0, own.horizon), *((DOUBT, own.horizon * k // 4) for k in (1, 4))):
        learner.gate.config = replace(own, doubt=doubt, horizon=horizon)
        price = learner.gate.price(data)
        price = None if price is None else price[:1]
        earns = Earning(learner.extra["reward_scale"], learner.config.discount, after, price) if returns else None
        how = (len(actors), learner.gate.config, seeds, first_only, None, earns)
        found[doubt, horizon] = gate.scores(models, act, value, starts, *how).each[0].mean(-1)
    learner.gate.config = own
    return found


def main() -> None:
    args = arguments(
        __doc__ or "",
        [
            ("--datasets", {"default": "halfcheetah-ppo,halfcheetah-mixture"}),
            ("--sizes", {"default": "small", "choices": list(table.SIZES)}),
        ],
    )
    torch.set_num_threads(1)
    plan, names, episodes = table.Plan(args.sizes), args.datasets.split(","), 4
    if args.quick:
        plan, names, episodes = table.QUICK, ["halfcheetah-ppo"], 2
    claims, rows, each = [], [], []
    for name in names:
        record = table.measure(plan, name, "uni_o4")
        learner, task = load_learner(plan.kept / record["run"]), (DATASETS | DEVELOPMENT)[name].task
        actors = candidates(learner, name, plan)
        true = torch.tensor([evaluate(ActorPolicy(a), task, episodes, threads=1).mean for a in actors])
        found = ranking(learner, actors, dataset(name, plan.steps).transitions())
        chance = [spearman(torch.rand(len(true), generator=torch.Generator().manual_seed(i)), true) for i in range(200)]
        correlations = {how: spearman(score, true) for how, score in found.items()}
        rows += [(name, *how, len(true), c, float(true.min()), float(true.max())) for how, c in correlations.items()]
        plain, doubting = (found[doubt, learner.config.gate.horizon] for doubt in (0.0, DOUBT))
        each += [(name, *one) for one in zip(names_of(), true.tolist(), plain.tolist(), doubting.tolist(), strict=True)]
        accepted = float((learner.gate.passed / learner.gate.made).mean())
        claims += [
            Claim(f"{name}: rank correlation of gate and true return, doubt {doubt:g}", spearman(score, true), 0.6)
            for doubt, score in ((0.0, plain), (DOUBT, doubting))
        ]
        claims += [
            Claim(f"{name}: mean rank correlation of a random gate", abs(float(np.mean(chance))), 0.1, at_least=False),
            Claim(f"{name}: share of candidates accepted", accepted, 0.1),
            Claim(f"{name}: share of candidates accepted", accepted, 0.7, at_least=False),
        ]
    head = ("dataset", "doubt", "horizon", "policies", "rank correlation", "worst return", "best return")
    print(markdown(head, rows))
    print(markdown(("dataset", "policy", "true return", "score of the gate", "with doubt"), each))
    report("uni_o4_gate", claims, args.json, {"correlations": rows, "policies": each})


if __name__ == "__main__":
    main()
