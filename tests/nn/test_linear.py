import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from networks import random_parameters, training_pass
from selection import examples

from dptrain.arrays.memory import Workspace
from dptrain.nn.check import check_layer
from dptrain.nn.layers.linear import Linear


@examples(20)
@given(features=st.integers(1, 6), out=st.integers(1, 5), samples=st.integers(1, 4), bias=st.booleans())
def test_backward_is_the_gradient(features: int, out: int, samples: int, bias: bool) -> None:
    check_layer(Linear(out, bias=bias), (features,), samples)


@pytest.mark.parametrize("bias", [True, False])
def test_passes_agree_with_pytorch(bias: bool) -> None:
    import torch

    generator = np.random.default_rng(0)
    layer = Linear(5, bias=bias)
    layer.name = "linear1"
    layer.bind((7,))
    x, dy = generator.normal(size=(4, 7)), generator.normal(size=(4, 5))
    call = training_pass(random_parameters(layer, generator, np.float64), Workspace(np.float64))
    tensors = {name: torch.tensor(values, requires_grad=True) for name, values in call.parameters.items()}
    theirs = torch.tensor(x, requires_grad=True)
    expected = torch.nn.functional.linear(theirs, tensors["weight"], tensors.get("bias"))
    expected.backward(torch.tensor(dy))
    y, saved = layer.forward(x, call)
    np.testing.assert_allclose(y, expected.detach().numpy(), rtol=1e-12)
    found = {"x": layer.backward(dy.copy(), saved, call), **call.gradients}
    assert found.keys() == {"x", "weight", "bias"} - set(() if bias else ["bias"])
    for name, tensor in {"x": theirs, **tensors}.items():
        assert tensor.grad is not None
        np.testing.assert_allclose(found[name], tensor.grad.numpy(), rtol=1e-12, err_msg=name)  # type: ignore[arg-type]


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
