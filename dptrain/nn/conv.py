"""Convolution as a matrix product over im2col columns (Chellapilla, Puri and Simard 2006).

Column (oh, ow, n) of the matrix holds the window of sample n that output pixel (oh, ow) sees:

    cols[c, kh, kw, oh, ow, n] = padded[c, oh * stride + kh, ow * stride + kw, n]
    y[o, oh, ow, n]            = sum over c, kh, kw of weight[o, c, kh, kw] * cols[c, kh, kw, oh, ow, n]

"Convolution" is the field's name for this cross-correlation: the kernel is not flipped.
"""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import as_strided

from dptrain.nn.layer import Layer, Parameters, Shape, pair, windows
from dptrain.nn.workspace import Array, Workspace


class Conv2d(Layer):
    """2-D convolution of x (C, H, W, N) with weight (O, C, KH, KW), plus bias (O,).

    Output (O, OH, OW, N) with OH = (H + 2 * padding - KH) // stride + 1, and OW likewise. Kernel size,
    stride and padding (zeros) are one number or (vertical, horizontal).
    """

    kind = "conv"

    def __init__(
        self,
        out_channels: int,
        kernel_size: int | tuple[int, int] = 3,
        *,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
    ) -> None:
        if out_channels < 1:
            raise ValueError(f"out_channels is {out_channels}, expected at least 1")
        self.out_channels = out_channels
        self.kernel_size = pair(kernel_size, "kernel_size", 1)
        self.stride = pair(stride, "stride", 1)
        self.padding = pair(padding, "padding", 0)

    def __repr__(self) -> str:
        name = type(self).__name__
        return f"{name}({self.out_channels}, {self.kernel_size}, stride={self.stride}, padding={self.padding})"

    def bind(self, input_shape: Shape) -> Shape:
        if len(input_shape) != 3:
            raise ValueError(f"{self!r} needs feature maps (C, H, W), it gets {input_shape}")
        self.input_shape = input_shape
        _, height, width = input_shape
        (kh, kw), (sh, sw), (ph, pw) = self.kernel_size, self.stride, self.padding
        self.output_shape = (
            self.out_channels,
            windows(height + 2 * ph, kh, sh, f"{self!r}, height"),
            windows(width + 2 * pw, kw, sw, f"{self!r}, width"),
        )
        return self.output_shape

    def parameter_shapes(self) -> dict[str, Shape]:
        return {"weight": (self.out_channels, self.input_shape[0], *self.kernel_size), "bias": (self.out_channels,)}

    def fan_in(self) -> int:
        return self.input_shape[0] * self.kernel_size[0] * self.kernel_size[1]

    def forward(self, x: Array, parameters: Parameters, workspace: Workspace) -> tuple[Array, Array]:
        y, cols = self.correlate(x, parameters, workspace)
        y += parameters["bias"][:, None, None, None]
        return y, cols

    def backward(
        self,
        dy: Array,
        saved: Array,
        parameters: Parameters,
        gradients: Parameters,
        workspace: Workspace,
        need_dx: bool = True,
    ) -> Array | None:
        dy.reshape(self.out_channels, -1).sum(axis=1, out=gradients["bias"])
        return self.correlate_backward(dy, saved, parameters, gradients, workspace, need_dx)

    def correlate(self, x: Array, parameters: Parameters, workspace: Workspace) -> tuple[Array, Array]:
        """The sum over windows, without the bias: (O, OH, OW, N), and the columns (C * KH * KW, OH * OW * N)."""
        samples = x.shape[-1]
        cols = self._im2col(self._padded(x, workspace), workspace)
        y = workspace.array(self.name, "y", (*self.output_shape, samples))
        weight = parameters["weight"].reshape(self.out_channels, -1)
        np.matmul(weight, cols, out=y.reshape(self.out_channels, -1))
        return y, cols

    def correlate_backward(
        self, dy: Array, cols: Array, parameters: Parameters, gradients: Parameters, workspace: Workspace, need_dx: bool
    ) -> Array | None:
        """The weight's gradient and, if needed, x's: the adjoints of `correlate`. Overwrites `cols`."""
        dy = dy.reshape(self.out_channels, -1)
        np.matmul(dy, cols.T, out=gradients["weight"].reshape(self.out_channels, -1))
        if not need_dx:
            return None
        # The columns have served: their memory takes their own gradient.
        weight = parameters["weight"].reshape(self.out_channels, -1)
        return self._col2im(np.matmul(weight.T, dy, out=cols), workspace)

    def _padded(self, x: Array, workspace: Workspace) -> Array:
        """x with `padding` zeros around it. The border is zeroed once and never written."""
        ph, pw = self.padding
        if ph == pw == 0:
            return x
        channels, height, width, samples = x.shape
        shape = (channels, height + 2 * ph, width + 2 * pw, samples)
        padded = workspace.array(self.name, "padded", shape, zeroed=True)
        padded[:, ph : ph + height, pw : pw + width] = x
        return padded

    def _im2col(self, padded: Array, workspace: Workspace) -> Array:
        """Columns (C * KH * KW, OH * OW * N), copied from one strided view of all windows."""
        channels, _, _, samples = padded.shape
        shape = (channels, *self.kernel_size, *self.output_shape[1:], samples)
        c, h, w, n = padded.strides
        strides = (c, h, w, h * self.stride[0], w * self.stride[1], n)
        cols = workspace.array(self.name, "cols", shape)
        cols[...] = as_strided(padded, shape, strides, writeable=False)
        return cols.reshape(self.fan_in(), -1)

    def _col2im(self, dcols: Array, workspace: Workspace) -> Array:
        """dx (C, H, W, N): every entry of dcols added back to the pixel it was copied from."""
        channels, height, width = self.input_shape
        _, out_height, out_width = self.output_shape
        (kernel_height, kernel_width), (sh, sw), (ph, pw) = self.kernel_size, self.stride, self.padding
        dcols = dcols.reshape(channels, kernel_height, kernel_width, out_height, out_width, -1)
        shape = (channels, height + 2 * ph, width + 2 * pw, dcols.shape[-1])
        dpadded = workspace.array(self.name, "dpadded", shape)
        dpadded.fill(0)
        for kh in range(kernel_height):
            for kw in range(kernel_width):
                dpadded[:, kh : kh + sh * out_height : sh, kw : kw + sw * out_width : sw] += dcols[:, kh, kw]
        return dpadded[:, ph : ph + height, pw : pw + width]
