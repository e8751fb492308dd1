"""Batch normalisation."""

from __future__ import annotations

from typing import Any

import numpy as np

from dptrain.arrays.layout import Shape
from dptrain.arrays.memory import Array
from dptrain.nn.layer import Layer
from dptrain.nn.passes import Pass
from dptrain.nn.tensor import Tensor, ones, zeros


class BatchNorm2d(Layer):
    """Each channel of x (H, W, N, C) less its mean, over its deviation; times weight (C,), plus bias (C,).

    While training, mean and variance are those of the shard's whole microbatch (Ioffe and Szegedy 2015), and the
    running averages move towards their mean over all shards, weighted by samples. An evaluation uses the running
    averages. As in PyTorch, the running variance is the unbiased one.
    """

    kind = "norm"
    couples_samples = True

    def __init__(self, *, eps: float = 1e-5, momentum: float = 0.1) -> None:
        if not eps > 0 or not 0 <= momentum <= 1:
            raise ValueError(f"eps is {eps} and momentum {momentum}, expected eps above 0 and momentum from 0 to 1")
        self.eps, self.momentum = eps, momentum

    def bind(self, input_shape: Shape) -> Shape:
        if len(input_shape) != 3:
            raise ValueError(f"{self!r} needs feature maps (C, H, W), it gets {input_shape}")
        self.channels = input_shape[0]
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
        # Computed by rows (H, W, N * C): NumPy takes long rows faster than one of C values for each pixel and sample.
        samples, count = x.shape[2], x.size // x.shape[3]
        rows = x.reshape(*x.shape[:2], -1)
        normalised = call.workspace.array(self.name, "normalised", rows.shape)
        if call.training:
            mean = _sums(rows, samples) / count
            np.subtract(rows, np.tile(mean, samples), out=normalised)
            y = call.workspace.array(self.name, "y", rows.shape)
            variance = _sums(np.multiply(normalised, normalised, out=y), samples) / count
            call.statistics["running_mean"][...] = mean
            call.statistics["running_var"][...] = variance * (count / max(1, count - 1))
        else:
            mean, variance = call.buffers["running_mean"], call.buffers["running_var"]
            np.subtract(rows, np.tile(mean, samples), out=normalised)
        scale = 1 / np.sqrt(variance + np.asarray(self.eps, variance.dtype))
        normalised *= np.tile(scale, samples)
        y = np.multiply(
            normalised,
            np.tile(call.parameters["weight"], samples),
            out=call.workspace.array(self.name, "y", rows.shape),
        )
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
    by_sample: Array = rows.sum(axis=(0, 1)).reshape(samples, -1)
    sums: Array = by_sample.sum(axis=0)
    return sums
