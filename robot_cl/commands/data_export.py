"""robot-cl data export"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from robot_cl.commands.helptext import REQUIRED
from robot_cl.commands.runs import typed
from robot_cl.commands.verb import Call, Outcome, Verb


@dataclass
class ExportOptions:
    """Options of `data export`."""

    to: str = REQUIRED  # folder to write, which must not exist yet


def run(call: Call, options: ExportOptions) -> Outcome:
    from robot_cl.data.lerobot_out import export_lerobot
    from robot_cl.data.store import open_dataset

    dataset = open_dataset(call.words[0])
    with call.working(f"writing {options.to}"):
        folder = export_lerobot(dataset, Path(options.to))
    call.say(f"{dataset.meta.steps:,} steps in {dataset.meta.episodes:,} episodes, actions in the robot's units")
    return Outcome({"folder": str(folder), "dataset": dataset.name}, wrote=folder, next=f"data import {typed(folder)}")


EXPORT = Verb(
    run=run,
    usage="DATASET --to FOLDER",
    about="Write a dataset as a LeRobotDataset v3 folder, for tools that read that. The format has no place for the\n"
    "observation after an episode's last step; Minari's form, which every dataset here already has, does.",
    examples=("robot-cl data export robot/arm-v0 --to arm_lerobot",),
    options=lambda: ExportOptions,
    words=(1, 1),
)
