"""`dptrain export`: a checkpoint for other programs."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from dptrain.commands import inspect
from dptrain.config.train import model_name
from dptrain.errors import UsageError
from dptrain.export import FORMATS, check_suffix, write
from dptrain.system.arguments import Parser, argument, path_argument
from dptrain.system.text import shown

if TYPE_CHECKING:
    from dptrain.nn.network import Network
    from dptrain.parallel.communicator import Communicator


EXAMPLES = """
examples:
  dptrain export runs/one --to model.onnx
  dptrain export runs/one --to model.safetensors
  dptrain export runs/one --print-torch > model.py    a module of PyTorch
"""


def add_arguments(parser: Parser) -> None:
    """Add the checkpoint, the file, --print-torch and the other flags."""
    inspect.add_arguments(parser)
    what = parser.add_mutually_exclusive_group(required=True)
    help = f"file to write; its suffix is the format: {', '.join(FORMATS)}"
    what.add_argument("--to", type=argument(export_path), metavar="FILE", help=help)
    help = "print the PyTorch module that a .safetensors file has the values for"
    what.add_argument("--print-torch", action="store_true", help=help)
    help = "FILE.py:FUNCTION, for a checkpoint that was trained with one"
    parser.add_argument("--model", type=argument(model_name), default="", metavar="NAME", help=help)


def export_path(text: str) -> Path:
    """The file to write; UsageError for a suffix that is no format."""
    return check_suffix(path_argument(text))


def run(parsed: argparse.Namespace, communicator: Communicator, connection: str) -> int:
    """Export; returns the exit status."""
    from dptrain.parallel.communicator import together

    with together(communicator):
        if parsed.print_torch and parsed.json:
            raise UsageError("--print-torch prints a Python file: leave out --json")
        if communicator.rank == 0:
            export(parsed)
    return 0


def export(parsed: argparse.Namespace) -> None:
    """Write the file, or print the PyTorch module."""
    from dptrain.export.values import metadata
    from dptrain.training.rebuild import network_of

    checkpoint = inspect.open_checkpoint(parsed.checkpoint)

    def rebuild() -> Network:
        return network_of(checkpoint, parsed.checkpoint, parsed.model)

    if parsed.print_torch:
        from dptrain.export.pytorch import source

        print(source(checkpoint, rebuild()), end="")
        return
    size = write(parsed.to, checkpoint, rebuild)
    facts = metadata(checkpoint)
    shape, classes = checkpoint.origin.input_shape, checkpoint.origin.classes
    if parsed.json:
        kept = {name: facts[name] for name in ("params_sha256", "values", "dptrain")}
        shapes = {"step": checkpoint.state.step, "input_shape": shape, "classes": classes}
        print(json.dumps({"file": str(parsed.to), "bytes": size, **kept, **shapes}))
        return
    images = "x".join(map(str, shape))
    print(f"{shown(parsed.to)}: {size:,} bytes; images {images}, {len(classes)} classes")
    print(f"{facts['values']} of step {checkpoint.state.step}, params_sha256 {facts['params_sha256']}")
