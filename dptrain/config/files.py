"""The configuration from defaults, then a TOML file, then flags; its flags, and its saved form."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import tomli_w

from dptrain.config.train import KEYS, TrainConfig
from dptrain.data.augmentation import expanded
from dptrain.errors import UsageError
from dptrain.optim import OPTIMIZERS, optimizer_class, options_of
from dptrain.system import files
from dptrain.system.keys import Scope, add_flags_of, check_needs, flag, from_toml
from dptrain.system.suggestions import EXPLANATIONS, did_you_mean
from dptrain.system.text import shown

NAMES = {name.replace("_", "-"): name for name in KEYS}  # names in TOML
KEYS_OF_THE_FOLDER = {name for name, one in KEYS.items() if one.metadata["scope"] is Scope.FOLDER}


def read_toml(path: Path) -> dict[str, Any]:
    """Values by key from a TOML file; UsageError when it cannot be read or has an unknown key.

    The keys of Scope.FOLDER are ignored in the config.toml of a run folder: it is read to begin a new run.
    """
    try:
        text = files.read_text(path)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"--config {shown(path)}: cannot be read: {reason}") from error
    values = parse_toml(text, shown(path), by_user=True)
    saved = path.name == "config.toml" and (path.parent / "checkpoints").is_dir()
    return {name: value for name, value in values.items() if not (saved and name in KEYS_OF_THE_FOLDER)}


def parse_toml(text: str, origin: str, *, by_user: bool = False, without: Collection[str] = ()) -> dict[str, Any]:
    """Values by key from TOML text, `without` some names; `origin` names the text in errors.

    A whole number is accepted where a number is expected. In text written by a user, `~` in paths is expanded.
    """
    values: dict[str, Any] = {}
    try:
        for spelled, value in files.parse_toml(text).items():
            name = spelled.replace("-", "_")
            if name in without:
                continue
            if name in values:
                raise UsageError(f"{spelled!r} is given twice; keep one")
            values[name] = value if name == "augment" else checked(spelled, value, by_user=by_user)
    except ValueError as error:
        raise UsageError(f"{origin}: not TOML: {error}") from error
    except UsageError as error:
        raise UsageError(f"{origin}: {error}") from None
    return expanded(values)


def checked(spelled: str, value: Any, *, by_user: bool) -> Any:
    """The value of a key; UsageError for an unknown key or a value that cannot be used."""
    name = spelled.replace("-", "_")
    if name not in KEYS:
        near = did_you_mean(spelled, [*NAMES, "augment"], "see dptrain train --help", EXPLANATIONS)
        tables = "; keys are at the top level, not in tables" * isinstance(value, dict)
        raise UsageError(f"unknown key {shown(repr(spelled), 60)}{tables}; {near}")
    return from_toml(KEYS[name], value, by_user=by_user)


def to_toml(config: TrainConfig, *, folder: bool = True) -> str:
    """The configuration as TOML that `parse_toml` reads back; without `folder`, without the keys of the run folder."""
    values = asdict(config)
    kept = [name for name in NAMES if folder or NAMES[name] not in KEYS_OF_THE_FOLDER]
    return tomli_w.dumps({name: values[NAMES[name]] for name in kept})


def merged(*sources: Mapping[str, Any]) -> TrainConfig:
    """A configuration from several sources; later ones win. The optimizer decides the default learning rate.

    UsageError for a key that the optimizer does not take, if the last source, the flags, has it, or if its value is not
    the default (a saved configuration has every key); and for a flag without the other that it needs.
    """
    values: dict[str, Any] = {}
    for source in sources:
        values |= expanded(source)
    optimizer = values.get("optimizer", KEYS["optimizer"].default)
    if optimizer in OPTIMIZERS:
        values.setdefault("lr", optimizer_class(optimizer).default_lr)
        others = set().union(*map(options_of, OPTIMIZERS)) - options_of(optimizer)
        for name in sorted(others & values.keys()):
            if name in sources[-1] or values[name] != KEYS[name].default:
                raise UsageError(f"{flag(name)} is not an option of --optimizer {optimizer}: leave it out")
    config = TrainConfig(**values)
    check_needs(config, sources[-1] if sources else {})  # only flags: a saved configuration has every key
    return config


def add_flags(parser: argparse._ActionsContainer, names: Iterable[str], *, defaults: bool = False) -> None:
    """Add the flags of keys by name, see `add_flags_of`."""
    add_flags_of(parser, [KEYS[name] for name in names], defaults=defaults)


def inline_table(table: dict[str, object]) -> str:
    """The inside of an inline table in TOML, as flags take it."""
    keys = (tomli_w.dumps({key: 0}).removesuffix(" = 0\n") for key in table)
    return ", ".join(f"{key} = {_toml_value(value)}" for key, value in zip(keys, table.values(), strict=True))


def _toml_value(value: object) -> str:
    """A value in TOML, on one line."""
    if isinstance(value, dict):
        return f"{{{inline_table(value)}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(_toml_value, value))}]"
    return tomli_w.dumps({"x": value}).removeprefix("x = ").removesuffix("\n")
