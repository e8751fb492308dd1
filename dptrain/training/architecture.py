"""The network that --model names: one of the zoo, or one from a user's file."""

from __future__ import annotations

import importlib.util
import inspect
import itertools
import reprlib
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dptrain.errors import UsageError, did_you_mean
from dptrain.nn.layer import Layer
from dptrain.nn.network import Network
from dptrain.nn.zoo import ARCHITECTURES
from dptrain.system.text import shown


def build_network(model: str, options: dict[str, Any], input_shape: tuple[int, ...], classes: int) -> Network:
    """The network of a named architecture, or of FILE.py:FUNCTION, whose function takes the same arguments.

    UsageError when it cannot be built or does not put out one logit a class. Other exceptions of a user's file
    are left as they are: their traceback is what the user needs.
    """
    build = _architecture(model)
    _check_options(model, build, options)
    try:
        layers = build(input_shape, classes, **options)
        if not isinstance(layers, list | tuple) or not all(isinstance(layer, Layer) for layer in layers):
            raise TypeError(f"the function returned {reprlib.repr(layers)}, expected a list of layers")
        network = Network(layers, input_shape)
    except (ValueError, TypeError, SystemExit) as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        raise UsageError(
            f"--model {model} with {options or 'no options'}, input {input_shape}: {_reason(error)} "
            f"({Path(where.filename).name}, line {where.lineno})"
        ) from error
    if network.classes != classes:
        raise UsageError(
            f"--model {model} puts out {network.classes} logits, but the data set has {classes} classes: "
            "let its last layer be Linear(classes)"
        )
    return network


def _check_options(model: str, build: Callable[..., Any], options: dict[str, Any]) -> None:
    """UsageError for an option that the architecture's function has no argument for."""
    try:
        parameters = list(inspect.signature(build).parameters.values())
    except (TypeError, ValueError):  # some callables do not say
        return
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return
    known = [one.name for one in parameters[2:] if one.kind in (one.KEYWORD_ONLY, one.POSITIONAL_OR_KEYWORD)]
    for name in options:
        if name not in known:
            hint = did_you_mean(name, known) if known else "it has none"
            raise UsageError(f"--model-options: {shown(model)} has no argument {shown(repr(name), 60)}; {hint}")


def _reason(error: BaseException) -> str:
    return f"ended the program with status {error.code}" if isinstance(error, SystemExit) else str(error)


def _architecture(model: str) -> Callable[..., Any]:
    if ":" not in model:
        if model.endswith(".py"):
            raise UsageError(f"--model {model}: name its function too, for example {model}:build")
        if model not in ARCHITECTURES:
            raise UsageError(f"--model {model!r}: {did_you_mean(model, ARCHITECTURES)}; or give FILE.py:FUNCTION")
        return ARCHITECTURES[model]
    file, function = model.rsplit(":", 1)
    if not Path(file).is_file():
        raise UsageError(f"--model {model}: there is no file {file}")
    # A name of its own, registered as dataclasses and pickles in the file need it.
    spec = importlib.util.spec_from_file_location(f"dptrain_model_{Path(file).stem}", file)
    if spec is None or spec.loader is None:
        raise UsageError(f"--model {model}: {file} is not a Python file")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except SystemExit as error:
        raise UsageError(f"--model {model}: {file} ended the program with status {error.code}") from error
    build: Callable[..., Any] | None = getattr(module, function, None)
    if build is None or not callable(build):
        own = [name for name, value in vars(module).items() if getattr(value, "__module__", None) == spec.name]
        raise UsageError(f"--model {model}: {file} has no function {function!r}; {did_you_mean(function, own)}")
    return build


def first_difference(there: Sequence[str], here: Sequence[str]) -> str:
    """The first layer in which two descriptions differ, in words."""
    pairs = itertools.zip_longest(there, here, fillvalue="nothing")
    one, other = next(pair for pair in pairs if pair[0] != pair[1])
    return f"it has {one}, where there is {other} here"
