"""The configuration from values of a program."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from dptrain.config.files import checked
from dptrain.config.recipes import read_recipe, recipe_name, with_recipe
from dptrain.config.train import TrainConfig

LISTS = ("report_to", "freeze")  # keys whose value is a list of names with commas


def from_python(values: Mapping[str, Any], saved: Mapping[str, Any]) -> TrainConfig:
    """A configuration from values like flags: those of keys, of `recipe` and of `augment`; `saved` is from a TOML file.

    Numbers of NumPy, objects that are paths, and lists of names are accepted, too. UsageError for an unknown name or a
    value that cannot be used.
    """
    given = {name: _plain(value) for name, value in values.items()}
    for name in LISTS:
        if isinstance(given.get(name), list):
            given[name] = ",".join(map(str, given[name]))
    recipe = given.pop("recipe", "")
    given = {name: value if name == "augment" else checked(name, value, by_user=True) for name, value in given.items()}
    return with_recipe(read_recipe(recipe_name(recipe)) if recipe else {}, saved, given)


def _plain(value: Any) -> Any:
    """A value as TOML has it."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value.item() if hasattr(value, "dtype") and value.shape == () else value
