"""Start the trainer on R ranks with the right mpirun flags.

    python -m launch -n R [--mpirun PATH] [--dry-run] -- train data/cifar10 ...

What stands after `--` is dptrain's command line. The ranks run under Open MPI or MPICH, whichever mpirun is
found: the one named by --mpirun, else the one beside this Python, else the one on PATH.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from dptrain.errors import DptrainError, UsageError, did_you_mean
from launch.attempt import run_attempt
from launch.binding import this_host
from launch.mpirun import command_line, find_mpirun, mpirun_command, mpirun_kind, rank_environment

SHOW_CURSOR = "\x1b[?25h"  # the bar hides it, and ranks that mpirun ends cannot show it again
EXAMPLE = "python -m launch -n 2 -- train data/cifar10"
FLAGS = ("-n", "--ranks", "--mpirun", "--dry-run", "--help")


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are exceptions, to be printed in one line."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; for example: {EXAMPLE}")


def number_of_ranks(text: str) -> int:
    """A whole number of at least 1."""
    try:
        ranks = int(text)
    except ValueError:
        ranks = 0
    if ranks < 1:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a number of ranks, at least 1")
    return ranks


def make_parser() -> Parser:
    """The parser of what stands before `--`."""
    parser = Parser(
        prog="python -m launch",
        usage="python -m launch -n R [--mpirun PATH] [--dry-run] -- train DATA ...",
        description="Start dptrain on R ranks with the right mpirun flags; what stands after -- is its command line.",
        allow_abbrev=False,
    )
    parser.add_argument("-n", "--ranks", type=number_of_ranks, required=True, metavar="R", help="number of ranks")
    parser.add_argument(
        "--mpirun", metavar="PATH", help="mpirun of Open MPI or MPICH (default: beside this Python, else on PATH)"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the command on standard output, run nothing")
    return parser


def parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The launcher's own options and the trainer's command line; raises UsageError."""
    split = arguments.index("--") if "--" in arguments else len(arguments)
    options, unknown = make_parser().parse_known_args(arguments[:split])
    trainer = list(arguments[split + 1 :])
    if unknown and unknown[0].startswith("-"):
        raise UsageError(f"unknown flag {unknown[0]}: {did_you_mean(unknown[0].split('=')[0], FLAGS)}")
    if unknown or not trainer:
        found = f"found {unknown[0]!r} before it" if unknown else "found nothing there"
        raise UsageError(f"the trainer's command line comes after --, {found}; for example: {EXAMPLE}")
    return options, trainer


def launch(arguments: Sequence[str]) -> int:
    """Run the job that the command line asks for and return its status; raises DptrainError."""
    options, trainer = parse(arguments)
    columns = (os.get_terminal_size(sys.stdout.fileno()).columns or 80) if sys.stdout.isatty() else None
    environment = rank_environment(os.environ, columns)
    mpirun = find_mpirun(options.mpirun)
    kind = mpirun_kind(mpirun, environment)
    program = [sys.executable, "-m", "dptrain", *trainer]
    command = mpirun_command(program, options.ranks, mpirun, kind, this_host())
    print(
        command_line(command, environment, os.environ),
        file=sys.stdout if options.dry_run else sys.stderr,
        flush=True,
    )
    if options.dry_run:
        return 0
    try:
        return run_attempt(command, environment)
    finally:
        if columns is not None:
            sys.stdout.write(SHOW_CURSOR)
            sys.stdout.flush()


def main() -> int:
    """The command `python -m launch`."""
    try:
        return launch(sys.argv[1:])
    except DptrainError as error:
        print(f"launch: error: {error}", file=sys.stderr)
        return error.status


if __name__ == "__main__":
    sys.exit(main())
