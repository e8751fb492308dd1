"""Batch normalisation."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, reduce
from operator import add
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import DTypeLike

from dptrain.arrays.layout import Shape
from dptrain.arrays.memory import Array, Workspace
from dptrain.errors import ModelError
from dptrain.nn.layer import Arrays, CoupledLayer, Parameters, Pass, feature_maps, read_only, where
from dptrain.nn.layers.activation import PIECE as ACTIVATED_PIECE
from dptrain.nn.layers.activation import Activation
from dptrain.nn.tensor import Tensor, ones, zeros

# Values computed at a time, so that several arrays of them stay in a core's second-level cache.
PIECE = 1 << 15


@dataclass(frozen=True, eq=False)
class Moments:
    """By channel (C,): the mean, and the sum of squared deviations from it, of so many values."""

    values: int
    mean: Array
    squares: Array

    def __add__(self, other: Moments) -> Moments:
        """Of all values together (Chan, Golub and LeVeque 1979)."""
        total = self.values + other.values
        difference = other.mean - self.mean
        squares = self.squares + (other.squares + difference**2 * (self.values * other.values / total))
        return Moments(total, self.mean + difference * (other.values / total), squares)


class Coupling(NamedTuple):
    """By channel (C,): the mean, and 1 / deviation, of the values that are normalised together.

    `values` is how many there are, 0 for running averages.
    """

    values: int
    mean: Array
    scale: Array


class Slopes(NamedTuple):
    """What dx depends on besides dy and x: the coupling, and by channel (C,) the means of dy and dy * normalised x."""

    coupling: Coupling
    mean: Array
    along: Array


class BatchNorm2d(CoupledLayer):
    """(x - mean) / deviation * weight + bias for each channel of x (H, W, N, C); weight (C,) and bias (C,).

    In training, mean and variance are those of the shard's whole microbatch (Ioffe and Szegedy 2015). An evaluation
    uses running averages. They move towards the mean over all shards, weighted by samples, of the shards' means and
    unbiased variances, which is summed along the reduction tree. So the running variance estimates the variance
    within a microbatch; how far the means of shards differ is not a part of it.

    With `sync`, training normalises by mean and variance of the global batch, the samples of all shards, and running
    averages move towards those.

    eps         is added to the variance
    momentum    the share of the new value in a running average
    scale       False for a weight that is fixed at 1, and no parameter
    sync        True for mean and variance of the global batch
    """

    kind = "norm"

    def __init__(self, *, eps: float = 1e-5, momentum: float = 0.1, scale: bool = True, sync: bool = False) -> None:
        if not 0 < eps < math.inf or not 0 <= momentum <= 1:
            raise ValueError(
                f"eps is {eps} and momentum {momentum}, expected a finite eps above 0 and momentum from 0 to 1"
            )
        self.eps, self.momentum, self.scale = eps, momentum, scale
        self.sync = self.synchronized = sync

    def bind(self, input_shape: Shape) -> Shape:
        self.channels, height, width = feature_maps(self, input_shape)
        self.pixels = height * width
        return input_shape

    def least_samples(self) -> int:
        return 1 if self.pixels > 1 else 2  # the variance needs two values

    def tensors(self) -> list[Tensor]:
        shape = (self.channels,)
        return [
            *([Tensor("weight", shape, ones)] if self.scale else []),
            Tensor("bias", shape, zeros),
            Tensor("running_mean", shape, zeros, kind="buffer", momentum=self.momentum),
            Tensor("running_var", shape, ones, kind="buffer", momentum=self.momentum),
        ]

    def collect(self, x: Array, call: Pass) -> Moments:
        rows, count, workspace = by_rows(x), x.size // x.shape[3], call.workspace
        mean = _by_channel(rows.sum(axis=0), x) / count
        shift, squares = tiled(mean, x, "shift", workspace), np.zeros_like(mean)
        for piece in pieces(x):
            part = rows[piece]
            part = np.subtract(part, shift[piece[1]], out=_temporary(part.shape, workspace))
            part *= part
            squares += _channel_sums(part, self.channels)
        return Moments(count, mean, squares)

    def merge(self, parts: Sequence[Moments]) -> Moments:
        return joined(parts)

    def join(self, parts: Sequence[Moments], call: Pass) -> Coupling:
        moments = joined(parts)
        count, mean, squares = moments.values, moments.mean, moments.squares
        if count < 2:
            raise ModelError(
                f"{where(self)} gets one value for each channel (one sample, a map of one pixel), expected at least 2: "
                "use another --batch-size"
            )
        variance = (squares / count).astype(call.workspace.dtype)
        call.statistics["running_mean"][...] = mean
        call.statistics["running_var"][...] = squares / (count - 1)
        return Coupling(count, mean.astype(variance.dtype), self._scale_of(variance))

    def forward(self, x: Array, call: Pass) -> tuple[Array, Any]:
        return self.forward_activated(x, call, None)

    def forward_activated(self, x: Array, call: Pass, activation: Activation | None) -> tuple[Array, Any]:
        """Normalise and apply the activation, if there is one, piece by piece."""
        workspace, rows = call.workspace, by_rows(x)
        coupling = self._coupling_of(x, call)
        factor = self._factor(coupling, call)
        offset = tiled(call.parameters["bias"] - coupling.mean * factor, x, "offset", workspace)
        factor = tiled(factor, x, "factor", workspace)
        y = workspace.array(self.name, "y", rows.shape)
        derivative = None
        if activation is not None and call.training:
            derivative = workspace.array(self.name, "derivative", rows.shape, activation.derivative_dtype)
        for piece in pieces(x, PIECE if activation is None else ACTIVATED_PIECE):
            columns = piece[1]
            out = y[piece] if activation is None else _temporary(y[piece].shape, workspace)
            np.multiply(rows[piece], factor[columns], out=out)
            out += offset[columns]
            if activation is not None:
                activation.compute(out, y[piece], None if derivative is None else derivative[piece], workspace)
        return y.reshape(x.shape), (x if call.coupling is None else None, derivative, coupling)

    def collect_backward(self, dy: Array, x: Array, saved: Any, out: Array, call: Pass) -> tuple[Array, Array]:
        """`out` becomes the gradient before the activation; the sums (C,) are those of it, and of it * normalised x."""
        _, derivative, coupling = saved
        rows, drows, douts = by_rows(x), by_rows(dy), by_rows(out)
        shift = tiled(coupling.mean, x, "shift", call.workspace)
        sums, along = np.zeros((2, self.channels), dy.dtype)
        for piece in pieces(x):
            dout = douts[piece]
            if derivative is None:
                np.copyto(dout, drows[piece])
            else:
                np.multiply(drows[piece], derivative[piece], out=dout)
            sums += _channel_sums(dout, self.channels)
            part = np.subtract(rows[piece], shift[piece[1]], out=_temporary(dout.shape, call.workspace))
            part *= dout
            along += _channel_sums(part, self.channels)
        return sums, along * coupling.scale

    def merge_backward(self, parts: Sequence[tuple[Array, Array]]) -> Array:
        return cast(Array, np.sum(parts, axis=0, dtype=np.float64))

    def join_backward(
        self, parts: Sequence[tuple[Array, Array]], coupling: Coupling, call: Pass, total: Array | None = None
    ) -> Slopes:
        dbias, dweight = np.sum(parts, axis=0)
        call.gradients["bias"][...] = dbias
        if self.scale:
            call.gradients["weight"][...] = dweight
        if total is not None:
            dbias, dweight = (sums.astype(call.workspace.dtype) for sums in total)
        return Slopes(coupling, dbias / coupling.values, dweight / coupling.values)

    def backward(self, dy: Array, saved: Any, call: Pass) -> Array | None:
        if call.coupling is None:
            x, dz = saved[0], call.workspace.array(self.name, "dz", dy.shape)
            slopes = self.join_backward([self.collect_backward(dy, x, saved, dz, call)], saved[2], call)
        else:  # in blocks: `collect_backward` was called before
            x, dz, slopes = saved, dy, call.coupling
        if not call.need_dx:
            return None
        # dx = factor * (dz - mean - along * (x - coupling.mean) * coupling.scale)
        factor = self._factor(slopes.coupling, call)
        slope = -factor * slopes.along * slopes.coupling.scale
        offset = tiled(-factor * slopes.mean - slope * slopes.coupling.mean, x, "offset", call.workspace)
        factor, slope = tiled(factor, x, "factor", call.workspace), tiled(slope, x, "slope", call.workspace)
        rows, drows = by_rows(x), by_rows(dz)
        dx = call.workspace.array(self.name, "dx", rows.shape)
        for piece in pieces(x):
            columns, out = piece[1], dx[piece]
            np.multiply(rows[piece], slope[columns], out=out)
            out += offset[columns]
            part = np.multiply(drows[piece], factor[columns], out=_temporary(out.shape, call.workspace))
            out += part
        return dx.reshape(x.shape)

    def _coupling_of(self, x: Array, call: Pass) -> Coupling:
        """That of the pass, or of the running averages, or of x as a whole microbatch."""
        if not call.training:
            return Coupling(0, call.buffers["running_mean"], self._scale_of(call.buffers["running_var"]))
        return call.coupling or self.join([self.collect(x, call)], call)

    def slope_and_offset(self, parameters: Parameters, buffers: Arrays) -> tuple[Array, Array]:
        """a and b (C,): an evaluation computes a * x + b."""
        scale = self._scale_of(buffers["running_var"])
        slope = scale * parameters["weight"] if self.scale else scale
        return slope, parameters["bias"] - buffers["running_mean"] * slope

    def _scale_of(self, variance: Array) -> Array:
        return cast(Array, 1 / np.sqrt(variance + np.asarray(self.eps, variance.dtype)))

    def _factor(self, coupling: Coupling, call: Pass) -> Array:
        return cast(Array, coupling.scale * call.parameters["weight"]) if self.scale else coupling.scale


def joined(parts: Sequence[Moments]) -> Moments:
    """The moments of all values together, in float64."""
    first = parts[0]
    mean, squares = first.mean.astype(np.float64), first.squares.astype(np.float64)
    return reduce(add, parts[1:], Moments(first.values, mean, squares))


def by_rows(x: Array) -> Array:
    """x (H, W, N, C) as (H, W * N * C): NumPy computes long rows faster than rows of C values."""
    return x.reshape(len(x), -1)


def tiled(values: Array, x: Array, purpose: str, workspace: Workspace) -> Array:
    """values (C,), repeated for a row of x (H, W, N, C)."""
    _, width, samples, channels = x.shape
    row = workspace.scratch("norm", purpose, (width * samples, channels))
    np.copyto(row, values)
    return row.reshape(-1)


def pieces(x: Array, most: int = PIECE) -> Iterator[tuple[slice, slice]]:
    """Slices of `by_rows(x)`, each of at most `most` values and of whole pixels (C,)."""
    height, width, samples, channels = x.shape
    length, along = width * samples * channels, max(1, most // channels) * channels
    down = max(1, most // max(1, length))
    for top in range(0, height, down):
        for left in range(0, length, along):
            yield slice(top, top + down), slice(left, left + along)


def _temporary(shape: Shape, workspace: Workspace) -> Array:
    return workspace.scratch("norm", "piece", shape)


def _by_channel(sums: Array, x: Array) -> Array:
    """Sums of the columns of `by_rows(x)`, added up by channel: (C,)."""
    return cast(Array, sums.reshape(-1, x.shape[3]).sum(axis=0))


def _channel_sums(piece: Array, channels: int) -> Array:
    """(C,): a product with ones takes a quarter of the time of NumPy's sum of rows (measured)."""
    pixels = piece.reshape(-1, channels)
    sums: Array = _ones(len(pixels), piece.dtype) @ pixels
    return sums


@cache
def _ones(count: int, dtype: DTypeLike) -> Array:
    return read_only(np.ones(count, dtype))
