"""`dptrain train`: train a network on a packed data set."""

from __future__ import annotations

import argparse
import functools
import json
from contextlib import ExitStack, closing
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from dptrain.commands.exit import end_at_once
from dptrain.config.files import add_flags, read_toml
from dptrain.config.train import KEYS, SUBJECTS, TrainConfig
from dptrain.data.augmentation import add_augment_flag
from dptrain.errors import UsageError
from dptrain.system import record
from dptrain.system.arguments import Parser, path_argument
from dptrain.system.blas import request_portable_kernels
from dptrain.system.streams import drop_failed_writes, print_whole, write_to_stderr
from dptrain.system.suggestions import EXPLANATIONS

if TYPE_CHECKING:
    from dptrain.parallel.communicator import Communicator

SUMMARY = ("step", "test_loss", "test_accuracy", "tta", "tta_accuracy", "params_sha256", "run_dir")
HANDLES_SIGNALS = True  # a signal is handled after the step
ADDS_HELP = True  # -h prints the most used flags, --help all
USAGE = "dptrain train DATA [--flag value ...]"
MOST_USED = ("epochs", "batch_size", "lr", "model", "threads", "run_dir")  # and --recipe, --augment, --config
SHORT_HELP = f"""usage: {USAGE}

most used flags:
  --recipe NAME         a known training run (list: print all)
  --epochs N            passes over the training split
  --batch-size N        images of a step, over all ranks
  --lr X                highest learning rate
  --model NAME          built-in network, or FILE.py:FUNCTION
  --augment BORDER      random shifts and mirrored images: reflect, zero
  --threads N           cores of each rank (default: all)
  --run-dir PATH        folder of the run; the same folder resumes a run
  --config FILE         TOML file with keys named like the flags
  --quiet, --log-json   print only the result, or JSON instead of text
  --help                all flags, with their defaults
"""
EXAMPLES = """
examples:
  dptrain train data/cifar10 --epochs 30 --augment reflect --run-dir runs/one
  dptrain train data/cifar10 --recipe airbench94-muon
  dptrain train data/cifar10 --model my_net.py:build --model-options 'width = 8'
  dptrain launch -n 2 -- train data/cifar10        two MPI ranks: the same bits
"""


def add_arguments(parser: Parser) -> None:
    """Add the data set, the most used flags, those of the output, and the flags of other keys in a group a subject."""
    parser.usage, parser.explanations = USAGE, EXPLANATIONS
    parser.add_argument("-h", action=ShortHelp, nargs=0, help="show the most used flags and exit")
    parser.add_argument("--help", action="help", help="show all flags and exit")
    _add_most_used(parser)
    output = parser.add_argument_group("output")
    output.add_argument("--json", action="store_true", help="print a last line of JSON: accuracy, step, params_sha256")
    one_of = output.add_mutually_exclusive_group()
    one_of.add_argument("--quiet", action="store_true", help="print only errors, warnings and the result")
    help = "print JSON instead of text: the lines of metrics.jsonl"
    one_of.add_argument("--log-json", action="store_true", help=help)
    for subject in SUBJECTS:
        names = [one.name for one in fields(subject) if one.name not in ("data", *MOST_USED)]
        add_flags(parser.add_argument_group(subject.__doc__), names)


def _add_most_used(parser: Parser) -> None:
    """The data set and the group of flags that most users need."""
    add_flags(parser, ["data"])
    group = parser.add_argument_group("most used")
    help = "a known training run: sets the flags that are not given (list: print all recipes)"
    group.add_argument("--recipe", action=ChosenRecipe, default="", metavar="NAME", help=help)
    add_flags(group, MOST_USED)
    add_augment_flag(group)
    help = "TOML file with keys named like the flags; flags win"
    group.add_argument("--config", type=path_argument, metavar="FILE", help=help)


class ShortHelp(argparse.Action):
    """-h: the most used flags, on one screen."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        print(SHORT_HELP + EXAMPLES.rstrip())
        parser.exit()


def configuration(parsed: argparse.Namespace) -> TrainConfig:
    """The configuration of a command line: defaults, then --recipe, then --config, then flags."""
    given = {name: value for name, value in vars(parsed).items() if name in KEYS or name == "augment"}
    recipe, saved = _sources(parsed)
    if "model" in saved:
        from dptrain.training.model_source import model_in_toml

        saved["model"] = model_in_toml(parsed.config, saved["model"])
    from dptrain.config.recipes import with_recipe

    return with_recipe(recipe, saved, given)


def _sources(parsed: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    """Values by key of --recipe and of the file of --config, which is read once, as it may be a pipe."""
    if "sources" not in parsed:
        recipe: dict[str, Any] = {}
        if parsed.recipe:
            from dptrain.config.recipes import read_recipe

            recipe = read_recipe(parsed.recipe)
        parsed.sources = recipe, read_toml(parsed.config) if parsed.config else {}
    recipe, saved = parsed.sources
    return {**recipe}, {**saved}


class ChosenRecipe(argparse.Action):
    """--recipe NAME; `--recipe list` prints all recipes and ends, like --help."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        from dptrain.config import recipes  # here, as it is rarely needed

        try:
            setattr(namespace, self.dest, recipes.recipe_name(values))
        except UsageError as error:
            raise argparse.ArgumentError(self, str(error)) from None
        if values in recipes.LIST:
            print(recipes.recipe_list())
            parser.exit()


def prepare(parsed: argparse.Namespace) -> None:
    """Choose the kernels of --portable before NumPy is imported; the file of --config or a recipe may have the key."""
    recipe, saved = _sources(parsed)
    if (recipe | saved | vars(parsed)).get("portable"):
        request_portable_kernels()


def run(parsed: argparse.Namespace, communicator: Communicator, connection: str) -> int:
    """Train; returns the exit status."""
    from dptrain.health.interruption import SignalInterruption
    from dptrain.parallel.communicator import together
    from dptrain.report import REPORTERS, output_reporter
    from dptrain.report.optional import note_to, optional_reporters
    from dptrain.training.loop import train

    drop_failed_writes()  # a run continues if its terminal closes or the disk of its log is full
    with together(communicator):
        config = configuration(parsed)
        if not config.data:
            raise UsageError("no data set: dptrain train FOLDER; pack one with: dptrain prep cifar10 FOLDER")
        output = output_reporter(quiet=parsed.quiet, log_json=parsed.log_json, result=not parsed.json)
        reporters = [*(kind() for kind in REPORTERS), output]
        reporters += optional_reporters(config.report_to, note_to(reporters[:]))
    with SignalInterruption(functools.partial(end_at_once, communicator)) as interruption, ExitStack() as stack:
        for reporter in reporters:
            stack.enter_context(closing(reporter))
        end = train(config, communicator, reporters, interruption, connection)
    if end is None:
        return 0  # this is not rank 0
    if parsed.json and not print_whole(json.dumps({name: getattr(end, name) for name in SUMMARY})):
        # Not an error: the run is complete and saved, and a launcher or scheduler must not start it again.
        write_to_stderr("dptrain: the line of --json could not be written; metrics.jsonl has the same figures")
    record.report_end(0)
    return 0
