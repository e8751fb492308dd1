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
from typing import Any, TypeVar

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
Result = TypeVar("Result")

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
    workspace, shared = Workspace(), Workspace()
    results: list[list[tuple[str, str]]] = []
    for images, labels in (first, second, first):
        own = modules()  # each time: more may have been imported
        before = _state(network, own)
        results.append(_computed(network, vectors, aligned_copy(images), labels, workspace, shared, train))
        after = _state(network, own)
        changed = [path for path in before | after if before.get(path) != after.get(path)]
        if changed:
            raise ModelError(
                f"{_name(changed[0], network)} changes while the network computes: {WHY}. {STATE}. {DRAWS}"
            )
    for one, other in zip(results[0], results[2], strict=True):
        if one != other:
            raise ModelError(
                f"{one[0]} is not the same when one microbatch is computed twice: {WHY}. Does the layer draw random "
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


def _computed(
    network: Network,
    vectors: Mapping[str, Array],
    images: Array,
    labels: NDArray[np.int64],
    workspace: Workspace,
    shared: Workspace,
    train: bool,
) -> list[tuple[str, str]]:
    """All results in order, each with its digest; nothing for a microbatch without samples."""
    checker = _Checker()
    if len(labels):
        prepared = network.prepare(vectors["parameters"], vectors["buffers"], shared, checker)
        if train:
            gradient, statistics = aligned_zeros(network.layout.size), aligned_zeros(network.buffer_layout.size)
            outcome = network.loss_and_grad(
                prepared, images, labels, gradient, workspace, statistics=statistics, runner=checker
            )
            checker.note("the loss", np.array([outcome.loss_sum, outcome.correct]))
            for name, view in network.layout.views(gradient).items():
                checker.note(f"the gradient of {name}", view)
            checker.note("the statistics of the buffers", statistics)
        block = images[..., : network.block, :]
        checker.note("the prediction", network.predict(prepared, block, workspace, checker))
    return checker.results


class _Checker(Runner):
    """Notes what a user's layers return. ModelError for one that fails, or draws from a global random generator."""

    def __init__(self) -> None:
        self.results: list[tuple[str, str]] = []

    def note(self, what: str, values: Any) -> None:
        if isinstance(values, np.ndarray):
            self.results.append((what, hashlib.sha256(np.ascontiguousarray(values).data).hexdigest()))

    def prepare(self, layer: Layer, parameters: Parameters, workspace: Workspace) -> Parameters:
        return self._checked(layer, "prepare", lambda: super(_Checker, self).prepare(layer, parameters, workspace))

    def forward(self, layer: Layer, x: Array, call: Pass) -> tuple[Array, Any]:
        result = self._checked(layer, "forward", lambda: super(_Checker, self).forward(layer, x, call), x)
        if _is_users(layer) and isinstance(result, tuple):
            self.note(f"the output of {where(layer)}", result[0])
        return result

    def backward(self, layer: Layer, dy: Array, saved: Any, call: Pass) -> Array | None:
        dx = self._checked(layer, "backward", lambda: super(_Checker, self).backward(layer, dy, saved, call), dy)
        if _is_users(layer) and call.need_dx:
            self.note(f"the gradient of the input of {where(layer)}", dx)
        return dx

    def _checked(self, layer: Layer, method: str, run: Callable[[], Result], given: Array | None = None) -> Result:
        if not _is_users(layer):
            return run()
        before = _global_generators()
        try:
            result = run()
        except (DptrainError, MemoryError):
            raise
        except (Exception, SystemExit) as error:
            text = f"{where(layer)} fails in {method}: {last_line(error)}"
            text += f"; it was given {kind_of(given)}" if isinstance(given, np.ndarray) else ""
            if "read-only" in str(error):
                text += ". x, the parameters and the buffers are only read, as others use them too: compute with a copy"
            raise ModelError(text, user_traceback(error)) from error
        if _global_generators() != before:
            used = "a global random generator (np.random or random)"
            raise ModelError(f"{where(layer)} uses {used} in {method}: {WHY}. {DRAWS}")
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
    """A digest of every attribute of the user's layers, their classes and the modules, by path such as "mine1.mask"."""
    layers = {layer.name: layer for layer in network.layers if _is_users(layer)}
    classes = {owner for layer in layers.values() for owner in type(layer).__mro__ if is_users_class(owner)}
    roots: dict[str, object] = {module.__name__.removeprefix("dptrain_model_"): module for module in modules}
    roots |= {owner.__qualname__: owner for owner in classes}
    roots |= layers
    own = {module.__name__ for module in modules} | {owner.__module__ for owner in classes}
    return {f"{root}.{name}": _digest(part, own) for root, value in roots.items() for name, part in _parts(value)}


def _name(path: str, network: Network) -> str:
    owner, _, attribute = path.partition(".")
    layer = next((layer for layer in network.layers if layer.name == owner), None)
    return shown(path, 200) if layer is None else f"the attribute {shown(attribute, 200)!r} of {where(layer)}"


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
            cells = [_cell(cell) for cell in value.__closure__ or ()]
            return str, (name, value.__defaults__, value.__kwdefaults__, cells, vars(value))
        module = type(value).__module__
        if module not in self._own_modules and module.partition(".")[0] not in LOOKED_INTO:
            return str, (type(value).__qualname__,)
        try:
            reduced = value.__reduce_ex__(4)
        except Exception:
            return str, (type(value).__qualname__,)
        return (str, (reduced,)) if isinstance(reduced, str) else reduced


def _cell(cell: Any) -> object:
    """The content of a variable of an enclosing function; None before it is assigned."""
    try:
        return cell.cell_contents
    except ValueError:
        return None
