"""The network of --model: one of the zoo, or one from a user's file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dptrain.errors import ModelError, UsageError
from dptrain.nn.network import Network
from dptrain.nn.zoo import ARCHITECTURES
from dptrain.system.suggestions import did_you_mean
from dptrain.system.text import shown
from dptrain.system.tracebacks import user_traceback
from dptrain.training.model_source import ModelSource, describe_error, load_model_file


@dataclass(frozen=True)
class Architecture:
    """The value of --model, and its function (input shape, classes, options) -> layers; `source` is a user's file.

    A function that is passed in Python has MODULE:FUNCTION as `model`, and no source.
    """

    model: str
    build: Callable[..., Any]
    source: ModelSource | None = None

    @property
    def is_users(self) -> bool:
        """Whether it is a user's code, not an architecture of the zoo."""
        return ":" in self.model


def find_architecture(model: str) -> Architecture:
    """The architecture of a zoo name, or of FILE.py:FUNCTION, whose file is executed.

    UsageError when there is none, ModelError when the file fails.
    """
    if ":" not in model:
        if model.endswith(".py"):
            raise UsageError(f"--model {model}: add the function, for example {model}:build")
        if model not in ARCHITECTURES:
            run = "; a run or checkpoint is for --checkpoint or --init-from" if Path(model).exists() else ""
            raise UsageError(f"--model {model!r}: {did_you_mean(model, ARCHITECTURES)}; or give FILE.py:FUNCTION{run}")
        return Architecture(model, ARCHITECTURES[model])
    module, source = load_model_file(model)
    function = model.rsplit(":", 1)[1]
    build: Callable[..., Any] | None = getattr(module, function, None)
    if build is None or not callable(build):
        hint = did_you_mean(function, (name for name, value in vars(module).items() if callable(value)))
        raise UsageError(f"--model {model}: {source.main} has no function {function!r}; {hint}")
    return Architecture(model, build, source)


def build_network(
    model: str | Architecture, options: Mapping[str, Any], input_shape: tuple[int, ...], classes: int
) -> Network:
    """The network of an architecture for samples of `input_shape` (C, H, W).

    UsageError when the options do not fit or it does not output one logit per class; ModelError, with the traceback,
    when a user's function or layers fail.
    """
    architecture = find_architecture(model) if isinstance(model, str) else model
    what = f"--model {architecture.model} with {shown(options or 'no options', 200)}, input {input_shape}"
    try:
        network = Network(architecture.build(input_shape, classes, **options), input_shape)
        network.spec(), network.description()  # a user's methods may fail
    except (Exception, SystemExit) as error:
        if architecture.is_users and not isinstance(error, ModelError | MemoryError):
            raise ModelError(f"{what}: {describe_error(error, architecture.source)}", user_traceback(error)) from error
        if isinstance(error, ValueError | TypeError):
            raise UsageError(f"{what}: {error}") from error
        raise
    if network.classes != classes:
        raise UsageError(
            f"--model {architecture.model} outputs {network.classes} logits, but the data set has {classes} classes: "
            "let its last layer be Linear(classes)"
        )
    return network
