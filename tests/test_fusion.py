import numpy as np
import pytest
from gradients import check_layer
from hypothesis import given, settings
from hypothesis import strategies as st

from dptrain.nn.activation import Flatten, ReLU
from dptrain.nn.conv import Conv2d
from dptrain.nn.fusion import ConvPoolReLU, fuse
from dptrain.nn.layer import Layer
from dptrain.nn.linear import Linear
from dptrain.nn.network import Network
from dptrain.nn.pool import MaxPool2d
from dptrain.nn.workspace import Workspace


def layers(kernel: int, stride: int, padding: int, pool: int, pool_stride: int) -> list[Layer]:
    conv = Conv2d(4, kernel, stride=stride, padding=padding)
    return [conv, ReLU(), MaxPool2d(pool, stride=pool_stride), Flatten(), Linear(3)]


@settings(max_examples=30, deadline=None)
@given(
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
    padding=st.integers(0, 2),
    pool=st.integers(1, 3),
    pool_stride=st.integers(1, 3),
    samples=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_the_fused_network_is_the_plain_one(kernel, stride, padding, pool, pool_stride, samples, seed) -> None:
    arguments = (kernel, stride, padding, pool, pool_stride)
    plain = Network(layers(*arguments), (2, 9, 8), fused=False)
    fused = Network(layers(*arguments), (2, 9, 8))
    assert len(fused.stages) == len(plain.stages) - 2
    generator = np.random.default_rng(seed)
    parameters = generator.normal(size=plain.layout.size).astype(np.float32)
    images = generator.normal(size=(2, 9, 8, samples)).astype(np.float32)
    labels = generator.integers(0, 3, samples)
    gradients = np.zeros((2, plain.layout.size), np.float32)
    outcomes = [
        network.loss_and_grad(parameters, images, labels, gradient, Workspace())
        for network, gradient in zip((plain, fused), gradients, strict=True)
    ]
    # The forward pass agrees to the last bit: bias and ReLU commute with the maximum exactly.
    assert outcomes[0] == outcomes[1]
    np.testing.assert_allclose(gradients[1], gradients[0], rtol=1e-4, atol=1e-4)


class _AsOneLayer(ConvPoolReLU):
    """Binds what a network binds on its own, so that the gradient checker can judge the joined layers."""

    def bind(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        self.conv.name, self.pool.name = "conv", "pool"
        return self.pool.bind(self.conv.bind(input_shape))


@pytest.mark.parametrize(("pool", "pool_stride"), [(2, 2), (3, 2), (2, 3)])
def test_backward_is_the_gradient(pool: int, pool_stride: int) -> None:
    check_layer(_AsOneLayer(Conv2d(3, 3, padding=1), MaxPool2d(pool, stride=pool_stride)), (2, 6, 5), 2)


def test_only_conv_relu_pool_in_a_row_are_joined() -> None:
    conv, other = Conv2d(2), Conv2d(2)
    kinds = [type(layer) for layer in fuse([conv, ReLU(), other, ReLU(), MaxPool2d(), Flatten()])]
    assert kinds == [Conv2d, ReLU, ConvPoolReLU, Flatten]
    assert fuse([conv, MaxPool2d(), ReLU()])[0] is conv


def test_a_subclass_is_not_taken_for_what_it_is_made_of() -> None:
    class LeakyReLU(ReLU):
        """Computes something else."""

    layers = [Conv2d(2), LeakyReLU(), MaxPool2d()]
    assert fuse(list(layers)) == layers
    assert repr(layers[1]) == "LeakyReLU()"
