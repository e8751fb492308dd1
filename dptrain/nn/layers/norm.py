"""Batch normalisation."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, cast

import numpy as np

from dptrain.arrays.layout import Shape
from dptrain.arrays.memory import Array, Workspace
from dptrain.errors import ModelError
from dptrain.nn.layer import CoupledLayer, Pass, feature_maps, where
from dptrain.nn.layers.activation import Activation
from dptrain.nn.tensor import Tensor, ones, zeros

PIECE = 1 << 14  # values computed at a time, so that several arrays of them stay in a core's cache


class Moments(NamedTuple):
    """By channel (C,): the mean, and the sum of squared deviations from it, of so many values."""

    values: int
    mean: Array
    squares: Array


class Coupling(NamedTuple):
    """By channel (C,): the mean, and 1 / deviation, of the values that were normalised together."""

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

    In training, mean and variance are those of the shard's whole microbatch (Ioffe and Szegedy 2015). The running
    averages, which an evaluation uses, move towards their mean over all shards, weighted by samples. As in PyTorch, the
    running variance is the unbiased one.

    eps         is added to the variance
    momentum    the share of the new value in a running average
    scale       False for a weight that is fixed at 1, and no parameter
    """

    kind = "norm"

    def __init__(self, *, eps: float = 1e-5, momentum: float = 0.1, scale: bool = True) -> None:
        if not eps > 0 or not 0 <= momentum <= 1:
            raise ValueError(f"eps is {eps} and momentum {momentum}, expected eps above 0 and momentum from 0 to 1")
        self.eps, self.momentum, self.scale = eps, momentum, scale

    def bind(self, input_shape: Shape) -> Shape:
        self.channels = feature_maps(self, input_shape)[0]
        return input_shape

    def tensors(self) -> list[Tensor]:
        shape = (self.channels,)
        return [
            *([Tensor("weight", shape, ones)] if self.scale else []),
            Tensor("bias", shape, zeros),
            Tensor("running_mean", shape, zeros, kind="buffer", momentum=self.momentum),
            Tensor("running_var", shape, ones, kind="buffer", momentum=self.momentum),
        ]

    def collect(self, x: Array, call: Pass) -> Moments:
        rows, samples = by_rows(x), x.shape[2]
        count = x.size // x.shape[3]
        mean = _by_channel(rows.sum(axis=(0, 1)), samples) / count
        shift, squares = np.tile(mean, samples), np.zeros(rows.shape[2], x.dtype)
        for piece in pieces(rows.shape):
            columns, part = piece[-1], rows[piece]
            part = np.subtract(part, shift[columns], out=_temporary("first", part.shape, call.workspace))
            squares[columns] += np.multiply(part, part, out=part).sum(axis=(0, 1))
        return Moments(count, mean, _by_channel(squares, samples))

    def join(self, parts: Sequence[Moments], call: Pass) -> Coupling:
        count, mean, squares = joined(parts)
        if count < 2:
            raise ModelError(
                f"{where(self)} has one value a channel in a shard's microbatch of one sample, expected at least 2 to "
                "normalise: use a larger --batch-size"
            )
        variance = (squares / count).astype(call.workspace.dtype)
        call.statistics["running_mean"][...] = mean
        call.statistics["running_var"][...] = squares / (count - 1)
        return Coupling(count, mean.astype(variance.dtype), self._scale_of(variance))

    def forward(self, x: Array, call: Pass) -> tuple[Array, Any]:
        return self.forward_activated(x, call, None)

    def forward_activated(self, x: Array, call: Pass, activation: Activation | None) -> tuple[Array, Any]:
        """The same followed by an activation, piece by piece."""
        workspace, rows, samples = call.workspace, by_rows(x), x.shape[2]
        coupling = self._coupling_of(x, call)
        shift, factor = np.tile(coupling.mean, samples), np.tile(self._factor(coupling, call), samples)
        bias = np.tile(call.parameters["bias"], samples)
        y = workspace.array(self.name, "y", rows.shape)
        derivative = None
        if activation is not None and call.training:
            derivative = workspace.array(self.name, "derivative", rows.shape, activation.derivative_dtype)
        for piece in pieces(rows.shape):
            columns = piece[-1]
            out = y[piece] if activation is None else _temporary("first", y[piece].shape, workspace)
            np.subtract(rows[piece], shift[columns], out=out)
            out *= factor[columns]
            out += bias[columns]
            if activation is not None:
                activation.compute(out, y[piece], None if derivative is None else derivative[piece], workspace)
        return y.reshape(x.shape), (x, derivative, coupling)

    def collect_backward(self, dy: Array, saved: Any, call: Pass) -> tuple[Array, tuple[Array, Array]]:
        """dy becomes the gradient before the activation; the sums (C,) are those of dy and dy * normalised x."""
        x, derivative, coupling = saved
        rows, drows, samples = by_rows(x), by_rows(dy), x.shape[2]
        shift = np.tile(coupling.mean, samples)
        sums, along = np.zeros((2, rows.shape[2]), dy.dtype)
        for piece in pieces(rows.shape):
            columns, dpart = piece[-1], drows[piece]
            if derivative is not None:
                dpart *= derivative[piece]
            sums[columns] += dpart.sum(axis=(0, 1))
            part = np.subtract(rows[piece], shift[columns], out=_temporary("first", dpart.shape, call.workspace))
            part *= dpart
            along[columns] += part.sum(axis=(0, 1))
        return dy, (_by_channel(sums, samples), _by_channel(along, samples) * coupling.scale)

    def join_backward(self, parts: Sequence[tuple[Array, Array]], coupling: Coupling, call: Pass) -> Slopes:
        dbias, dweight = np.sum(parts, axis=0)
        call.gradients["bias"][...] = dbias
        if self.scale:
            call.gradients["weight"][...] = dweight
        return Slopes(coupling, dbias / coupling.values, dweight / coupling.values)

    def backward(self, dy: Array, saved: Any, call: Pass) -> Array | None:
        if call.coupling is None:
            dy, sums = self.collect_backward(dy, saved, call)
            x, slopes = saved[0], self.join_backward([sums], saved[2], call)
        else:
            x, slopes = saved, call.coupling
        if not call.need_dx:
            return None
        coupling = slopes.coupling
        rows, drows, samples = by_rows(x), by_rows(dy), x.shape[2]
        shift, slope = np.tile(coupling.mean, samples), np.tile(-slopes.along * coupling.scale, samples)
        mean, factor = np.tile(slopes.mean, samples), np.tile(self._factor(coupling, call), samples)
        dx = call.workspace.array(self.name, "dx", rows.shape)
        for piece in pieces(rows.shape):
            columns, out = piece[-1], dx[piece]
            np.subtract(rows[piece], shift[columns], out=out)
            out *= slope[columns]
            out += drows[piece]
            out -= mean[columns]
            out *= factor[columns]
        return dx.reshape(x.shape)

    def _coupling_of(self, x: Array, call: Pass) -> Coupling:
        """That of the pass, or of the running averages, or of x as a whole microbatch."""
        if not call.training:
            return Coupling(0, call.buffers["running_mean"], self._scale_of(call.buffers["running_var"]))
        return call.coupling or self.join([self.collect(x, call)], call)

    def _scale_of(self, variance: Array) -> Array:
        return cast(Array, 1 / np.sqrt(variance + np.asarray(self.eps, variance.dtype)))

    def _factor(self, coupling: Coupling, call: Pass) -> Array:
        return cast(Array, coupling.scale * call.parameters["weight"]) if self.scale else coupling.scale


def joined(parts: Sequence[Moments]) -> Moments:
    """The moments of all values together, in float64 (Chan, Golub and LeVeque 1979)."""
    count, mean, squares = parts[0]
    mean, squares = mean.astype(np.float64), squares.astype(np.float64)
    for part in parts[1:]:
        total = count + part.values
        difference = part.mean - mean
        squares += part.squares + difference**2 * (count * part.values / total)
        mean += difference * (part.values / total)
        count = total
    return Moments(count, mean, squares)


def by_rows(x: Array) -> Array:
    """x (H, W, N, C) as (H, W, N * C): NumPy computes long rows faster than rows of C values."""
    return x.reshape(*x.shape[:2], -1)


def pieces(shape: Shape) -> Iterator[tuple[slice, slice, slice]]:
    """Slices of an array (H, W, L), each of about PIECE values."""
    height, width, length = shape
    down, along = max(1, PIECE // (width * length)), max(1, PIECE // width)
    for top in range(0, height, down):
        for left in range(0, length, along):
            yield slice(top, top + down), slice(None), slice(left, left + along)


def _temporary(purpose: str, shape: Shape, workspace: Workspace) -> Array:
    return workspace.scratch("norm", f"{purpose} piece", (math.prod(shape),)).reshape(shape)


def _by_channel(sums: Array, samples: int) -> Array:
    """(N * C,) summed over samples."""
    return cast(Array, sums.reshape(samples, -1).sum(axis=0))
