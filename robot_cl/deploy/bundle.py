"""An exported policy on the robot: onnxruntime and numpy, one thread, no torch, nothing loaded that can run code."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from robot_cl.deploy.contract import CONTRACT_FILE, FLOW_FILE, MODEL_FILE, Contract
from robot_cl.deploy.names import near
from robot_cl.deploy.onnx_check import MAX_MODEL_BYTES, check_model
from sim.spec import Interface

MAX_CONTRACT_BYTES = 4 * 2**20
# What a bundle folder may hold. Anything else is refused, so that nothing travels along unseen.
BUNDLE_FILES = frozenset({MODEL_FILE, CONTRACT_FILE, FLOW_FILE, "card.md", "guard.json", "rehearsal.json"})


def read_plain(folder: Path, name: str, limit: int) -> bytes:
    """Bytes of a regular file of at most `limit` bytes directly in `folder`; a symbolic link is refused.

    Raises OSError or ValueError with one sentence.
    """
    path = folder / name
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        raise OSError(f"{folder} has no {name}; it is not a bundle made by `robot-cl export`") from None
    except OSError as problem:
        raise OSError(f"{path} cannot be opened as a plain file ({problem.strerror}); a link is not accepted") from None
    with os.fdopen(handle, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(f"{path} is not a plain file")
        if status.st_size > limit:
            raise ValueError(f"{path} has {status.st_size} bytes, more than the {limit} allowed")
        return file.read(limit + 1)


def read_contract(folder: Path | str) -> Contract:
    """The contract of a bundle folder, without opening the model. Raises OSError, ValueError."""
    text = read_plain(Path(folder), CONTRACT_FILE, MAX_CONTRACT_BYTES)
    try:
        return Contract.from_json(text.decode("utf-8"))
    except UnicodeDecodeError:
        raise ValueError(f"{folder}/{CONTRACT_FILE} is not UTF-8 text; export the policy again") from None


def read_bundle(folder: Path | str) -> tuple[Contract, bytes]:
    """Contract and model bytes of a bundle, checked against each other. Raises OSError, ValueError."""
    folder = Path(folder)
    if folder.is_symlink() or not folder.is_dir():
        raise OSError(f"{folder} is not a folder; a bundle is the folder `robot-cl export` writes")
    strange = sorted(p.name for p in folder.iterdir() if p.name not in BUNDLE_FILES or p.is_symlink())
    if strange:
        raise ValueError(f"bundle {folder} holds {strange[0]!r}; expected only plain {', '.join(sorted(BUNDLE_FILES))}")
    contract = read_contract(folder)
    model = read_plain(folder, MODEL_FILE, MAX_MODEL_BYTES)
    found = hashlib.sha256(model).hexdigest()
    if len(model) != contract.size:
        sizes = f"{len(model)} bytes, its contract says {contract.size}"
        raise ValueError(f"{folder}/{MODEL_FILE} has {sizes}; copy the bundle again")
    if found != contract.sha256:
        raise ValueError(
            f"{folder}/{MODEL_FILE} has sha256 {found[:12]}, its contract says {contract.sha256[:12]}; export it again"
        )
    check_model(model)
    if (folder / FLOW_FILE).exists() != bool(contract.flow_sha256):
        said = "names a" if contract.flow_sha256 else "names no"
        raise ValueError(f"the contract of {folder} {said} {FLOW_FILE}, the folder says otherwise; copy it again")
    return contract, model


def open_session(model: bytes, name: str) -> Any:
    """An onnxruntime session of one thread. Raises ValueError if the bytes are no usable model."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Not set_denormal_as_zero: with one thread it would change the caller's floating-point mode for good.
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as problem:  # the runtime raises its own family of types; all mean: not a usable model
        raise ValueError(f"{name} cannot be opened by onnxruntime: {_first_line(problem)}") from None


class PolicyBundle:
    """A `Policy` (obs (B, obs_dim) -> action (B, act_dim) in [-1, 1]) that runs an exported graph.

    Remembers the skill weights, which are an input of the graph: `set_skills` takes effect with the next `act`, no
    merge. One row uses bound buffers (no allocation in the runtime); the returned array is a copy.
    """

    def __init__(self, contract: Contract, model: bytes):
        self.contract, self.obs_dim, self.act_dim = contract, contract.obs_dim, contract.act_dim
        self._session = open_session(model, MODEL_FILE)
        self._check_signature()
        self.weights = np.array([s.weight for s in contract.skills], dtype=np.float32)
        self._bind()
        self.act(np.zeros((1, self.obs_dim), dtype=np.float32))  # the first run takes longest: before anything moves

    @classmethod
    def load(cls, folder: Path | str) -> PolicyBundle:
        """Raises OSError or ValueError with one sentence if the folder is not a whole, unchanged, data-only bundle."""
        return cls(*read_bundle(folder))

    @property
    def interface(self) -> Interface:
        return self.contract.interface

    @property
    def skill_names(self) -> tuple[str, ...]:
        return tuple(s.name for s in self.contract.skills)

    def set_skills(self, weights: Mapping[str, float] | Sequence[float] | np.ndarray) -> None:
        """New skill weights, by name (others stay) or all in contract order; clipped to each skill's range.

        Raises LookupError for an unknown name, ValueError for a wrong count or a non-finite weight.
        """
        new = self.weights.copy()
        if isinstance(weights, Mapping):
            for name, value in weights.items():
                if name not in self.skill_names:
                    raise LookupError(f"this bundle has no skill {name!r}, {near(name, self.skill_names)}")
                new[self.skill_names.index(name)] = value
        else:
            new = np.array(weights, dtype=np.float32)
        if new.shape != self.weights.shape or not np.isfinite(new).all():
            raise ValueError(f"expected {self.weights.size} finite skill weights, got {np.asarray(new).tolist()}")
        low, high = ([getattr(s, side) for s in self.contract.skills] for side in ("low", "high"))
        self.weights = np.clip(new, low, high).astype(np.float32) if new.size else new

    def act(self, obs: np.ndarray) -> np.ndarray:
        """obs (B, obs_dim) float32 -> action (B, act_dim) float32 in [-1, 1]."""
        if obs.shape[0] != 1:
            feed = {"obs": np.ascontiguousarray(obs, dtype=np.float32)}
            if self.weights.size:
                feed["skills"] = self.weights
            return self._session.run(["action"], feed)[0]
        self._obs[:] = obs
        if self.weights.size:
            self._skills[:] = self.weights
        self._session.run_with_iobinding(self._binding)
        return self._action.copy()

    def reset(self, rows: np.ndarray | None = None) -> None:
        """Nothing is remembered of an episode: histories are kept by the runner that builds the observation."""

    def _check_signature(self) -> None:
        expected = {"obs": self.obs_dim, **({"skills": len(self.contract.skills)} if self.contract.skills else {})}
        found = {i.name: i.shape[-1] if i.shape else 0 for i in self._session.get_inputs()}
        outputs = {o.name: o.shape[-1] if o.shape else 0 for o in self._session.get_outputs()}
        if found != expected or outputs != {"action": self.act_dim}:
            raise ValueError(
                f"{MODEL_FILE} maps {found} to {outputs}, its contract says {expected} to {{'action': {self.act_dim}}}"
            )

    def _bind(self) -> None:
        self._obs = np.zeros((1, self.obs_dim), dtype=np.float32)
        self._action = np.zeros((1, self.act_dim), dtype=np.float32)
        self._skills = np.zeros(len(self.contract.skills), dtype=np.float32)
        self._binding = self._session.io_binding()
        for name, array in (("obs", self._obs), ("skills", self._skills)):
            if array.size:
                self._binding.bind_input(name, "cpu", 0, np.float32, array.shape, array.ctypes.data)
        self._binding.bind_output("action", "cpu", 0, np.float32, self._action.shape, self._action.ctypes.data)


def _first_line(problem: BaseException) -> str:
    return str(problem).splitlines()[0][:200] if str(problem) else type(problem).__name__
