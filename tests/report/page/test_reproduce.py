"""dptrain.report.page.reproduce: the command gives the same configuration again."""

from __future__ import annotations

import shlex
from typing import Any

import pytest

from dptrain.commands import train
from dptrain.commands.parser import build_parser
from dptrain.config.train import KEYS, TrainConfig
from dptrain.report.page.reproduce import differing, train_command

# Keys that change neither the parameters nor the accuracy; every other one must be in the command.
FREE = {"allow_changed_model", "threads", "elastic", "stall_limit", "stall_abort", "run_dir", "checkpoint_every",
        "keep_best", "resume", "log_every", "report", "report_to", "timeline"}  # fmt: skip
CHANGES: list[dict[str, Any]] = [
    {},
    {"epochs": 3, "lr": 0.1, "max_steps": 7, "tta": "mirror", "flip": True, "nesterov": False, "portable": True},
    {"optimizer": "adamw", "lr": 0.05, "optimizer_options": {"beta2": 0.95}},
    {"optimizer": "adamw", "lr": 1e-07, "weight_decay": 1e-300},
    {"model_options": {"widths": [32, 64], "name": 'a  "b"\n', "deep": {"x y": [1.5, [True]]}, "é": "ü"}},
    {"group_lr": {"first.bias": 10, "head": 0.5}, "class_weights": {"<b>": 2, "it's": 0.5}},
    {"schedule": "step", "step_epochs": 2.0, "schedule_options": {"milestones": [82, 123]}},
    {"crop_pixels": 2, "step_factor": 0.5},  # without --crop and --schedule step they have no effect
]


@pytest.mark.parametrize("changes", CHANGES)
def test_the_command_gives_every_value_that_decides_the_results(changes: dict[str, Any]) -> None:
    values: dict[str, Any] = {"data": "data/my set", "threads": 3, "run_dir": "runs/x", "log_every": 7, **changes}
    config = TrainConfig(**values)
    words = shlex.split(train_command(config))
    assert words[:3] == ["dptrain", "train", "data/my set"]
    again = train.configuration(build_parser("train").parse_args(words[1:]))
    unused = {"crop_pixels", "step_factor"} if "crop_pixels" in changes else set()
    for name in KEYS.keys() - FREE - unused:
        assert getattr(again, name) == getattr(config, name), name
    for name in ("threads", "run_dir", "log_every"):
        assert getattr(again, name) == KEYS[name].default


def test_differing_keys_leave_out_the_folder() -> None:
    config = TrainConfig(data="set", threads=3, run_dir="runs/x", model_options={"widths": [3]})
    assert differing(config) == {"data": "set", "model_options": {"widths": [3]}, "threads": 3}
    assert differing(TrainConfig()) == {}
