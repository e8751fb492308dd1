from typing import Any

import numpy as np
import pytest

from dptrain.arrays.memory import Workspace
from dptrain.nn import BatchNorm2d, Conv2d, Linear, MaxPool2d, ReLU
from dptrain.nn.layer import Layer, Pass, pair, plain, windows


def test_pair_takes_one_number_or_two() -> None:
    assert pair(3, "stride", 1) == (3, 3)
    assert pair((1, 2), "stride", 1) == (1, 2)


@pytest.mark.parametrize("value", [0, (1, 0), (1, 2, 3), 1.5, "2"])
def test_pair_refuses_other_values(value: Any) -> None:
    with pytest.raises(ValueError, match=r"stride is .*expected a whole number of at least 1"):
        pair(value, "stride", 1)


@pytest.mark.parametrize("kernel", [1, 2, 3])
@pytest.mark.parametrize("stride", [1, 2, 4])
def test_windows_counts_the_positions_of_a_window(kernel: int, stride: int) -> None:
    for extent in range(1, 12):
        places = [start for start in range(0, extent, stride) if start + kernel <= extent]
        if places:
            assert windows([extent, 3], [kernel, 3], [stride, 1], "test") == (len(places), 1)
        else:
            with pytest.raises(ValueError, match=rf"test: an input of \({extent}, 3\) is smaller than the kernel of"):
                windows([extent, 3], [kernel, 3], [stride, 1], "test")


def test_a_layer_without_forward_raises_an_error() -> None:
    with pytest.raises(TypeError, match="does not define forward"):
        Layer().forward(np.zeros(1), Pass({}, {}, Workspace()))


def test_an_argument_that_json_cannot_hold_is_text_in_the_spec() -> None:
    assert plain({"limit": float("inf"), "rates": [np.float32("nan"), 0.5]}) == {"limit": "inf", "rates": ["nan", 0.5]}


def test_keys_of_a_table_that_are_not_text_are_part_of_the_spec() -> None:
    assert plain({(1, 2): 3, np.int64(4): None}) == {"(1, 2)": 3, "4": None}


@pytest.mark.parametrize(
    ("kind", "arguments", "options", "text"),
    [
        (Linear, (3072, 10), {}, "Linear: too many positional arguments; expected Linear(out_features, *, bias, init)"),
        (Linear, (), {"in_features": 4, "out_features": 2}, "the number of inputs or channels is not given"),
        (Conv2d, (3, 8, 3), {}, "expected Conv2d(out_channels, kernel_size, *, stride, padding, bias, "),
        (Conv2d, (3, 8), {"kernel_size": 3}, "'kernel_size'; expected Conv2d(out_channels, kernel_size, *, stride, "),
        (BatchNorm2d, (8,), {}, "the number of inputs or channels is not given, it follows from the input"),
    ],
)
def test_the_number_of_inputs_is_not_an_argument(
    kind: Any, arguments: tuple[int, ...], options: dict[str, int], text: str
) -> None:
    with pytest.raises(TypeError) as caught:
        kind(*arguments, **options)
    assert text in str(caught.value)


def test_an_unknown_argument_is_reported_with_those_that_exist() -> None:
    unknown: Any = {"inplace": True}
    with pytest.raises(TypeError, match=r"^ReLU: got an unexpected keyword argument 'inplace'; expected ReLU\(\)$"):
        ReLU(**unknown)
    pool: Any = MaxPool2d
    with pytest.raises(TypeError, match=r"^MaxPool2d: too many .*; expected MaxPool2d\(kernel_size, \*, stride\)$"):
        pool(2, 2)
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'out_features'"):
        Linear()  # type: ignore[call-arg]
