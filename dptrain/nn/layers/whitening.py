"""A fixed first convolution whose filters whiten patches of the training images."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from dptrain.arrays.eigen import symmetric_eigenvectors
from dptrain.arrays.layout import Shape
from dptrain.arrays.memory import Array
from dptrain.nn.layer import Pass, feature_maps
from dptrain.nn.layers.conv import Conv2d, add_up
from dptrain.nn.tensor import Tensor, uniform_fan_in, zeros

# Values are rounded to multiples of 1 / UNIT and clipped to +-LARGEST. In these units a product of two is a whole
# number up to 2**40, and a sum over EXACT patches is at most 2**53: exact in float64, in any order of additions.
UNIT = 1 << 15
LARGEST = 32
EXACT = 1 << 13  # patches


class WhiteningConv2d(Conv2d):
    """Convolution of images (H, W, N, C) with 2 * C * KH * KW fixed filters, without padding, plus a trained bias.

    The filters are the eigenvectors of the second moments of the training images' patches, (C, KH, KW) each, scaled by
    1 / sqrt(eigenvalue + eps), and the negatives of these filters (Page 2018, "How to Train Your ResNet"; Jordan 2024,
    airbench). The outputs of the first half, without bias, are uncorrelated and have variance 1. The layer must read
    the network's input.
    """

    kind = "whitening"

    def __init__(self, kernel_size: int | tuple[int, int] = 2, *, eps: float = 5e-4) -> None:
        super().__init__(1, kernel_size)
        if not eps > 0:
            raise ValueError(f"eps is {eps}, expected a number above 0")
        self.eps = eps

    def bind(self, input_shape: Shape) -> Shape:
        self.out_channels = 2 * feature_maps(self, input_shape)[0] * self.kernel_size[0] * self.kernel_size[1]
        return super().bind(input_shape)

    def tensors(self) -> list[Tensor]:
        shape = (self.out_channels, self.input_shape[0], *self.kernel_size)
        init = uniform_fan_in(self.geometry.fan_in)
        return [
            Tensor("weight", shape, init, trainable=False, from_images=self.filters),
            Tensor("bias", shape[:1], zeros),
        ]

    def filters(self, blocks: Iterable[Array]) -> Array:
        """The weight for sample images, given as blocks (H, W, N, C): float64, the same bits on every CPU."""
        moments = second_moments(blocks, self.kernel_size)
        values, vectors = symmetric_eigenvectors(moments)
        vectors /= np.sqrt(np.maximum(values, 0) + self.eps)[:, None]
        filters = vectors.reshape(-1, self.input_shape[0], *self.kernel_size)
        return np.concatenate([filters, -filters])

    def backward(self, dy: Array, saved: Any, call: Pass) -> None:
        add_up(dy, call.gradients["bias"])  # nothing else: the weight is fixed, and images need no gradient


def second_moments(blocks: Iterable[Array], kernel_size: tuple[int, int]) -> Array:
    """The mean product of each two values of a patch, (C * KH * KW, C * KH * KW) in float64, over all patches.

    `blocks` are images (H, W, N, C). The sums are exact, so they do not depend on how the images are divided.
    """
    total, patches = np.zeros((), np.int64), 0
    for block in blocks:
        units = np.rint(np.clip(block.astype(np.float64) * UNIT, -LARGEST * UNIT, LARGEST * UNIT))
        planes = np.ascontiguousarray(np.moveaxis(units, 3, 0))  # (C, H, W, N): long runs
        windows = sliding_window_view(planes, kernel_size, axis=(1, 2))  # (C, OH, OW, N, KH, KW)
        for row in np.moveaxis(windows, 1, 0):
            values = row.transpose(0, 3, 4, 1, 2).reshape(math.prod((len(row), *kernel_size)), -1)
            for start in range(0, values.shape[1], EXACT):
                part = values[:, start : start + EXACT]
                total = total + (part @ part.T).astype(np.int64)
            patches += values.shape[1]
    if not patches:
        raise ValueError("there are no images to compute the whitening from")
    moments: Array = total.astype(np.float64) / (patches * float(UNIT**2))
    return moments
