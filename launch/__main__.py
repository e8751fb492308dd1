"""Start the trainer on R ranks with the right mpirun flags.

    python -m launch -n R [--mpirun PATH] [--dry-run] -- train data/cifar10 ...
    python -m launch -n R --max-restarts K [--min-ranks M] -- train data/cifar10 --run-dir runs/NAME ...
    python -m launch -n R --elastic -- train data/cifar10 ...

What stands after `--` is dptrain's command line. The ranks run under Open MPI or MPICH, whichever mpirun is
found: the one named by --mpirun, else the one beside this Python, else the one on PATH.

With --max-restarts a run that fails is started again from its newest checkpoint, up to K times; with --min-ranks
each time on one rank fewer, but on M at least. With --elastic a run goes on without ranks that fail.

SIGINT (Ctrl-C), SIGTERM or SIGUSR1 once: `train` saves a checkpoint and ends, status 75; twice: the job ends at
once. Whatever happens, no process of the job stays behind on this host.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from dptrain.errors import DptrainError, UsageError, did_you_mean

from .mpirun import command_line, find_mpirun, mpirun_kind, rank_environment, require_elastic
from .supervise import Job, supervise
from .trainer import is_elastic, is_train, run_dir_of

SHOW_CURSOR = "\x1b[?25h"  # the bar hides it, and ranks that mpirun ends cannot show it again
# In a checkout this package lies at the top; an installed one is dptrain.launch.
PROGRAM = "python -m launch" if __package__ == "launch" else "dptrain launch"
EXAMPLE = f"{PROGRAM} -n 2 -- train data/cifar10"
RESTARTED = f"{PROGRAM} -n 2 --max-restarts 3 -- train data/cifar10 --run-dir runs/first"
FLAGS = ("-n", "--ranks", "--mpirun", "--max-restarts", "--min-ranks", "--elastic", "--dry-run", "--help")


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


def number_of_restarts(text: str) -> int:
    """A whole number of at least 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a number of restarts, at least 0")
    return int(text)


def make_parser() -> Parser:
    """The parser of what stands before `--`."""
    parser = Parser(
        prog=PROGRAM,
        usage=f"{PROGRAM} -n R [--max-restarts K [--min-ranks M]] [--elastic] [--mpirun PATH] [--dry-run] "
        "-- train DATA ...",
        description="Start dptrain on R ranks with the right mpirun flags; what stands after -- is its command line.",
        allow_abbrev=False,
    )
    parser.add_argument("-n", "--ranks", type=number_of_ranks, required=True, metavar="R", help="number of ranks")
    parser.add_argument(
        "--mpirun", metavar="PATH", help="mpirun of Open MPI or MPICH (default: beside this Python, else on PATH)"
    )
    parser.add_argument(
        "--max-restarts",
        type=number_of_restarts,
        default=0,
        metavar="K",
        help="start a run that fails again from its newest checkpoint, up to K times (default: 0)",
    )
    parser.add_argument(
        "--min-ranks",
        type=number_of_ranks,
        metavar="M",
        help="each restart has one rank fewer, but at least M (default: R, always the same number)",
    )
    parser.add_argument(
        "--elastic", action="store_true", help="go on without ranks that fail (Open MPI 5 or later; adds train's flag)"
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


def make_job(options: argparse.Namespace, trainer: list[str], columns: int | None) -> Job:
    """The job that the command line asks for; `columns` is the terminal's width. Raises DptrainError."""
    check(options, trainer)
    elastic = options.elastic or (is_train(trainer) and is_elastic(trainer))
    run_dir = run_dir_of(trainer) if options.max_restarts else None
    if options.max_restarts and run_dir is None:
        raise UsageError(
            "--max-restarts: a run is started again from the checkpoints in its folder, and none is named; "
            f"give train a --run-dir, for example: {RESTARTED}"
        )
    environment = rank_environment(os.environ, columns)
    mpirun = find_mpirun(options.mpirun)
    kind = mpirun_kind(mpirun, environment)
    if elastic:
        require_elastic(mpirun, environment)
        trainer = trainer if is_elastic(trainer) else [*trainer, "--elastic"]
    ranks, least = options.ranks, options.min_ranks or options.ranks
    return Job(trainer, ranks, mpirun, kind, environment, options.max_restarts, least, run_dir, elastic)


def check(options: argparse.Namespace, trainer: list[str]) -> None:
    """UsageError where flags do not go together."""
    if options.min_ranks is not None and not options.max_restarts:
        raise UsageError("--min-ranks is for restarts, and there are none; give --max-restarts K too")
    if options.min_ranks is not None and options.min_ranks > options.ranks:
        raise UsageError(f"--min-ranks is {options.min_ranks}, expected at most the number of ranks, {options.ranks}")
    for flag, given in (("--max-restarts", options.max_restarts), ("--elastic", options.elastic)):
        if given and not is_train(trainer):
            raise UsageError(f"{flag} is for train, found the command {trainer[0]!r}; leave the flag out")


def launch(arguments: Sequence[str]) -> int:
    """Run the job that the command line asks for and return its status; raises DptrainError."""
    options, trainer = parse(arguments)
    columns = (os.get_terminal_size(sys.stdout.fileno()).columns or 80) if sys.stdout.isatty() else None
    job = make_job(options, trainer, columns)
    print(
        command_line(job.command(job.ranks), job.environment, os.environ),
        file=sys.stdout if options.dry_run else sys.stderr,
        flush=True,
    )
    if options.dry_run:
        return 0
    try:
        return supervise(job)
    finally:
        if columns is not None:
            sys.stdout.write(SHOW_CURSOR)
            sys.stdout.flush()


def main(arguments: Sequence[str] | None = None) -> int:
    """The command `python -m launch`, or `dptrain launch`; returns the exit status."""
    try:
        return launch(sys.argv[1:] if arguments is None else arguments)
    except DptrainError as error:
        print(f"launch: error: {error}", file=sys.stderr)
        return error.status


if __name__ == "__main__":
    sys.exit(main())
