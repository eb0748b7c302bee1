"""What users get under a name is what was measured under it."""

import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
from offline_cells import SIZES, sized
from offline_methods import METHODS

from robot_cl.commands.train import read_train


def test_the_preset_of_wsrl_with_old_data_is_the_row_of_the_table() -> None:
    measured = sized(METHODS["wsrl, old data, quick"].config(), SIZES["many"])
    _, _, preset = read_train(["learner=wsrl_old_data", "data=any", "task=hopper"])
    assert replace(preset, actor=measured.actor) == measured  # the policy's shape is that of the one to go on from
