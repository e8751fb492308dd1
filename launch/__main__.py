"""Start the trainer on R ranks with the right mpirun flags.

    python -m launch -n R [--mpirun PATH] [--dry-run] -- train data/cifar10 ...
    python -m launch -n R --max-restarts K [--min-ranks M] -- train data/cifar10 --run-dir runs/NAME ...
    python -m launch -n R --elastic -- train data/cifar10 ...

After `--` comes dptrain's command line. The ranks run under Open MPI or MPICH, whichever mpirun is found: the one named
by --mpirun, else the one beside this Python, else the one on PATH.

With --max-restarts a run that fails is started again from its newest checkpoint, up to K times; with --min-ranks each
time on one rank fewer, but at least on M. An attempt whose ranks do not begin does not count: a host may be out of
reach for a while. It is repeated after 1, 2, 4, ... 60 s, up to 8 times in a row.
With --min-ranks, hosts of a hostfile that cannot be reached are left out.

With --elastic a run continues without ranks that fail. A job has succeeded when the run itself reports success,
whatever mpirun returns. --verbose shows mpirun's command line and notices.

After Ctrl-C (SIGINT), SIGTERM, SIGHUP or another signal that announces an end, `train` saves a checkpoint and ends with
status 75; a second one, more than 2 seconds later, ends the job at once. Ctrl-Z stops the whole job; fg and bg continue
it. Signals that are ignored when the launcher starts stay ignored. No process of the job is left on this host.
"""

from __future__ import annotations

import argparse
import errno
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from dptrain.errors import PREEMPTED, DptrainError, OutputError, ReaderGoneError, UsageError
from dptrain.system.limits import refused
from dptrain.system.notebook import in_notebook
from dptrain.system.start import start_program
from dptrain.system.streams import drop_failed_writes, write_to_stderr
from dptrain.system.suggestions import did_you_mean
from dptrain.system.text import shown

from .mpirun import (
    command_line,
    find_mpirun,
    limits_of_silence,
    mpirun_kind,
    rank_environment,
    require_elastic,
)
from .screen import SCREEN, say
from .signals import EndedEarlyError, ended_early
from .supervise import Job, supervise
from .trainer import is_elastic, is_train, run_dir_of

# In a checkout this package lies at the top; an installed one is dptrain.launch.
PROGRAM = "python -m launch" if __package__ == "launch" else "dptrain launch"
EXAMPLE = f"{PROGRAM} -n 2 -- train data/cifar10"
RESTARTED = f"{PROGRAM} -n 2 --max-restarts 3 -- train data/cifar10 --run-dir runs/first"
FLAGS = ("-n", "--ranks", "--mpirun", "--max-restarts", "--min-ranks", "--elastic", "--dry-run", "--verbose", "--help")


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
        usage=f"{PROGRAM} -n R [--max-restarts K [--min-ranks M]] [--elastic] [--mpirun PATH] "
        "[--dry-run] [--verbose] -- train DATA ...",
        description="Start dptrain on R ranks with the right mpirun flags. After -- comes dptrain's command line.",
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
        help="start a run that fails again from its newest checkpoint, up to K times (default: 0); an attempt whose "
        "ranks do not begin does not count and is repeated up to 8 times in a row, after pauses of 1 to 60 s",
    )
    parser.add_argument(
        "--min-ranks",
        type=number_of_ranks,
        metavar="M",
        help="each restart has one rank fewer, but at least M (default: R, always the same number)",
    )
    parser.add_argument(
        "--elastic",
        action="store_true",
        help="continue without ranks that fail (Open MPI 5 or later)",
    )
    parser.add_argument("--dry-run", action="store_true", help="print mpirun's command line and run nothing")
    parser.add_argument("--verbose", action="store_true", help="show mpirun's command line and all of its notices")
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
            "--max-restarts: restarts need a run folder with checkpoints, and no --run-dir is given; "
            f"for example: {RESTARTED}"
        )
    environment = rank_environment(os.environ, columns)
    mpirun = find_mpirun(options.mpirun)
    kind = mpirun_kind(mpirun, environment)
    environment |= limits_of_silence(kind, environment)
    if elastic:
        require_elastic(mpirun, environment)
        trainer = trainer if is_elastic(trainer) else [*trainer, "--elastic"]
    restarts, least = options.max_restarts, options.min_ranks or options.ranks
    return Job(trainer, options.ranks, mpirun, kind, environment, restarts, least, run_dir, elastic, options.verbose)


def check(options: argparse.Namespace, trainer: list[str]) -> None:
    """UsageError where flags do not go together."""
    if options.min_ranks is not None and not options.max_restarts:
        raise UsageError("--min-ranks applies to restarts only; add --max-restarts K")
    if options.min_ranks is not None and options.min_ranks > options.ranks:
        raise UsageError(f"--min-ranks is {options.min_ranks}, expected at most the number of ranks, {options.ranks}")
    if trainer[0] == "launch" or (trainer[0] == "data-prep" and options.ranks > 1):
        raise UsageError(
            f"{trainer[0]} runs as one process: start it as `dptrain {trainer[0]} ...`, without a launcher"
        )
    for flag, given in (("--max-restarts", options.max_restarts), ("--elastic", options.elastic)):
        if given and not is_train(trainer):
            raise UsageError(f"{flag} is for train, found the command {trainer[0]!r}; remove the flag")


def launch(arguments: Sequence[str]) -> int:
    """Run the job that the command line asks for and return its status; raises DptrainError."""
    options, trainer = parse(arguments)
    try:
        with ended_early():
            job = make_job(options, trainer, bar_columns())
    except EndedEarlyError as ended:
        say(f"stopped by {ended} before the job was started: nothing is lost")
        return PREEMPTED if is_train(trainer) else 128 + ended.number
    job = replace(job, again=[*own_command(), *arguments[: arguments.index("--")]])
    command = command_line(job.command(job.ranks), job.environment, os.environ)
    if options.dry_run:
        print(command, flush=True)
        return 0
    if options.verbose:
        write_to_stderr(command)
    drop_failed_writes()  # a job outlives its terminal and whoever reads its output
    status = supervise(job)
    if status == 0 and SCREEN.lost is not None and not is_train(trainer):
        reader_gone = SCREEN.lost.errno == errno.EPIPE
        raise (ReaderGoneError if reader_gone else OutputError)(
            f"standard output cannot be written: {SCREEN.lost.strerror}; what {trainer[0]} has printed is lost"
        )
    return status


def bar_columns() -> int | None:
    """The terminal's width for a progress bar; None without a terminal, and in a notebook, which saves each frame."""
    if not sys.stdout.isatty() or in_notebook():
        return None
    return os.get_terminal_size(sys.stdout.fileno()).columns or 80


def own_command() -> list[str]:
    """The words that started this program, up to its arguments."""
    python, script = sys.orig_argv[0], Path(sys.argv[0])
    if __package__ == "launch":
        return [python, "-m", "launch"]
    if script.name == "__main__.py":
        return [python, "-m", "dptrain", "launch"]
    return [script.name if shutil.which(script.name) == str(script) else str(script), "launch"]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command `python -m launch`, or `dptrain launch`; returns the exit status."""
    start_program()
    try:
        return launch(sys.argv[1:] if arguments is None else arguments)
    except ReaderGoneError as error:
        return error.status
    except Exception as error:
        known = error if isinstance(error, DptrainError) else refused(error)
        if known is None:
            raise
        write_to_stderr(f"launch: error: {shown(known)}")
        return known.status


if __name__ == "__main__":
    sys.exit(main())
