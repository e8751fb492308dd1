"""The command that makes the parameters of a run again."""

from __future__ import annotations

import shlex

import tomli_w

from dptrain.config.train import KEYS, TrainConfig
from dptrain.system.keys import Scope, flag, has_effect

ALSO = ("max_steps", "tta")  # keys without an effect on the bits of a step, but on the results of the run


def differing(config: TrainConfig) -> dict[str, object]:
    """Keys whose values are not the defaults, except those of the run folder."""
    return {
        name: getattr(config, name)
        for name, key in KEYS.items()
        if getattr(config, name) != default(name) and key.metadata["scope"] is not Scope.FOLDER
    }


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
        results = KEYS[name].metadata["scope"] in (Scope.RUN, Scope.BITS) or name in ALSO
        if name in values and results and has_effect(config, name):
            words += _flag(name, values[name])
    return shlex.join(words)


def _flag(name: str, value: object) -> list[str]:
    if isinstance(value, bool):
        return [flag(name) if value else flag(f"no_{name}")]
    return [flag(name), inline_table(value) if isinstance(value, dict) else str(value)]


def inline_table(table: dict[str, object]) -> str:
    """The inside of an inline table in TOML, as flags take it."""
    keys = (tomli_w.dumps({key: 0}).removesuffix(" = 0\n") for key in table)
    return ", ".join(f"{key} = {toml_value(value)}" for key, value in zip(keys, table.values(), strict=True))


def toml_value(value: object) -> str:
    """A value in TOML, on one line."""
    if isinstance(value, dict):
        return f"{{{inline_table(value)}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(toml_value, value))}]"
    return tomli_w.dumps({"x": value}).removeprefix("x = ").removesuffix("\n")
