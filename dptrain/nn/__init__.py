"""The network in NumPy alone: no files, no MPI.

Read in this order: workspace, draws, params, layer; then the layers: linear, activation, pool, loss; convolution:
products, correlation, im2col, winograd, conv; and what is made of them: fusion, network, zoo, finite.

Shapes, everywhere in this package:

    C, H, W   channels, height and width of an image or feature map
    N         samples of a microbatch, the last axis but one
    O         channels (or features) a layer puts out
    F         features a linear layer takes in
    KH, KW    height and width of a kernel
    OH, OW    height and width of what a convolution or pooling puts out
    K         classes
    P         parameters of the whole network
    q         height and width of the pooling windows that a convolution's sums are put in order for
    m, n      height and width of Winograd's tiles, of the output and of the input
    R         all that comes after an axis

A sample's shape is told as (C, H, W), as data sets have it; arrays of N samples are (H, W, N, C), features (N, F).
So what belongs to one pixel of all samples, N * C values, is contiguous: padding, pooling and Winograd's tiles move
such long runs however few samples a microbatch has, and a convolution's matrix product is already the next
layer's input.
"""

from dptrain.nn.layer import Layer
from dptrain.nn.layers.activation import Flatten, ReLU
from dptrain.nn.layers.conv import Conv2d
from dptrain.nn.layers.linear import Linear
from dptrain.nn.layers.pool import MaxPool2d
from dptrain.nn.network import Network
from dptrain.nn.passes import Pass
from dptrain.nn.tensor import Tensor, constant, he_uniform, ones, uniform, zeros

__all__ = [
    "Conv2d",
    "Flatten",
    "Layer",
    "Linear",
    "MaxPool2d",
    "Network",
    "Pass",
    "ReLU",
    "Tensor",
    "constant",
    "he_uniform",
    "ones",
    "uniform",
    "zeros",
]
