"""ONNX: the network as a graph with its values, from pixels 0..1 to logits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

import dptrain
from dptrain.arrays.memory import Array
from dptrain.checkpoint.format import Checkpoint
from dptrain.export.pytorch import check_known
from dptrain.export.values import exported_tensors, metadata, normalisation
from dptrain.nn.graph import Add, Node
from dptrain.nn.layers.activation import ReLU
from dptrain.nn.layers.avg_pool import AvgPool2d
from dptrain.nn.layers.conv import Conv2d
from dptrain.nn.layers.dropout import Dropout
from dptrain.nn.layers.flatten import Flatten
from dptrain.nn.layers.gelu import CUBIC, GELU, SLOPE
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
from dptrain.system.extras import from_extra

OPSET, IR_VERSION = 17, 8  # of 2022: every runtime of today has them
INPUT, OUTPUT = "images", "logits"
INPUT_TEXT = "float32 (N, C, H, W): channels as in the data set (RGB), pixels 0..1 (a byte divided by 255)"


class Writer:
    """Collects the nodes and constants of an ONNX graph. `tensors` are the values, by full name."""

    def __init__(self, onnx: Any, tensors: Mapping[str, Array]) -> None:
        self.onnx, self.tensors = onnx, tensors
        self.nodes: list[Any] = []
        self.constants: dict[str, NDArray[Any]] = {}

    def constant(self, name: str, value: Any) -> str:
        """A constant array: float32, or int64 for whole numbers. Returns its name."""
        array = np.asarray(value)
        self.constants[name] = array.astype(np.int64 if array.dtype.kind == "i" else np.float32)
        return name

    def tensor(self, name: str, shape: Sequence[int] | None = None) -> str:
        """A parameter or buffer as a constant, reshaped if `shape` is given; returns its name."""
        values = self.tensors[name]
        return self.constant(name, values if shape is None else values.reshape(shape))

    def add(self, operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """A node, which has the name of its output; returns that."""
        self.nodes.append(self.onnx.helper.make_node(operator, inputs, [output], name=output, **attributes))
        return output


def content(checkpoint: Checkpoint, rebuild: Callable[[], Network]) -> bytes:
    """The bytes of the file; UsageError names a layer that ONNX cannot express."""
    onnx = from_extra("onnx", "an export as .onnx")
    network, writer = rebuild(), Writer(onnx, exported_tensors(checkpoint))
    write_nodes(writer, network, *normalisation(checkpoint))
    helper, number = onnx.helper, onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        writer.nodes,
        "network",
        [helper.make_tensor_value_info(INPUT, number, ["N", *network.input_shape], INPUT_TEXT)],
        [helper.make_tensor_value_info(OUTPUT, number, ["N", network.classes], "before the softmax, by class")],
        [onnx.numpy_helper.from_array(array, name) for name, array in writer.constants.items()],
    )
    model = helper.make_model(
        graph,
        producer_name="dptrain",
        producer_version=dptrain.__version__,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
    )
    helper.set_model_props(model, metadata(checkpoint))
    onnx.checker.check_model(model, full_check=True)
    written: bytes = model.SerializeToString(deterministic=True)
    return written


def write_nodes(writer: Writer, network: Network, mean: Sequence[float], std: Sequence[float]) -> None:
    """The normalisation of images, then the layers. The output of a layer has the layer's name."""
    by_channel = (1, -1, 1, 1)
    centred = writer.add("Sub", [INPUT, writer.constant("mean", np.reshape(mean, by_channel))], "centred")
    normalised = writer.add("Div", [centred, writer.constant("std", np.reshape(std, by_channel))], "normalised")
    names = {0: normalised}
    for node in network.nodes:
        check_known(node.layer, OPERATORS, "ONNX")
        names[node.output] = OUTPUT if node is network.nodes[-1] else node.layer.name
        OPERATORS[type(node.layer)](writer, node, [names[value] for value in node.inputs], names[node.output])


Operator = Callable[[Writer, Node, list[str], str], Any]


def _plain(operator: str, **attributes: Any) -> Operator:
    """An operator of the layer's inputs alone."""
    return lambda writer, node, inputs, output: writer.add(operator, inputs, output, **attributes)


def _bias(writer: Writer, layer: Any) -> list[str]:
    return [writer.tensor(f"{layer.name}.bias")] if layer.bias else []


def _convolution(writer: Writer, node: Node, inputs: list[str], output: str) -> None:
    layer: Any = node.layer
    given = [*inputs, writer.tensor(f"{layer.name}.weight"), *_bias(writer, layer)]
    windows = {"kernel_shape": layer.kernel_size, "strides": layer.stride, "dilations": layer.dilation}
    writer.add("Conv", given, output, **windows, pads=[*layer.padding, *layer.padding], group=layer.groups)


def _linear(writer: Writer, node: Node, inputs: list[str], output: str) -> None:
    writer.add(
        "Gemm", [*inputs, writer.tensor(f"{node.layer.name}.weight"), *_bias(writer, node.layer)], output, transB=1
    )


def _norm(writer: Writer, node: Node, inputs: list[str], output: str) -> None:
    layer: Any = node.layer
    name = layer.name
    weight = writer.tensor(f"{name}.weight") if layer.scale else writer.constant(f"{name}.ones", np.ones(node.shape[0]))
    tensors = [writer.tensor(f"{name}.{one}") for one in ("bias", "running_mean", "running_var")]
    writer.add("BatchNormalization", [*inputs, weight, *tensors], output, epsilon=layer.eps)


def _leaky_relu(writer: Writer, node: Node, inputs: list[str], output: str) -> None:
    layer: Any = node.layer
    writer.add("LeakyRelu", inputs, output, alpha=layer.negative_slope)


def _gelu(writer: Writer, node: Node, inputs: list[str], output: str) -> None:
    """x * sigmoid(x * (SLOPE + SLOPE * CUBIC * x^2)), as dptrain computes it; ONNX has Gelu only since opset 20."""
    (x,), name = inputs, node.layer.name
    square = writer.add("Mul", [x, x], f"{name}.square")
    cubic = writer.constant(f"{name}.cubic", SLOPE * CUBIC)
    scaled = writer.add("Mul", [square, cubic], f"{name}.scaled")
    slope = writer.add("Add", [scaled, writer.constant(f"{name}.slope", SLOPE)], f"{name}.sum")
    writer.add("Mul", [x, writer.add("Sigmoid", [writer.add("Mul", [x, slope], f"{name}.g")], f"{name}.s")], output)


def _silu(writer: Writer, node: Node, inputs: list[str], output: str) -> None:
    writer.add("Mul", [*inputs, writer.add("Sigmoid", inputs, f"{node.layer.name}.s")], output)


def _pool(operator: str) -> Operator:
    def write(writer: Writer, node: Node, inputs: list[str], output: str) -> None:
        layer: Any = node.layer
        writer.add(operator, inputs, output, kernel_shape=layer.kernel_size, strides=layer.stride)

    return write


def _global_pool(writer: Writer, node: Node, inputs: list[str], output: str) -> None:
    means = writer.add("GlobalAveragePool", inputs, f"{node.layer.name}.means")
    writer.add("Flatten", [means], output, axis=1)


def _scale(writer: Writer, node: Node, inputs: list[str], output: str) -> None:
    layer: Any = node.layer
    writer.add("Mul", [*inputs, writer.constant(f"{layer.name}.factor", float(layer.factor))], output)


def _layer_scale(writer: Writer, node: Node, inputs: list[str], output: str) -> None:
    by_channel = (-1, *[1] * (len(node.shape) - 1))
    writer.add("Mul", [*inputs, writer.tensor(f"{node.layer.name}.scale", by_channel)], output)


def _shortcut(writer: Writer, node: Node, inputs: list[str], output: str) -> None:
    layer: Any = node.layer
    ranges = {"starts": [0, 0], "ends": [2**62, 2**62], "axes": [2, 3], "steps": [layer.stride] * 2}
    slices = [writer.constant(f"{layer.name}.{what}", numbers) for what, numbers in ranges.items()]
    pixels = writer.add("Slice", [*inputs, *slices], f"{layer.name}.pixels")
    more = node.shape[0] - layer.in_channels
    writer.add("Pad", [pixels, writer.constant(f"{layer.name}.pads", [0, 0, 0, 0, 0, more, 0, 0])], output)


OPERATORS: dict[type, Operator] = {
    Conv2d: _convolution,
    WhiteningConv2d: _convolution,
    Linear: _linear,
    BatchNorm2d: _norm,
    ReLU: _plain("Relu"),
    LeakyReLU: _leaky_relu,
    GELU: _gelu,
    SiLU: _silu,
    Dropout: _plain("Identity"),  # an evaluation changes nothing
    MaxPool2d: _pool("MaxPool"),
    AvgPool2d: _pool("AveragePool"),
    GlobalAvgPool2d: _global_pool,
    Flatten: _plain("Flatten", axis=1),
    Scale: _scale,
    LayerScale: _layer_scale,
    ZeroPadShortcut: _shortcut,
    Add: _plain("Add"),
}
