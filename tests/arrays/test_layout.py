import numpy as np

from dptrain.arrays.layout import Layout

LAYOUT = Layout({"conv1.weight": (2, 3, 1, 1), "conv1.bias": (2,), "linear1.weight": (4, 2)})


def test_views_tile_the_flat_vector_in_order() -> None:
    flat = np.arange(LAYOUT.size, dtype=np.float32)
    views = LAYOUT.views(flat)
    assert LAYOUT.size == 6 + 2 + 8
    assert [view.shape for view in views.values()] == [(2, 3, 1, 1), (2,), (4, 2)]
    assert np.array_equal(np.concatenate([view.ravel() for view in views.values()]), flat)


def test_writing_to_a_view_writes_to_the_flat_vector() -> None:
    flat = np.zeros(LAYOUT.size, np.float32)
    LAYOUT.views(flat)["conv1.bias"][...] = 5
    assert flat.tolist() == [0] * 6 + [5] * 2 + [0] * 8


def test_a_value_for_each_tensor_is_expanded_to_its_elements() -> None:
    assert LAYOUT.expand({"conv1.bias": 0.5, "linear1.weight": 3}).tolist() == [0] * 6 + [0.5] * 2 + [3] * 8
    assert LAYOUT.expand({"conv1.weight": True}, bool).tolist() == [True] * 6 + [False] * 10
