"""The command line: train, eval, inspect; bench has a file of its own, data-prep and launch are packages.

Nothing here imports NumPy before `request_one_thread` has run.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
import json
import os
import socket
import sys
import threading
import traceback
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import dptrain
from dptrain.bench.command import add_bench
from dptrain.config.files import check_paths, merged, parse_toml, read_toml, unknown_key
from dptrain.config.flags import add_train_flags
from dptrain.config.train import KEYS, model_name
from dptrain.errors import (
    FAILED,
    PREEMPTED,
    READER_GONE,
    UNFORESEEN,
    USAGE,
    DptrainError,
    OutputError,
    PeerError,
    PreemptedError,
    RankLostError,
    ReaderGoneError,
    UsageError,
)
from dptrain.system import record
from dptrain.system.arguments import argument, path_argument
from dptrain.system.blas import request_one_thread
from dptrain.system.limits import refused
from dptrain.system.paths import typed_path
from dptrain.system.signals import EndedBySignal, ended_by_exception
from dptrain.system.start import start_program
from dptrain.system.streams import drop_failed_writes, finish_output, print_whole, write_to_stderr
from dptrain.system.suggestions import did_you_mean
from dptrain.system.text import shown, shown_lines

if TYPE_CHECKING:
    from dptrain.checkpoint.format import Checkpoint
    from dptrain.parallel.communicator import Communicator

LAST_WORDS = 5.0  # seconds that a rank waits for the others at its end, where MPI_Finalize is not to be called
# Commands with a parser of their own; a checkout also has them as `python -m data_prep` and `python -m launch`.
PACKAGES = {
    "data-prep": ("dptrain.data_prep.__main__", "run", "pack image data into shards; check a packed data set"),
    "launch": ("dptrain.launch.__main__", "main", "start train or another command on several ranks"),
}
COMMANDS = ("train", "eval", "inspect", "bench", *PACKAGES)


class Parser(argparse.ArgumentParser):
    """Reports what is wrong as a UsageError that names the nearest flag or command."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.allow_abbrev = False

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see {self.prog} --help")

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        """The arguments; a command or flag that is not known is an error."""
        if arguments and not arguments[0].startswith("-") and arguments[0] not in COMMANDS:
            raise UsageError(f"unknown command {arguments[0]!r}; {did_you_mean(arguments[0], COMMANDS)}")
        found, unknown = self.parse_known_args(arguments)
        if unknown:
            word = unknown[0].split("=")[0]
            if not word.startswith("-"):
                near = "quote it if it belongs to a flag"
            elif found.command is _train:
                near = unknown_key(word)
            else:
                near = did_you_mean(word, found.parser._option_string_actions, f"see {found.parser.prog} --help")
            raise UsageError(f"unknown argument {shown(repr(word), 100)}; {near}")
        return found


def build_parser() -> Parser:
    """All commands with their flags; those of train are made from TrainConfig."""
    parser = Parser(prog="dptrain", description="Data-parallel training of convolutional networks on CPUs.")
    parser.add_argument("--version", action="version", version=f"dptrain {dptrain.__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar=" | ".join(COMMANDS))
    train = commands.add_parser("train", help="train a network on a packed data set")
    train.set_defaults(command=_train, parser=train)
    train.add_argument(
        "data", nargs="?", type=argument(typed_path), default=argparse.SUPPRESS, help="folder of the packed data set"
    )
    train.add_argument("--config", type=path_argument, help="TOML file with keys named like the flags; flags win")
    train.add_argument("--json", action="store_true", help="end with one line of JSON: accuracy, step, params_sha256")
    add_train_flags(train)
    evaluate = commands.add_parser("eval", help="loss and accuracy of a checkpoint on a data set's test split")
    evaluate.set_defaults(command=_eval, parser=evaluate)
    evaluate.add_argument(
        "checkpoint", type=path_argument, help="checkpoint file, or a run folder for its newest checkpoint"
    )
    evaluate.add_argument("data", type=path_argument, help="folder of a packed data set")
    evaluate.add_argument(
        "--threads", type=_threads, default=0, metavar="N", help="shards computed side by side (0: all cores)"
    )
    evaluate.add_argument(
        "--model",
        type=argument(model_name),
        default="",
        metavar="NAME",
        help="FILE.py:FUNCTION of a checkpoint trained with one",
    )
    evaluate.add_argument("--json", action="store_true", help="print JSON")
    inspect = commands.add_parser("inspect", help="what a checkpoint holds")
    inspect.set_defaults(command=_inspect, parser=inspect)
    inspect.add_argument(
        "checkpoint", type=path_argument, help="checkpoint file, or a run folder for its newest checkpoint"
    )
    inspect.add_argument("--json", action="store_true", help="print JSON")
    add_bench(commands)
    for name, (_, _, purpose) in PACKAGES.items():
        commands.add_parser(name, help=purpose)  # listed here; `main` passes its arguments on
    return parser


def _threads(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r}, expected a whole number of at least 0")
    return int(text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status. Errors are one line for people, not a traceback."""
    start_program()
    record.begin()
    status = _main(arguments)
    if record.launched():
        from dptrain.parallel.communicator import launched_rank

        if launched_rank() == 0:
            record.report_end(status, retry=_retry(status))
    return status


def _main(arguments: Sequence[str] | None) -> int:
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments and arguments[0] in PACKAGES:
        module, function, _ = PACKAGES[arguments[0]]
        return int(getattr(importlib.import_module(module), function)(arguments[1:]))
    request_one_thread()
    parsed, wrong = argparse.Namespace(), None
    try:
        parsed = build_parser().parse(arguments)
    except UsageError as error:
        wrong = error  # reported when the ranks are connected, by one of them
    except SystemExit:  # --help or --version
        return _whole_output()
    except OutputError as error:
        return _fail_to_print(error)
    except Exception as error:
        return _fail_alone(error)
    try:
        return _run(parsed, wrong)
    except Exception as error:  # NumPy or MPI cannot be loaded
        return _fail_alone(error)


def _whole_output() -> int:
    """Status 0 if all output is written."""
    try:
        finish_output()
    except OutputError as error:
        return _fail_to_print(error)
    return 0


def _fail_to_print(error: OutputError) -> int:
    """Report it, unless it is as in `dptrain inspect RUN | head`, where nobody misses the rest; the exit status."""
    if not isinstance(error, ReaderGoneError):
        _complain(shown(error), error.status)
    drop_failed_writes()
    record.report_end(error.status)
    return error.status


def _run(parsed: argparse.Namespace, wrong: UsageError | None) -> int:
    """Connect the ranks and run the command; the exit status."""
    from dptrain.health.interruption import AskedToEndError
    from dptrain.parallel.communicator import Communicator, connect, together

    communicator = Communicator()
    try:
        communicator, connection = connect()
        with together(communicator):
            if wrong is not None:
                raise wrong
        # MPI libraries use some signals themselves, and a run keeps them until the step is made.
        ends = parsed.command is not _train and not communicator.uses_mpi
        with ended_by_exception() if ends else contextlib.nullcontext():
            status: int = parsed.command(parsed, communicator, connection)
            finish_output()
        if communicator.rank == 0:
            record.report_end(status, retry=_retry(status))
        return _leave(communicator, status)
    except PeerError as error:
        return _leave(communicator, error.status)
    except PreemptedError as end:
        _say_stopped(str(end), by=end.by, checkpoint=end.checkpoint, run_dir=end.run_dir)
        return _leave(communicator, end.status)
    except OutputError as error:
        return _end(communicator, _fail_to_print(error))
    except AskedToEndError as asked:
        _say_stopped(f"stopped by {asked} before the first step: nothing is lost")
        return _end(communicator, PREEMPTED)
    except KeyboardInterrupt as interrupt:
        status = interrupt.status if isinstance(interrupt, EndedBySignal) else 130
        _complain(": ".join(["interrupted", *map(shown, interrupt.args)]), status)
        return _end(communicator, status)
    except (Exception, SystemExit) as error:  # a user's layer may call sys.exit() on one rank
        text, status = _explained(error)
        if isinstance(error, DptrainError) and error.agreed:
            _complain(text, status)
            return _leave(communicator, status)
        where = f"rank {communicator.rank} on {socket.gethostname()}"
        text = f"{where} {text}" if status == UNFORESEEN else f"{where}: {text}" if communicator.size > 1 else text
        _complain(text, status)
        return _end(communicator, status)


def _fail_alone(error: Exception) -> int:
    """Report an error before the ranks are connected; the exit status."""
    text, status = _explained(error)
    _complain(text, status)
    return status


def _explained(error: BaseException) -> tuple[str, int]:
    """What to report of an error, and the exit status: one line; for an unforeseen exception its traceback too."""
    known = error if isinstance(error, DptrainError) else refused(error)
    if known is not None:
        return shown(known) + shown_lines(known.details), known.status
    what = traceback.format_exception_only(error)[-1].strip()
    return f"failed: {shown(what)}\n{shown_lines(traceback.format_exc())}", UNFORESEEN


def _complain(text: str, status: int) -> None:
    """Report an error: to the user, and to the launcher."""
    write_to_stderr(f"dptrain: error: {text}")
    record.report_end(status, text.split("\n")[0], retry=_retry(status))


def _retry(status: int) -> bool:
    """Whether the same command may succeed when it is started again."""
    return status not in (0, FAILED, USAGE, PREEMPTED, READER_GONE)


def _say_stopped(text: str, **more: str) -> None:
    """Report the end by a signal. The launcher, which knows more about the signal, reports it itself."""
    if not record.report_end(PREEMPTED, text, more=more):
        write_to_stderr(f"dptrain: {shown(text)}")


def _end_at_once(communicator: Communicator, status: int) -> None:
    """End the job on a second signal; called in a thread of this process."""
    record.report_end(status, "ended by a second signal")
    communicator.end_job(status)


def _leave(communicator: Communicator, status: int) -> int:
    """The exit status, when every rank ends by itself."""
    drop_failed_writes()  # from here on the status is decided
    if communicator.survives:
        # After a death MPI_Finalize hung in 4 of 28 runs (measured, Open MPI 5.0.11), and a rank may die just now. But
        # ranks must wait for each other: after a rank has left with an error, mpirun drops the output of the others.
        finish_output()
        guard = threading.Timer(LAST_WORDS, os._exit, (status,))
        guard.daemon = True
        with contextlib.suppress(RuntimeError):  # no more threads can be started
            guard.start()
        with contextlib.suppress(RankLostError):
            communicator.confirm()
        os._exit(status)
    return status


def _end(communicator: Communicator, status: int) -> int:
    """End every rank: the others may be waiting for this one."""
    from dptrain.parallel.communicator import launched_size

    drop_failed_writes()
    finish_output()
    communicator.abort(status)
    if communicator.size == 1 and launched_size() is not None:
        os._exit(status)  # interrupted while MPI started: leaving through MPI_Finalize would wait for the others
    return status


def _train(parsed: argparse.Namespace, communicator: Communicator, connection: str) -> int:
    from dptrain.health.interruption import signals_taken
    from dptrain.parallel.communicator import together
    from dptrain.report import REPORTERS
    from dptrain.report.end import EndOfRun
    from dptrain.training.events import Note, Reporter
    from dptrain.training.loop import train
    from dptrain.training.model_source import beside

    drop_failed_writes()  # a run outlives its terminal, its log's disk and whoever reads its output
    notes: list[str] = []
    with together(communicator):
        keys = {"augment", *KEYS}
        given = {name: value for name, value in vars(parsed).items() if name in keys}
        saved = read_toml(parsed.config, notes) if parsed.config else {}
        if "model" in saved:
            saved["model"] = beside(parsed.config, saved["model"])
        config = merged(saved, given)
        if not config.data:
            raise UsageError(
                "no data set: dptrain train FOLDER; pack one with: dptrain data-prep cifar10 data/cifar10, or without "
                "a download: dptrain data-prep shapes data/shapes"
            )
        check_paths(config)
    end = EndOfRun()
    with signals_taken(functools.partial(_end_at_once, communicator)) as interruption, ExitStack() as stack:
        reporters: list[Reporter] = [stack.enter_context(closing(kind())) for kind in REPORTERS]
        if communicator.rank == 0 and "run_dir" not in given:
            for note in notes:  # they say that the saved run folder does not count
                for reporter in reporters:
                    reporter.handle(Note(f"note   {note}"))
        summary = train(config, communicator, [*reporters, end], interruption, connection)
    if not end.reported:
        return 0  # another rank is rank 0 now; after deaths in an elastic run it may be any
    if parsed.json and not print_whole(json.dumps(summary)):
        # Not an error: the run is complete and saved, and a launcher or scheduler must not start it again.
        write_to_stderr("dptrain: the line of --json could not be written; the same figures end metrics.jsonl")
    record.report_end(0)
    return 0


def _eval(parsed: argparse.Namespace, communicator: Communicator, connection: str) -> int:
    from dptrain.parallel.communicator import together
    from dptrain.training.evaluate_checkpoint import evaluate_checkpoint

    with together(communicator):
        checkpoint = open_checkpoint(parsed.checkpoint)
    evaluation = evaluate_checkpoint(
        checkpoint,
        parsed.checkpoint,
        parsed.data,
        communicator,
        model=parsed.model,
        threads=parsed.threads,
        say=lambda line: write_to_stderr(f"dptrain: {line}"),
    )
    classes = checkpoint.origin.classes
    by_class = {
        name: right / count if count else None
        for name, right, count in zip(classes, evaluation.class_correct, evaluation.class_samples, strict=True)
    }
    if communicator.rank != 0:
        return 0
    if evaluation.warning:
        write_to_stderr(f"dptrain: WARNING: {shown(evaluation.warning)}")
    if parsed.json:
        figures = {"loss": evaluation.loss, "accuracy": evaluation.accuracy, "samples": evaluation.samples}
        code = {"changed_model_files": evaluation.changed_model_files, "model_warning": evaluation.warning}
        print(json.dumps({**figures, "correct": evaluation.correct, "class_accuracy": by_class, **code}))
        return 0
    print(f"test loss {evaluation.loss:.4f}, accuracy {100 * evaluation.accuracy:.2f} % ", end="")
    print(f"({evaluation.correct:,} of {evaluation.samples:,})")
    width = max(len(shown(name)) for name in classes)
    for name, accuracy in by_class.items():
        print(f"  {shown(name):<{width}}  " + ("no samples" if accuracy is None else f"{100 * accuracy:6.2f} %"))
    return 0


def open_checkpoint(path: Path) -> Checkpoint:
    """A checkpoint from a file, or the newest of a run folder."""
    from dptrain.checkpoint.folder import RunFolder
    from dptrain.checkpoint.format import read_checkpoint

    if path.is_dir():
        newest = RunFolder(path).newest(lambda line: write_to_stderr(shown(line)))
        if newest is None:
            raise UsageError(f"{path}: no checkpoints/step-*.h5 in this folder; name a run folder or a checkpoint file")
        checkpoint = newest[1]
    else:
        checkpoint = read_checkpoint(path)
    for note in checkpoint.notes:
        print(note, file=sys.stderr)
    return checkpoint


def _inspect(parsed: argparse.Namespace, communicator: Communicator, connection: str) -> int:
    from dptrain.parallel.communicator import together

    with together(communicator):
        checkpoint = open_checkpoint(parsed.checkpoint)
    state, origin = checkpoint.state, checkpoint.origin
    facts: dict[str, Any] = {
        "step": state.step,
        "epochs_completed": state.step // origin.steps_per_epoch,
        "samples_seen": state.progress.samples_seen,
        "test_accuracy": state.progress.test_accuracy,
        "data": origin.data_name,
        "manifest_sha256": origin.manifest_sha256,
        "classes": list(origin.classes),
        "input_shape": list(origin.input_shape),
        "mean": list(origin.mean),
        "std": list(origin.std),
        "layers": list(origin.architecture),
        "parameters": {name: list(shape) for name, shape in checkpoint.layout.shapes.items()},
        "parameter_count": checkpoint.layout.size,
        "environment": origin.environment,
        "config": parse_toml(origin.config, str(parsed.checkpoint)),
        "params_sha256": state.params_sha256,
        **({"model_files": origin.model_files} if origin.model_files else {}),
    }
    if communicator.rank != 0:
        return 0
    if parsed.json:
        print(json.dumps(facts))
        return 0
    for name, value in facts.items():
        if isinstance(value, dict):
            print(f"{name}:", *(f"  {shown(key)} = {shown(item)}" for key, item in value.items()), sep="\n")
        elif isinstance(value, list):
            print(f"{name}:", *(f"  {shown(item)}" for item in value), sep="\n")
        else:
            print(f"{name}: {shown(value)}")
    return 0
