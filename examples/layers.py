"""Three layers made with dptrain's public API only: one that couples samples and has buffers, one that draws, and an
activation.

Arrays are (H, W, N, C): N samples, C channels. `call` is what a layer gets for a pass: see docs/layers.md.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dptrain.nn import Activation, Layer, Pass, Tensor, ones, zeros

Array = NDArray[Any]


class ChannelNorm(Layer):
    """Batch normalisation without scale and shift: each channel less its mean, over its deviation.

    In training, mean and variance are those of the microbatch. Their averages over all shards move the buffers, which
    an evaluation uses.
    """

    kind = "channel_norm"
    couples_samples = True  # so the layer gets the whole microbatch of a shard, never a part of it

    def __init__(self, epsilon: float = 1e-5) -> None:
        self.epsilon = epsilon

    def bind(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Takes and returns the shape of one sample, (C, H, W)."""
        if len(input_shape) != 3:
            raise ValueError(f"ChannelNorm needs feature maps (C, H, W), it gets {input_shape}")
        self.channels = input_shape[0]
        return input_shape

    def tensors(self) -> list[Tensor]:
        return [
            Tensor("mean", (self.channels,), zeros, kind="buffer"),
            Tensor("variance", (self.channels,), ones, kind="buffer"),
        ]

    def forward(self, x: Array, call: Pass) -> tuple[Array, tuple[Array, Array]]:
        if call.training:
            mean, variance = x.mean(axis=(0, 1, 2)), x.var(axis=(0, 1, 2))
            call.statistics["mean"][...], call.statistics["variance"][...] = mean, variance
        else:
            mean, variance = call.buffers["mean"], call.buffers["variance"]
        scale = 1 / np.sqrt(variance + np.asarray(self.epsilon, x.dtype))
        y = np.subtract(x, mean, out=call.workspace.array(self.name, "y", x.shape))
        y *= scale
        return y, (y, scale)

    def backward(self, dy: Array, saved: tuple[Array, Array], call: Pass) -> Array | None:
        """dx = scale * (dy - mean(dy) - y * mean(dy * y))."""
        if not call.need_dx:
            return None
        y, scale = saved
        dx = np.multiply(dy, y, out=call.workspace.array(self.name, "dx", dy.shape))
        along = dx.mean(axis=(0, 1, 2))
        np.multiply(y, -along, out=dx)
        dx += dy
        dx -= dy.mean(axis=(0, 1, 2))
        dx *= scale
        return dx


class ChannelDropout(Layer):
    """Drops whole channels of a sample with probability p in training, and divides the others by 1 - p."""

    kind = "channel_dropout"

    def __init__(self, p: float = 0.1) -> None:
        self.p = p

    def forward(self, x: Array, call: Pass) -> tuple[Array, Array | None]:
        if not call.training:
            return x, None
        # The draws depend on seed, epoch, shard and sample, so they are the same on any number of ranks.
        drawn = call.uniform((*x.shape[-2:],))
        factors = np.where(drawn < self.p, 0, 1 / (1 - self.p)).astype(x.dtype)
        return np.multiply(x, factors, out=call.workspace.array(self.name, "y", x.shape)), factors

    def backward(self, dy: Array, saved: Array, call: Pass) -> Array:
        dy *= saved
        return dy


class HardSwish(Activation):
    """x * gate(x), where the gate rises from 0 at x = -3 to 1 at x = 3 (Howard et al. 2019)."""

    kind = "hard_swish"

    def compute(self, x: Array, y: Array, derivative: Array | None, workspace: Any) -> None:
        """Write y and, unless it is None, the derivative: gate + x / 6 where the gate rises. x is a small piece."""
        gate = self.temporary("gate", x, workspace)
        np.add(x, 3, out=gate)
        np.clip(gate, 0, 6, out=gate)
        gate /= 6
        np.multiply(x, gate, out=y)
        if derivative is not None:
            np.less(np.abs(x), 3, out=derivative)
            derivative *= x
            derivative /= 6
            derivative += gate
