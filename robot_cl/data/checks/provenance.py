"""Where the data comes from, and what its numbers may be held against."""

from __future__ import annotations

import numpy as np

from robot_cl.data.checks.subject import Finding, Subject
from robot_cl.data.reference import Reference, d4rl_id, find_reference, simulator_fingerprint

# Sets whose published file is not what its name says.
KNOWN_BAD = {"hopper-medium-expert-v0": "was mixed wrongly by its publisher; use hopper-medium-expert-v2"}
# Widths under which one name is known: D4RL recorded its Ant with v2, contact forces included.
ANT_WIDTHS = {27: "Ant-v4 without contact forces", 105: "Ant-v5", 111: "Ant-v2, as in D4RL, or v3"}
# gymnasium-robotics rewards the distance of hand and object in its rewritten door, hammer and relocate, where D4RL
# punished it; the sign was put right later under the same id (its pull request 220).
_ADROIT_SIGN = ("door", "hammer", "relocate")
_DOOR_WIDTH, _DOOR_ANGLE, _DOOR_REACH = 39, 28, slice(35, 38)


def known_bad_set(subject: Subject) -> Finding | None:
    name = subject.meta.d4rl_id or d4rl_id({"kind": "d4rl", "file": str(subject.meta.source.get("file", ""))})
    if name not in KNOWN_BAD:
        return None
    return Finding("known_bad_set", f"{name} {KNOWN_BAD[name]}")


def antmaze_reward_shift(subject: Subject) -> Finding | None:
    """Rewards shifted by −1 for training; scores count successes, so they need the unshifted ones."""
    if subject.task != "antmaze" or subject.reward.min() >= 0.0:
        return None
    return Finding(
        "antmaze_reward_shift",
        f"rewards run from {subject.reward.min():g} to {subject.reward.max():g}, antmaze gives 0 and 1: they were "
        f"shifted for training, and the score of {_score_text(subject)} counts the shift; store them unshifted",
    )


def other_environment_version(subject: Subject) -> Finding | None:
    """Recorded in one version of the environment, evaluated here in another."""
    meta, here = subject.meta, subject.interface_here
    if here is None:
        return None
    if here.obs_dim != meta.obs_dim or here.act_dim != meta.act_dim:
        known = ANT_WIDTHS.get(meta.obs_dim) if subject.task == "ant" else None
        return Finding(
            "other_environment_version",
            f"the data has {meta.obs_dim} observations and {meta.act_dim} actions, {meta.task} has {here.obs_dim} and "
            f"{here.act_dim} here{f' (it is of {known})' if known else ''}; nothing trained on it can be evaluated",
        )
    recorded = str(meta.source.get("environment", ""))
    if recorded and recorded != _original(subject):
        return Finding(
            "other_environment_version",
            f"the data was recorded in {recorded}, {meta.task} here is {_original(subject)}: returns do not compare",
        )
    installed = simulator_fingerprint()
    differs = [f"{k} {v} against {installed.get(k)}" for k, v in meta.simulator.items() if installed.get(k) != v]
    if differs:
        return Finding(
            "other_environment_version",
            f"the data was recorded with another simulator ({', '.join(differs)}): returns do not compare",
        )
    return None


def adroit_reward_version(subject: Subject) -> Finding | None:
    """Dense Adroit rewards that changed their sign under one id."""
    if subject.task not in _ADROIT_SIGN or len(np.unique(subject.reward[subject.some_rows])) <= 3:
        return None
    if subject.task == "door" and subject.meta.obs_dim == _DOOR_WIDTH:
        slope = _door_slope(subject)
        if slope < 0.0:
            return None
        return Finding(
            "adroit_reward_version",
            f"the reward grows by {slope:.3f} per metre between palm and handle, D4RL's falls by 0.1: it was recorded "
            f"with the reversed sign that one id has had; do not mix it with, or score it against, D4RL's",
        )
    if "gymnasium-robotics" in subject.meta.simulator:
        return None
    return Finding(
        "adroit_reward_version",
        f"the dense reward of {subject.task} changed under one id, and nothing says which version recorded this data; "
        f"do not compare its returns with those of another source",
    )


def score_is_a_fraction(subject: Subject) -> Finding | None:
    """A score of 0.52 beside scores of 52."""
    expected, stored = _expected_score(subject), subject.meta.score
    if expected is None or stored is None or abs(expected) < 1.0:
        return None
    if abs(stored * 100.0 - expected) > 0.02 * abs(expected):
        return None
    return Finding(
        "score_is_a_fraction",
        f"the score is stored as {stored:.4g}, the returns give {expected:.4g}: a fraction where 0 to 100 is meant",
    )


def foreign_reference(subject: Subject) -> Finding | None:
    """D4RL's reference scores given to data that is not D4RL's."""
    reference = subject.meta.reference or ""
    if not reference.startswith("D4RL") or subject.meta.source.get("kind") == "d4rl":
        return None
    return Finding(
        "foreign_reference",
        f"the score is called {reference!r}, but the data comes from {subject.meta.source.get('kind')!r}: it is only "
        f"on that scale, name it so",
    )


def statistics_of_held_out(subject: Subject) -> Finding | None:
    """Observation statistics must come from the training episodes alone."""
    meta = subject.meta
    if not meta.held_out or "obs_mean" not in meta.statistics:
        return None
    training = np.repeat(~np.isin(np.arange(len(subject.lengths)), meta.held_out), subject.lengths)
    stored = np.array(meta.statistics["obs_mean"])
    spread = subject.obs.std(axis=0, dtype=np.float64) + 1e-12

    def distance(rows: np.ndarray) -> float:
        return float(np.abs((subject.obs[rows].mean(axis=0, dtype=np.float64) - stored) / spread).max())

    if distance(training) < 1e-6:
        return None
    source = "all episodes" if distance(np.ones_like(training)) < 1e-6 else "other data than the training episodes"
    return Finding(
        "statistics_of_held_out",
        f"the observation statistics are those of {source}, although {len(meta.held_out)} episodes are held out; "
        f"compute them from the training episodes",
    )


def content_changed(subject: Subject) -> Finding | None:
    if subject.unchanged:
        return None
    return Finding(
        "content_changed",
        "the transitions are not those that meta.json was written for (their hash differs); restore or import again",
    )


def _door_slope(subject: Subject) -> float:
    """Reward per metre between palm and handle, what the door's angle gives being taken off."""
    rows = subject.some_rows
    obs, reward = subject.obs[rows].astype(np.float64), subject.reward[rows]
    angle = obs[:, _DOOR_ANGLE]
    bonus = 2.0 * (angle > 0.2) + 8.0 * (angle > 1.0) + 10.0 * (angle > 1.35)
    rest = reward + 0.1 * (angle - 1.57) ** 2 - bonus
    reach = np.linalg.norm(obs[:, _DOOR_REACH], axis=1)
    return float(np.cov(reach, rest)[0, 1] / max(reach.var(), 1e-12))


def _expected_score(subject: Subject) -> float | None:
    reference: Reference | None = find_reference(subject.meta.task, subject.meta.source) if subject.meta.task else None
    return None if reference is None else reference.score(subject.meta.return_mean)


def _score_text(subject: Subject) -> str:
    return "none" if subject.meta.score is None else f"{subject.meta.score:.1f}"


def _original(subject: Subject) -> str:
    import sim

    return sim.get_task(subject.meta.task or "").original
