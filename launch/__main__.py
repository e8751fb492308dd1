"""Start the trainer on several ranks, on this host or on several.

    python -m launch -n R -- train data/cifar10 ...
    python -m launch --hosts node1:2,node2:2 -- train data/cifar10 ...
    python -m launch -n R --max-restarts K [--min-ranks M] -- train data/cifar10 --run-dir runs/NAME ...
    python -m launch -n R --elastic -- train data/cifar10 ...

After `--` comes dptrain's command line. The ranks run under Open MPI or MPICH, by the mpirun that is found. Each rank
computes on its share of its host's cores; DPTRAIN_BIND=none turns that off. Python, dptrain and the data must have the
same paths on all hosts. A job has succeeded when the run itself reports success, whatever mpirun returns.

After Ctrl-C (SIGINT), SIGTERM, SIGHUP or another signal that announces an end, `train` saves a checkpoint and ends with
status 75; a second one, more than 2 seconds later, ends the job at once. Ctrl-Z stops the whole job; fg and bg continue
it. Signals that are ignored when the launcher starts stay ignored. No process of the job is left on this host.
"""

from __future__ import annotations

import argparse
import errno
import os
import shlex
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from dptrain.errors import PREEMPTED, OutputError, ReaderGoneError, UsageError
from dptrain.system.arguments import Parser, whole
from dptrain.system.blas import THREAD_VARIABLES
from dptrain.system.cores import VARIABLE as BIND
from dptrain.system.failures import failure
from dptrain.system.signals import EndedBySignal, ended_by_exception
from dptrain.system.start import start_program
from dptrain.system.streams import drop_failed_writes, in_notebook, write_to_stderr

from .hosts import first_places, parse_hosts, places_of, read_hostfile, spread
from .job import Job, is_train, settings
from .output import SCREEN, say
from .signals import described
from .supervise import supervise
from .targets import TARGETS, choose

# In a checkout this package lies at the top; an installed one is dptrain.launch.
PROGRAM = "python -m launch" if __package__ == "launch" else "dptrain launch"
EXAMPLE = f"{PROGRAM} -n 2 -- train data/cifar10"
RESTARTED = f"{PROGRAM} -n 2 --max-restarts 3 -- train data/cifar10 --run-dir runs/first"


class LauncherParser(Parser):
    """The parser of the launcher's flags, which come before `--`."""

    advice = f"for example: {EXAMPLE}"
    advice_on_words = f"write dptrain's command line after --, for example: {EXAMPLE}"


def make_parser() -> Parser:
    """The launcher's flags."""
    parser = LauncherParser(
        prog=PROGRAM,
        usage=f"{PROGRAM} [-n R] [--hosts HOST:RANKS,...] [--max-restarts K [--min-ranks M]] [--elastic] [...] "
        "-- train DATA ...",
        description="Start dptrain on several ranks, on one host or several. After -- comes dptrain's command line.",
    )
    add = parser.add_argument
    add(
        "-n",
        "--ranks",
        type=whole(),
        metavar="R",
        help="number of ranks (default: all ranks of --hosts or of the Slurm job)",
    )
    hosts = parser.add_mutually_exclusive_group()
    hosts.add_argument(
        "--hosts",
        metavar="HOST:RANKS,...",
        help="hosts, reached by ssh, and the ranks of each (default: this host, or the allocation in a Slurm job); "
        "without :RANKS all hosts share -n equally, or have one rank each",
    )
    hosts.add_argument(
        "--hostfile", metavar="FILE", help="a file with one host in each line: HOST:RANKS or HOST slots=RANKS"
    )
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
    add(
        "--min-ranks",
        type=whole(),
        metavar="M",
        help="each restart has one rank fewer, but at least M (default: R, always the same number)",
    )
    add("--elastic", action="store_true", help="continue without ranks that fail (Open MPI 5 or later)")
    add("--dry-run", action="store_true", help="print mpirun's command line and run nothing")
    add("--verbose", action="store_true", help="show mpirun's command line and all of its notices")
    return parser


def parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The launcher's own options and the trainer's command line; raises UsageError."""
    split = arguments.index("--") if "--" in arguments else len(arguments)
    options = make_parser().parse_args(arguments[:split])
    trainer = list(arguments[split + 1 :])
    if not trainer:
        raise UsageError(f"found nothing after --, expected dptrain's command line; for example: {EXAMPLE}")
    return options, trainer


def make_job(options: argparse.Namespace, trainer: list[str], launcher: Sequence[str], columns: int | None) -> Job:
    """The job that the command line asks for; `columns` is the terminal's width. Raises DptrainError."""
    hosts = []
    if options.hosts is not None:
        hosts = spread(parse_hosts(options.hosts.split(","), "--hosts"), options.ranks)
    elif options.hostfile is not None:
        hosts = spread(read_hostfile(options.hostfile), options.ranks)
    ranks = options.ranks or places_of(hosts) or allocated(os.environ)
    check(options, ranks, trainer)
    given = settings(trainer)
    run_dir = Path(given["run_dir"]) if options.max_restarts and given.get("run_dir") else None
    if options.max_restarts and run_dir is None:
        raise UsageError(
            "--max-restarts: restarts need a run folder with checkpoints, and no --run-dir is given; "
            f"for example: {RESTARTED}"
        )
    environment = rank_environment(os.environ, columns)
    target = choose(options.target, options.mpirun, environment)
    if options.elastic or given.get("elastic"):
        target.make_elastic()
        trainer = trainer if given.get("elastic") else [*trainer, "--elastic"]
    return Job(
        trainer,
        ranks,
        target,
        environment | target.variables(environment, hosts),
        hosts,
        options.max_restarts,
        options.min_ranks or ranks,
        run_dir,
        options.verbose,
        launcher,
    )


def allocated(environment: Mapping[str, str]) -> int:
    """The number of tasks of the Slurm job that this is; UsageError outside one."""
    for name in ("SLURM_NTASKS", "SLURM_JOB_NUM_NODES"):
        if environment.get(name, "").isdecimal():
            return int(environment[name])
    raise UsageError(f"-n/--ranks or --hosts is required; for example: {EXAMPLE}")


def rank_environment(environment: Mapping[str, str], columns: int | None = None) -> dict[str, str]:
    """The environment the ranks inherit: one BLAS thread each, cores of their own, a home, how to show progress.

    `columns` is the width of the terminal that watches the job, None without one. A rank cannot find out, as mpirun
    stands in between: Open MPI gives it a pseudo-terminal of no width, MPICH a pipe. Open MPI does not start
    without HOME. A DPTRAIN_PROGRESS or DPTRAIN_BIND that the user has set stays.
    """
    made = {"DPTRAIN_PROGRESS": "lines" if columns is None else "bar", BIND: "cores", **environment}
    made.update(dict.fromkeys(THREAD_VARIABLES, "1"))
    if made["DPTRAIN_PROGRESS"] == "bar" and columns is not None:
        made.update({"COLUMNS": str(columns), "TTY_COMPATIBLE": "1"})  # rich asks for these before it asks the stream
    if not made.get("HOME"):
        # Without HOME expanduser asks the user database, where a container's user may be missing.
        made.pop("HOME", None)
        home = os.path.expanduser("~")  # noqa: PTH111 - Path.home() raises for such a user
        made["HOME"] = home if home != "~" else tempfile.gettempdir()
    return made


def command_line(command: Sequence[str], environment: Mapping[str, str], inherited: Mapping[str, str]) -> str:
    """The command as one line for a shell, with the variables that differ from the `inherited` ones in front."""
    changed = [f"{name}={shlex.quote(value)}" for name, value in environment.items() if inherited.get(name) != value]
    return " ".join([*changed, shlex.join(command)])


def check(options: argparse.Namespace, ranks: int, trainer: list[str]) -> None:
    """UsageError where flags contradict each other."""
    if options.min_ranks is not None and not options.max_restarts:
        raise UsageError("--min-ranks applies to restarts only; add --max-restarts K")
    if options.min_ranks is not None and options.min_ranks > ranks:
        raise UsageError(f"--min-ranks is {options.min_ranks}, expected at most the number of ranks, {ranks}")
    if trainer[0] == "launch" or (trainer[0] == "data-prep" and ranks > 1):
        raise UsageError(
            f"{trainer[0]} runs as one process: start it as `dptrain {trainer[0]} ...`, without a launcher"
        )
    for flag, given in (("--max-restarts", options.max_restarts), ("--elastic", options.elastic)):
        if given and not is_train(trainer):
            raise UsageError(f"{flag} is for train, found the command {trainer[0]!r}; remove the flag")


def launch(arguments: Sequence[str]) -> int:
    """Run the job that the command line asks for and return its status; raises DptrainError."""
    options, trainer = parse(arguments)
    launcher = sys.orig_argv[: sys.orig_argv.index("--")] if "--" in sys.orig_argv else []
    try:
        with ended_by_exception():
            job = make_job(options, trainer, launcher, bar_columns())
    except EndedBySignal as ended:
        say(f"stopped by {described(ended.status - 128)} before the job was started: nothing is lost")
        return PREEMPTED if is_train(trainer) else ended.status
    command = command_line(job.command(job.ranks, first_places(job.hosts, job.ranks)), job.environment, os.environ)
    if options.dry_run:
        print(command, flush=True)
        return 0
    if options.verbose:
        write_to_stderr(command)
    drop_failed_writes()  # a job outlives its terminal and the reader of its output
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


def main(arguments: Sequence[str] | None = None) -> int:
    """The command `python -m launch`, or `dptrain launch`; returns the exit status."""
    start_program()
    try:
        return launch(sys.argv[1:] if arguments is None else arguments)
    except SystemExit:  # --help
        return 0
    except Exception as error:
        text, status = failure(error)
        if text:
            write_to_stderr(f"launch: error: {text}")
        return status


if __name__ == "__main__":
    sys.exit(main())
