import numpy as np

from dptrain.nn.workspace import ALIGNMENT, Workspace, aligned_zeros


def test_the_same_request_gives_the_same_memory() -> None:
    workspace = Workspace()
    first = workspace.array("conv1", "y", (3, 4))
    first.fill(7)
    assert workspace.array("conv1", "y", (3, 4)) is first
    assert not np.shares_memory(workspace.array("conv2", "y", (3, 4)), first)
    assert not np.shares_memory(workspace.array("conv1", "x", (3, 4)), first)


def test_a_smaller_request_uses_the_front_of_the_same_memory() -> None:
    workspace = Workspace()
    large = workspace.array("conv1", "y", (4, 5))
    small = workspace.array("conv1", "y", (2, 5))
    assert np.shares_memory(large, small)
    assert small.shape == (2, 5)
    assert np.shares_memory(large, workspace.array("conv1", "y", (4, 5)))
    assert not np.shares_memory(large, workspace.array("conv1", "y", (8, 5)))


def test_zeroed_is_zero_again_after_every_change_of_shape() -> None:
    workspace = Workspace()
    for shape in ((4, 4), (2, 4), (4, 4), (5, 5)):
        array = workspace.array("conv1", "padded", shape, zeroed=True)
        assert not array.any()
        array.fill(1)


def test_dtype_is_the_workspaces_unless_asked_for() -> None:
    workspace = Workspace(np.float64)
    assert workspace.array("a", "b", (1,)).dtype == np.float64
    assert workspace.array("a", "mask", (1,), bool).dtype == np.bool_


def test_memory_starts_on_a_cache_line() -> None:
    workspace = Workspace()
    for number in range(20):
        assert workspace.array("a", str(number), (number + 1,)).ctypes.data % ALIGNMENT == 0
        assert aligned_zeros(number + 1).ctypes.data % ALIGNMENT == 0


def test_an_empty_array_can_be_had() -> None:
    assert Workspace().array("a", "b", (3, 0)).shape == (3, 0)
