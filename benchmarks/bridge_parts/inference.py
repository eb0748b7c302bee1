"""How long one action takes: torch in eager mode against the exported graph, for each kind of policy."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from policies.actor import ActorConfig, ActorPolicy, StackedGaussianActor
from policies.adapter import Adapter, Factors
from policies.composed import ComposedActor
from policies.composers.composer import CompositionShape
from policies.composers.fixed import Fixed
from policies.lora import layer_shape, linear_layers, merge_into
from policies.mixture import Mixture
from policies.networks import generators
from robot_cl.deploy.bundle import PolicyBundle
from robot_cl.export import export_policy
from sim.spec import Channel, Interface

OBS, ACT, SKILLS, RANK = 48, 12, 4, 8


def interface() -> Interface:
    obs = tuple(Channel(f"s{k}", "1") for k in range(OBS))
    return Interface(obs, tuple(Channel(f"a{k}", "1", -1.0, 1.0) for k in range(ACT)), 0.005)


def gaussian(hidden: tuple[int, ...], obs_dim: int = OBS, act_dim: int = ACT) -> ActorPolicy:
    config = ActorConfig(hidden=hidden, init="orthogonal", out_gain=0.5)
    actor = StackedGaussianActor(obs_dim, act_dim, generators(0, 1), config)
    actor.normalizer.fit(torch.randn(1000, obs_dim, generator=torch.Generator().manual_seed(1)))
    return ActorPolicy(actor, interface=interface())


def skills(actor: Any) -> dict[str, Adapter]:
    made = {}
    for k in range(SKILLS):
        rng, layers = torch.Generator().manual_seed(k), {}
        for name, _, _, layer in linear_layers(actor):
            d_out, d_in = layer_shape(layer)
            down = torch.randn(RANK, d_in, generator=rng) / d_in**0.5
            layers[name] = Factors(down, 0.05 * torch.randn(d_out, RANK, generator=rng))
        made[f"skill{k}"] = Adapter(layers)
    return made


def composed(hidden: tuple[int, ...]) -> ComposedActor:
    actor = gaussian(hidden).actor
    mixture = Mixture(actor, skills(actor))
    fixed = Fixed(CompositionShape.of(mixture, OBS), [1.0 / SKILLS] * SKILLS)
    return ComposedActor(mixture, fixed, interface=interface())


def merged(hidden: tuple[int, ...]) -> ActorPolicy:
    policy = gaussian(hidden)
    for adapter in skills(policy.actor).values():
        merge_into(policy.actor, adapter, 1.0 / SKILLS)
    return policy


def flow() -> Any:
    """A flow actor of five Euler steps, where this version has one."""
    from policies.diffusion import FlowActor, GenerativeConfig

    actor = FlowActor(OBS, ACT, generators(0, 1), GenerativeConfig(steps=5)).eval()

    class Policy:
        obs_dim, act_dim = OBS, ACT

        def __init__(self) -> None:
            self.actor, self.interface = actor, interface()

        @torch.inference_mode()
        def act(self, obs: np.ndarray) -> np.ndarray:
            return actor.mode(torch.from_numpy(obs))[0].numpy()

        def reset(self, rows: np.ndarray | None = None) -> None:
            pass

    return Policy()


# Bare and un-merged are timed in turns, because their ratio is a claim and machines are shared.
KINDS: dict[str, Callable[[], Any]] = {
    "gaussian 256×256": lambda: gaussian((256, 256)),
    "gaussian 512×512×512": lambda: gaussian((512, 512, 512)),
    "4 skills merged": lambda: merged((512, 512, 512)),
    "4 skills un-merged": lambda: composed((512, 512, 512)),
    "flow, 5 steps": flow,
}


def measure(calls: int, rounds: int = 5) -> dict[str, dict[str, float]]:
    """Per kind: p50 and p99 of one call in µs for torch and onnx, the median of rounds taken in turns."""
    torch.set_num_threads(1)
    policies = {}
    with tempfile.TemporaryDirectory() as folder:
        for number, (kind, make) in enumerate(KINDS.items()):
            policy = make()
            report = export_policy(policy, Path(folder) / str(number))
            policies[kind] = (policy, PolicyBundle.load(report.folder), report.parity)
    times: dict[str, dict[str, list[np.ndarray]]] = {k: {"torch": [], "onnx": []} for k in policies}
    for _ in range(rounds):
        for kind, (policy, bundle, _) in policies.items():
            for backend, one in (("torch", policy), ("onnx", bundle)):
                times[kind][backend].append(_time(one, calls))
    return {
        kind: {
            **{f"{b}_p{q}": float(np.median([np.percentile(t, q) for t in times[kind][b]])) for b in times[kind]
               for q in (50, 99)},
            "parity": policies[kind][2],
        }
        for kind in policies
    }  # fmt: skip


def _time(policy: Any, calls: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    obs = rng.standard_normal((64, 1, OBS)).astype(np.float32)
    for k in range(50):
        policy.act(obs[k % 64])
    found = np.empty(calls)
    for k in range(calls):
        start = time.perf_counter()
        policy.act(obs[k % 64])
        found[k] = time.perf_counter() - start
    return 1e6 * found
