"""Recipes: complete configurations of known training runs. A new recipe is one file, dptrain/recipes/NAME.toml.

A recipe has keys of the configuration, which decide its results, and a table [about] with `summary`, `source`,
`parameters`, and:

    flop-per-image   floating-point operations of one training step for one image: three times the forward pass, where
                     a multiplication and its addition count as two
    petaflop         10^15 such operations of the whole run
    differences      what differs from the source, if anything does
    accuracy         of the test split, in percent, with the data and the seeds that it was measured on, or whose figure
                     it is
    minutes, cpu     the time of a run on a processor, measured if it does not say how it was computed
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dptrain.config.files import merged, parse_toml
from dptrain.config.train import TrainConfig
from dptrain.errors import UsageError
from dptrain.system import files
from dptrain.system.suggestions import did_you_mean
from dptrain.system.text import shown

FOLDER = Path(__file__).parents[1] / "recipes"
ABOUT = "about"
LIST = ("list", "help")  # --recipe list prints all recipes

# Keys that suit a value of another key: a recipe's are not used when the user chooses another value.
GROUPS = ("group_lr", "group_decay", "group_epochs")
DEPENDENT = {
    "model": ("model_options", *GROUPS),
    "optimizer": ("lr", "momentum", "nesterov", "weight_decay", "optimizer_options", *GROUPS),
    "schedule": ("step_epochs", "step_factor", "schedule_options"),
    "average": ("average_options",),
}


def recipe_names() -> list[str]:
    """The names of all recipes."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def recipe_name(text: str) -> str:
    """The name of a recipe, or a word that asks for the list; UsageError for another."""
    if text in LIST or text in (names := recipe_names()):
        return text
    near = did_you_mean(text, names, f"known: {', '.join(names)}")
    raise UsageError(f"there is no recipe {shown(repr(text), 60)}; {near}")


def read_recipe(name: str) -> dict[str, Any]:
    """Values by key of a recipe."""
    return parse_toml(_text(name), f"recipe {name}", without=(ABOUT,))


def about(name: str) -> dict[str, Any]:
    """The table [about] of a recipe."""
    found: dict[str, Any] = files.parse_toml(_text(name))[ABOUT]
    return found


def used_with(recipe: Mapping[str, Any], later: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a recipe that still make sense with the values of a file and of flags, which win."""
    dropped: set[str] = set()
    for name, dependent in DEPENDENT.items():
        if name in recipe and later.get(name, recipe[name]) != recipe[name]:
            dropped.update(dependent)
    return {name: value for name, value in recipe.items() if name not in dropped}


def with_recipe(recipe: Mapping[str, Any], saved: Mapping[str, Any], given: Mapping[str, Any]) -> TrainConfig:
    """The configuration of a recipe (or {}), then the values of a file, then those that are given, like flags."""
    return merged(used_with(recipe, {**saved, **given}), saved, given)


def recipe_list() -> str:
    """All recipes with what is known about them, for people."""
    names = recipe_names()
    width = max(map(len, names))
    lines = ["Recipes for CIFAR-10: dptrain train DATA --recipe NAME. Any flag, and --config, overrides them.", ""]
    for name in names:
        known = about(name)
        cost = f"{known['parameters']:,} parameters; {known['petaflop']} PFLOP"
        time = f"{known['minutes']} min on {known['cpu']}"
        described = [known["summary"], cost, known["accuracy"], time]
        lines += [f"  {'' if number else name:<{width}}  {line}" for number, line in enumerate(described)]
    return "\n".join(lines)


def _text(name: str) -> str:
    return files.read_text(FOLDER / f"{name}.toml")
