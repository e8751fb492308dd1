"""`dptrain train`: train a network on a packed data set."""

from __future__ import annotations

import argparse
import functools
import json
from contextlib import ExitStack, closing
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from dptrain.commands.exit import end_at_once
from dptrain.config.files import add_flags, merged, read_toml
from dptrain.config.train import KEYS, SUBJECTS, TrainConfig
from dptrain.data.augmentation import AugmentationConfig, add_augment_flag
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


def add_arguments(parser: Parser) -> None:
    """Add the data set, the flags of all keys in one group a subject, and --recipe, --config, --augment, --json."""
    parser.usage = "dptrain train DATA [--flag value ...]"
    parser.explanations = EXPLANATIONS
    add_flags(parser, ["data"])
    help = "a known training run: sets the flags that are not given (list: print all recipes)"
    parser.add_argument("--recipe", action=ChosenRecipe, default="", metavar="NAME", help=help)
    help = "TOML file with keys named like the flags; flags win"
    parser.add_argument("--config", type=path_argument, metavar="FILE", help=help)
    parser.add_argument("--json", action="store_true", help="print a last line of JSON: accuracy, step, params_sha256")
    groups = {subject: parser.add_argument_group(subject.__doc__) for subject in SUBJECTS}
    for subject, group in groups.items():
        add_flags(group, [one.name for one in fields(subject) if one.name != "data"])
    add_augment_flag(groups[AugmentationConfig])


def configuration(parsed: argparse.Namespace) -> TrainConfig:
    """The configuration of a command line: defaults, then --recipe, then --config, then flags."""
    given = {name: value for name, value in vars(parsed).items() if name in KEYS or name == "augment"}
    recipe, saved = _sources(parsed)
    if "model" in saved:
        from dptrain.training.model_source import model_in_toml

        saved["model"] = model_in_toml(parsed.config, saved["model"])
    if not recipe:
        return merged(saved, given)
    from dptrain.config.recipes import used_with

    return merged(used_with(recipe, saved | given), saved, given)


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
    from dptrain.report import REPORTERS
    from dptrain.training.loop import train

    drop_failed_writes()  # a run continues if its terminal closes or the disk of its log is full
    with together(communicator):
        config = configuration(parsed)
        if not config.data:
            raise UsageError("no data set: dptrain train FOLDER; pack one with: dptrain data-prep cifar10 FOLDER")
    with SignalInterruption(functools.partial(end_at_once, communicator)) as interruption, ExitStack() as stack:
        reporters = [stack.enter_context(closing(kind())) for kind in REPORTERS]
        end = train(config, communicator, reporters, interruption, connection)
    if end is None:
        return 0  # this is not rank 0
    if parsed.json and not print_whole(json.dumps({name: getattr(end, name) for name in SUMMARY})):
        # Not an error: the run is complete and saved, and a launcher or scheduler must not start it again.
        write_to_stderr("dptrain: the line of --json could not be written; metrics.jsonl has the same figures")
    record.report_end(0)
    return 0
