"""The flags of configuration keys."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Iterable
from dataclasses import Field
from typing import Any

from dptrain.config.files import from_text
from dptrain.config.keys import flag, kind
from dptrain.config.train import KEYS

METAVARS = {int: "N", float: "X", str: "PATH", dict: "TOML"}


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
