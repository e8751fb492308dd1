"""`dptrain eval`: loss and accuracy of a checkpoint on one split of a data set, by default test."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dptrain.commands import inspect
from dptrain.config.files import add_flags
from dptrain.config.train import model_name
from dptrain.data.manifest import SPLITS
from dptrain.errors import UsageError
from dptrain.system.arguments import Parser, argument, path_argument
from dptrain.system.blas import request_portable_kernels
from dptrain.system.outputs import write_output
from dptrain.system.streams import write_to_stderr
from dptrain.system.text import shown

if TYPE_CHECKING:
    from dptrain.parallel.communicator import Communicator
    from dptrain.training.evaluate_checkpoint import CheckpointEvaluation


EXAMPLES = """
examples:
  dptrain eval runs/one data/cifar10    the newest checkpoint
  dptrain eval runs/one/checkpoints/best.h5 data/cifar10 --confusion
  dptrain eval runs/one data/cifar10 --predictions predictions.csv
"""


def add_arguments(parser: Parser) -> None:
    """Add the checkpoint, the data set and the flags."""
    inspect.add_arguments(parser)
    parser.add_argument("data", type=path_argument, help="folder of a packed data set")
    help = "FILE.py:FUNCTION, for a checkpoint that was trained with one"
    parser.add_argument("--model", type=argument(model_name), default="", metavar="NAME", help=help)
    parser.add_argument("--split", choices=SPLITS, default="test", help="which samples (default: test)")
    parser.add_argument("--confusion", action="store_true", help="also the confusion matrix")
    help = "write the prediction for each sample as CSV"
    parser.add_argument("--predictions", type=path_argument, metavar="FILE", help=help)
    add_flags(parser, ["threads", "tta", "portable"], defaults=True)


def prepare(parsed: argparse.Namespace) -> None:
    """Choose the kernels before NumPy is imported."""
    if parsed.portable:
        request_portable_kernels()


def run(parsed: argparse.Namespace, communicator: Communicator, connection: str) -> int:
    """Evaluate; returns the exit status."""
    from dptrain.parallel.communicator import together
    from dptrain.training.evaluate_checkpoint import evaluate_checkpoint

    with together(communicator):
        checkpoint = inspect.open_checkpoint(parsed.checkpoint)
        classes = checkpoint.origin.classes
        check_output(parsed, len(classes))
    evaluation = evaluate_checkpoint(
        checkpoint,
        parsed.checkpoint,
        parsed.data,
        communicator,
        model=parsed.model,
        threads=parsed.threads,
        tta=parsed.tta,
        portable=parsed.portable,
        predictions=parsed.confusion or parsed.predictions is not None,
        split=parsed.split,
        note=lambda line: write_to_stderr(f"dptrain: {line}"),
    )
    if communicator.rank == 0:
        if parsed.predictions is not None and evaluation.predictions is not None:
            write_output(parsed.predictions, evaluation.predictions.to_csv(classes).encode(), "--predictions")
        print_evaluation(parsed, evaluation, classes)
    return 0


def check_output(parsed: argparse.Namespace, classes: int) -> None:
    """UsageError if --confusion or --predictions cannot be done, before the evaluation."""
    from dptrain.report.confusion import MOST_CLASSES

    if parsed.confusion and classes > MOST_CLASSES:
        raise UsageError(f"--confusion: {classes:,} classes, expected at most {MOST_CLASSES:,}; use --predictions FILE")
    if parsed.predictions is not None and not parsed.predictions.parent.is_dir():
        raise UsageError(f"--predictions {shown(parsed.predictions)}: no such folder; make it, or choose another one")


def print_evaluation(parsed: argparse.Namespace, evaluation: CheckpointEvaluation, classes: Sequence[str]) -> None:
    """Print the figures, as JSON if that is asked for."""
    if evaluation.warning:
        write_to_stderr(f"dptrain: WARNING: {shown(evaluation.warning)}")
    by_class = {
        name: right / count if count else None
        for name, right, count in zip(classes, evaluation.class_correct, evaluation.class_samples, strict=True)
    }
    confusion = None
    if parsed.confusion and evaluation.predictions is not None:
        confusion = evaluation.predictions.confusion(len(classes))
    if parsed.json:
        figures = {name: getattr(evaluation, name) for name in ("loss", "accuracy", "samples", "correct")}
        code = {"changed_model_files": evaluation.changed_model_files, "model_warning": evaluation.warning}
        matrix = {} if confusion is None else {"classes": classes, "confusion": confusion.tolist()}
        asked = {"split": parsed.split, "tta": parsed.tta}
        print(json.dumps({**figures, **asked, "class_accuracy": by_class, **code, **matrix}))
        return
    print(f"{parsed.split} loss {evaluation.loss:.4f}, accuracy {100 * evaluation.accuracy:.2f} % ", end="")
    augmented = "" if parsed.tta == "none" else f", with test-time augmentation ({parsed.tta})"
    print(f"({evaluation.correct:,} of {evaluation.samples:,}){augmented}")
    width = max(len(shown(name)) for name in classes)
    for name, accuracy in by_class.items():
        print(f"  {shown(name):<{width}}  " + ("no samples" if accuracy is None else f"{100 * accuracy:6.2f} %"))
    if confusion is not None:
        from dptrain.report.confusion import confusion_lines

        print(*confusion_lines(confusion, classes, shutil.get_terminal_size().columns), sep="\n")
    if parsed.predictions is not None:
        print(f"predictions  {shown(parsed.predictions)}")
