"""Optimizers and learning rate schedules. A new optimizer is one file here and one line in OPTIMIZERS.

Importing this package imports no NumPy: the launcher reads the configuration, which needs only the names.
"""

from __future__ import annotations

import inspect
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dptrain.optim.optimizer import Optimizer

OPTIMIZERS = {
    "sgd": "dptrain.optim.sgd:SGD",
    "adamw": "dptrain.optim.adamw:AdamW",
}
NAMES = tuple(OPTIMIZERS)


def optimizer_class(name: str) -> type[Optimizer]:
    """The class of a name of OPTIMIZERS."""
    module, _, kind = OPTIMIZERS[name].partition(":")
    found: type[Optimizer] = getattr(import_module(module), kind)
    return found


def options_of(name: str) -> set[str]:
    """The options of an optimizer: the keyword arguments of its class."""
    parameters = inspect.signature(optimizer_class(name)).parameters.values()
    return {one.name for one in parameters if one.kind is one.KEYWORD_ONLY}
