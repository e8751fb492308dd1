"""The network in NumPy alone: no files, no MPI.

Read in this order: tensor, layer; of layers: linear, activation, flatten, pool, conv, whitening; of convolution:
correlation, im2col, winograd, pointwise, depthwise, grouped, products, cost; then graph, fused_conv, fused_norm,
fixed_norm, fusion, folding, loss, segments, network; then check, hidden_state, finite, zoo.

Shapes, everywhere in this package:

    C, H, W   channels, height and width of an image or feature map
    N         samples of a microbatch, always the last axis but one
    O         output channels (or features) of a layer
    F         input features of a linear layer
    KH, KW    height and width of a kernel
    OH, OW    height and width of the output of a convolution or pooling
    K         classes
    P, B      parameters and buffers of the whole network
    q         height and width of the pooling windows that a convolution orders its sums for
    m, n      height and width of Winograd's tiles, of the output and of the input
    R         everything after an axis

A sample's shape is (C, H, W), as in data sets; arrays of N samples are (H, W, N, C), features (N, F). So the N * C
values of one pixel are contiguous: padding, pooling and Winograd's tiles copy long runs even for few samples, and the
matrix product of a convolution is the next layer's input.
"""

from dptrain.nn.check import check_layer
from dptrain.nn.graph import Residual, Sequential
from dptrain.nn.layer import Layer, Pass
from dptrain.nn.layers.activation import Activation, ReLU
from dptrain.nn.layers.avg_pool import AvgPool2d
from dptrain.nn.layers.conv import Conv2d
from dptrain.nn.layers.dropout import Dropout
from dptrain.nn.layers.flatten import Flatten
from dptrain.nn.layers.gelu import GELU
from dptrain.nn.layers.global_pool import GlobalAvgPool2d
from dptrain.nn.layers.layer_scale import LayerScale
from dptrain.nn.layers.leaky_relu import LeakyReLU
from dptrain.nn.layers.linear import Linear
from dptrain.nn.layers.norm import BatchNorm2d
from dptrain.nn.layers.pool import MaxPool2d
from dptrain.nn.layers.scale import Scale
from dptrain.nn.layers.shortcut import ZeroPadShortcut
from dptrain.nn.layers.silu import SiLU
from dptrain.nn.layers.whitening import WhiteningConv2d
from dptrain.nn.network import Network
from dptrain.nn.tensor import Tensor, constant, dirac, he_uniform, ones, uniform, uniform_fan_in, zeros

__all__ = ["GELU", "AvgPool2d", "BatchNorm2d", "Conv2d", "Dropout", "Flatten", "GlobalAvgPool2d", "Layer"]
__all__ += [
    "LayerScale",
    "LeakyReLU",
    "Linear",
    "MaxPool2d",
    "ReLU",
    "Scale",
    "SiLU",
    "WhiteningConv2d",
    "ZeroPadShortcut",
]
__all__ += ["Activation", "Network", "Pass", "Residual", "Sequential", "check_layer"]
__all__ += ["Tensor", "constant", "dirac", "he_uniform", "ones", "uniform", "uniform_fan_in", "zeros"]
