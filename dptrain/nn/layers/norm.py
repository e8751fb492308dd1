"""Batch normalisation."""

from __future__ import annotations

from typing import Any, cast

import numpy as np

from dptrain.arrays.layout import Shape
from dptrain.arrays.memory import Array
from dptrain.nn.layer import Layer, Pass, feature_maps
from dptrain.nn.tensor import Tensor, ones, zeros


class BatchNorm2d(Layer):
    """(x - mean) / deviation * weight + bias for each channel of x (H, W, N, C); weight (C,) and bias (C,).

    In training, mean and variance are those of the shard's whole microbatch (Ioffe and Szegedy 2015). The running
    averages, which an evaluation uses, move towards their mean over all shards, weighted by samples. As in PyTorch, the
    running variance is the unbiased one.
    """

    kind = "norm"
    couples_samples = True

    def __init__(self, *, eps: float = 1e-5, momentum: float = 0.1) -> None:
        if not eps > 0 or not 0 <= momentum <= 1:
            raise ValueError(f"eps is {eps} and momentum {momentum}, expected eps above 0 and momentum from 0 to 1")
        self.eps, self.momentum = eps, momentum

    def bind(self, input_shape: Shape) -> Shape:
        self.channels = feature_maps(self, input_shape)[0]
        return input_shape

    def tensors(self) -> list[Tensor]:
        shape = (self.channels,)
        return [
            Tensor("weight", shape, ones),
            Tensor("bias", shape, zeros),
            Tensor("running_mean", shape, zeros, kind="buffer", momentum=self.momentum),
            Tensor("running_var", shape, ones, kind="buffer", momentum=self.momentum),
        ]

    def forward(self, x: Array, call: Pass) -> tuple[Array, Any]:
        # By rows (H, W, N * C): NumPy computes long rows faster than rows of C values.
        samples, count = x.shape[2], x.size // x.shape[3]
        rows = x.reshape(*x.shape[:2], -1)
        normalised, y = (call.workspace.array(self.name, purpose, rows.shape) for purpose in ("normalised", "y"))
        mean = _sums(rows, samples) / count if call.training else call.buffers["running_mean"]
        np.subtract(rows, np.tile(mean, samples), out=normalised)
        if call.training:
            variance = _sums(np.multiply(normalised, normalised, out=y), samples) / count
            call.statistics["running_mean"][...] = mean
            call.statistics["running_var"][...] = variance * (count / max(1, count - 1))
        else:
            variance = call.buffers["running_var"]
        scale = 1 / np.sqrt(variance + np.asarray(self.eps, variance.dtype))
        normalised *= np.tile(scale, samples)
        np.multiply(normalised, np.tile(call.parameters["weight"], samples), out=y)
        y += np.tile(call.parameters["bias"], samples)
        return y.reshape(x.shape), (normalised, scale)

    def backward(self, dy: Array, saved: Any, call: Pass) -> Array | None:
        normalised, scale = saved
        samples, count = dy.shape[2], dy.size // dy.shape[3]
        rows = dy.reshape(normalised.shape)
        dx = call.workspace.array(self.name, "dx", rows.shape)
        dbias = _sums(rows, samples)
        dweight = _sums(np.multiply(rows, normalised, out=dx), samples)
        call.gradients["bias"][...], call.gradients["weight"][...] = dbias, dweight
        if not call.need_dx:
            return None
        # dx = weight * scale * (dy - mean(dy) - normalised * mean(dy * normalised))
        np.multiply(normalised, np.tile(-dweight / count, samples), out=dx)
        dx += rows
        dx -= np.tile(dbias / count, samples)
        dx *= np.tile(call.parameters["weight"] * scale, samples)
        return dx.reshape(dy.shape)


def _sums(rows: Array, samples: int) -> Array:
    """By channel (C,), of rows (H, W, N * C): first over pixels, then over samples."""
    return cast(Array, rows.sum(axis=(0, 1)).reshape(samples, -1).sum(axis=0))
