"""The training loss of a run, from its configuration and the data set."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from dptrain.arrays.memory import Array
from dptrain.config.train import LossConfig
from dptrain.data.shard import Samples
from dptrain.errors import UsageError
from dptrain.nn.loss import CrossEntropy
from dptrain.parallel.communicator import Communicator
from dptrain.system.suggestions import did_you_mean
from dptrain.system.text import shown


def make_loss(config: LossConfig, classes: Sequence[str], samples: Sequence[int]) -> CrossEntropy:
    """The loss for classes with so many training `samples` each. UsageError for a class that does not exist."""
    weights = _weights_by_class(config.class_weights, classes)
    if config.balance_classes:
        weights *= _balanced(classes, samples)
    weighted = bool(config.class_weights) or config.balance_classes
    return CrossEntropy(config.label_smoothing, weights.tolist() if weighted else None)


def samples_by_class(local: Iterable[Samples], classes: int, communicator: Communicator) -> list[int]:
    """The number of samples of each class in all shards; `local` are those of this rank. A collective."""
    counted = sum((np.bincount(one.labels, minlength=classes) for one in local), np.zeros(classes, np.int64))
    total: list[int] = np.sum(communicator.allgather(counted), axis=0).tolist()
    return total


def _weights_by_class(table: Mapping[str, Any], classes: Sequence[str]) -> Array:
    """float64 (K,): of the classes in the table, by name or number; 1 for the others."""
    numbers = {str(number): number for number in range(len(classes))} | {name: k for k, name in enumerate(classes)}
    weights = np.ones(len(classes))
    given: dict[int, str] = {}
    for name, weight in table.items():
        if name not in numbers:
            hint = did_you_mean(name, classes, f"expected a name, or a number from 0 to {len(classes) - 1}")
            raise UsageError(f"--class-weights: the data set has no class {shown(repr(name), 60)}; {hint}")
        number = numbers[name]
        if number in given:
            both = shown(f"{given[number]!r} and {name!r}", 120)
            raise UsageError(f"--class-weights: {both} are the same class: give it one weight")
        given[number], weights[number] = name, weight
    return weights


def _balanced(classes: Sequence[str], samples: Sequence[int]) -> Array:
    """float64 (K,): N / (K * samples of the class) for N training samples, so that the mean over the samples is 1."""
    if 0 in samples:
        name = shown(repr(classes[samples.index(0)]), 60)
        raise UsageError(f"--balance-classes: class {name} has no training samples; leave it out")
    balanced: Array = sum(samples) / (len(classes) * np.array(samples, np.float64))
    return balanced
