"""Sums over all shards. A new reduction is one file here, and one line in dptrain.config.train.REDUCTIONS."""

from __future__ import annotations

import pkgutil

from dptrain.config.train import REDUCTIONS
from dptrain.parallel.reduce.reducer import Reducer


def reducer_class(name: str) -> type[Reducer]:
    """The class of a reduction's name."""
    found: type[Reducer] = pkgutil.resolve_name(REDUCTIONS[name])
    return found
