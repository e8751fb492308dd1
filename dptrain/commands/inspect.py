"""`dptrain inspect`: what a checkpoint contains."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dptrain.config.files import parse_toml
from dptrain.system.arguments import Parser, path_argument
from dptrain.system.streams import write_to_stderr
from dptrain.system.text import shown

if TYPE_CHECKING:
    from dptrain.checkpoint.format import Checkpoint
    from dptrain.parallel.communicator import Communicator


EXAMPLES = """
examples:
  dptrain inspect runs/one    the newest checkpoint
  dptrain inspect runs/one/checkpoints/best.h5 --json
"""


def add_arguments(parser: Parser) -> None:
    """Add the checkpoint and --json."""
    help = "checkpoint file, or run folder for its newest checkpoint"
    parser.add_argument("checkpoint", type=path_argument, help=help)
    parser.add_argument("--json", action="store_true", help="print JSON")


def open_checkpoint(path: Path) -> Checkpoint:
    """A checkpoint from a file, or the newest of a run folder."""
    from dptrain.checkpoint import folder

    checkpoint = folder.open_checkpoint(path, lambda line: write_to_stderr(shown(line)))
    for note in checkpoint.notes:
        write_to_stderr(f"dptrain: {shown(note)}")
    return checkpoint


def run(parsed: argparse.Namespace, communicator: Communicator, connection: str) -> int:
    """Print the facts; returns the exit status."""
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
        **{name: getattr(origin, name) for name in ("manifest_sha256", "classes", "input_shape", "mean", "std")},
        "layers": origin.architecture,
        "parameters": {name: list(shape) for name, shape in checkpoint.layouts["parameters"].shapes.items()},
        "parameter_count": checkpoint.layouts["parameters"].size,
        "environment": origin.environment,
        "tuning": origin.tuning,
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
        lines = [f"{key} = {item}" for key, item in value.items()] if isinstance(value, dict) else value
        if isinstance(lines, list | tuple):
            print(f"{name}:", *(f"  {shown(line)}" for line in lines), sep="\n")
        else:
            print(f"{name}: {shown(lines)}")
    return 0
