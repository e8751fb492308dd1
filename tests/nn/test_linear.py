import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import training_pass

from dptrain.nn.check import check_layer
from dptrain.nn.layers.linear import Linear


@settings(max_examples=20, deadline=None)
@given(features=st.integers(1, 6), out=st.integers(1, 5), samples=st.integers(1, 4))
def test_backward_is_the_gradient(features: int, out: int, samples: int) -> None:
    check_layer(Linear(out), (features,), samples)


def test_forward_is_x_times_weight_plus_bias() -> None:
    layer = Linear(2)
    layer.name = "linear1"
    layer.bind((3,))
    parameters = {"weight": np.array([[1, 2, 3], [0, 0, 1]], np.float32), "bias": np.array([10, 20], np.float32)}
    y, _ = layer.forward(np.array([[1, 1, 1], [0, 0, 2]], np.float32), training_pass(parameters))
    assert y.tolist() == [[16, 21], [16, 22]]


def test_unsuitable_input_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"put Flatten\(\) before it"):
        Linear(2).bind((3, 4, 4))
    with pytest.raises(ValueError, match="out_features is 0"):
        Linear(0)
