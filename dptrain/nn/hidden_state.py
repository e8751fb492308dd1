"""Checks of a user's layers before they train: equal inputs must give equal bits, whatever was computed before.

Ranks, threads and forked workers compute shards in any order. A layer that draws random numbers by itself, counts its
calls, or changes what others read would give bits that depend on the number of ranks, without an error. So one
microbatch is computed, then another, then the first again: both results of the first must be equal, and nothing that a
layer can reach may have changed. State in files or in other packages is not found.
"""

from __future__ import annotations

import contextlib
import hashlib
import pickle
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from types import FunctionType, ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dptrain.arrays.memory import Array, Workspace, aligned_copy, aligned_zeros
from dptrain.errors import DptrainError, ModelError
from dptrain.nn.check import CheckedRunner, kind_of
from dptrain.nn.layer import Layer, Parameters, Pass, is_users, is_users_class, where
from dptrain.nn.network import Network, computable_alone, quiet
from dptrain.system.text import shown
from dptrain.system.tracebacks import last_line, user_traceback

Microbatch = tuple[Array, NDArray[np.int64]]  # images (H, W, N, C) and labels (N,)

WHY = "ranks, threads and workers compute in any order, so results would depend on their number"
DRAWS = "Draw random numbers by call.uniform(shape), or in __init__ from default_rng(SEED)"
STATE = "Return from forward what backward needs, keep arrays in the workspace, make constants in __init__ or bind"


@quiet
def check_layers(
    network: Network,
    vectors: Mapping[str, Array],
    first: Microbatch,
    second: Microbatch,
    modules: Callable[[], Sequence[ModuleType]] = tuple,
    *,
    train: bool = True,
) -> None:
    """ModelError naming the layer that fails or breaks a rule. `modules` gives the user's modules.

    Costs three microbatches. Without `train`, for an evaluation, only the logits are computed.
    """
    checker = _Checker(network, vectors, train)
    results = []
    for images, labels in (first, second, first):
        loaded = modules()  # each time: a pass may import more
        before = _state(network, loaded)
        results.append(checker.compute(aligned_copy(images), labels))
        after = _state(network, loaded)
        for path in before | after:
            if before.get(path) != after.get(path):
                raise ModelError(f"{shown(path, 200)} changes while the network computes: {WHY}. {STATE}. {DRAWS}")
    for (what, one), (_, other) in zip(results[0], results[2], strict=True):
        if one != other:
            raise ModelError(
                f"{what} is not the same when one microbatch is computed twice: {WHY}. Does the layer draw random "
                f"numbers, read the clock or the process id, or use memory that it has not filled? {DRAWS}"
            )


@quiet
def output_sha256(network: Network, vectors: Mapping[str, Array]) -> str:
    """SHA-256 of the logits for 8 fixed images: equal in processes that compute the same function of the parameters."""
    channels, height, width = network.input_shape
    count = channels * height * width * min(8, network.block)
    images = (np.arange(count) * 37 % 101 / 50 - 1).astype(np.float32).reshape(height, width, -1, channels)
    prepared = network.prepare(aligned_copy(vectors["parameters"]), vectors["buffers"], Workspace())
    return _sha256(network.predict(prepared, aligned_copy(images), Workspace())).hex()


class _Checker(CheckedRunner):
    """Computes microbatches. ModelError for a user's layer that fails, or uses a global random generator."""

    def __init__(self, network: Network, vectors: Mapping[str, Array], train: bool) -> None:
        super().__init__(network)
        self.network, self.vectors, self.train = network, vectors, train
        self.workspace, self.shared = Workspace(), Workspace()
        self.results: list[tuple[str, bytes]] = []

    def compute(self, images: Array, labels: NDArray[np.int64]) -> list[tuple[str, bytes]]:
        """All results in order, each with its digest; none for a microbatch without samples."""
        network, self.results = self.network, []
        images, labels = computable_alone(network, images, labels)
        if len(labels):
            prepared = network.prepare(self.vectors["parameters"], self.vectors["buffers"], self.shared, self)
            if self.train:
                gradient, statistics = aligned_zeros(network.layout.size), aligned_zeros(network.buffer_layout.size)
                network.loss_and_grad(
                    prepared, images, labels, gradient, self.workspace, statistics=statistics, runner=self
                )
                for name, view in network.layout.views(gradient).items():
                    self._note(f"the gradient of {name}", view)
                self._note("a statistic for the buffers", statistics)
            block = images[..., : network.block, :]
            self._note("the prediction", network.predict(prepared, block, self.workspace, self))
        return self.results

    def _note(self, what: str, values: object) -> None:
        if isinstance(values, np.ndarray):
            self.results.append((what, _sha256(values)))

    def prepare(self, layer: Layer, parameters: Parameters, workspace: Workspace) -> Any:
        return self._checked(layer, "prepare", super().prepare, parameters, workspace)

    def forward(self, layer: Layer, x: Array, call: Pass) -> Any:
        return self._checked(layer, "forward", super().forward, x, call)

    def backward(self, layer: Layer, dy: Array, saved: Any, call: Pass) -> Any:
        return self._checked(layer, "backward", super().backward, dy, saved, call)

    def _checked(self, layer: Layer, method: str, run: Callable[..., Any], given: Any, *more: Any) -> Any:
        if not is_users(layer):
            return run(layer, given, *more)
        before = _global_generators()
        try:
            result = run(layer, given, *more)
        except (DptrainError, MemoryError):
            raise
        except (Exception, SystemExit) as error:
            text = f"{where(layer)} fails in {method}: {last_line(error)}; its input was {kind_of(given)}"
            if "read-only" in str(error):
                text += ". x, the parameters and the buffers are only read: compute with a copy"
            raise ModelError(text, user_traceback(error)) from error
        if _global_generators() != before:
            used = "a global random generator (np.random or random)"
            raise ModelError(f"{where(layer)} uses {used} in {method}: {WHY}. {DRAWS}")
        self._note(f"the result of {method} of {where(layer)}", result[0] if isinstance(result, tuple) else result)
        return result


def _sha256(values: Array) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(values).data).digest()


def _global_generators() -> bytes:
    return pickle.dumps((np.random.get_state(), random.getstate()))  # noqa: NPY002 - the global generator is meant


def _state(network: Network, modules: Sequence[ModuleType]) -> dict[str, bytes]:
    """A digest of every attribute of the user's layers, classes, functions and modules, by a description."""
    layers = [layer for layer in network.layers if is_users(layer)]
    classes = {kind for layer in layers for kind in type(layer).__mro__ if is_users_class(kind)}
    names = {module.__name__ for module in modules} | {kind.__module__ for kind in classes}
    everything = [part for module in modules for part in vars(module).values()]
    classes |= {part for part in everything if isinstance(part, type) and part.__module__ in names}
    roots: list[tuple[str, object]] = [
        *((f"module {module.__name__.removeprefix('dptrain_model_')}", module) for module in modules),
        *((f"class {kind.__qualname__}", kind) for kind in classes),
        *((where(layer), layer) for layer in layers),
    ]
    state = {}
    for root, value in roots:
        for name, part in list(vars(value).items()):
            if not name.startswith(("__", "_abc_", "_arguments")):
                with contextlib.suppress(Exception):
                    state[f"the attribute {name!r} of {root}"] = _digest(part, names)
    return state


def _digest(value: object, users_modules: Collection[str], depth: int = 8) -> bytes:
    """Of what a value holds. The parts of functions, and of what cannot be pickled, count one by one.

    A lock or an unpicklable object of another package may change: it has no digest.
    """
    parts: list[Any] = []
    if isinstance(value, FunctionType):
        if value.__module__ in users_modules:
            cells = [cell.cell_contents for cell in value.__closure__ or ()]
            parts = [value.__defaults__, value.__kwdefaults__, cells, vars(value)]
    else:
        with contextlib.suppress(Exception):
            return hashlib.sha256(pickle.dumps(value)).digest()
        if isinstance(value, dict):
            parts = [*value.keys(), *value.values()]
        elif isinstance(value, list | tuple):
            parts = list(value)
        elif type(value).__module__ in users_modules:
            parts = list(vars(value).values())
    if not depth:
        return b""
    return hashlib.sha256(b"".join(_digest(part, users_modules, depth - 1) for part in parts)).digest()
