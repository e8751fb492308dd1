"""The update of a step: gradient clipping, the optimizer, and the average of the parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from dptrain.arrays.memory import Array
from dptrain.config.keys import KIND_NAMES, flag
from dptrain.config.train import KEYS, OptimizerConfig, TrainConfig
from dptrain.errors import UsageError
from dptrain.nn.network import Network
from dptrain.optim import optimizer_class, options_of
from dptrain.optim.average import AVERAGES, Average, make_average
from dptrain.optim.clip import clip
from dptrain.optim.optimizer import Optimizer
from dptrain.system.suggestions import did_you_mean
from dptrain.system.text import shown
from dptrain.training.groups import make_parameters


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
    kind, known = optimizer_class(config.optimizer), options_of(config.optimizer)
    flags = {one.name: getattr(config, one.name) for one in fields(OptimizerConfig) if one.name in known}
    check_options("optimizer", config.optimizer, kind, config.optimizer_options)
    try:
        optimizer = kind(parameters, **flags, **config.optimizer_options)
    except (TypeError, ValueError) as error:
        raise UsageError(f"--optimizer-options {shown(config.optimizer_options, 200)}: {error}") from error
    if config.average != "none":
        check_options("average", config.average, AVERAGES[config.average], config.average_options)
    try:
        average = make_average(config.average, config.average_options)
    except (TypeError, ValueError) as error:
        raise UsageError(f"--average-options {shown(config.average_options, 200)}: {error}") from error
    return Update(optimizer, config.clip_norm, average)


def check_options(key: str, chosen: str, kind: type, options: Mapping[str, Any]) -> None:
    """UsageError unless the class of what was chosen takes these options, with values of the types of its defaults."""
    defaults = kind.__init__.__kwdefaults__ or {}  # type: ignore[misc]
    for name, value in options.items():
        if name in KEYS:
            raise UsageError(f"--{key}-options: {name} is not one of them: give it as {flag(name)}")
        if name not in defaults:
            hint = did_you_mean(name, defaults.keys() - KEYS.keys())
            raise UsageError(f"--{key}-options: --{key} {chosen} has no option {shown(repr(name), 60)}; {hint}")
        expected = type(defaults[name])
        if type(value) is not expected and (type(value), expected) != (int, float) and expected in KIND_NAMES:
            given = shown(repr(value), 100)
            raise UsageError(f"--{key}-options: {name} is {given}, expected {KIND_NAMES[expected]}")
