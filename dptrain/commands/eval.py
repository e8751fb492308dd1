"""`dptrain eval`: loss and accuracy of a checkpoint on the test split."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from dptrain.commands import inspect
from dptrain.config.files import add_flags
from dptrain.config.train import model_name
from dptrain.system.arguments import Parser, argument, path_argument
from dptrain.system.blas import request_portable_kernels
from dptrain.system.streams import write_to_stderr
from dptrain.system.text import shown

if TYPE_CHECKING:
    from dptrain.parallel.communicator import Communicator


def add_arguments(parser: Parser) -> None:
    """Add the checkpoint, the data set and the flags."""
    inspect.add_arguments(parser)
    parser.add_argument("data", type=path_argument, help="folder of a packed data set")
    help = "FILE.py:FUNCTION, for a checkpoint that was trained with one"
    parser.add_argument("--model", type=argument(model_name), default="", metavar="NAME", help=help)
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
    evaluation = evaluate_checkpoint(
        checkpoint,
        parsed.checkpoint,
        parsed.data,
        communicator,
        model=parsed.model,
        threads=parsed.threads,
        tta=parsed.tta,
        portable=parsed.portable,
        note=lambda line: write_to_stderr(f"dptrain: {line}"),
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
        figures = {name: getattr(evaluation, name) for name in ("loss", "accuracy", "samples", "correct")}
        code = {"changed_model_files": evaluation.changed_model_files, "model_warning": evaluation.warning}
        print(json.dumps({**figures, "tta": parsed.tta, "class_accuracy": by_class, **code}))
        return 0
    print(f"test loss {evaluation.loss:.4f}, accuracy {100 * evaluation.accuracy:.2f} % ", end="")
    augmented = "" if parsed.tta == "none" else f", with test-time augmentation ({parsed.tta})"
    print(f"({evaluation.correct:,} of {evaluation.samples:,}){augmented}")
    width = max(len(shown(name)) for name in classes)
    for name, accuracy in by_class.items():
        print(f"  {shown(name):<{width}}  " + ("no samples" if accuracy is None else f"{100 * accuracy:6.2f} %"))
    return 0
