"""Options with numbers that mean nothing are refused when they are read, not hours later or never."""

import pytest

from dynamics.ensemble import EnsembleConfig
from robot_cl.learners import config_class
from robot_cl.learners.gate import GateConfig
from robot_cl.learners.imagined import ImaginationConfig

NONSENSE = {
    "bc": [("lr", 0.0), ("clip", -1.0), ("decay", -5)],
    "ppo": [("decay", -5), ("value_warmup", -1), ("clip", float("nan")), ("lr", float("inf"))],
    "iql": [("clip", -1.0), ("clip", 0.0), ("decay", -5), ("warmup", -1), ("reward_scale", 0.0), ("capacity", 0)],
    "sac": [("warmup", -1), ("updates", float("inf"))],
    "rebrac": [("updates", 0.0), ("capacity", 0), ("offline_share", 1.5), ("decay", -1), ("noise", float("nan"))],
    "lcb": [("offline_share", 1.5), ("returns_steps", -1), ("beta", -0.1), ("subset", 3)],
    "cal_ql": [("offline_share", 1.0), ("returns_steps", -1), ("conservatism", float("nan")), ("drawn", 0)],
    "moorl": [("returns_steps", -1)],
    "psec": [("weight_decay", -0.1), ("reward_scale", -1.0), ("decay", -1)],
    "uni_o4": [("discount", 1.0), ("tau", 0.0), ("trace", 1.5), ("critic_steps", -1), ("offline_lr", 0.0),
               ("improve_clip", -0.2), ("returns_steps", -1), ("advantage_steps", -1)],
}  # fmt: skip


@pytest.mark.parametrize(("name", "option", "value"), [(name, *bad) for name, all_ in NONSENSE.items() for bad in all_])
def test_a_number_that_means_nothing_is_refused_by_name(name, option, value):
    options = {"critics": 5} if option == "subset" else {}
    with pytest.raises(ValueError, match=option):
        config_class(name)(**{option: value}, **options)


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("members", 1, "at least 2"),
        ("horizon", 0, "at least 1"),
        ("rollouts", 30, "30 rollouts cannot be shared by 4 models"),
        ("sure", (0.9, 0.9), "two rising shares"),
        ("rare", 1.5, "rare is one"),
        ("trace", -0.1, "imagined.trace"),
        ("reach", 0.0, "reach is 0.0"),
    ],
)
def test_imagination_of_nothing_is_refused_in_a_sentence(option, value, says):
    with pytest.raises(ValueError, match=says):
        ImaginationConfig(**{option: value})


def test_doubt_needs_models_that_can_disagree():
    config = config_class("uni_o4")
    with pytest.raises(ValueError, match=r"elites of at least 2"):
        config(gate=GateConfig(doubt=1.0), dynamics=EnsembleConfig(3, 1))
    assert config(gate=GateConfig(doubt=1.0)).dynamics.elites >= 2
