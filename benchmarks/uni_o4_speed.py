"""How fast Uni-O4 is: its stacks against one network after the other, and its offline part at the sizes of the CPU.

    python benchmarks/uni_o4_speed.py           some ten minutes
    python benchmarks/uni_o4_speed.py --quick   fewer repetitions; times then say little

The peers of the two ratios are the published code's way written down here: one network after the other, every state
sent through every model and through numpy, a number fetched per step; same sizes, same batch, one thread. Times are the
processor's. The offline part is one run of `train` at the defaults, evaluations included, timed by the clock.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from tempfile import TemporaryDirectory

import numpy as np
import torch
from common import Claim, arguments, report
from offline_data import dataset
from torch import Tensor, nn

from dynamics.ensemble import Ensemble, EnsembleConfig
from policies.actor import ActorConfig, StackedGaussianActor
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


class PublishedModel(nn.Module):
    """What the published ensemble computes per step: 7 nets of 200 x 4 by einsum, a soft clamp, numpy around them."""

    def __init__(self, obs_dim: int, act_dim: int, members: int = 7, elites: int = 5):
        super().__init__()
        widths = (obs_dim + act_dim, 200, 200, 200, 200, 2 * (obs_dim + 1))
        pairs = list(itertools.pairwise(widths))
        self.weights = nn.ParameterList(torch.randn(members, a, b) * 0.5 / np.sqrt(a) for a, b in pairs)
        self.biases = nn.ParameterList(torch.zeros(members, 1, b) for _, b in pairs)
        self.highest, self.lowest = torch.full((obs_dim + 1,), 0.5), torch.full((obs_dim + 1,), -10.0)
        self.elites = elites
        self.mean = np.zeros((1, widths[0]), np.float32)
        self.std = np.ones((1, widths[0]), np.float32)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        for k, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.einsum("bi,mio->mbo" if k == 0 else "mbi,mio->mbo", x, weight) + bias
            if k + 1 < len(self.weights):
                x = x * torch.sigmoid(x)
        mean, raw = x.chunk(2, -1)
        bounded = self.highest - nn.functional.softplus(self.highest - raw)
        return mean, self.lowest + nn.functional.softplus(bounded - self.lowest)

    def step(self, obs: np.ndarray, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Every state through every member, one elite's draw of each; next obs, penalised reward and end (B, ·)."""
        x = (np.concatenate([obs, action], -1) - self.mean) / self.std
        found, log_var = (y.numpy() for y in self(torch.as_tensor(x, dtype=torch.float32)))
        found[..., :-1] = 0.01 * found[..., :-1] + obs  # a net that is not fitted: small steps stay finite
        std = np.sqrt(np.exp(log_var))
        drawn = (found + np.random.normal(size=found.shape) * 0.01 * std).astype(np.float32)
        mine = drawn[np.random.choice(self.elites, len(obs)), np.arange(len(obs))]
        penalty = np.linalg.norm(std, axis=2).max(0)
        ended = ~((mine[:, :-1] > -100.0).all(-1) & (mine[:, :-1] < 100.0).all(-1))
        return mine[:, :-1], mine[:, -1:] - 0.5 * penalty[:, None].astype(np.float32), ended[:, None]


@dataclass(frozen=True)
class GateSizes:
    """`rows`: rollouts of each policy, which the 5 elite models share equally. The models are always of 200 x 4."""

    said: str
    q: tuple[int, ...]
    actor: ActorConfig
    rows: int


GATES = (
    GateSizes("a run here", (256, 256), UniO4Config().actor, 5 * GateConfig().starts),
    GateSizes("the published ones", (1024, 1024), UniO4Config(profile=Profile.reference).actor, 510),  # there 512
)


def gate_speed(
    obs_dim: int, act_dim: int, sizes: GateSizes, repeats: int, policies: int = 4, horizon: int = 20
) -> tuple[float, float]:
    """Scoring four policies, policy after policy through all 7 models: as published, and the same products without its
    numpy, clamp, rewards and penalties, each over the gate's time."""
    shape = EnsembleConfig(7, 5, (200, 200, 200, 200), (200, 200))
    model = Ensemble(obs_dim, act_dim, shape, generators(0, 7))
    elites = model.subset(model.elites)
    actor = StackedGaussianActor(obs_dim, act_dim, generators(0, policies), sizes.actor)
    q = StackedQ(obs_dim, act_dim, generators(0, 1), 2, CriticConfig(hidden=sizes.q))
    twins = [mlp((obs_dim + act_dim, *sizes.q, 1), nn.ReLU) for _ in range(2)]
    alone = [mlp((obs_dim, *actor.config.hidden, 2 * act_dim), nn.ReLU) for _ in range(policies)]
    starts = torch.randn(sizes.rows, obs_dim)
    joint = StackedMLP(obs_dim + act_dim, (200, 200, 200, 200), 2 * (obs_dim + 1), generators(0, 7), "silu")
    published = PublishedModel(obs_dim, act_dim)
    mean, std = torch.zeros(obs_dim), torch.ones(obs_dim)

    def worth(x: Tensor) -> float:
        return torch.minimum(twins[0](x), twins[1](x)).mean().item()

    def as_published() -> None:
        for policy in alone:
            obs, total = starts, 0.0
            for _ in range(horizon):
                z = (obs - mean) / std
                action = torch.tanh(policy(z).chunk(2, -1)[0])
                total += worth(torch.cat([z, action], -1))
                obs = torch.as_tensor(published.step(obs.numpy(), action.numpy())[0])

    def one_by_one() -> None:
        for policy in alone:
            obs, total = starts, 0.0
            for _ in range(horizon):
                action = torch.tanh(policy(obs).chunk(2, -1)[0])
                x = torch.cat([obs, action], -1)
                found, log_var = joint(x).chunk(2, -1)  # all 7 see every state; one of the elites answers
                drawn = found + torch.randn_like(found) * torch.exp(0.5 * log_var.clamp(-10.0, 0.5))
                chosen = torch.randint(5, (len(obs),))
                total += worth(x)
                obs = obs + 0.01 * drawn[chosen, torch.arange(len(obs)), :obs_dim]

    config = GateConfig(horizon=horizon, starts=sizes.rows // 5)

    def ours() -> None:
        gate.scores(  # without `earning`: the published score, as the peer's
            [elites], actor.mode, lambda s, a: q(s, a).amin(1), starts[None, : sizes.rows // 5], policies, config, [0]
        )

    with torch.no_grad():
        mine = seconds(ours, repeats)
        return seconds(as_published, repeats) / mine, seconds(one_by_one, repeats) / mine


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
    for sizes in GATES:
        published, lean = gate_speed(17, 6, sizes, repeats)
        claims.append(Claim(f"the gate at the sizes of {sizes.said}, times faster", published, 5.0))
        print(f"the gate at the sizes of {sizes.said} is {lean:.2f} times faster than the products of its peer alone")
    minutes = pipeline("halfcheetah-ppo", steps, args.quick)
    claims.append(Claim("the offline part at its defaults, minutes", minutes, 25.0, False))
    report("uni_o4_speed", claims, args.json, minutes)


if __name__ == "__main__":
    main()
