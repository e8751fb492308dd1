import itertools
import re
from pathlib import Path

import numpy as np
import pytest

from dptrain.arrays.memory import ALIGNMENT, CHUNK, Array, Workspace, aligned_zeros, huge_pages
from dptrain.errors import DptrainError, LimitError
from dptrain.parallel.pool import shared_zeros


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


def test_dtype_is_that_of_the_workspace_unless_given() -> None:
    workspace = Workspace(np.float64)
    assert workspace.array("a", "b", (1,)).dtype == np.float64
    assert workspace.array("a", "mask", (1,), bool).dtype == np.bool_


def test_memory_starts_on_a_cache_line() -> None:
    workspace = Workspace()
    for number in range(20):
        assert workspace.array("a", str(number), (number + 1,)).ctypes.data % ALIGNMENT == 0
        assert aligned_zeros(number + 1).ctypes.data % ALIGNMENT == 0


def test_an_array_may_be_empty() -> None:
    assert Workspace().array("a", "b", (3, 0)).shape == (3, 0)


def test_an_allocation_that_fails_is_a_one_line_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: int) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr("dptrain.arrays.memory.mmap.mmap", full)
    with pytest.raises(DptrainError, match=r"out of memory allocating 40 MiB for computing .*smaller --batch-size"):
        Workspace().array("a", "b", (10 << 20,))


@pytest.mark.parametrize("size", [1 << 50, 1 << 62, 1 << 70])
def test_impossible_sizes_are_a_one_line_error(size: int) -> None:
    """Found in the field: --model-options 'widths=[1000000]' gave a traceback of NumPy or mmap."""
    for allocate in (huge_pages, aligned_zeros, shared_zeros):
        with pytest.raises(LimitError, match="out of memory allocating"):
            allocate(size)


def test_views_are_recreated_only_for_other_arrays() -> None:
    workspace = Workspace()
    made = []

    def rows(one: Array, other: Array) -> tuple[Array, Array]:
        made.append((one, other))
        return one[0], other[0]

    first, second, third = (workspace.array("conv1", purpose, (4, 4)) for purpose in "abc")
    for arrays in ((first, second), (first, second), (first, third), (first, third), (second, third)):
        views = workspace.views("conv1", "rows", arrays, rows)
        assert all(np.shares_memory(view, array) for view, array in zip(views, arrays, strict=True))
    assert len(made) == 3


def test_scratch_is_one_memory_for_all_owners() -> None:
    workspace = Workspace()
    large = workspace.scratch("conv1", "sums", (4, 5))
    small = workspace.scratch("conv2", "sums", (3, 2))
    assert np.shares_memory(large, small)
    assert workspace.scratch("conv1", "sums", (4, 5)) is large
    assert not np.shares_memory(large, workspace.scratch("conv1", "products", (4, 5)))
    assert not np.shares_memory(large, workspace.array("conv1", "y", (4, 5)))


def test_a_layer_keeps_its_scratch_when_another_needs_a_larger_one() -> None:
    """The backward pass reads what the forward pass of the layer wrote."""
    workspace = Workspace()
    first = workspace.scratch("conv1", "sums", (2, 2))
    workspace.scratch("conv2", "sums", (9, 9))
    assert workspace.scratch("conv1", "sums", (2, 2)) is first


def test_a_block_keeps_what_its_backward_pass_needs_and_nothing_else() -> None:
    """The next block computes in the memory of everything else."""
    shared, shape = Workspace(), (5, 7)

    def forward(block: Workspace) -> dict[str, Array]:
        return {name: block.array("conv1", name, shape) for name in ("saved", "viewed", "other")}

    first, second = shared.block("first"), shared.block("second")
    first.begin()
    kept = forward(first)
    first.keep(({"a": kept["saved"]}, [kept["viewed"].T[1:]]))
    second.begin()
    later = forward(second)
    assert {name: np.shares_memory(kept[name], later[name]) for name in kept} == {
        "saved": False,
        "viewed": False,
        "other": True,
    }
    second.keep(())
    first.begin()
    again = forward(first)
    assert all(np.shares_memory(kept[name], again[name]) for name in kept)


def test_arrays_of_any_size_never_overlap() -> None:
    workspace = Workspace()
    sizes = [
        1,
        CHUNK // 8,
        CHUNK // 4 - 16,
        3,
        CHUNK // 4 + 1,
        1000,
    ]  # float32, so the last but one fills a chunk alone
    arrays = [workspace.array("a", str(number), (size,)) for number, size in enumerate(sizes)]
    for number, array in enumerate(arrays):
        array.fill(number)
    assert all((array == number).all() for number, array in enumerate(arrays))
    assert not any(np.shares_memory(one, other) for one, other in itertools.combinations(arrays, 2))


def test_memory_is_in_huge_pages() -> None:
    """The kernel's flag "hg" (man proc_pid_smaps) of the mapping that an array lies in, where it has huge pages."""
    array = Workspace().array("a", "b", (1000,))
    inside, flags = False, ""
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines():
        if found := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(found[1], 16) <= array.ctypes.data < int(found[2], 16)
        elif inside and line.startswith("VmFlags:"):
            flags = line
    assert flags
    assert ("hg" in flags.split()) == Path("/sys/kernel/mm/transparent_hugepage").exists()
