"""The configuration from TOML files and flags, and its saved form.

Values come from the defaults, then a TOML file, then flags; the merged result is saved with the run.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import Field, asdict
from pathlib import Path
from typing import Any

import tomli_w

from dptrain.config.keys import Scope, check, flag, kind, written
from dptrain.config.train import BORDERS, KEYS, TrainConfig
from dptrain.errors import UsageError
from dptrain.system import files
from dptrain.system.paths import dangling, typed_path
from dptrain.system.suggestions import EXPLANATIONS, did_you_mean
from dptrain.system.text import shown

TABLES = [name.replace("_", "-") for name, one in KEYS.items() if kind(one) is dict]


def read_toml(path: Path, notes: list[str] | None = None) -> dict[str, Any]:
    """Values by key from a TOML file; UsageError when it cannot be read or has an unknown key.

    Of the config.toml in a run folder, `run-dir` and `resume` do not count: earlier versions saved them, and with them
    a new run would continue in the old folder. A note says so.
    """
    try:
        if why := dangling(path):
            raise ValueError(why)
        text = files.read_text(path)
    except OSError as error:
        raise UsageError(f"--config {shown(path)}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"--config {shown(path)}: {error}") from error
    values = parse_toml(text, shown(path), by_user=True)
    if path.name == "config.toml" and (path.parent / "checkpoints").is_dir():
        folder = [name for name, one in KEYS.items() if one.metadata["scope"] is Scope.FOLDER]
        dropped = [flag(name) for name in folder if values.pop(name, "auto") not in ("", "auto")]
        if dropped and notes is not None:
            notes.append(
                f"{shown(path)} was saved with a run, and its {' and '.join(dropped)} do not count: this is a new run; "
                f"to resume the saved one, give --run-dir {shown(path.parent)}"
            )
    return values


def parse_toml(text: str, origin: str, *, by_user: bool = False) -> dict[str, Any]:
    """Values by key from TOML text; `origin` names the text in errors.

    A whole number is accepted where a number is expected. In text written by a user, `~` in paths is expanded.
    """
    try:
        values: dict[str, Any] = {}
        for spelled, value in files.parse_toml(text).items():
            name = spelled.replace("-", "_")
            if name in values:
                raise UsageError(f"{spelled!r} is given twice; keep one")
            values[name] = value if name == "augment" else _value(name, spelled, value, by_user=by_user)
        return expand_augment(values)
    except ValueError as error:
        raise UsageError(f"{origin}: not TOML: {error}") from error
    except UsageError as error:
        raise UsageError(f"{origin}: {error}") from None


def _value(name: str, spelled: str, value: Any, *, by_user: bool) -> Any:
    """The checked value of one key."""
    if name not in KEYS and isinstance(value, dict):
        raise UsageError(
            f"table [{shown(spelled, 60)}]: write keys at the top level; the only tables are {', '.join(TABLES)}"
        )
    if name not in KEYS:
        names = (one.replace("_", "-") for one in KEYS)
        near = did_you_mean(spelled, [*names, "augment"], "see dptrain train --help", EXPLANATIONS)
        raise UsageError(f"unknown key {shown(repr(spelled), 60)}; {near}")
    one = KEYS[name]
    if type(value) is int and (kind(one) is float or "form" in one.metadata):
        value = kind(one)(value)
    check(one, value)
    return one.metadata["read"](value) if by_user and "read" in one.metadata and value != one.default else value


def to_toml(config: TrainConfig, *, folder: bool = True) -> str:
    """The configuration as TOML that `parse_toml` reads back; without `folder`, without the keys of the run folder."""
    values = asdict(config)
    return tomli_w.dumps(
        {
            name.replace("_", "-"): values[name]
            for name, one in KEYS.items()
            if folder or one.metadata["scope"] is not Scope.FOLDER
        }
    )


def merged(*sources: Mapping[str, Any]) -> TrainConfig:
    """A configuration from several sources; later ones win."""
    values: dict[str, Any] = {}
    for source in sources:
        values |= expand_augment(source)
    return TrainConfig(**values)


def expand_augment(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values with `augment`, the short form, as `crop` and `flip`, where these are not given."""
    rest = dict(values)
    if "augment" not in rest:
        return rest
    border = rest.pop("augment")
    if border not in BORDERS:
        raise UsageError(f"--augment is {written(border)}; {did_you_mean(str(border), BORDERS)}")
    return {"crop": border, "flip": border != "none"} | rest


def from_text(key: Field[Any], text: str) -> Any:
    """The checked value of a key from the text of its flag; a table is the inside of an inline table in TOML."""
    value: Any = text
    try:
        if kind(key) is dict:
            value = files.parse_toml(f"table = {{{text}}}")["table"]
        elif "read" in key.metadata:
            value = key.metadata["read"](text)
        elif kind(key) is not str:
            with contextlib.suppress(ValueError):
                value = kind(key)(text)
    except ValueError as error:
        raise UsageError(
            f"{flag(key.name)} {written(text)}: not TOML ({error}); write for example "
            f"{flag(key.name)} '{key.metadata['example']}'"
        ) from error
    except UsageError as error:
        raise UsageError(f"{flag(key.name)}: {error}") from None
    check(key, value)
    return value


def check_paths(config: TrainConfig) -> None:
    """UsageError for a path that is, or leads through, a symbolic link to nothing."""
    for name, one in KEYS.items():
        value = getattr(config, name)
        if one.metadata.get("read") is typed_path and value and (why := dangling(Path(value))):
            where = "the data set" if name == "data" else flag(name)
            raise UsageError(f"{where} {shown(value)}: {why}; name another path or correct the link")
