"""Existing suites as they are, behind one view: flat float64 observations, actions in [-1, 1], an `interface`.

"gymnasium/Humanoid-v5", "gymnasium_robotics/FetchReach-v4", "dm_control/cartpole-swingup", "metaworld/reach-v3",
"ogbench/cube-single-v0". Physics, rewards, ends and random starts are the suite's own; nothing is sped up.
"""

from __future__ import annotations

import difflib
import importlib
import warnings
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from sim import render
from sim.spec import Channel, Interface

UNIT = "raw"  # suites do not say their units
INNER = ("point_env", "ant_env", "robot_env")  # where wrappers of gymnasium-robotics keep the simulation


class SuiteEnv(gymnasium.Env[np.ndarray, np.ndarray]):
    """An environment of a suite, its observation flattened in the order of its space. Remembers the episode's sums."""

    def __init__(self, name: str, env: gymnasium.Env[Any, Any], render_mode: str | None = None):
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": round(1.0 / control_dt(name, env))}
        self.inner, self.render_mode = env, render_mode
        self.interface = Interface(
            tuple(Channel(label, UNIT) for label in obs_names(name, env.observation_space)),
            action_channels(name, env.action_space),
            control_dt(name, env),
        )
        self.observation_space = spaces.Box(-np.inf, np.inf, (self.interface.obs_dim,), np.float64)
        self.action_space = spaces.Box(-1.0, 1.0, (self.interface.act_dim,), np.float32)
        self._return, self._length = 0.0, 0
        self._renderer: render.Renderer | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        obs, info = self.inner.reset(seed=seed, options=options)
        self._return, self._length = 0.0, 0
        return self._flat(obs), info

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        space = self.inner.action_space
        command = self.interface.command(action).reshape(space.shape).astype(space.dtype)
        obs, reward, terminated, truncated, info = self.inner.step(command)
        self._return, self._length = self._return + float(reward), self._length + 1
        facts = {**info, "episode_return": self._return, "episode_length": self._length}
        return self._flat(obs), float(reward), bool(terminated), bool(truncated), facts

    def render(self) -> np.ndarray | None:  # type: ignore[override]
        """(H, W, 3) uint8 of the joint positions now, or None without render_mode "rgb_array"."""
        if self.render_mode is None:
            return None
        model, data = simulation(self.inner)
        if self._renderer is None:
            self._renderer = render.Renderer(model)
        return self._renderer.frame(np.array(data.qpos))

    def close(self) -> None:
        if self._renderer is not None:
            self._renderer.close()
        self.inner.close()

    def _flat(self, obs: Any) -> np.ndarray:
        flat = spaces.utils.flatten(self.inner.observation_space, obs)
        return np.asarray(flat, dtype=np.float64).reshape(-1)


class DmControlEnv(gymnasium.Env[dict[str, np.ndarray], np.ndarray]):
    """A dm_control task as a gymnasium.Env: a time limit truncates, an early end terminates.

    A seed builds the task anew with RandomState(seed), as `suite.load(..., task_kwargs={"random": seed})` does.
    """

    def __init__(self, domain: str, task: str):
        self._suite = _module("dm_control.suite", "dm_control")
        self._name = (domain, task)
        self._load(0)
        self.dt = float(self.dm.control_timestep())
        spec = self.dm.action_spec()
        low, high = np.broadcast_to(spec.minimum, spec.shape), np.broadcast_to(spec.maximum, spec.shape)
        self.action_space = spaces.Box(low, high, dtype=np.float64)
        shapes = [(key, array.shape or (1,)) for key, array in self.dm.observation_spec().items()]
        # A list of pairs keeps the suite's order; a dict would be sorted by name.
        boxes = [(key, spaces.Box(-np.inf, np.inf, shape, np.float64)) for key, shape in shapes]
        self.observation_space: spaces.Space[Any] = spaces.Dict(boxes)

    def _load(self, seed: int) -> None:
        self.dm = self._suite.load(*self._name, task_kwargs={"random": seed})

    @property
    def model(self) -> Any:
        return self.dm.physics.model.ptr

    @property
    def data(self) -> Any:
        return self.dm.physics.data.ptr

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self._load(seed)
        return self._obs(self.dm.reset()), {}

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        now = self.dm.step(action)
        ended = now.last() and now.discount == 0.0
        return self._obs(now), float(now.reward), ended, now.last() and not ended, {}

    def _obs(self, now: Any) -> dict[str, np.ndarray]:
        return {key: np.atleast_1d(np.asarray(value, dtype=np.float64)) for key, value in now.observation.items()}


class MetaWorldEnv(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Meta-World ignores the seed of `reset`; here it seeds the choice of the goal, as its own `seed` method does."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        if seed is not None:
            self.unwrapped.seed(seed)  # type: ignore[attr-defined]
        return self.env.reset(options=options)


class OgbenchEnv(gymnasium.Wrapper[Any, Any, Any, Any]):
    """OGBench draws starts from numpy's global generator; here a seed decides them and that one is left alone."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        if seed is None:
            return self.env.reset(options=options)
        before = np.random.get_state()
        np.random.seed(seed)
        try:
            return self.env.reset(seed=seed, options=options)
        finally:
            np.random.set_state(before)


def make(name: str, render_mode: str | None = None, **options: Any) -> SuiteEnv:
    """An environment "suite/id"; options go to the suite. LookupError names what exists, or the extra to install."""
    suite, _, identity = name.partition("/")
    if suite not in SUITES or not identity:
        raise LookupError(f"no suite in {name!r}; write SUITE/ID with a suite of {', '.join(SUITES)}")
    make_one, list_all = SUITES[suite]
    known = list_all()
    if identity not in known:
        near = difflib.get_close_matches(identity, known, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"it has for example {', '.join(known[:5])}"
        raise LookupError(f"{suite} has no environment {identity!r}; {hint}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # suites warn about newer versions of what was asked for by its id
        return SuiteEnv(name, make_one(identity, **options), render_mode)


def names(suite: str) -> list[str]:
    """Ids of a suite. Raises LookupError if the suite is unknown or its extra is not installed."""
    if suite not in SUITES:
        raise LookupError(f"no suite {suite!r}; suites: {', '.join(SUITES)}")
    return SUITES[suite][1]()


def control_dt(name: str, env: gymnasium.Env[Any, Any]) -> float:
    """Seconds between actions, as the environment tells it. Raises ValueError if it does not."""
    bare: Any = env.unwrapped
    for place in (bare, *(getattr(bare, inner) for inner in INNER if hasattr(bare, inner))):
        for attribute in ("dt", "control_timestep"):
            value = getattr(place, attribute, None)
            value = value() if callable(value) else value
            if isinstance(value, (int, float)) and value > 0:
                return float(value)
    fps = (getattr(bare, "metadata", None) or {}).get("render_fps")
    if not fps:
        raise ValueError(f"{name} does not say how long a step takes, so that no interface can be made for it")
    return 1.0 / float(fps)


def obs_names(name: str, space: spaces.Space[Any], prefix: str = "") -> list[str]:
    """Such as "observation.0", "achieved_goal.2" in the order of flattening; "obs.0" where there is one array."""
    if isinstance(space, spaces.Dict):
        return [n for key, part in space.items() for n in obs_names(name, part, f"{prefix}{key}.".replace(" ", "_"))]
    if isinstance(space, spaces.Box) and len(space.shape) <= 1:
        return [f"{prefix or 'obs.'}{i}" for i in range(int(np.prod(space.shape)))]
    raise ValueError(f"{name} observes {space}; only arrays of numbers and dicts of them are supported, no images")


def action_channels(name: str, space: spaces.Space[Any]) -> tuple[Channel, ...]:
    if not isinstance(space, spaces.Box) or not np.isfinite([space.low, space.high]).all():
        raise ValueError(f"{name} acts in {space}; only continuous actions with finite limits are supported")
    limits = zip(space.low.reshape(-1), space.high.reshape(-1), strict=True)
    return tuple(Channel(f"action.{i}", UNIT, float(low), float(high)) for i, (low, high) in enumerate(limits))


def simulation(env: gymnasium.Env[Any, Any]) -> tuple[Any, Any]:
    """MuJoCo's model and data inside an environment. Raises ValueError if it has none."""
    bare: Any = env.unwrapped
    for place in (bare, *(getattr(bare, inner) for inner in INNER if hasattr(bare, inner))):
        if hasattr(place, "model") and hasattr(place, "data"):
            return place.model, place.data
    raise ValueError(f"{bare} is not simulated by MuJoCo, so that it cannot be drawn")


def _module(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as problem:
        if problem.name and problem.name.split(".")[0] not in (package, module.split(".")[0]):
            raise
        raise LookupError(f'the suite {package} is not installed; run: pip install "robot-cl[suites]"') from None


def _registered(package: str) -> list[str]:
    """Ids whose code lives in a package, newest version of each last."""
    return sorted(k for k, spec in gymnasium.registry.items() if str(spec.entry_point).split(".")[0] == package)


def _gymnasium_names() -> list[str]:
    return [name for name in _registered("gymnasium") if "/" not in name]


def _robotics_names() -> list[str]:
    gymnasium.register_envs(_module("gymnasium_robotics", "gymnasium_robotics"))
    return _registered("gymnasium_robotics")


def _ogbench_names() -> list[str]:
    _module("ogbench", "ogbench")
    return _registered("ogbench")


def _metaworld_names() -> list[str]:
    return sorted(_module("metaworld", "metaworld").ALL_V3_ENVIRONMENTS)


def _dm_control_names() -> list[str]:
    return sorted(f"{domain}-{task}" for domain, task in _module("dm_control.suite", "dm_control").ALL_TASKS)


def _make_dm_control(identity: str) -> DmControlEnv:
    return DmControlEnv(*identity.split("-", 1))


def _make_metaworld(identity: str, seed: int = 0, **options: Any) -> gymnasium.Env[Any, Any]:
    return MetaWorldEnv(gymnasium.make("Meta-World/MT1", env_name=identity, seed=seed, **options))


def _make_ogbench(identity: str, **options: Any) -> gymnasium.Env[Any, Any]:
    return OgbenchEnv(gymnasium.make(identity, **options))


SUITES: dict[str, tuple[Callable[..., gymnasium.Env[Any, Any]], Callable[[], list[str]]]] = {
    "gymnasium": (gymnasium.make, _gymnasium_names),
    "gymnasium_robotics": (gymnasium.make, _robotics_names),
    "dm_control": (_make_dm_control, _dm_control_names),
    "metaworld": (_make_metaworld, _metaworld_names),
    "ogbench": (_make_ogbench, _ogbench_names),
}
