"""Checks of a user's layers before they train: equal inputs must give equal bits, whatever was computed before.

Shards are computed by several ranks, threads and forked workers, each in its own order. A layer that draws random
numbers of its own, counts its calls, or changes what others read gives bits that depend on their number, and no error.
So one microbatch is computed, then another, then the first again: both results of the first must be equal, and nothing
that a layer can reach may have changed. Not found is what does not show in three microbatches, such as a file that
changes later, or state within another package.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import random
import types
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from dptrain.arrays.memory import Array, Workspace, aligned_copy, aligned_zeros
from dptrain.errors import DptrainError, ModelError
from dptrain.nn.graph import kind_of, where
from dptrain.nn.layer import Layer
from dptrain.nn.network import Network, quiet
from dptrain.nn.passes import Parameters, Pass
from dptrain.nn.runner import Runner
from dptrain.system.text import shown
from dptrain.system.tracebacks import last_line, user_traceback

Microbatch = tuple[Array, NDArray[np.int64]]  # images (H, W, N, C) and labels (N,)

WHY = "shards are computed by several ranks, threads and workers, so results would depend on their number"
DRAWS = "Draw random numbers by call.uniform(shape), or in __init__ from default_rng(SEED)"
STATE = (
    "Return from forward what backward needs, keep buffers in the workspace, make constants in __init__ or bind "
    "or by a function with functools.lru_cache"
)
LOOKED_INTO = ("array", "builtins", "collections", "dptrain", "functools", "itertools", "numpy", "random", "types")


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
    """ModelError naming the layer that fails or breaks a rule. `modules` gives the user's modules, to look into.

    Costs three microbatches. Without `train`, for an evaluation, only the logits are computed.
    """
    checker = _Checker(network, vectors, train)
    results = []
    for images, labels in (first, second, first):
        own = modules()  # each time: more may have been imported
        before = _state(network, own)
        results.append(checker.compute(aligned_copy(images), labels))
        after = _state(network, own)
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
    logits = network.predict(prepared, aligned_copy(images), Workspace())
    return hashlib.sha256(np.ascontiguousarray(logits).data).hexdigest()


class _Checker(Runner):
    """Computes microbatches. ModelError for a user's layer that fails, or uses a global random generator."""

    def __init__(self, network: Network, vectors: Mapping[str, Array], train: bool) -> None:
        self.network, self.vectors, self.train = network, vectors, train
        self.workspace, self.shared = Workspace(), Workspace()
        self.results: list[tuple[str, bytes]] = []

    def compute(self, images: Array, labels: NDArray[np.int64]) -> list[tuple[str, bytes]]:
        """All results in order, each with its digest; none for a microbatch without samples."""
        network, self.results = self.network, []
        if len(labels):
            prepared = network.prepare(self.vectors["parameters"], self.vectors["buffers"], self.shared, self)
            if self.train:
                gradient, statistics = aligned_zeros(network.layout.size), aligned_zeros(network.buffer_layout.size)
                outcome = network.loss_and_grad(
                    prepared, images, labels, gradient, self.workspace, statistics=statistics, runner=self
                )
                self._note("the loss", np.array([outcome.loss_sum, outcome.correct]))
                for name, view in network.layout.views(gradient).items():
                    self._note(f"the gradient of {name}", view)
                self._note("a statistic for the buffers", statistics)
            block = images[..., : network.block, :]
            self._note("the prediction", network.predict(prepared, block, self.workspace, self))
        return self.results

    def _note(self, what: str, values: object) -> None:
        if isinstance(values, np.ndarray):
            self.results.append((what, hashlib.sha256(np.ascontiguousarray(values).data).digest()))

    def prepare(self, layer: Layer, parameters: Parameters, workspace: Workspace) -> Parameters:
        return cast(Parameters, self._checked(layer, "prepare", super().prepare, parameters, workspace))

    def forward(self, layer: Layer, x: Array, call: Pass) -> tuple[Array, Any]:
        return cast(tuple[Array, Any], self._checked(layer, "forward", super().forward, x, call))

    def backward(self, layer: Layer, dy: Array, saved: Any, call: Pass) -> Array | None:
        return cast("Array | None", self._checked(layer, "backward", super().backward, dy, saved, call))

    def _checked(self, layer: Layer, method: str, run: Callable[..., Any], given: Any, *more: Any) -> Any:
        if not _is_users(layer):
            return run(layer, given, *more)
        before = _global_generators()
        try:
            result = run(layer, given, *more)
        except (DptrainError, MemoryError):
            raise
        except (Exception, SystemExit) as error:
            text = f"{where(layer)} fails in {method}: {last_line(error)}; it was given {kind_of(given)}"
            if "read-only" in str(error):
                text += ". x, the parameters and the buffers are only read, as others use them too: compute with a copy"
            raise ModelError(text, user_traceback(error)) from error
        if _global_generators() != before:
            used = "a global random generator (np.random or random)"
            raise ModelError(f"{where(layer)} uses {used} in {method}: {WHY}. {DRAWS}")
        self._note(f"the result of {method} of {where(layer)}", result[0] if isinstance(result, tuple) else result)
        return result


def is_users_class(owner: type) -> bool:
    """Whether a layer's class, or a base of it, is neither this program's nor Python's own."""
    return owner.__module__.partition(".")[0] not in ("dptrain", "builtins", "abc", "typing")


def _is_users(layer: Layer) -> bool:
    return any(map(is_users_class, type(layer).__mro__)) or not vars(layer).keys().isdisjoint(("forward", "backward"))


def _global_generators() -> bytes:
    """Their states."""
    return pickle.dumps((np.random.get_state(), random.getstate()))  # noqa: NPY002 - the global generator is meant


def _state(network: Network, modules: Sequence[ModuleType]) -> dict[str, bytes]:
    """A digest of every attribute of the user's layers, their classes and the modules, by path."""
    layers = {layer.name: layer for layer in network.layers if _is_users(layer)}
    classes = {owner for layer in layers.values() for owner in type(layer).__mro__ if is_users_class(owner)}
    names = {module.__name__.removeprefix("dptrain_model_"): module for module in modules}
    roots: dict[str, object] = {f"module {name}": module for name, module in names.items()}
    roots |= {f"class {owner.__qualname__}": owner for owner in classes}
    roots |= {f"layer {name} ({type(layer).__name__})": layer for name, layer in layers.items()}
    own = {module.__name__ for module in modules} | {owner.__module__ for owner in classes}
    return {
        f"the attribute {name!r} of {root}": _digest(part, own)
        for root, value in roots.items()
        for name, part in _parts(value)
    }


def _parts(value: object) -> list[tuple[str, object]]:
    """Attributes, without Python's and the network's own."""
    skipped = ("_frozen", "_arguments", "_abc_impl")
    return [(name, one) for name, one in list(vars(value).items()) if name[:2] != "__" and name not in skipped]


def _digest(value: object, own_modules: set[str]) -> bytes:
    """Of everything that a value holds."""
    content = io.BytesIO()
    try:
        _ContentPickler(content, own_modules).dump(value)
    except Exception:  # of a user's __reduce__, or nested too deep
        return b""
    return hashlib.sha256(content.getbuffer()).digest()


class _ContentPickler(pickle.Pickler):
    """Pickles content for comparison. It looks into values of the user's modules, of Python and NumPy.

    What else there is, such as a logger, a lock or the cache of functools.lru_cache, may change: only its type counts.
    """

    def __init__(self, file: io.BytesIO, own_modules: set[str]) -> None:
        super().__init__(file, 4)
        self._own_modules, self._seen = own_modules, dict[int, object]()

    def reducer_override(self, value: Any) -> Any:
        if value is str:
            return NotImplemented  # pickled as Python does
        if isinstance(value, types.FunctionType | type):
            name = value.__qualname__
            if value.__module__ not in self._own_modules or id(value) in self._seen:
                return str, (name,)
            self._seen[id(value)] = value
            if isinstance(value, type):
                return str, (name, _parts(value))
            cells = [cell.cell_contents for cell in value.__closure__ or ()]
            return str, (name, value.__defaults__, value.__kwdefaults__, cells, vars(value))
        module = type(value).__module__
        if module not in self._own_modules and module.partition(".")[0] not in LOOKED_INTO:
            return str, (type(value).__qualname__,)
        try:
            reduced = value.__reduce_ex__(4)
        except Exception:
            return str, (type(value).__qualname__,)
        return (str, (reduced,)) if isinstance(reduced, str) else reduced
