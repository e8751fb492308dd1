import math

import numpy as np
import pytest

from dptrain.nn.network import Network
from dptrain.nn.zoo import ARCHITECTURES, convnet


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28)])
@pytest.mark.parametrize("classes", [2, 10, 100])
def test_every_architecture_fits_any_images_and_classes(name: str, shape: tuple[int, ...], classes: int) -> None:
    assert Network(ARCHITECTURES[name](shape, classes), shape).classes == classes


def shapes_of(name: str, **options: object) -> dict[str, tuple[int, ...]]:
    """The shapes of all parameters for CIFAR."""
    network = Network(ARCHITECTURES[name]((3, 32, 32), 10, **options), (3, 32, 32))
    return dict(network.layout.shapes)


def test_resnet20_has_the_parameters_of_the_paper() -> None:
    """0.27 million for 20 layers, 0.85 million for 56 (He et al. 2015, table 6)."""
    shapes = shapes_of("resnet20")
    assert sum(map(math.prod, shapes.values())) == 269_722
    assert sum(len(shape) > 1 for shape in shapes.values()) == 20
    deep = shapes_of("resnet20", blocks=9)
    assert sum(map(math.prod, deep.values())) == 853_018
    assert sum(len(shape) > 1 for shape in deep.values()) == 56


def test_resnet20_halves_the_maps_twice() -> None:
    network = Network(ARCHITECTURES["resnet20"]((3, 32, 32), 10), (3, 32, 32))
    shapes = [node.shape for node in network.nodes if node.layer.kind == "add"]
    assert shapes == [(16, 32, 32)] * 3 + [(32, 16, 16)] * 3 + [(64, 8, 8)] * 3


def test_resnet9_has_the_parameters_of_page() -> None:
    """As dawn.py of cifar10-fast counts them, with weight and bias of the normalisations."""
    shapes = shapes_of("resnet9")
    assert sum(map(math.prod, shapes.values())) == 6_573_120
    weights = [shape for shape in shapes.values() if len(shape) > 1]
    assert [shape[0] for shape in weights] == [64, 128, 128, 128, 256, 512, 512, 512, 10]
    with pytest.raises(ValueError, match="resnet9 needs images of at least 8 x 8 pixels, these are 7 x 9"):
        ARCHITECTURES["resnet9"]((3, 7, 9), 10)


def test_vgg11_has_eleven_layers_less_the_two_that_it_leaves_out() -> None:
    shapes = shapes_of("vgg11")
    weights = [shape for shape in shapes.values() if len(shape) > 1]
    assert [shape[0] for shape in weights] == [64, 128, 256, 256, 512, 512, 512, 512, 10]
    assert weights[-1] == (10, 512)
    assert sum(map(math.prod, shapes.values())) == 9_228_362


def test_airbench_has_the_shapes_of_its_source() -> None:
    """airbench94_muon.py and lib_airbench93.py of cifar10-airbench."""
    network = Network(ARCHITECTURES["airbench"]((3, 32, 32), 10), (3, 32, 32))
    assert network.layout.size == 1_971_640
    trained = sum(math.prod(one.shape) for one in network.tensors.values() if one.trained)
    assert network.layout.size - trained == 24 * 3 * 2 * 2
    assert sum(map(math.prod, shapes_of("airbench", widths=[64, 128, 128]).values())) == 569_016
    assert [node.shape[1] for node in network.nodes if node.layer.kind == "conv"] == [31, 15, 15, 7, 7, 3]


def test_airbench_begins_with_identities_and_a_head_of_unit_deviation() -> None:
    network = Network(ARCHITECTURES["airbench"]((3, 32, 32), 10, unit_head=True), (3, 32, 32))
    views = network.layout.views(network.initial(0)["parameters"])
    for number, channels in ((1, 24), (2, 64), (6, 256)):
        identities = np.zeros((channels, channels, 3, 3))
        identities[np.arange(channels), np.arange(channels), 1, 1] = 1
        np.testing.assert_array_equal(views[f"conv{number}.weight"][:channels], identities)
    assert views["linear1.weight"].std() == pytest.approx(1, rel=0.03)
    assert not views["norm1.bias"].any()


def test_convnet_is_two_convolutions_and_a_linear_layer() -> None:
    names = [layer.kind for layer in convnet((3, 32, 32), 10)]
    assert names == ["conv", "relu", "pool", "conv", "relu", "pool", "flatten", "linear"]


def test_widths_and_kernel_can_be_chosen() -> None:
    shapes = Network(convnet((3, 32, 32), 10, widths=[8, 16, 24], kernel_size=5), (3, 32, 32)).layout.shapes
    assert shapes["conv3.weight"] == (24, 16, 5, 5)
    assert shapes["linear1.weight"] == (10, 24 * 4 * 4)
    with pytest.raises(ValueError, match="expected an odd number"):
        convnet((3, 32, 32), 10, kernel_size=4)
