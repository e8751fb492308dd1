"""The flags of configuration keys."""

from __future__ import annotations

import argparse
import functools
from dataclasses import Field, fields
from typing import Any

from dptrain.config.files import parse_table
from dptrain.config.keys import flag, kind
from dptrain.config.train import BORDERS, SUBJECTS
from dptrain.system.arguments import argument

METAVARS = {int: "N", float: "X", str: "PATH", dict: "TOML"}


def add_train_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of all keys but `data`, in one group a subject. A flag that is not given sets no attribute."""
    for subject in SUBJECTS:
        group = parser.add_argument_group(subject.__doc__)
        for one in fields(subject):
            if one.name != "data":
                group.add_argument(flag(one.name), default=argparse.SUPPRESS, **options(one))
            if one.name == "flip":
                group.add_argument(
                    "--augment",
                    metavar="|".join(BORDERS),
                    default=argparse.SUPPRESS,
                    help="short for --crop BORDER --flip (none: neither)",
                )


def options(one: Field[Any]) -> dict[str, Any]:
    """The arguments of argparse's `add_argument` for a key."""
    rules, type_ = one.metadata, kind(one)
    example = f", such as '{rules['example']}'" if "example" in rules else ""
    empty = type_ is dict or one.default is False or one.default == ""
    default = "" if empty else f" (default: {'on' if one.default is True else one.default})"
    help = {"help": (rules["help"] + example + default).replace("%", "%%")}
    if type_ is bool:
        return help | {"action": argparse.BooleanOptionalAction}
    if "choices" in rules:
        return help | {"metavar": "|".join(rules["choices"])}  # checked with all other rules, for a better message
    read = functools.partial(parse_table, name=one.name) if type_ is dict else argument(rules.get("read", type_))
    return help | {"type": read, "metavar": rules.get("metavar", METAVARS[type_])}
