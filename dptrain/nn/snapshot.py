"""Everything that objects remember, as a digest by path, so that a change between two moments shows and has a name."""

from __future__ import annotations

import array
import functools
import hashlib
import itertools
import random
import types
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from dptrain.nn.layer import Layer

SCALARS = (type(None), bool, int, float, complex, str, bytes, bytearray, range, slice, type(Ellipsis))
DEEPEST = 40
SKIPPED = ("_frozen", "_abc_impl", "_arguments")  # set by the network, and a cache of Python's own

Snapshot = dict[str, str]


def snapshot(roots: Mapping[str, object], own_modules: frozenset[str]) -> Snapshot:
    """Path (such as "noise1.generators[0]") to digest, for everything reachable from the roots.

    Looked into are layers, objects and functions of classes and modules named in `own_modules`, containers, arrays,
    random generators and iterators. Everything else, such as a logger or the cache of functools.lru_cache, is not: it
    may change. A root that is a module or a layer stands for its attributes.
    """
    walker = _Walker(own_modules)
    for name, root in roots.items():
        walker.walk(name, root, 0)
    return walker.found


def changed(before: Snapshot, after: Snapshot) -> list[str]:
    """Paths that are new, gone or have another digest."""
    return [path for path in {**before, **after} if before.get(path) != after.get(path)]


class _Walker:
    def __init__(self, own_modules: frozenset[str]) -> None:
        self.own_modules = own_modules
        self.found: Snapshot = {}
        self._seen: dict[int, object] = {}  # by id; held, so that no id is used twice

    def walk(self, path: str, value: object, depth: int) -> None:
        if isinstance(value, SCALARS) or _of_scalars(value):
            self._note(path, repr(value).encode())
            return
        if id(value) in self._seen or depth > DEEPEST:
            self._note(path, type(value).__qualname__.encode())
            return
        self._seen[id(value)] = value
        try:
            content = self._content(value)
            parts = list(self._parts(value))
        except Exception:  # of a user's __repr__ or __iter__
            content, parts = b"", []
        self._note(path, type(value).__qualname__.encode() + content)
        for step, part in parts:
            self.walk(path + step, part, depth + 1)

    def _note(self, path: str, content: bytes) -> None:
        self.found[path] = hashlib.sha256(content).hexdigest()

    def _content(self, value: object) -> bytes:
        """What a value holds itself, beside its parts."""
        if isinstance(value, np.ndarray | np.generic):
            return b"" if value.dtype.hasobject else repr((value.dtype, value.shape)).encode() + _digest(value)
        if isinstance(value, array.array | memoryview):
            return value.tobytes()
        if isinstance(value, set | frozenset):
            return "".join(sorted(map(repr, value))).encode()
        if isinstance(value, itertools.count):
            return repr(value).encode()
        if isinstance(value, types.GeneratorType):
            return str(value.gi_frame and value.gi_frame.f_lasti).encode()
        if isinstance(value, Iterator) and hasattr(value, "__length_hint__"):
            return str(value.__length_hint__()).encode()
        return b""

    def _parts(self, value: Any) -> Iterator[tuple[str, object]]:
        """The parts to look into, each with what its path adds."""
        if isinstance(value, dict):
            yield from ((f"[{key!r}]", part) for key, part in list(value.items()))
        elif isinstance(value, list | tuple | deque) or (isinstance(value, np.ndarray) and value.dtype.hasobject):
            yield from ((f"[{number}]", part) for number, part in enumerate(list(value)))
        elif isinstance(value, np.random.Generator):
            yield "", value.bit_generator
        elif isinstance(value, np.random.BitGenerator):
            yield ".state", value.state
        elif isinstance(value, np.random.RandomState):
            yield ".state", value.get_state(legacy=False)
        elif isinstance(value, random.Random) and not isinstance(value, random.SystemRandom):
            yield ".state", value.getstate()
        elif isinstance(value, functools.partial):
            yield ".func", value.func
            yield ".args", value.args
            yield ".keywords", value.keywords
        elif isinstance(value, types.MethodType | types.BuiltinMethodType):
            yield ".__self__", value.__self__  # such as the generator of `draw = default_rng(0).random`
            yield ".__func__", getattr(value, "__func__", None)
        elif isinstance(value, staticmethod | classmethod):
            yield "", value.__func__
        elif isinstance(value, property):
            yield "", value.fget
        elif isinstance(value, types.GeneratorType) and value.gi_frame is not None:
            yield ".locals", dict(value.gi_frame.f_locals)
        elif isinstance(value, itertools.cycle):
            yield from ((f".{number}", part) for number, part in enumerate(_reduced(value)))
        if isinstance(value, types.FunctionType):
            if value.__module__ in self.own_modules:
                yield from _of_function(value)
        elif isinstance(value, type):
            if value.__module__ in self.own_modules:
                yield from _attributes(vars(value))
        elif isinstance(value, types.ModuleType):
            if value.__name__ in self.own_modules:
                yield from _attributes(vars(value))
        elif isinstance(value, Layer | types.SimpleNamespace) or type(value).__module__ in self.own_modules:
            yield from _attributes(getattr(value, "__dict__", {}))
            yield from _slots(value)


def _of_scalars(value: object) -> bool:
    """Whether it is a plain container of plain values, which has one digest: a list may have a million of them."""
    if isinstance(value, dict) and type(value) is dict:
        return all(type(key) in SCALARS and type(part) in SCALARS for key, part in value.items())
    return isinstance(value, list | tuple) and all(type(part) in SCALARS for part in value)


def _digest(values: Any) -> bytes:
    """Of an array's content, without a copy where it is contiguous."""
    return hashlib.sha256(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data).digest()


def _attributes(values: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    for name, part in list(values.items()):
        if name not in SKIPPED and not (name.startswith("__") and name.endswith("__")):
            yield f".{name}", part


def _slots(value: object) -> Iterator[tuple[str, object]]:
    for owner in type(value).__mro__:
        for name, part in vars(owner).items():
            if isinstance(part, types.MemberDescriptorType) and hasattr(value, name):
                yield f".{name}", getattr(value, name)


def _of_function(function: types.FunctionType) -> Iterator[tuple[str, object]]:
    """What a function keeps between calls: default values, variables of the enclosing function, attributes."""
    yield ".__defaults__", function.__defaults__
    yield ".__kwdefaults__", function.__kwdefaults__
    yield from _attributes(vars(function))
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=False):
        try:
            yield f".{name}", cell.cell_contents
        except ValueError:  # not assigned yet
            continue


def _reduced(value: Any) -> tuple[object, ...]:
    """What pickle would keep of an iterator; nothing where Python does not offer it any more."""
    reduce: Callable[[], Any] | None = getattr(value, "__reduce__", None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            return tuple(reduce()[1:]) if reduce is not None else ()
        except TypeError:
            return ()
