"""Optimizers and learning rate schedules. A new optimizer is one file here and one line in OPTIMIZERS.

Importing this package imports no NumPy: the launcher reads the configuration, which needs only the names.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dptrain.optim.optimizer import Optimizer

OPTIMIZERS = {
    "sgd": "dptrain.optim.sgd:SGD",
    "adamw": "dptrain.optim.adamw:AdamW",
    "lars": "dptrain.optim.lars:LARS",
    "muon": "dptrain.optim.muon:Muon",
}
NAMES = tuple(OPTIMIZERS)
WEIGHT_DECAY = 2e-3  # that of --weight-decay; only the class AdamW has another default value


def optimizer_class(name: str) -> type[Optimizer]:
    module, _, kind = OPTIMIZERS[name].partition(":")
    found: type[Optimizer] = getattr(import_module(module), kind)
    return found


def options_of(name: str) -> set[str]:
    """The options of an optimizer: the keyword arguments of its class."""
    return set(optimizer_class(name).__init__.__kwdefaults__ or ())
