import pytest

from dptrain.nn.network import Network
from dptrain.nn.zoo import ARCHITECTURES, convnet


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28)])
@pytest.mark.parametrize("classes", [2, 10, 100])
def test_every_architecture_fits_any_images_and_classes(name: str, shape: tuple[int, ...], classes: int) -> None:
    assert Network(ARCHITECTURES[name](shape, classes), shape).classes == classes


def test_convnet_is_two_convolutions_and_a_linear_layer() -> None:
    names = [layer.kind for layer in convnet((3, 32, 32), 10)]
    assert names == ["conv", "relu", "pool", "conv", "relu", "pool", "flatten", "linear"]


def test_widths_and_kernel_can_be_chosen() -> None:
    shapes = Network(convnet((3, 32, 32), 10, widths=[8, 16, 24], kernel_size=5), (3, 32, 32)).layout.shapes
    assert shapes["conv3.weight"] == (24, 16, 5, 5)
    assert shapes["linear1.weight"] == (10, 24 * 4 * 4)
    with pytest.raises(ValueError, match="expected an odd number"):
        convnet((3, 32, 32), 10, kernel_size=4)
