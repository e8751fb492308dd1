"""An architecture with the layers of layers.py: dptrain train DATA --model examples/network.py:build"""

from __future__ import annotations

from layers import ChannelDropout, ChannelNorm, HardSwish

from dptrain.nn import Conv2d, Flatten, Layer, Linear, MaxPool2d, ReLU


def build(input_shape: tuple[int, ...], classes: int, width: int = 16, p: float = 0.1) -> list[Layer]:
    """Two convolutions, each normalised. `width` and `p` come from --model-options 'width = 8, p = 0.2'."""
    return [
        *(Conv2d(width, 3, padding=1), ChannelNorm(), ReLU(), MaxPool2d(2)),
        *(Conv2d(2 * width, 3, padding=1), ChannelNorm(), HardSwish(), ChannelDropout(p)),
        *(Flatten(), Linear(classes)),
    ]
