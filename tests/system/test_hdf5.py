"""dptrain.system.hdf5: every array is at its offset in the file, and HDF5 readers find the same arrays."""

from __future__ import annotations

import io
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from selection import examples

from dptrain.system.hdf5 import ALIGNMENT, plain_hdf5

names = st.text(st.characters(codec="ascii", exclude_characters="/\0"), min_size=1, max_size=99).filter(
    lambda name: name not in (".", "..")
)
arrays = st.builds(
    lambda dtype, shape, seed: np.asarray(np.random.default_rng(seed).integers(0, 100, shape)).astype(dtype),
    st.sampled_from(["u1", "<i8", "<f4"]),
    st.lists(st.integers(0, 5), max_size=5).map(tuple),
    st.integers(0, 99),
)


@given(
    files=st.dictionaries(names.map(lambda name: f"params/{name}"), arrays, max_size=20),
    user_block=st.sampled_from([0, 512]),
    tail=st.binary(max_size=99),
)
@examples(40)
def test_an_hdf5_reader_finds_the_same_arrays(files: dict[str, Any], user_block: int, tail: bytes) -> None:
    body, offsets = plain_hdf5(files, {"format": "test", "version": 2}, user_block)
    content = bytes(user_block) + bytes(body) + tail
    with h5py.File(io.BytesIO(content), "r") as file:
        assert dict(file.attrs) == {"format": "test", "version": 2}
        assert {f"params/{name}" for name in file.get("params", {})} == set(files)
        for path, array in files.items():
            assert (file[path].dtype, file[path].shape, file[path].chunks) == (array.dtype, array.shape, None)
            assert np.array_equal(file[path][()], array)
            assert user_block <= offsets[path] <= len(content) - len(tail)
            assert (offsets[path] - user_block) % ALIGNMENT == 0
            assert content[offsets[path] :][: array.nbytes] == array.tobytes()


@pytest.mark.slow
def test_hundreds_of_arrays_fit_into_a_group() -> None:
    arrays = {f"params/layer{number}.weight": np.full(3, number, np.float32) for number in range(1000)}
    body, offsets = plain_hdf5(arrays, {})
    assert [np.frombuffer(body, np.float32, 3, offset)[1] for offset in offsets.values()] == list(range(1000))


def test_arrays_that_are_not_contiguous_are_written_in_order() -> None:
    array = np.arange(24, dtype=np.float32).reshape(4, 6).T[::2]
    body, offsets = plain_hdf5({"a": array}, {})
    assert bytes(body[offsets["a"] :][: array.nbytes]) == array.tobytes()
