"""dptrain.system.hdf5: what is written without libhdf5 is what libhdf5 reads."""

from __future__ import annotations

import io
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dptrain.system.hdf5 import ALIGNMENT, lookup3, plain_hdf5


@pytest.mark.parametrize(("text", "expected"), [(b"Four score and seven years ago", 0x17770551)])
def test_the_checksum_is_the_published_one(text: bytes, expected: int) -> None:
    """The value in the comments of Bob Jenkins's lookup3.c."""
    assert lookup3(text) == expected


names = st.text(st.characters(exclude_characters="/\0", exclude_categories=("Cs",)), min_size=1, max_size=300).filter(
    lambda name: name not in (".", "..")
)
arrays = st.builds(
    lambda dtype, shape, seed: np.random.default_rng(seed).integers(0, 100, shape).astype(dtype),
    st.sampled_from(["u1", "<i8", "<f4"]),
    st.lists(st.integers(0, 5), max_size=5).map(tuple),
    st.integers(0, 99),
)
trees = st.dictionaries(names, arrays | st.dictionaries(names, arrays, max_size=20), max_size=20)
attributes = st.dictionaries(names, st.integers(-(2**63), 2**63 - 1) | (st.just("") | names), max_size=7)


@given(tree=trees, attributes=attributes, user_block=st.sampled_from([0, 512, 4096]), tail=st.binary(max_size=99))
@settings(deadline=None, max_examples=40)
def test_libhdf5_reads_what_was_written(
    tree: dict[str, Any], attributes: dict[str, int | str], user_block: int, tail: bytes
) -> None:
    parts, offsets = plain_hdf5(tree, attributes, user_block)
    content = bytes(user_block) + b"".join(parts) + tail
    with h5py.File(io.BytesIO(content), "r") as file:
        found = {name: value.decode() if isinstance(value, bytes) else value for name, value in file.attrs.items()}
        assert found == attributes
        assert set(file) == set(tree)
        for name, node in tree.items():
            members = node if isinstance(node, dict) else {None: node}
            if isinstance(node, dict):
                assert set(file[name]) == set(node)
            for member, array in members.items():
                path = name if member is None else f"{name}/{member}"
                dataset = file[path]
                assert (dataset.dtype, dataset.shape, dataset.chunks) == (array.dtype, array.shape, None)
                assert np.array_equal(dataset[()], array)
                assert offsets[path] % ALIGNMENT == 0 or not array.size
                if array.size:
                    assert dataset.id.get_offset() == offsets[path]
                    assert content[offsets[path] :][: array.nbytes] == array.tobytes()


def test_hundreds_of_datasets_fit_into_a_group() -> None:
    tree = {"params": {f"layer{number}.weight": np.full(3, number, np.float32) for number in range(1000)}}
    parts, _ = plain_hdf5(tree, {})
    with h5py.File(io.BytesIO(b"".join(parts)), "r") as file:
        assert [file[f"params/layer{number}.weight"][1] for number in range(1000)] == list(range(1000))


def test_arrays_that_are_not_contiguous_are_written_in_order() -> None:
    array = np.arange(24, dtype=np.float32).reshape(4, 6).T[::2]
    parts, offsets = plain_hdf5({"a": array}, {})
    assert b"".join(parts)[offsets["a"] :] == array.tobytes()
