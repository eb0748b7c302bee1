"""How fast Uni-O4 is: its stacks against one network after the other, and its offline part at the sizes of the CPU.

    python benchmarks/uni_o4_speed.py           some ten minutes
    python benchmarks/uni_o4_speed.py --quick   fewer repetitions; times then say little

The peers of the two ratios are the published code's way written down here: one network after the other, every state
sent through every model, a number fetched from the device per step; same sizes, same batch, one thread. Times are the
processor's. The offline part is one run of `train` at the defaults, evaluations included, timed by the clock.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import replace
from tempfile import TemporaryDirectory

import numpy as np
import torch
from common import Claim, arguments, report
from offline_data import dataset
from torch import Tensor, nn

from dynamics.ensemble import Ensemble, EnsembleConfig
from policies.actor import StackedGaussianActor
from policies.critics import CriticConfig, StackedQ
from policies.networks import StackedMLP, generators
from robot_cl.learners import gate
from robot_cl.learners.gate import GateConfig
from robot_cl.learners.optim import FlatAdam
from robot_cl.learners.uni_o4_config import Profile, UniO4Config
from robot_cl.learners.uni_o4_losses import behaviour_loss
from robot_cl.run_config import TrainConfig
from robot_cl.train import train


def seconds(work: Callable[[], None], repeats: int) -> float:
    """Median of single calls after one to warm up."""
    work()
    times = []
    for _ in range(repeats):
        began = time.process_time()
        work()
        times.append(time.process_time() - began)
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
        gate.scores(  # without `earning`: the published score, as the peer's
            [elites], actor.mode, lambda s, a: q(s, a).amin(1), starts[None, : rows // 5], policies, config, [0]
        )

    with torch.no_grad():
        return seconds(one_by_one, repeats) / seconds(ours, repeats)


def pipeline(data_name: str, steps: int | None, quick: bool) -> float:
    """Minutes by the clock of one seed at the defaults, from a dataset on disk to a finished run folder."""
    learner = UniO4Config(critic_steps=200, behaviour_steps=200, improve_steps=200) if quick else UniO4Config()
    data = dataset(data_name, steps)
    config = TrainConfig(task=str(data.meta.task), data=str(data.path), offline_steps=learner.offline_steps)
    with TemporaryDirectory() as out:
        began = time.monotonic()
        train(replace(config, out=out), learner)
        return (time.monotonic() - began) / 60


def main() -> None:
    args = arguments(__doc__ or "", [])
    torch.set_num_threads(1)
    repeats, steps = (5, 20_000) if args.quick else (10, None)
    claims = [Claim("cloning four policies of 256 x 3, times faster", behaviour_speed(17, 6, repeats), 2.0)]
    claims += [
        Claim(f"the gate with Q of {width} x 2, times faster", gate_speed(17, 6, width, repeats), 5.0)
        for width in (256, 1024)
    ]
    minutes = pipeline("halfcheetah-ppo", steps, args.quick)
    claims.append(Claim("the offline part at its defaults, minutes", minutes, 25.0, False))
    report("uni_o4_speed", claims, args.json, minutes)


if __name__ == "__main__":
    main()
