"""The network in NumPy alone: no files, no MPI.

Read in this order: workspace, draws, params, layer; then the layers: linear, activation, pool, loss; convolution:
products, correlation, im2col, winograd, conv; and what is made of them: fusion, network, zoo.

Shapes, everywhere in this package:

    C, H, W   channels, height and width of an image or feature map
    N         samples of a microbatch, always the last and fastest axis
    O         channels (or features) a layer puts out
    F         features a linear layer takes in
    KH, KW    height and width of a kernel
    K         classes
    P         parameters of the whole network

Feature maps are (C, H, W, N) rather than (N, C, H, W): a row of W * N values is contiguous, so padding,
im2col and pooling copy long runs, and a convolution's matrix product already is the next layer's input.
"""

from dptrain.nn.activation import Flatten, ReLU
from dptrain.nn.conv import Conv2d
from dptrain.nn.layer import Layer
from dptrain.nn.linear import Linear
from dptrain.nn.network import Network
from dptrain.nn.pool import MaxPool2d

__all__ = ["Conv2d", "Flatten", "Layer", "Linear", "MaxPool2d", "Network", "ReLU"]
