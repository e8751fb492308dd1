"""The parser of `dptrain`."""

from __future__ import annotations

import argparse
import importlib
from typing import Any

import dptrain
from dptrain.commands import COMMANDS, PROGRAMS
from dptrain.system.arguments import Parser

DESCRIPTION = "Distributed data-parallel training of convolutional networks on CPUs."
EXAMPLES = """
examples:
  dptrain prep cifar10 data/cifar10            pack a data set
  dptrain train data/cifar10                   train on all cores
  dptrain launch -n 2 -- train data/cifar10    the same on 2 ranks
  dptrain eval runs/RUN data/cifar10           evaluate the last checkpoint

`dptrain COMMAND --help` describes the flags of a command.
`dptrain train -h` shows only the most used ones.
"""


def build_parser(command: str = "") -> Parser:
    """The parser of all commands, with the flags of one of them; the modules of the others are not imported.

    Its result has the module of the command as `command`.
    """
    parser = Parser(
        prog="dptrain",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="dptrain [--help] [--version] COMMAND ...",
    )
    parser.add_argument("--version", action="version", version=f"dptrain {dptrain.__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND [...]", prog="dptrain")
    for name, purpose in COMMANDS.items():
        chosen = name == command and name not in PROGRAMS
        module: Any = importlib.import_module(f"dptrain.commands.{name}") if chosen else None
        options: dict[str, Any] = {"help": purpose, "description": f"{purpose[0].upper()}{purpose[1:]}."}
        options |= {"epilog": getattr(module, "EXAMPLES", ""), "formatter_class": argparse.RawDescriptionHelpFormatter}
        one = commands.add_parser(name, **options, add_help=not hasattr(module, "ADDS_HELP"))
        if chosen:
            module.add_arguments(one)
            one.set_defaults(command=module)
    return parser
