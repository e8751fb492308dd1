"""The update of a step: gradient clipping, the optimizer, and the average of the parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

from dptrain.arrays.memory import Array
from dptrain.config.train import OptimizerConfig, TrainConfig
from dptrain.errors import UsageError
from dptrain.nn.network import Network
from dptrain.optim import optimizer_class, options_of
from dptrain.optim.average import Average, make_average
from dptrain.optim.clip import clip
from dptrain.optim.optimizer import Optimizer
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
    known = options_of(config.optimizer)
    flags = {one.name: getattr(config, one.name) for one in fields(OptimizerConfig) if one.name in known}
    try:
        optimizer = optimizer_class(config.optimizer)(parameters, **flags, **config.optimizer_options)
    except (TypeError, ValueError) as error:
        raise UsageError(f"--optimizer-options {shown(config.optimizer_options, 200)}: {error}") from error
    try:
        average = make_average(config.average, config.average_options)
    except (TypeError, ValueError) as error:
        raise UsageError(f"--average-options {shown(config.average_options, 200)}: {error}") from error
    return Update(optimizer, config.clip_norm, average)
