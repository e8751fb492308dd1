import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from networks import training_pass
from selection import examples

from dptrain.nn.check import check_layer
from dptrain.nn.layers.flatten import Flatten


@examples(15)
@given(shape=st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple), samples=st.integers(1, 3))
def test_flatten_backward_is_the_gradient(shape: tuple[int, ...], samples: int) -> None:
    check_layer(Flatten(), shape, samples)


def test_flatten_orders_features_by_channel_height_width() -> None:
    x = np.arange(24, dtype=np.float32).reshape(3, 2, 2, 2)
    layer = Flatten()
    layer.name = "flatten1"
    assert layer.bind((2, 3, 2)) == (12,)
    y, _ = layer.forward(x, training_pass({}))
    assert np.array_equal(y[1], x[:, :, 1].transpose(2, 0, 1).ravel())
