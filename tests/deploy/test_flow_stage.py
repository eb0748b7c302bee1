"""A policy realigned by an action flow is the same on the robot as in torch, step by step."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dynamics.action_flow import ActionFlow, Coder, FlowConfig, body_frame
from dynamics.effectiveness import EffectivenessConfig
from dynamics.ensemble import Ensemble, EnsembleConfig
from dynamics.reshaped import ReshapeConfig, ReshapedPolicy
from policies.actor import ActorConfig, ActorPolicy, StackedGaussianActor
from policies.networks import generators
from robot_cl.deploy.bundle import PolicyBundle
from robot_cl.deploy.contract import FLOW_FILE
from robot_cl.deploy.flow_stage import load_flow
from robot_cl.deploy.receipt import bundle_digest
from robot_cl.export import ExportReport, export_policy
from robot_cl.export_flow import OnlineStage, ReshapeStep, add_flow
from sim.spec import Channel, Interface

DT, GAIN = 0.2, 0.4


def drive(obs: Tensor, action: Tensor) -> Tensor:
    """x, y [m], heading [rad]; speed up to 1 m/s and turn up to π/2 rad/s."""
    middle = obs[:, 2] + 0.25 * math.pi * DT * action[:, 1]
    turned = torch.remainder(obs[:, 2] + 0.5 * math.pi * DT * action[:, 1] + math.pi, 2 * math.pi) - math.pi
    step = DT * action[:, 0]
    return torch.stack([obs[:, 0] + step * torch.cos(middle), obs[:, 1] + step * torch.sin(middle), turned], -1)


@pytest.fixture(scope="module")
def parts() -> tuple[Ensemble, ActionFlow, Coder]:
    """A small model fitted to the vehicle, and a flow that moves actions (it need not be a good one)."""
    torch.set_num_threads(1)
    rng = torch.Generator().manual_seed(0)
    model = Ensemble(3, 2, EnsembleConfig(2, 2, (24, 24), (4,), angles=(2,), unseen=(0, 1)), generators(0, 2))
    obs, action = torch.rand(2000, 3, generator=rng) * 6 - 3, torch.rand(2000, 2, generator=rng) * 2 - 1
    after = drive(obs, action)
    model.measure(obs, action, torch.zeros(2000), after)
    wanted = model.delta_norm(model.wrap_angles(after - obs))
    optimiser = torch.optim.Adam(model.state_net.parameters(), 1e-2)
    for _ in range(300):
        said = model.state_net(model.input_norm(model.features(obs, action)))
        mean, log_var = said.chunk(2, -1)
        loss = (mean - wanted).square().mean() + (log_var + 5.0).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    coder = body_frame(2, 0, 1, model.delta_scale)
    probe = coder.residual(torch.zeros(1, 3), torch.zeros(1, 3))
    flow = ActionFlow(1, probe.shape[-1], 2, FlowConfig(4, 16, (16,), (24,)), torch.Generator().manual_seed(3))
    return model.requires_grad_(False), flow.requires_grad_(False), coder


@pytest.fixture(scope="module")
def bundle(parts: Any, tmp_path_factory: pytest.TempPathFactory) -> ExportReport:
    """A policy of the vehicle realigned by the flow, exported as it is."""
    units = (("x", "m"), ("y", "m"), ("heading", "rad"))
    command = tuple(Channel(n, "1", -1.0, 1.0) for n in ("speed", "turn"))
    interface = Interface(tuple(Channel(*u) for u in units), command, DT)
    actor = StackedGaussianActor(3, 2, generators(0, 1), ActorConfig(hidden=(8,)))
    policy = ReshapedPolicy(ActorPolicy(actor), *parts)
    return export_policy(policy, tmp_path_factory.mktemp("flow") / "bundle", interface)


def walk(call: Callable[[np.ndarray, np.ndarray, np.ndarray | None], np.ndarray], steps: int = 30) -> np.ndarray:
    """Actions (steps, act_dim) along a drive whose motors weaken at step 8 and recover at step 22."""
    rng, obs, taken, found = np.random.default_rng(1), torch.tensor([[0.5, -0.5, 0.3]]), None, []
    for t in range(steps):
        planned = rng.uniform(-1, 1, 2).astype(np.float32)
        action = call(obs.numpy(), planned, taken)
        found.append(action)
        # What a robot's limits let through differs from what was asked.
        taken = np.clip(action, -0.8, 0.8)
        obs = drive(obs, torch.as_tensor(taken)[None] * (GAIN if 8 <= t < 22 else 1.0))
    return np.array(found)


def test_the_exported_flow_realigns_as_torch_does_on_a_robot_that_weakens_and_recovers(
    parts: tuple[Ensemble, ActionFlow, Coder], bundle: ExportReport
) -> None:
    stage = load_flow(bundle.folder, PolicyBundle.load(bundle.folder).contract)
    assert stage is not None and bundle.parity <= 1e-5
    active: list[bool] = []

    def exported(obs: np.ndarray, planned: np.ndarray, taken: np.ndarray | None) -> np.ndarray:
        answer = stage(obs, planned, taken)
        active.append(stage.active)
        return answer

    model, flow, coder = parts
    here, there = walk(OnlineStage(model, flow, coder)), walk(exported)
    np.testing.assert_allclose(there, here, atol=1e-4)
    assert not any(active[:9]) and all(active[10:20]), "the change is noticed after the step that shows it"
    rng = np.random.default_rng(1)
    planned = np.array([rng.uniform(-1, 1, 2) for _ in range(30)])
    assert np.abs(there[:9] - planned[:9]).max() < 1e-6 and np.abs(there[12:20] - planned[12:20]).max() > 0.05
    stage.reset()
    assert not stage.active and np.abs(stage(np.zeros((1, 3)), planned[0], None) - planned[0]).max() < 1e-6


def test_the_function_is_the_policy_it_was_written_after(parts: tuple[Ensemble, ActionFlow, Coder]) -> None:
    """ReshapedPolicy itself, which remembers what it did, against the function whose memory is passed in."""

    class Scripted:
        obs_dim, act_dim, planned = 3, 2, np.zeros((1, 2), np.float32)

        def act(self, obs: np.ndarray) -> np.ndarray:
            return self.planned

        def reset(self, rows: np.ndarray | None = None) -> None:
            pass

    model, flow, coder = parts
    config = ReshapeConfig(trigger=2.0, quiet=1)
    step, inner = ReshapeStep(model, flow, coder, config), Scripted()
    policy, memory = ReshapedPolicy(inner, model, flow, coder, config), torch.zeros(1, step.memory)
    rng, obs, action, seen = np.random.default_rng(4), torch.tensor([[0.0, 0.0, 1.0]]), torch.zeros(1, 2), 0
    for t in range(60):
        inner.planned = rng.uniform(-1, 1, (1, 2)).astype(np.float32)
        with torch.no_grad():
            mine, memory = step(obs, torch.as_tensor(inner.planned), action, memory)
        action = torch.as_tensor(policy.act(obs.numpy()))
        torch.testing.assert_close(mine, action, atol=1e-5, rtol=0)
        assert bool(memory[0, 1]) == bool(policy.last.active[0])
        seen += int(policy.last.active[0])
        obs = drive(obs, action * (GAIN if 10 <= t < 25 or t >= 45 else 1.0))
    assert 20 < seen < 60


def test_a_flow_of_another_robot_or_a_changed_file_is_refused(
    parts: tuple[Ensemble, ActionFlow, Coder], bundle: ExportReport
) -> None:
    model, flow, coder = parts
    with pytest.raises(ValueError, match="numbers of evidence"):
        add_flow(bundle, model, flow)
    with pytest.raises(ValueError, match="export it with effectiveness=None"):
        add_flow(bundle, model, flow, coder, ReshapeConfig(effectiveness=EffectivenessConfig()))
    other = Ensemble(5, 2, EnsembleConfig(1, 1, (4,), (4,)), generators(0, 1))
    with pytest.raises(ValueError, match="of 5 observations"):
        add_flow(bundle, other, flow)
    contract, path = PolicyBundle.load(bundle.folder).contract, bundle.folder / FLOW_FILE
    whole, digest = path.read_bytes(), bundle_digest(bundle.folder)
    path.write_bytes(whole[:-8])
    assert bundle_digest(bundle.folder) != digest, "a rehearsal of another flow must not arm this one"
    with pytest.raises(ValueError, match=r"flow\.onnx has sha256"):
        load_flow(bundle.folder, contract)
    path.unlink()
    with pytest.raises(ValueError, match=r"names a flow\.onnx"):
        PolicyBundle.load(bundle.folder)
    path.write_bytes(whole)
