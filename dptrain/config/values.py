"""The configuration from values of a program."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from dptrain.config.files import checked
from dptrain.config.recipes import read_recipe, recipe_name, with_recipe
from dptrain.config.train import KEYS, TrainConfig
from dptrain.data.augmentation import expanded
from dptrain.errors import UsageError
from dptrain.system import files
from dptrain.system.keys import check_needs, flag, kind
from dptrain.system.paths import typed_path
from dptrain.system.text import shown

LISTS = ("report_to", "freeze")  # keys whose value is a list of names with commas
NUMBERED = ("class_weights",)  # tables whose names may be numbers
KINDS = {int: "a whole number", float: "a number", str: "text", bool: "True or False", dict: "a dict"}
IN_TABLES = (str, bool, int, float)


def from_python(values: Mapping[str, Any], saved: Mapping[str, Any]) -> TrainConfig:
    """A configuration from values like flags: those of keys, of `recipe` and of `augment`; `saved` is from a TOML file.

    Numbers and arrays of NumPy, objects that are paths, and lists of names are accepted, too. A value that is the
    default may be given although it has no effect, so that the configuration of a run can be given again. UsageError
    for an unknown name or a value that cannot be used.
    """
    given = {name: _plain(value) for name, value in values.items()}
    recipe = given.pop("recipe", "")
    if not isinstance(recipe, str):
        raise UsageError(f"--recipe is {shown(repr(recipe), 200)}, expected the name of a recipe")
    given = expanded({name: _checked(name, value) for name, value in given.items()})
    config = with_recipe(read_recipe(recipe_name(recipe)) if recipe else {}, {**saved, **given}, {})
    check_needs(config, {name: value for name, value in given.items() if value != KEYS[name].default})
    return config


def _checked(name: str, value: Any) -> Any:
    """The value of a key or of `augment`."""
    if name in LISTS and isinstance(value, list):
        value = ",".join(map(str, value))
    if name == "augment":
        if not isinstance(value, str):
            raise UsageError(f"--augment is {shown(repr(value), 200)}, expected text, such as 'zero' or 'none'")
        return value
    if name in KEYS:
        _check_kind(name, value)
        if isinstance(value, dict):
            value = {str(one) if name in NUMBERED and type(one) is int else one: each for one, each in value.items()}
            _check_table(name, value)
    return checked(name, value, by_user=True)


def _check_kind(name: str, value: Any) -> None:
    """UsageError in words of Python, unless the value has the type of the key."""
    key = KEYS[name]
    wanted, more = kind(key), key.metadata
    if type(value) is wanted or (type(value) is int and wanted in (float, str)):
        return
    expected = f"{'a path' if more.get('read') is typed_path else KINDS[wanted]}: {more['help']}"
    if "choices" in more:
        expected = f"one of {', '.join(map(repr, more['choices']))}"
    elif "example" in more:
        expected += f", such as {files.parse_toml('example = {' + more['example'] + '}')['example']}"
    hint = "; for the default, leave it out" if value is None else ""
    raise UsageError(f"{flag(name)} is {shown(repr(value), 200)}, expected {expected}{hint}")


def _check_table(name: str, value: Any) -> None:
    """UsageError unless a dict can be saved as TOML, at any depth."""
    if isinstance(value, dict):
        for one, each in value.items():
            if not isinstance(one, str):
                raise UsageError(f"{flag(name)}: found the key {shown(repr(one), 60)}, expected text")
            _check_table(name, each)
    elif isinstance(value, list):
        for one in value:
            _check_table(name, one)
    elif type(value) not in IN_TABLES:
        expected = "text, numbers, True or False, or lists and dicts of them"
        raise UsageError(f"{flag(name)}: found {shown(repr(value), 200)}, expected {expected}")


def _plain(value: Any) -> Any:
    """A value as TOML has it."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {_plain(name): _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value.tolist() if isinstance(value, np.generic | np.ndarray) else value
