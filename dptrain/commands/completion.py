"""`dptrain completion SHELL`: a script with which a shell completes commands, flags, choices and file names."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Iterator, Sequence

from dptrain.commands import ALIASES, COMMANDS, PROGRAMS
from dptrain.config.train import KEYS
from dptrain.errors import UsageError
from dptrain.system.arguments import Parser, path_argument
from dptrain.system.failures import failure
from dptrain.system.keys import flag
from dptrain.system.start import start_program
from dptrain.system.streams import finish_output, write_to_stderr

SHELLS = ("bash", "zsh", "tcsh")
FOLDERS = {"data", "folder", "run_dir"}  # arguments that are folders
EXAMPLES = """
examples:
  dptrain completion bash > ~/.dptrain.bash    read by `source` in ~/.bashrc
  dptrain completion zsh > ~/.zfunc/_dptrain   if ~/.zfunc is in zsh's fpath
  dptrain completion tcsh > ~/.dptrain.tcsh    read by `source` in ~/.tcshrc
"""


def make_parser() -> Parser:
    """The parser of this command."""
    parser = Parser(
        prog="dptrain completion",
        description="Print a script that completes commands, flags and file names in a shell.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("shell", choices=SHELLS, help="the shell that reads the script")
    return parser


def main(arguments: Sequence[str]) -> int:
    """Print the script; returns the exit status."""
    start_program()
    try:
        shell = make_parser().parse_args(arguments).shell
        print(script(shell))
        finish_output()
    except SystemExit:  # --help
        finish_output()
    except Exception as error:
        text, status, _ = failure(error)
        write_to_stderr(f"dptrain: error: {text}")
        return status
    return 0


def script(shell: str) -> str:
    """The completion script; UsageError if shtab is not installed."""
    try:
        import shtab
    except ImportError as error:
        raise UsageError("completion needs the package shtab; install it with: pip install shtab") from error
    parser = complete_parser()
    for action in _actions(parser):
        if action.dest in FOLDERS:
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
        elif action.type is path_argument or action.metavar in ("FILE", "PATH"):
            action.complete = shtab.FILE  # type: ignore[attr-defined]
    written: str = shtab.complete(parser, shell=shell)
    return written


def complete_parser() -> argparse.ArgumentParser:
    """A parser with all commands and all their flags, for shtab; the choices of keys are `choices`."""
    top = argparse.ArgumentParser(prog="dptrain")
    top.add_argument("--version", action="store_true", help="print the version")
    commands = top.add_subparsers()
    for name, purpose in COMMANDS.items():
        commands.add_parser(name, help=purpose, parents=[_parser_of(name)], add_help=False, aliases=_aliases(name))
    for action in _actions(top):
        if (flag(action.dest) in action.option_strings) and action.dest in KEYS:
            action.choices = KEYS[action.dest].metadata.get("choices")
        elif action.metavar and "|" in action.metavar and str(action.metavar).islower():
            action.choices = str(action.metavar).split("|")
    return top


def _parser_of(name: str) -> argparse.ArgumentParser:
    if name not in PROGRAMS:
        parser = Parser(prog=f"dptrain {name}", add_help=False)
        importlib.import_module(f"dptrain.commands.{name}").add_arguments(parser)
        return parser
    made: argparse.ArgumentParser = importlib.import_module(PROGRAMS[name]).make_parser()
    return made


def _aliases(name: str) -> list[str]:
    return [alias for alias, of in ALIASES.items() if of == name]


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """All actions of a parser and of its commands."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for one in action.choices.values():
                yield from _actions(one)
        else:
            yield action
