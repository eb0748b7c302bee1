"""A two-joint arm, a linear policy for it, and a runner on loopback: small, real, deterministic."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robot_cl.deploy.clock import VirtualClock
from robot_cl.deploy.contract import CONTRACT_FILE, MODEL_FILE, Contract, SkillEntry, terms_from_interface
from robot_cl.deploy.faults import Fault
from robot_cl.deploy.loopback import JointPlant, Loopback
from robot_cl.deploy.modes import RunnerConfig
from robot_cl.deploy.robot import RobotSpec
from robot_cl.deploy.robot_file import robot_from_dict
from robot_cl.deploy.runner import Runner
from sim.spec import Channel, Interface

DT = 0.02
sys.path.insert(0, str(Path(__file__).parent))  # for the helpers beside, some of which also run on their own
from linear_onnx import linear_model  # noqa: E402


@pytest.fixture
def domain() -> int:
    """A domain of DDS of its own, so that neither other tests nor other machines are heard."""
    pytest.importorskip("cyclonedds")
    import dds_peer

    return dds_peer.free_domain()


@pytest.fixture
def arm_interface() -> Interface:
    obs = [Channel(f"{j}.{f}", u) for f, u in (("position", "rad"), ("velocity", "rad/s")) for j in ("waist", "elbow")]
    action = [Channel("waist.position", "rad", -1.0, 1.0), Channel("elbow.position", "rad", -0.5, 1.5)]
    return Interface(tuple(obs), tuple(action), DT)


@pytest.fixture
def arm_dict() -> dict[str, Any]:
    common = {"unit": "rad", "rate": 2.0, "hold": "freeze", "damp": "freeze", "stop": "freeze"}
    return {
        "name": "arm2",
        "control_dt": DT,
        "state": {
            "joints": {"topic": "/joint_states", "type": "sensor_msgs/msg/JointState", "joints": ["waist", "elbow"]}
        },
        "command": [
            {
                "topic": "/forward_position_controller/commands",
                "type": "std_msgs/msg/Float64MultiArray",
                "channels": [
                    {"name": "elbow.position", "low": -0.5, "high": 1.5, **common},
                    {"name": "waist.position", "low": -1.0, "high": 1.0, **common},
                ],
            }
        ],
    }


@pytest.fixture
def arm(arm_dict: dict[str, Any]) -> RobotSpec:
    return robot_from_dict(arm_dict)


@pytest.fixture
def arm_contract(arm_interface: Interface) -> Contract:
    observation, action = terms_from_interface(arm_interface)
    return Contract("0" * 64, 0, "test", DT, arm_interface.digest, observation, action)


class Linear:
    """action = tanh(gain · obs[:, :act_dim] + bias): a policy in three numbers. Remembers how often it was reset."""

    def __init__(self, obs_dim: int = 4, act_dim: int = 2, gain: float = -0.5, bias: float = 0.8):
        self.obs_dim, self.act_dim, self.gain, self.bias, self.resets = obs_dim, act_dim, gain, bias, 0

    def act(self, obs: np.ndarray) -> np.ndarray:
        return np.tanh(self.gain * obs[:, : self.act_dim] + self.bias).astype(np.float32)

    def reset(self, rows: np.ndarray | None = None) -> None:
        self.resets += 1


class Constant:
    """The same action (waist, elbow), whatever is seen."""

    obs_dim, act_dim = 4, 2

    def __init__(self, waist: float, elbow: float):
        self.action = np.array([[waist, elbow]], np.float32)

    def act(self, obs: np.ndarray) -> np.ndarray:
        return self.action

    def reset(self, rows: np.ndarray | None = None) -> None:
        pass


class Rig:
    """A runner on loopback with everything in reach; `drive` brings it to ACTIVE."""

    def __init__(self, spec: RobotSpec, contract: Contract, policy: Any, faults: tuple[Fault, ...], **more: Any):
        config = more.pop("config", None) or RunnerConfig(ramp_s=0.1)
        self.clock = VirtualClock()
        self.plant = more.pop("plant", None) or JointPlant(spec)
        self.loopback = Loopback(spec, self.plant, self.clock, faults, seed=more.pop("seed", 0))
        self.policy, self.spec = policy, spec
        self.begin, self.ticks = self.clock.now(), 0
        self.log: list[tuple[float, str]] = []
        self.runner = Runner(policy, contract, self.loopback, self.clock, config, **more)

    @property
    def elapsed(self) -> float:
        return self.clock.now() - self.begin

    def drive(self, until: float = 0.3) -> Rig:
        self.runner.enable()
        self.runner.start()
        return self.go(until)

    def go(self, until: float) -> Rig:
        """Tick each period up to `until` seconds after the beginning, noting time and mode."""
        while self.elapsed < until - 1e-9:
            self.runner.tick()
            self.log.append((self.elapsed, str(self.runner.mode)))
            self.ticks += 1
            self.runner.wait(self.begin + self.ticks * self.spec.control_dt)
        return self

    def first(self, mode: str) -> float:
        """When this mode was first entered other than by enabling; infinite if never."""
        entered = (t - self.begin for t, m, why in self.runner.history if m == mode and why != "enabled")
        return next(entered, float("inf"))

    @property
    def commands(self) -> np.ndarray:
        return np.array([c for _, c in self.loopback.sent])

    def check_box(self) -> None:
        """Every command lies in its box and moved no faster than its rate."""
        sent, channels = self.commands, self.spec.channels
        low, high, rate = (np.array([getattr(c, k) for c in channels]) for k in ("low", "high", "rate"))
        assert np.isfinite(sent).all() and (sent >= low - 1e-12).all() and (sent <= high + 1e-12).all()
        if len(sent) > 1:
            assert (np.abs(np.diff(sent, axis=0)) <= rate * self.spec.control_dt + 1e-12).all()


@pytest.fixture
def make_rig(arm: RobotSpec, arm_contract: Contract) -> Callable[..., Rig]:
    def make(*faults: Fault, policy: Any = None, **more: Any) -> Rig:
        spec, contract = more.pop("spec", arm), more.pop("contract", arm_contract)
        return Rig(spec, contract, policy or Linear(), faults, **more)

    return make


@pytest.fixture
def make_bundle(tmp_path: Path, arm_interface: Interface) -> Callable[..., Path]:
    """Write a whole bundle for the two-joint arm; `model` replaces the graph's bytes, hash and size following it."""

    def make(name: str = "bundle", skills: tuple[str, ...] = (), model: bytes | None = None, seed: int = 0) -> Path:
        if model is None:
            model = linear_model(arm_interface.obs_dim, arm_interface.act_dim, len(skills), seed)
        observation, action = terms_from_interface(arm_interface)
        entries = tuple(SkillEntry(s, 4, "00") for s in skills)
        digest = hashlib.sha256(model).hexdigest()
        contract = Contract(digest, len(model), "test", DT, arm_interface.digest, observation, action, entries)
        folder = tmp_path / name
        folder.mkdir()
        (folder / MODEL_FILE).write_bytes(model)
        (folder / CONTRACT_FILE).write_text(contract.to_json())
        return folder

    return make


@pytest.fixture
def linear() -> Callable[..., bytes]:
    return linear_model


@pytest.fixture
def constant() -> type[Constant]:
    return Constant
