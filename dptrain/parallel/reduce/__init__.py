"""Sums over all shards. A new reduction is one file here and one line in REDUCERS."""

from __future__ import annotations

from importlib import import_module

from dptrain.parallel.reduce.reducer import Reducer

REDUCERS = {"tree": "dptrain.parallel.reduce.tree:TreeReducer", "mpi": "dptrain.parallel.reduce.mpi:MPIReducer"}


def reducer_class(name: str) -> type[Reducer]:
    """The class of a name of REDUCERS."""
    module, _, kind = REDUCERS[name].partition(":")
    found: type[Reducer] = getattr(import_module(module), kind)
    return found
