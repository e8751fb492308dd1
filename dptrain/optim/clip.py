"""Gradient clipping by the global norm."""

from __future__ import annotations

from dptrain.arrays.memory import Array
from dptrain.optim.optimizer import norm


def clip(gradient: Array, limit: float) -> float:
    """Scale the gradient (P,) of all parameters to the norm `limit` if its norm is larger (Pascanu et al. 2013).

    Returns the norm before.
    """
    found = norm(gradient)
    if found > limit:
        gradient *= limit / found
    return found
