"""Start the trainer on several ranks, on this host or on several.

    python -m launch -n R -- train data/cifar10 ...
    python -m launch --hosts node1:2,node2:2 -- train data/cifar10 ...
    python -m launch -n R --max-restarts K [--min-ranks M] -- train data/cifar10 --run-dir runs/NAME ...

After `--` comes dptrain's command line. The ranks run under Open MPI or MPICH, by the mpirun that is found. Python,
dptrain and the data must have the same paths on all hosts. What signals do is in `launch.signals`.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dptrain.errors import PREEMPTED, UsageError
from dptrain.system.arguments import Parser, argument, whole
from dptrain.system.blas import THREAD_VARIABLES
from dptrain.system.cores import VARIABLE as BIND
from dptrain.system.failures import failure
from dptrain.system.signals import EndedBySignal, ended_by_exception
from dptrain.system.start import start_program
from dptrain.system.streams import in_notebook, on_dumb_terminal, write_to_stderr

from .hosts import parse_hosts, read_hostfile, spread
from .output import SCREEN, report
from .signals import signal_label
from .supervise import Job, settings, supervise
from .targets import TARGETS, choose

# In a checkout this package lies at the top; an installed one is dptrain.launch.
PROGRAM = "python -m launch" if __package__ == "launch" else "dptrain launch"
EXAMPLE = f"{PROGRAM} -n 2 -- train data/cifar10"
EXAMPLES = f"""
examples:
  {EXAMPLE}
  {PROGRAM} -n 2 --max-restarts 3 -- train data/cifar10 --run-dir runs/one
  {PROGRAM} --hosts node1:2,node2:2 -- train data/cifar10
"""


def make_parser() -> Parser:
    """The launcher's flags."""
    parser = Parser(
        prog=PROGRAM,
        usage=f"{PROGRAM} [-n R] [--hosts HOST:RANKS,...] [...] -- train DATA ...",
        description="Start dptrain on several ranks, on one host or several.\nAfter -- comes dptrain's command line.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.advice_on_words = f"write dptrain's command line after --, for example: {EXAMPLE}"
    add = parser.add_argument
    ranks_help = "number of ranks (default: all ranks of --hosts or of the Slurm job)"
    add("-n", "--ranks", type=whole(), metavar="R", help=ranks_help)
    hosts = parser.add_mutually_exclusive_group()
    hosts.add_argument(
        "--hosts",
        type=argument(lambda text: parse_hosts(text.split(","))),
        metavar="HOST:RANKS,...",
        help="hosts, reached by ssh, and the ranks of each (default: this host, or the allocation in a Slurm job); "
        "without :RANKS all hosts share -n equally, or have one rank each",
    )
    file_help = "a file with one host in each line: HOST:RANKS or HOST slots=RANKS"
    hosts.add_argument("--hostfile", dest="hosts", type=argument(read_hostfile), metavar="FILE", help=file_help)
    add("--mpirun", metavar="PATH", help="mpirun of Open MPI or MPICH (default: beside this Python, else on PATH)")
    add("--target", choices=TARGETS, help="how ranks are started (default: by the mpirun that is found)")
    add(
        "--max-restarts",
        type=whole(0),
        default=0,
        metavar="K",
        help="restart a run that fails from its newest checkpoint, up to K times (default: 0); an attempt whose "
        "ranks do not begin does not count and is repeated up to 8 times in a row, after pauses of 1 to 60 s",
    )
    least_help = "each restart has one rank fewer, but at least M (default: R, always the same number)"
    add("--min-ranks", type=whole(), metavar="M", help=least_help)
    add("--elastic", action="store_true", help="continue without ranks that fail (Open MPI 5 or later)")
    add("--dry-run", action="store_true", help="print mpirun's command line and run nothing")
    add("--verbose", action="store_true", help="show mpirun's command line and all of its notices")
    return parser


def make_job(options: argparse.Namespace, trainer: list[str], columns: int | None) -> Job:
    """The job that the command line asks for; `columns` is the terminal's width. Raises DptrainError."""
    hosts = spread(options.hosts, options.ranks) if options.hosts else {}
    ranks = options.ranks or sum(hosts.values()) or allocated(os.environ)
    given = settings(trainer)
    check(options, ranks, trainer, given)
    environment = rank_environment(os.environ, columns)
    target = choose(options.target, options.mpirun, environment)
    if options.elastic or given.get("elastic"):
        target.make_elastic()
        trainer = trainer if given.get("elastic") else [*trainer, "--elastic"]
    return Job(
        trainer=trainer,
        ranks=ranks,
        target=target,
        environment=environment | target.variables(environment, hosts),
        hosts=hosts,
        max_restarts=options.max_restarts,
        min_ranks=options.min_ranks or ranks,
        run_dir=Path(given["run_dir"]) if options.max_restarts else None,
        verbose=options.verbose,
    )


def check(options: argparse.Namespace, ranks: int, trainer: list[str], given: Mapping[str, Any]) -> None:
    """UsageError where flags contradict each other."""
    for flag, used in (("--max-restarts", options.max_restarts), ("--elastic", options.elastic)):
        if used and trainer[0] != "train":
            raise UsageError(f"{flag} is for train, found the command {trainer[0]!r}; remove the flag")
    if options.max_restarts and not given.get("run_dir"):
        raise UsageError(f"--max-restarts needs a run folder; for example: {EXAMPLE} --run-dir runs/first")
    if options.min_ranks is not None and not options.max_restarts:
        raise UsageError("--min-ranks applies to restarts only; add --max-restarts K")
    if options.min_ranks is not None and options.min_ranks > ranks:
        raise UsageError(f"--min-ranks is {options.min_ranks}, expected at most the number of ranks, {ranks}")


def allocated(environment: Mapping[str, str]) -> int:
    """The number of tasks of the Slurm job that this is; UsageError outside one."""
    for name in ("SLURM_NTASKS", "SLURM_JOB_NUM_NODES"):
        if environment.get(name, "").isdecimal():
            return int(environment[name])
    raise UsageError(f"-n/--ranks or --hosts is required; for example: {EXAMPLE}")


def rank_environment(environment: Mapping[str, str], columns: int | None = None) -> dict[str, str]:
    """The environment of the ranks: one BLAS thread each, binding to cores, a home, and how to show progress.

    `columns` is the width of the launcher's terminal, None without one: Open MPI gives ranks a terminal without a
    width, MPICH a pipe. The user's DPTRAIN_PROGRESS and DPTRAIN_BIND are kept.
    """
    made = {"DPTRAIN_PROGRESS": "lines" if columns is None else "bar", BIND: "cores", **environment}
    made.update(dict.fromkeys(THREAD_VARIABLES, "1"))
    if made["DPTRAIN_PROGRESS"] == "bar" and columns is not None:
        made.update({"COLUMNS": str(columns), "TTY_COMPATIBLE": "1"})  # rich asks for these before it asks the stream
    if not made.get("HOME"):  # Open MPI does not start without it
        home = os.path.expanduser("~")  # noqa: PTH111 - Path.home() raises for a user who is not in the database
        made["HOME"] = home if home != "~" else tempfile.gettempdir()
    return made


def command_line(command: Sequence[str], environment: Mapping[str, str], inherited: Mapping[str, str]) -> str:
    """The command as one line for a shell, with the variables that differ from the `inherited` ones in front."""
    changed = [f"{name}={shlex.quote(value)}" for name, value in environment.items() if inherited.get(name) != value]
    return " ".join([*changed, shlex.join(command)])


def launch(arguments: Sequence[str]) -> int:
    """Run the job that the command line asks for and return its status; raises DptrainError."""
    split = arguments.index("--") if "--" in arguments else len(arguments)
    if "train" in arguments[:split]:
        raise UsageError(f"found train without -- before it; for example: {EXAMPLE}")
    options = make_parser().parse_args(arguments[:split])
    trainer = list(arguments[split + 1 :])
    if not trainer:
        raise UsageError(f"found nothing after --, expected dptrain's command line; for example: {EXAMPLE}")
    try:
        with ended_by_exception():
            job = make_job(options, trainer, view_columns())
    except EndedBySignal as ended:
        report(f"stopped by {signal_label(ended.status - 128)} before the job was started: nothing was lost")
        return PREEMPTED if trainer[0] == "train" else ended.status
    command = command_line(job.command(job.ranks, job.hosts), job.environment, os.environ)
    if options.dry_run:
        print(command, flush=True)
        return 0
    if options.verbose:
        write_to_stderr(command)
    status = supervise(job)
    if status == 0 and SCREEN.lost is not None and trainer[0] != "train":
        raise SCREEN.lost  # the output is the result; training continues without a terminal or a reader
    return status


def view_columns() -> int | None:
    """The terminal's width for a live view; None where there is none: no terminal, TERM=dumb, a notebook."""
    if not sys.stdout.isatty() or in_notebook() or on_dumb_terminal():
        return None
    return os.get_terminal_size(sys.stdout.fileno()).columns or 80


def main(arguments: Sequence[str] | None = None) -> int:
    """The command `python -m launch`, or `dptrain launch`; returns the exit status."""
    start_program()
    try:
        return launch(sys.argv[1:] if arguments is None else arguments)
    except SystemExit:  # --help
        return 0
    except Exception as error:
        text, status, _ = failure(error)
        if text:
            write_to_stderr(f"launch: error: {text}")
        return status


if __name__ == "__main__":
    sys.exit(main())
