"""The update of a step: gradient clipping, the optimizer, and the average of the parameters."""

from __future__ import annotations

import inspect
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from typing import Any

from dptrain.arrays.memory import Array
from dptrain.config.train import OptimizerConfig, TrainConfig
from dptrain.errors import UsageError
from dptrain.nn.network import Network
from dptrain.optim import optimizer_class, options_of
from dptrain.optim.average import AVERAGES, Average, make_average
from dptrain.optim.clip import clip
from dptrain.optim.optimizer import Optimizer
from dptrain.system.keys import flag
from dptrain.system.suggestions import did_you_mean
from dptrain.system.text import shown
from dptrain.training.groups import make_parameters

NUMBERS = (int, float)
EXPECTED: dict[type, tuple[tuple[type, ...], str]] = {  # of an option's value, by the type of the default value
    bool: ((bool,), "true or false"),
    int: ((int,), "a whole number"),
    float: (NUMBERS, "a finite number"),
}


@dataclass(frozen=True)
class Update:
    """What a step does with the mean gradient of the global batch, on every rank alike."""

    optimizer: Optimizer
    clip_norm: float = 0.0  # 0 for no limit
    average: Average | None = None

    def step(self, vectors: Mapping[str, Array], gradient: Array, lr: float, step: int) -> None:
        """Change the parameters and the optimizer's slots; see `Optimizer.update`."""
        if self.clip_norm:
            clip(gradient, self.clip_norm)
        self.optimizer.update(vectors, gradient, lr, step)

    def finish(self, vectors: Mapping[str, Array], step: int) -> None:
        """Update the averages, when parameters and buffers are those after the step."""
        if self.average is not None:
            self.average.update(vectors, step)


def make_update(config: TrainConfig, network: Network, steps_per_epoch: int) -> Update:
    """The update of a run; UsageError for options, or groups of parameters, that do not exist."""
    parameters = make_parameters(config, network, steps_per_epoch)
    known = options_of(config.optimizer)
    flags = {one.name: getattr(config, one.name) for one in fields(OptimizerConfig) if one.name in known}
    check_options("--optimizer-options", optimizer_class(config.optimizer), config.optimizer_options, flags)
    try:
        optimizer = optimizer_class(config.optimizer)(parameters, **flags, **config.optimizer_options)
    except ValueError as error:
        raise UsageError(f"--optimizer-options {shown(config.optimizer_options, 200)}: {error}") from error
    if config.average != "none":
        check_options("--average-options", AVERAGES[config.average], config.average_options)
    try:
        average = make_average(config.average, config.average_options, config.epochs * steps_per_epoch)
    except ValueError as error:
        raise UsageError(f"--average-options {shown(config.average_options, 200)}: {error}") from error
    return Update(optimizer, config.clip_norm, average)


def check_options(what: str, kind: type, options: Mapping[str, Any], flags: Collection[str] = ()) -> None:
    """UsageError unless each option is a keyword argument of `kind`, of the type of its default value, and no flag."""
    arguments = inspect.signature(kind).parameters.values()
    defaults = {one.name: one.default for one in arguments if one.kind is one.KEYWORD_ONLY}
    for name, value in options.items():
        if name in flags:
            raise UsageError(f"{what}: {name} has a flag: give {flag(name)} instead")
        known = sorted(defaults.keys() - flags)
        if name not in known:
            hint = did_you_mean(name, known, f"known: {', '.join(known) or 'none'}")
            raise UsageError(f"{what}: {kind.__name__} has no option {shown(repr(name), 60)}; {hint}")
        types, words = EXPECTED[type(defaults[name])]
        if type(value) not in types or (types == NUMBERS and not math.isfinite(value)):
            raise UsageError(f"{what}: {name} is {shown(repr(value), 60)}, expected {words}")
