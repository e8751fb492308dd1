"""A shortcut without parameters, around layers that shrink the maps and add channels."""

from __future__ import annotations

from dptrain.arrays.layout import Shape
from dptrain.arrays.memory import Array
from dptrain.nn.layer import Layer, Pass, feature_maps, whole_number


class ZeroPadShortcut(Layer):
    """Every `stride`-th pixel of x (H, W, N, C), with channels of zeros up to `out_channels` O: (OH, OW, N, O).

    Option A of He et al. 2015, section 3.3. OH = ceil(H / stride), and OW likewise, as behind a 3 x 3 convolution with
    the same stride and padding 1.
    """

    kind = "shortcut"

    def __init__(self, out_channels: int, *, stride: int = 2) -> None:
        self.out_channels, self.stride = whole_number(out_channels, "out_channels"), whole_number(stride, "stride")

    def bind(self, input_shape: Shape) -> Shape:
        self.in_channels, height, width = feature_maps(self, input_shape)
        if self.out_channels < self.in_channels:
            raise ValueError(f"{self!r} gets {self.in_channels} channels, expected at most {self.out_channels}")
        return (self.out_channels, -(-height // self.stride), -(-width // self.stride))

    def forward(self, x: Array, call: Pass) -> tuple[Array, tuple[int, ...]]:
        pixels, channels = x[:: self.stride, :: self.stride], x.shape[3]
        y = call.workspace.array(self.name, "y", (*pixels.shape[:3], self.out_channels))
        y[..., :channels] = pixels
        y[..., channels:] = 0
        return y, x.shape

    def backward(self, dy: Array, saved: tuple[int, ...], call: Pass) -> Array | None:
        if not call.need_dx:
            return None
        dx = call.workspace.array(self.name, "dx", saved)
        dx.fill(0)
        dx[:: self.stride, :: self.stride] = dy[..., : saved[3]]
        return dx
