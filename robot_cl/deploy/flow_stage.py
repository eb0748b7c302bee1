"""Action flow matching on the robot: actions realigned by an exported graph while the robot differs from its model.

The graph holds model, flow and the rule of when to listen to it; what it remembers of the last step and the evidence
since the change was noticed is one row of numbers that goes in and comes out. numpy and onnxruntime only.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from robot_cl.deploy.bundle import open_session, read_plain
from robot_cl.deploy.contract import FLOW_FILE, Contract
from robot_cl.deploy.onnx_check import MAX_MODEL_BYTES, check_model


class FlowStage:
    """Implements `modes.Stage`. Remembers the graph's memory row (1, M); `active` says whether the robot counts as
    changed since the last step."""

    def __init__(self, contract: Contract, model: bytes):
        self._session = open_session(model, FLOW_FILE)
        found = {i.name: i.shape[-1] for i in self._session.get_inputs()}
        expected = {
            "obs": contract.obs_dim, "planned": contract.act_dim, "taken": contract.act_dim,
            "memory": contract.flow_memory,
        }  # fmt: skip
        if found != expected:
            raise ValueError(f"{FLOW_FILE} reads {found}, its contract says {expected}; export it again")
        self.act_dim, self.size = contract.act_dim, contract.flow_memory
        self.reset()
        self(np.zeros((1, contract.obs_dim)), np.zeros(self.act_dim), None)  # the first run takes longest
        self.reset()

    def reset(self) -> None:
        self.memory = np.zeros((1, self.size), dtype=np.float32)

    @property
    def active(self) -> bool:
        """The second number of the memory: see `export_flow.ReshapeStep`."""
        return bool(self.memory[0, 1] > 0.5)

    def __call__(self, obs: np.ndarray, action: np.ndarray, taken: np.ndarray | None) -> np.ndarray:
        done = np.zeros(self.act_dim) if taken is None else taken
        feed = {
            "obs": obs.astype(np.float32), "planned": action[None].astype(np.float32),
            "taken": done[None].astype(np.float32), "memory": self.memory,
        }  # fmt: skip
        answer, self.memory = self._session.run(["action", "memory_out"], feed)
        return answer[0]


def load_flow(folder: Path | str, contract: Contract) -> FlowStage | None:
    """The flow of a bundle, None if it has none. Raises OSError, or ValueError if it is not the exported one."""
    if not contract.flow_sha256:
        return None
    model = read_plain(Path(folder), FLOW_FILE, MAX_MODEL_BYTES)
    found = hashlib.sha256(model).hexdigest()
    if found != contract.flow_sha256:
        told = contract.flow_sha256[:12]
        raise ValueError(f"{folder}/{FLOW_FILE} has sha256 {found[:12]}, its contract says {told}; export it again")
    check_model(model, FLOW_FILE)
    return FlowStage(contract, model)
