"""The command that makes the parameters of a run again."""

from __future__ import annotations

import shlex

from dptrain.config.files import inline_table
from dptrain.config.train import KEYS, TrainConfig
from dptrain.system.keys import Scope, flag, has_effect

OF_RESULTS = ("max_steps", "tta")  # keys without an effect on the bits of a step, but on the results of the run


def differing(config: TrainConfig) -> dict[str, object]:
    """Keys whose values are not the defaults, except those of the run folder."""
    return {
        name: getattr(config, name)
        for name, key in KEYS.items()
        if getattr(config, name) != default(name) and key.metadata["scope"] is not Scope.FOLDER
    }


def decides_results(name: str) -> bool:
    """Whether another value of a key may give other parameters or another accuracy."""
    return KEYS[name].metadata["scope"] in (Scope.RUN, Scope.BITS) or name in OF_RESULTS


def default(name: str) -> object:
    """The default value of a key. A table is empty."""
    return KEYS[name].default if "example" not in KEYS[name].metadata else {}


def train_command(config: TrainConfig) -> str:
    """The `dptrain train` with every flag that decides the results. The number of ranks does not matter.

    The optimizer has a learning rate of its own if none is given, so --lr is always there.
    """
    values = {"lr": config.lr} | differing(config)
    words = ["dptrain", "train", config.data]
    for name in KEYS:
        if name in values and decides_results(name) and has_effect(config, name):
            words += _flag(name, values[name])
    return shlex.join(words)


def _flag(name: str, value: object) -> list[str]:
    if isinstance(value, bool):
        return [flag(name) if value else flag(f"no_{name}")]
    return [flag(name), inline_table(value) if isinstance(value, dict) else str(value)]
