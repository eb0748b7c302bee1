"""Any Stable-Baselines3 algorithm as a baseline, on our worlds, ending in a policy of ours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from policies.actor import ActorConfig, Distribution, Sigma, StackedGaussianActor
from policies.networks import StackedLinear
from policies.normalizer import Normalizer
from robot_cl.learners.sb3_arguments import ACTIVATIONS, arguments

ALGORITHMS = ("PPO", "A2C", "SAC", "TD3", "DDPG")
CONTRIB = ("TQC", "TRPO")
ON_POLICY = ("PPO", "A2C", "TRPO")
COMPLAINTS = (TypeError, ValueError, AssertionError, AttributeError, LookupError, ArithmeticError, RuntimeError)
UNBOUNDED = 1e9
Report = Callable[[int, dict[str, float]], None]


@dataclass
class SB3Config:
    """Options of a Stable-Baselines3 algorithm."""

    algorithm: str = "PPO"  # PPO, A2C, SAC, TD3 or DDPG; TQC and TRPO where sb3-contrib is installed
    num_envs: int = 8  # worlds
    normalize: bool = True  # VecNormalize: running statistics of observations, and of the return for on-policy rewards
    arguments: dict[str, Any] = field(default_factory=dict)  # of its constructor, e.g. {learning_rate: 1e-4}

    def __post_init__(self) -> None:
        if self.algorithm not in ALGORITHMS + CONTRIB:
            raise ValueError(f"algorithm is {self.algorithm!r}; expected one of {', '.join(ALGORITHMS + CONTRIB)}")
        if self.num_envs < 1:
            raise ValueError(f"num_envs is {self.num_envs}; expected at least 1")


class SB3:
    """One member trained by Stable-Baselines3 (Raffin et al. 2021), which keeps its own loop, buffers and randomness.

    Such a run can be neither resumed nor verified. `actor` gives the policy it has reached as one of ours, so that
    evaluation, report and data collection treat it like any other.
    """

    phases: ClassVar[tuple[str, ...]] = ("online",)

    def __init__(self, config: SB3Config, task: str, seed: int, threads: int, device: str):
        from sim.env import make_sb3_env

        self.config = config
        self.env: Any = make_sb3_env(task, num_envs=config.num_envs, threads=threads)
        algorithm = algorithm_class(config.algorithm)
        if config.normalize:
            from stable_baselines3.common.vec_env import VecNormalize

            self.env = VecNormalize(self.env, norm_reward=config.algorithm in ON_POLICY)
        given = arguments(algorithm, config.arguments)
        try:
            self.model = algorithm("MlpPolicy", self.env, seed=seed, device=device, **given)
        except COMPLAINTS as problem:
            raise ValueError(f"{config.algorithm} does not take these arguments: {problem}") from None
        self.actor()  # a network that has no counterpart here is refused before it is trained

    def learn(self, steps: int, report: Report, every: int) -> None:
        """Train for `steps` environment steps; `report(step, metrics)` about every `every` steps."""
        from stable_baselines3.common.callbacks import BaseCallback

        class Telling(BaseCallback):
            last = 0

            def _on_step(self) -> bool:
                if self.num_timesteps - self.last >= every:
                    self.last = self.num_timesteps
                    recent = [episode["r"] for episode in self.model.ep_info_buffer or ()]
                    report(self.num_timesteps, {"return": sum(recent) / len(recent)} if recent else {})
                return True

        self.model.learn(steps, callback=Telling())

    def actor(self) -> StackedGaussianActor:
        """The present policy, population 1. Raises ValueError for a network that has no counterpart here."""
        return converted(self.model.policy, self.env if self.config.normalize else None)


def algorithm_class(name: str) -> Any:
    """Raises ValueError if it needs sb3-contrib and that is not installed."""
    if name in ALGORITHMS:
        import stable_baselines3

        return getattr(stable_baselines3, name)
    try:
        import sb3_contrib
    except ImportError:
        raise ValueError(f"{name} needs sb3-contrib; pip install sb3-contrib, or use {', '.join(ALGORITHMS)}") from None
    return getattr(sb3_contrib, name)


@torch.no_grad()
def converted(policy: Any, statistics: Any) -> StackedGaussianActor:
    """An SB3 policy with its VecNormalize (or None) as an actor of ours, the same to rounding."""
    layers, log_std, kind = _parts(policy)
    linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
    kinds = {type(layer) for layer in layers if not isinstance(layer, nn.Linear)}
    names = [name for name, module in ACTIVATIONS.items() if kinds == {module}]
    if not names:
        listed = ", ".join(sorted(k.__name__ for k in kinds)) or "no"
        raise ValueError(f"an SB3 policy with {listed} activations has no counterpart here")
    config = ActorConfig(
        hidden=tuple(layer.out_features for layer in linear[:-1]),
        activation=names[0],
        log_std_min=-20.0,
        log_std_max=2.0,
        **kind,
    )
    obs_dim, head = linear[0].in_features, config.sigma is Sigma.clamped_head
    act_dim = linear[-1].out_features // (2 if head else 1)
    normalizer = _normalizer(statistics, obs_dim) if statistics is not None else Normalizer(obs_dim, UNBOUNDED)
    actor = StackedGaussianActor(obs_dim, act_dim, [torch.Generator()], config, normalizer)
    for layer, theirs in zip(actor.net.layers, linear, strict=True):
        assert isinstance(layer, StackedLinear)
        layer.weight.copy_(theirs.weight.unsqueeze(0))
        layer.bias.copy_(theirs.bias.view(1, 1, -1))
    if log_std is not None:
        actor.log_std.copy_(log_std.view(1, 1, -1))
    return actor


def _parts(policy: Any) -> tuple[list[nn.Module], Tensor | None, dict[str, Any]]:
    """Layers from observation to action, log σ if it is a parameter, and the kind of distribution."""
    if hasattr(policy, "action_net"):  # PPO, A2C, TRPO
        if isinstance(policy.log_std, Tensor) and policy.log_std.dim() != 1:
            raise ValueError("an SB3 policy with state-dependent exploration (use_sde) has no counterpart here")
        layers = [*policy.mlp_extractor.policy_net, policy.action_net]
        return layers, policy.log_std, {"squash_mean": False, "sigma": Sigma.parameter}
    actor = getattr(policy, "actor", None)
    if actor is not None and hasattr(actor, "latent_pi") and isinstance(actor.log_std, nn.Linear):  # SAC, TQC
        both = nn.Linear(actor.mu.in_features, 2 * actor.mu.out_features)
        both.weight.copy_(torch.cat([actor.mu.weight, actor.log_std.weight]))
        both.bias.copy_(torch.cat([actor.mu.bias, actor.log_std.bias]))
        kind = {"distribution": Distribution.tanh_gaussian, "sigma": Sigma.clamped_head}
        return [*actor.latent_pi, both], None, kind
    if actor is not None and isinstance(getattr(actor, "mu", None), nn.Sequential):  # TD3, DDPG: a tanh at the end
        last = [layer for layer in actor.mu if isinstance(layer, nn.Linear)][-1]
        layers = list(actor.mu)[:-1] if isinstance(actor.mu[-1], nn.Tanh) else list(actor.mu)
        return layers, torch.full((last.out_features,), -2.3), {"squash_mean": True, "sigma": Sigma.parameter}
    raise ValueError(f"an SB3 policy of class {type(policy).__name__} has no counterpart here")


def _normalizer(statistics: Any, obs_dim: int) -> Normalizer:
    normalizer = Normalizer(obs_dim, clip=float(statistics.clip_obs), eps=float(statistics.epsilon))
    normalizer.mean.copy_(torch.as_tensor(statistics.obs_rms.mean))
    normalizer.var.copy_(torch.as_tensor(statistics.obs_rms.var))
    normalizer.count.fill_(float(statistics.obs_rms.count))
    return normalizer.freeze()


@torch.no_grad()
def stacked(actors: Sequence[StackedGaussianActor]) -> StackedGaussianActor:
    """Actors of population 1 and equal shape as the members of one, with statistics of their own."""
    spec = actors[0].spec()
    spec |= {"population": len(actors), "normalizer": spec["normalizer"] | {"shared": False}}
    together = StackedGaussianActor.from_spec(spec)
    states = [actor.state_dict() for actor in actors]
    for name, value in together.state_dict().items():
        if value.dim():
            value.copy_(torch.cat([state[name].view(1, *value.shape[1:]) for state in states]))
        else:  # rows seen and frozen, the same for all
            value.copy_(states[0][name])
    return together
