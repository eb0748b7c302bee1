"""Who makes control steps in benchmarks/world_speed.py: on recorded actions, or driven by one small network.

Run as a script this is EnvPool's side, in an environment of its own: TASK NUM_WORLDS, then a line of steps at a time.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")  # the small network must not fight the simulators for cores

import numpy as np  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
BEHAVIOURS = ROOT / "../shared/data/behaviours"
BENCH_VENV = ROOT / ".bench-venv"
ENVPOOL = "envpool==1.2.5"
ORIGINAL = {"hopper": "Hopper-v5", "halfcheetah": "HalfCheetah-v5", "ant": "Ant-v5"}
WARM_UP, SUBPROC, THREADS = 100, 8, 2
NOISE = 0.3  # of the actions, so that episodes end

Policy = Callable[[np.ndarray], np.ndarray]


class Peer(Protocol):
    """Something that makes control steps; `run` makes about `steps` of them and returns steps per second."""

    name: str

    def run(self, steps: int) -> float: ...


def make_policy(task: str, obs_dim: int, act_dim: int) -> Policy:
    """A network of (64, 64) with noise: a trained one where its file exists, else one of random weights."""
    rng = np.random.default_rng(0)
    file, manifest = BEHAVIOURS / f"{task}-trpo.npz", BEHAVIOURS / "manifest.json"
    if file.exists():
        with np.load(file) as arrays:
            w = {name: arrays[name].astype(np.float32) for name in arrays.files}
        listed = {p["file"]: p for p in json.loads(manifest.read_text())["policies"]}
        relu = listed[file.name]["hidden_activation"] == "relu"
    else:
        sizes, relu = [obs_dim, 64, 64, act_dim], False
        w = {f"W{i}": rng.normal(0, sizes[i] ** -0.5, (sizes[i + 1], sizes[i])).astype(np.float32) for i in range(3)}
        w |= {f"b{i}": np.zeros(sizes[i + 1], np.float32) for i in range(3)}
    mean, scale = w.get("obs_mean", np.float32(0)), 1 / np.sqrt(w.get("obs_var", np.float32(1)) + 1e-8)

    def act(obs: np.ndarray) -> np.ndarray:
        x = np.clip((obs - mean) * scale, -10, 10).astype(np.float32)
        for i in range(2):
            x = x @ w[f"W{i}"].T + w[f"b{i}"]
            x = np.maximum(x, 0) if relu else np.tanh(x)
        x = x @ w["W2"].T + w["b2"]
        noise = NOISE * rng.standard_normal(x.shape, dtype=np.float32)
        return np.clip(x + noise, -1, 1)

    return act


class Recording:
    """One run of our worlds under the policy, from a warm state: what the peers without a policy replay."""

    def __init__(self, task: str, num_worlds: int, steps: int):
        import sim

        self.task, self.num_worlds = task, num_worlds
        world = sim.make(task, num_worlds, threads=THREADS, seed=0)
        policy = make_policy(task, world.interface.obs_dim, world.interface.act_dim)
        obs = world.reset(seed=0)
        for _ in range(WARM_UP):
            obs = world.step(policy(obs))[0]
        self.state = world.get_state()
        self.actions, self.starts = [], []
        for _ in range(max(1, steps // num_worlds)):
            action = policy(obs).astype(np.float64)
            obs, _, terminated, truncated, _ = world.step(action)
            over = np.flatnonzero(terminated | truncated)
            self.actions.append(action)
            self.starts.append((over, world.get_qpos()[over], world.get_qvel()[over]))
        self.count = len(self.actions) * num_worlds


class Raw:
    """Plain mj_step on the recorded states and actions: no observation, no reward, no waiting between steps."""

    def __init__(self, recording: Recording, threads: int):
        import mujoco

        import sim

        self.name = f"raw mj_step, {threads} thread{'s' * (threads > 1)}"
        self._mujoco, self._recording, self._threads = mujoco, recording, threads
        task = sim.get_task(recording.task)
        self._skip, self._model = task.frame_skip, task.load_model()
        self._datas = [mujoco.MjData(self._model) for _ in range(recording.num_worlds)]

    def run(self, steps: int) -> float:
        full = self._mujoco.mjtState.mjSTATE_INTEGRATION
        for data, state in zip(self._datas, self._recording.state["physics"], strict=True):
            self._mujoco.mj_setState(self._model, data, state, full)
        shares = np.array_split(np.arange(len(self._datas)), self._threads)
        others = [threading.Thread(target=self._replay, args=(share.tolist(),)) for share in shares[1:]]
        begin = time.perf_counter()
        for thread in others:
            thread.start()
        self._replay(shares[0].tolist())
        for thread in others:
            thread.join()
        return self._recording.count / (time.perf_counter() - begin)

    def _replay(self, worlds: list[int]) -> None:
        mj_step, model, skip, datas = self._mujoco.mj_step, self._model, self._skip, self._datas
        mine = set(worlds)
        for action, (over, qpos, qvel) in zip(self._recording.actions, self._recording.starts, strict=True):
            for i in worlds:
                datas[i].ctrl[:] = action[i]
                mj_step(model, datas[i], skip)
            for k, i in enumerate(over.tolist()):
                if i in mine:
                    self._mujoco.mj_resetData(model, datas[i])
                    datas[i].qpos[:], datas[i].qvel[:] = qpos[k], qvel[k]


class Rollout:
    """mujoco.rollout, one call per control step as a policy needs it, states carried over by hand."""

    def __init__(self, recording: Recording, threads: int):
        import mujoco
        from mujoco.rollout import Rollout as Pool

        import sim

        self.name = f"mujoco.rollout per control step, {threads} threads"
        task = sim.get_task(recording.task)
        model = task.load_model()
        self._recording, self._skip, self._pool = recording, task.frame_skip, Pool(nthread=threads)
        self._models = [model] * recording.num_worlds
        self._datas = [mujoco.MjData(model) for _ in range(threads)]
        full = mujoco.mjtState.mjSTATE_FULLPHYSICS
        self._begin = np.empty((recording.num_worlds, mujoco.mj_stateSize(model, full)))
        for row, state in zip(self._begin, recording.state["physics"], strict=True):
            mujoco.mj_setState(model, self._datas[0], state, mujoco.mjtState.mjSTATE_INTEGRATION)
            mujoco.mj_getState(model, self._datas[0], row, full)

    def run(self, steps: int) -> float:
        states = self._begin.copy()
        begin = time.perf_counter()
        for action in self._recording.actions:
            control = np.repeat(action[:, None], self._skip, axis=1)
            after, _ = self._pool.rollout(self._models, self._datas, states, control)
            states = np.ascontiguousarray(after[:, -1])
        return self._recording.count / (time.perf_counter() - begin)


class Ours:
    """Our worlds on the recorded actions: observations, rewards, ends and resets included."""

    def __init__(self, recording: Recording, threads: int):
        import sim

        self.name = f"ours, {threads} thread{'s' * (threads > 1)}"
        self._recording = recording
        self._world = sim.make(recording.task, recording.num_worlds, threads=threads)

    def run(self, steps: int) -> float:
        self._world.restore(self._recording.state)
        begin = time.perf_counter()
        for action in self._recording.actions:
            self._world.step(action)
        return self._recording.count / (time.perf_counter() - begin)


class Driven:
    """Anything batched under the policy. `step(action)` gives the next observations (N, obs_dim)."""

    def __init__(
        self, name: str, obs: Any, policy: Policy, step: Callable[[np.ndarray], Any], close: Callable[[], object] = bool
    ):
        self.name, self.close, self._obs, self._policy, self._step = name, close, np.asarray(obs), policy, step
        self.run(WARM_UP * len(obs))

    def run(self, steps: int) -> float:
        rounds = max(1, steps // len(self._obs))
        begin = time.perf_counter()
        for _ in range(rounds):
            self._obs = self._step(self._policy(self._obs))
        return rounds * len(self._obs) / (time.perf_counter() - begin)


def driven_ours(task: str, num_worlds: int) -> Driven:
    import sim

    world = sim.make(task, num_worlds, threads=THREADS, seed=0)
    policy = make_policy(task, world.interface.obs_dim, world.interface.act_dim)
    return Driven("ours", world.reset(seed=0), policy, lambda action: world.step(action)[0])


def driven_gymnasium(task: str) -> Driven:
    import gymnasium

    env: Any = gymnasium.make(ORIGINAL[task])

    def step(action: np.ndarray) -> np.ndarray:
        obs, _, terminated, truncated, _ = env.step(action[0])
        return (env.reset()[0] if terminated or truncated else obs)[None]

    first = env.reset(seed=0)[0][None]
    return Driven("Gymnasium loop", first, make_policy(task, first.shape[1], env.action_space.shape[0]), step)


def driven_subproc(task: str) -> Driven:
    import gymnasium
    from stable_baselines3.common.vec_env import SubprocVecEnv

    envs: Any = SubprocVecEnv([lambda: gymnasium.make(ORIGINAL[task])] * SUBPROC, start_method="forkserver")
    policy = make_policy(task, envs.observation_space.shape[0], envs.action_space.shape[0])
    return Driven(f"SB3 SubprocVecEnv({SUBPROC})", envs.reset(), policy, lambda a: envs.step(a)[0], envs.close)


class EnvPool:
    """EnvPool in a process of its own environment; it answers each line of its input with steps per second."""

    name = "EnvPool"

    def __init__(self, task: str, num_worlds: int):
        command = [str(BENCH_VENV / "bin/python"), str(Path(__file__).resolve()), task]
        self._process = subprocess.Popen(
            [*command, str(num_worlds)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.run(0)

    def run(self, steps: int) -> float:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(f"{steps}\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()


def envpool_worker(task: str, num_worlds: int) -> None:
    import envpool  # type: ignore[import-not-found]

    envs = envpool.make_gymnasium(ORIGINAL[task], num_envs=num_worlds, num_threads=THREADS, seed=0)
    policy = make_policy(task, envs.observation_space.shape[0], envs.action_space.shape[0])
    peer = Driven("EnvPool", envs.reset()[0], policy, lambda action: envs.step(action.astype(np.float64))[0])
    for line in sys.stdin:
        print(peer.run(int(line)), flush=True)


def envpool_missing() -> str:
    """Install EnvPool into .bench-venv/ if it is not there -> "" or why it cannot be had."""
    python = BENCH_VENV / "bin/python"
    try:
        if not python.exists():
            subprocess.run([sys.executable, "-m", "venv", str(BENCH_VENV)], check=True, capture_output=True)
        if subprocess.run([str(python), "-c", "import envpool"], capture_output=True, check=False).returncode:
            install = [str(python), "-m", "pip", "install", "--quiet", ENVPOOL]
            subprocess.run(install, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as problem:
        return str(getattr(problem, "stderr", "") or problem).strip().splitlines()[-1]
    return ""


if __name__ == "__main__":
    envpool_worker(sys.argv[1], int(sys.argv[2]))
