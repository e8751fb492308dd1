"""The rules that layers keep, tried on two microbatches: equal inputs give equal bits, whatever was computed before.

Shards are computed by several ranks, threads and forked workers, each in its own order. A layer that draws random
numbers, counts its calls, or changes what others read then gives bits that depend on their number, and no error. So
before a user's layers train, one microbatch is computed, then another, then the first again: both results of the first
must be equal, and nothing that a layer can reach may have changed. Not found is what does not show in these, such as a
file that is read anew, or a layer that counts its calls in another package.
"""

from __future__ import annotations

import hashlib
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dptrain.arrays.layout import Shape, array_shape
from dptrain.arrays.memory import Array, Workspace, aligned_copy, aligned_zeros
from dptrain.errors import DptrainError, ModelError
from dptrain.nn.layer import Layer
from dptrain.nn.network import Network, quiet
from dptrain.nn.passes import Parameters, Pass
from dptrain.nn.runner import Runner
from dptrain.nn.snapshot import Snapshot, changed, snapshot
from dptrain.system.text import shown
from dptrain.system.tracebacks import last_line, user_traceback

Microbatch = tuple[Array, NDArray[np.int64]]  # images (H, W, N, C) and labels (N,)

LATER = 1_000_003  # seconds by which the clock differs when the first microbatch is computed again
WHY = "shards are computed by several ranks, threads and workers, so results would depend on their number"
INSTEAD_OF_DRAWS = "compute such values from the layer's input, or draw them in __init__ from default_rng(SEED)"
INSTEAD_OF_STATE = (
    "Return from forward what backward needs, keep buffers in the workspace, make constants in __init__ or bind "
    "or by a function with functools.lru_cache"
)


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
    """ModelError naming the layer that fails or breaks a rule; `modules` gives the user's own, looked into for state.

    Costs three microbatches. Without `train` only the logits are computed, for whoever evaluates.
    """
    watch = _Watch(network, vectors["parameters"], vectors["buffers"])
    workspace, shared = Workspace(), Workspace()
    results: list[list[tuple[str, str]]] = []
    for microbatch, again in ((first, False), (second, True), (first, True)):
        own = modules()  # anew: more may have been imported meanwhile
        elsewhere = len(results) == 2
        before = _state(network, own)
        with _entropy_counted(again), _surroundings_changed(own if elsewhere else ()):
            results.append(watch.compute(*microbatch, workspace, shared, train))
        if paths := changed(before, _state(network, own)):
            raise ModelError(_state_changed(paths, network))
    for one, other in zip(results[0], results[2], strict=True):
        if one != other:
            raise ModelError(
                f"{one[0]} is not the same when one microbatch is computed twice: {WHY}. Does the layer draw random "
                f"numbers, read the clock or the process id, or use memory that it has not filled? If it draws, "
                f"{INSTEAD_OF_DRAWS}"
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


def _state(network: Network, modules: Sequence[ModuleType]) -> Snapshot:
    """What the layers, their classes and the modules hold."""
    classes = {owner for layer in network.layers for owner in type(layer).__mro__ if is_users_class(owner)}
    roots: dict[str, object] = {layer.name: layer for layer in network.layers}
    roots |= {module.__name__.removeprefix("dptrain_model_"): module for module in modules}
    roots |= {owner.__qualname__: owner for owner in classes}
    return snapshot(roots, frozenset({module.__name__ for module in modules} | {own.__module__ for own in classes}))


def is_users_class(owner: type) -> bool:
    """Whether a layer's class, or a base of it, is neither this program's nor Python's own."""
    return owner.__module__.partition(".")[0] not in ("dptrain", "builtins", "abc", "typing")


def _is_users(layer: Layer) -> bool:
    return any(map(is_users_class, type(layer).__mro__)) or not vars(layer).keys().isdisjoint(("forward", "backward"))


def _state_changed(paths: list[str], network: Network) -> str:
    layers = {layer.name: layer for layer in network.layers}
    path = min(paths, key=len).partition(".state[")[0]  # the numbers in a generator's state say nothing
    owner, _, attribute = path.partition(".")
    if owner in layers:
        what = f"layer {owner} ({type(layers[owner]).__name__}) changes its attribute {shown(attribute, 200)!r}"
    else:
        what = f"{shown(path, 200)} changes"
    draws = f"if it draws random numbers, {INSTEAD_OF_DRAWS}"
    return f"{what} while the network computes: {WHY}. {INSTEAD_OF_STATE}; {draws}"


class _Watch:
    """Computes with a network whose stages are watched, one by one."""

    def __init__(self, network: Network, parameters: Array, buffers: Array) -> None:
        self.buffers = buffers
        self.parameters, self._as_given = parameters, parameters.copy()
        self.events: list[tuple[str, str]] = []  # what was computed, and its digest
        self.network = network
        self.runner = _Watched(self, dict(zip(map(id, network.layers), network.output_shapes, strict=True)))

    def compute(
        self, images: Array, labels: NDArray[np.int64], workspace: Workspace, shared: Workspace, train: bool
    ) -> list[tuple[str, str]]:
        """What every layer has put out, in order; nothing for a microbatch without samples."""
        self.events = []
        images = aligned_copy(images)  # equal bits need equal alignment
        if len(labels):
            prepared = self.network.prepare(self.parameters, self.buffers, shared, self.runner)
            if train:
                gradient = aligned_zeros(self.network.layout.size, workspace.dtype)
                outcome = self.network.loss_and_grad(prepared, images, labels, gradient, workspace, runner=self.runner)
                self.note("the loss", np.array([outcome.loss_sum, outcome.correct]))
                for name, view in self.network.layout.views(gradient).items():
                    self.note(f"the gradient of {name}", view)
            block = images[..., : self.network.block, :]
            self.note("the prediction", self.network.predict(prepared, block, workspace, self.runner))
        return self.events

    def note(self, what: str, values: Any) -> None:
        self.events.append((what, hashlib.sha256(np.ascontiguousarray(values).data).hexdigest()))

    @contextmanager
    def guarding(self, layer: Layer, does: str, x: Array | None) -> Iterator[None]:
        """ModelError when what a layer does inside fails, draws from a global generator, or changes x or parameters."""
        where = f"layer {layer.name} ({type(layer).__name__})"
        generators = _generator_states()
        before = None if x is None else x.tobytes()
        try:
            yield
        except (DptrainError, MemoryError):
            raise
        except (Exception, SystemExit) as error:
            taken = "" if x is None else f"; its input was {x.dtype} {x.shape}"
            raise ModelError(f"{where} fails in {does}: {last_line(error)}{taken}", user_traceback(error)) from error
        for name, now in _generator_states().items():
            if now != generators[name]:
                raise ModelError(
                    f"{where} draws from {name} in {does}: {WHY}. {INSTEAD_OF_DRAWS[0].upper()}{INSTEAD_OF_DRAWS[1:]}"
                )
        if x is not None and x.tobytes() != before:
            raise ModelError(
                f"{where} changes its input x in place in {does}: x belongs to the layer before, which may still need "
                "it. Write to a new array, or to one of the workspace"
            )
        if not np.array_equal(self.parameters.view(np.uint8), self._as_given.view(np.uint8)):
            raise ModelError(
                f"{where} changes the parameters in {does}: all shards of a step read them, and only the optimizer "
                "changes them. Compute with a copy"
            )


_asked = [0]  # how often the system's entropy was asked for
_time, _time_ns, _getpid = time.time, time.time_ns, os.getpid


@contextmanager
def _entropy_counted(again: bool) -> Iterator[None]:
    """Count what is drawn from the system inside, as default_rng() without a seed does: it may not show in results."""
    patched = [(module, name, getattr(module, name)) for module, name in ((os, "urandom"), (random, "_urandom"))]

    def counting(original: Callable[[int], bytes]) -> Callable[[int], bytes]:
        def draw(size: int) -> bytes:
            _asked[0] += again  # not the first time: what is imported then may seed its generators
            return original(size)

        return draw

    for module, name, original in patched:
        setattr(module, name, counting(original))
    try:
        yield
    finally:
        for module, name, original in patched:
            setattr(module, name, original)


@contextmanager
def _surroundings_changed(modules: Sequence[ModuleType]) -> Iterator[None]:
    """Inside, `modules` get another time of day and process id, also where they have imported the functions.

    Nothing is changed without modules.
    """
    other: dict[object, Callable[[], int | float]] = {
        _time: lambda: _time() + LATER,
        _time_ns: lambda: _time_ns() + LATER * 10**9,
        _getpid: lambda: _getpid() + 1,
    }
    patched = [
        (module, name, value)
        for module in ((time, os, *modules) if modules else ())
        for name, value in list(vars(module).items())
        if any(value is function for function in other)
    ]
    for module, name, value in patched:
        setattr(module, name, other[value])
    try:
        yield
    finally:
        for module, name, value in patched:
            setattr(module, name, value)


def _generator_states() -> dict[str, object]:
    name, words, *rest = np.random.get_state()  # noqa: NPY002 - the global generator is what is watched
    return {
        "NumPy's global generator (np.random), or seeds it,": (name, np.asarray(words).tobytes(), *rest),
        "Python's global generator (random), or seeds it,": random.getstate(),
        "the system's entropy, as default_rng() without a seed does,": _asked[0],
    }


class _Watched(Runner):
    """Calls the stages and checks that a user's keep the rules; `shapes` has what a layer's samples become, by id."""

    def __init__(self, watch: _Watch, shapes: Mapping[int, Shape]) -> None:
        self.watch, self.shapes = watch, shapes

    def prepare(self, layer: Layer, parameters: Parameters, workspace: Workspace) -> Parameters:
        if not _is_users(layer):
            return super().prepare(layer, parameters, workspace)
        with self.watch.guarding(layer, "prepare", None):
            return super().prepare(layer, parameters, workspace)

    def forward(self, layer: Layer, x: Array, call: Pass) -> tuple[Array, Any]:
        if not _is_users(layer):
            y, saved = super().forward(layer, x, call)
            return y, (x, saved)
        with self.watch.guarding(layer, "forward", x):
            put_out: Any = super().forward(layer, x, call)
        where = _where(layer)
        if not isinstance(put_out, tuple) or len(put_out) != 2:
            raise ModelError(
                f"{where}: forward returned {_kind(put_out)}, expected two values: the output, and what backward "
                "needs (or None)"
            )
        y, saved = put_out
        expected = array_shape(self.shapes[id(layer)], x.shape[-2])
        if not isinstance(y, np.ndarray) or y.dtype.kind not in "fiub" or expected != y.shape:
            raise ModelError(
                f"{where}: the output of forward is {_kind(y)}, expected an array of shape {expected}, which "
                f"follows from the shape {self.shapes[id(layer)]} that bind returned"
            )
        self.watch.note(f"the output of {where}", y)
        return y, (x, saved)

    def backward(self, layer: Layer, dy: Array, saved: Any, call: Pass) -> Array | None:
        x, saved = saved
        if not _is_users(layer):
            return super().backward(layer, dy, saved, call)
        own, where = dict(call.gradients), _where(layer)
        with self.watch.guarding(layer, "backward", x):
            dx = super().backward(layer, dy, saved, call)
        if dict(call.gradients).keys() != own.keys() or any(
            call.gradients[name] is not view for name, view in own.items()
        ):
            raise ModelError(
                f"{where}: backward assigned a new entry of `gradients`, which has no effect: write into the "
                "array that is there, gradients[name][...] = value"
            )
        if call.need_dx and (not isinstance(dx, np.ndarray) or dx.shape != x.shape or dx.dtype.kind not in "fiub"):
            raise ModelError(
                f"{where}: backward returned {_kind(dx)}, expected the gradient of its input, an array of shape "
                f"{x.shape}"
            )
        if dx is not None and call.need_dx:
            self.watch.note(f"what backward returns of {where}", dx)
        return dx


def _where(layer: Layer) -> str:
    return f"layer {layer.name} ({type(layer).__name__})"


def _kind(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {value.shape}"
    if isinstance(value, tuple):
        return f"a tuple of {len(value)}"
    return "None" if value is None else f"an object of type {type(value).__name__}"
