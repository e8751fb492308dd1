from typing import Any

import numpy as np
import pytest

from dptrain.arrays.memory import Workspace
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
