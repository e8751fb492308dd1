"""The configuration from defaults, then a TOML file, then flags; its flags, and its saved form."""

from __future__ import annotations

import argparse
import contextlib
import functools
from collections.abc import Collection, Iterable, Mapping
from dataclasses import Field, asdict
from pathlib import Path
from typing import Any

import tomli_w

from dptrain.config.keys import Scope, check, flag, kind
from dptrain.config.train import KEYS, TrainConfig
from dptrain.errors import UsageError
from dptrain.optim import OPTIMIZERS, optimizer_class, options_of
from dptrain.system import files
from dptrain.system.suggestions import EXPLANATIONS, did_you_mean
from dptrain.system.text import shown

NAMES = {name.replace("_", "-"): name for name in KEYS}  # names in TOML
METAVARS = {int: "N", float: "X", str: "PATH", dict: "TOML"}
NEEDED = {  # flags that are of use only with another: its name and value (None: any but the default)
    "alternating_flip": ("flip", None),
    "crop_pixels": ("crop", None),
    "step_epochs": ("schedule", "step"),
    "step_factor": ("schedule", "step"),
}
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
            values[name] = value if name == "augment" else _checked(spelled, value, by_user=by_user)
    except ValueError as error:
        raise UsageError(f"{origin}: not TOML: {error}") from error
    except UsageError as error:
        raise UsageError(f"{origin}: {error}") from None
    return _expand_augment(values)


def _checked(spelled: str, value: Any, *, by_user: bool) -> Any:
    name = spelled.replace("-", "_")
    if name not in KEYS:
        near = did_you_mean(spelled, [*NAMES, "augment"], "see dptrain train --help", EXPLANATIONS)
        tables = "; keys are at the top level, not in tables" * isinstance(value, dict)
        raise UsageError(f"unknown key {shown(repr(spelled), 60)}{tables}; {near}")
    key = KEYS[name]
    value = _typed_table(key, value)
    if type(value) is int and kind(key) in (float, str):
        value = kind(key)(value)
    check(key, value)
    return key.metadata["read"](value) if by_user and "read" in key.metadata and value != key.default else value


def to_toml(config: TrainConfig, *, folder: bool = True) -> str:
    """The configuration as TOML that `parse_toml` reads back; without `folder`, without the keys of the run folder."""
    values = asdict(config)
    kept = [name for name in NAMES if folder or NAMES[name] not in KEYS_OF_THE_FOLDER]
    return tomli_w.dumps({name: values[NAMES[name]] for name in kept})


def merged(*sources: Mapping[str, Any]) -> TrainConfig:
    """A configuration from several sources; later ones win. The optimizer decides the default learning rate.

    UsageError for a key that the optimizer does not take, if the last source, the flags, has it, or if its value is not
    the default (a saved configuration has every key); and for a flag of `NEEDED` without the other.
    """
    values: dict[str, Any] = {}
    for source in sources:
        values |= _expand_augment(source)
    optimizer = values.get("optimizer", KEYS["optimizer"].default)
    if optimizer in OPTIMIZERS:
        values.setdefault("lr", optimizer_class(optimizer).default_lr)
        others = set().union(*map(options_of, OPTIMIZERS)) - options_of(optimizer)
        for name in sorted(others & values.keys()):
            if name in sources[-1] or values[name] != KEYS[name].default:
                raise UsageError(f"{flag(name)} is not an option of --optimizer {optimizer}: leave it out")
    config = TrainConfig(**values)
    for name, (needed, value) in NEEDED.items():  # a saved configuration has every key, so only flags are checked
        if not has_effect(config, name) and sources and sources[-1].get(name):
            other = flag(needed) if value is None else f"{flag(needed)} {value}"
            raise UsageError(f"{flag(name)} has no effect without {other}: add that, or leave it out")
    return config


def has_effect(config: TrainConfig, name: str) -> bool:
    """False for a key of `NEEDED` whose other key has not the value that it needs."""
    if name not in NEEDED:
        return True
    needed, value = NEEDED[name]
    found = getattr(config, needed)
    return bool(found != KEYS[needed].default if value is None else found == value)


def _expand_augment(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values with `augment`, the short form, as `crop` and `flip`, where these are not given."""
    border = values.get("augment")
    short = {} if border is None else {"crop": border, "flip": border != "none"}
    return short | {name: value for name, value in values.items() if name != "augment"}


def _typed_table(key: Field[Any], value: Any) -> Any:
    """A table as its key wants it: with `dotted`, `first.bias = 3` is the name "first.bias", not a table in a table."""
    return _with_dotted_names(value) if key.metadata.get("dotted") and isinstance(value, dict) else value


def _with_dotted_names(table: Mapping[str, Any]) -> dict[str, Any]:
    names: dict[str, Any] = {}
    for name, value in table.items():
        if isinstance(value, dict) and value:
            names |= {f"{name}.{rest}": one for rest, one in _with_dotted_names(value).items()}
        else:
            names[name] = value
    return names


def from_text(key: Field[Any], text: str) -> Any:
    """The checked value of a key from the text of its flag; a table is the inside of an inline table in TOML."""
    name, value = flag(key.name), text
    try:
        text.encode()
        if kind(key) is dict:
            value = _typed_table(key, files.parse_toml(f"table = {{{text}}}")["table"])
        elif "read" in key.metadata:
            value = key.metadata["read"](text)
        elif kind(key) is not str:
            with contextlib.suppress(ValueError):
                value = kind(key)(text)
    except UnicodeEncodeError:
        raise UsageError(f"{name} is {shown(text)}, expected a name in UTF-8: rename the file or folder") from None
    except ValueError as error:
        example = f"{name} '{key.metadata['example']}'"
        raise UsageError(f"{name} {shown(repr(text), 200)}: not TOML ({error}); write for example {example}") from error
    except UsageError as error:
        raise UsageError(f"{name}: {error}") from None
    check(key, value)
    return value


def add_flags(parser: argparse._ActionsContainer, names: Iterable[str], *, defaults: bool = False) -> None:
    """Add the flags of keys. A flag that is not given sets no attribute, or with `defaults` the key's default."""
    for name in names:
        key = KEYS[name]
        default = argparse.SUPPRESS if not defaults else {} if kind(key) is dict else key.default
        if name == "data":
            parser.add_argument(name, nargs="?", default=default, **_options(key))
        else:
            parser.add_argument(flag(name), default=default, **_options(key))


def _options(key: Field[Any]) -> dict[str, Any]:
    """The arguments of argparse's `add_argument`."""
    more, type_ = key.metadata, kind(key)
    text = more["help"] + (f", as TOML: '{more['example']}'" if "example" in more else "")
    if type_ is not dict and key.default is not False and key.default != "":
        default = "on" if key.default is True else key.default
        text = f"{text[:-1]}; default: {default})" if text.endswith(")") else f"{text} (default: {default})"
    help = {"help": text.replace("%", "%%")}
    if type_ is bool:
        return help | {"action": argparse.BooleanOptionalAction}
    metavar = "|".join(more["choices"]) if "choices" in more else more.get("metavar", METAVARS[type_])
    return help | {"type": functools.partial(from_text, key), "metavar": metavar}
