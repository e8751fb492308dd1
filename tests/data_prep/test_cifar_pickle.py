"""data_prep.cifar_pickle: hostile and damaged pickles are refused, and nothing in them is run."""

from __future__ import annotations

import io
import os
import pickle
import struct
import tracemalloc
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cifar_archives import FIRST_PY, META_PY, read, refused
from data_sets import BATCH_SAMPLES, python_members, write_archive

from data_prep import cifar_pickle
from data_prep.spool import Spool
from dptrain.errors import DataError


class Hostile:
    """Its pickle calls a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self._call = (function, arguments)

    def __reduce__(self) -> Any:
        return self._call


@pytest.mark.parametrize("member", [FIRST_PY, META_PY])
def test_pickle_that_runs_code_is_refused_and_not_run(member: str, tmp_path: Path) -> None:
    mark = tmp_path / "was-run"
    members = python_members()
    members[member] = pickle.dumps({b"data": Hostile(os.mkdir, str(mark))}, protocol=2)
    message = refused(write_archive(tmp_path / "a.tar.gz", members))
    assert "posix.mkdir" in message
    assert not mark.exists()


def test_numpy_does_not_read_the_state_of_pickled_arrays(tmp_path: Path) -> None:
    """A forged state of a dtype makes NumPy use any memory as an object."""
    content = pickle.dumps({b"data": np.zeros(3)}, protocol=2)
    values = cifar_pickle.read_dictionary(io.BytesIO(content), len(content), 0, Spool(tmp_path, (3, 32, 32)))
    assert isinstance(values[b"data"], cifar_pickle._Recorded)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("member", [FIRST_PY, META_PY])
def test_lists_in_lists_that_grow_without_end_are_refused(member: str, tmp_path: Path) -> None:
    """As text they would have 8^14 parts. In the class names, and as text to encode."""
    import _codecs

    nested: list[Any] = []
    for _ in range(14):
        nested = [nested] * 8
    members = python_members()
    if member == META_PY:
        members[member] = pickle.dumps({b"label_names": nested}, protocol=2)
    else:
        members[member] = pickle.dumps({b"data": Hostile(_codecs.encode, nested, "latin1")}, protocol=2)
    assert member in refused(write_archive(tmp_path / "a.tar.gz", members))


def test_a_shape_of_numbers_that_are_not_whole_is_no_traceback(tmp_path: Path) -> None:
    """2.0 is equal to 2."""
    members = python_members()
    content = members[FIRST_PY]
    count = b"K" + bytes([BATCH_SAMPLES]) + b"M" + (3072).to_bytes(2, "little")
    assert content.count(count) == 1
    numbers = b"G" + struct.pack(">d", BATCH_SAMPLES) + b"G" + struct.pack(">d", 3072)
    members[FIRST_PY] = content.replace(count, numbers)
    assert len(read(write_archive(tmp_path / "a.tar.gz", members)).train.labels) == 5 * BATCH_SAMPLES


def test_codec_other_than_latin1_is_refused(tmp_path: Path) -> None:
    import _codecs

    members = python_members()
    members[FIRST_PY] = pickle.dumps({b"data": Hostile(_codecs.encode, "x", "rot13")}, protocol=2)
    assert "rot13" in refused(write_archive(tmp_path / "a.tar.gz", members))


@pytest.mark.parametrize(
    "data",
    [
        np.zeros((BATCH_SAMPLES, 3072), np.int8),
        np.zeros((BATCH_SAMPLES, 3072), object),
        np.zeros((BATCH_SAMPLES - 1, 3072), np.uint8),
        np.zeros(BATCH_SAMPLES * 3072, np.uint8),
        [1, 2, 3],
    ],
    ids=["int8", "object", "few", "flat", "list"],
)
def test_pickled_array_of_another_kind_or_shape_is_refused(data: Any, tmp_path: Path) -> None:
    members = python_members()
    members[FIRST_PY] = pickle.dumps({b"data": data, b"labels": [0] * BATCH_SAMPLES}, protocol=2)
    message = refused(write_archive(tmp_path / "a.tar.gz", members))
    assert f"{FIRST_PY}: data is not an uint8 array ({BATCH_SAMPLES}, 3072)" in message


HUGE = [10**5000] + [0] * (BATCH_SAMPLES - 1)
LONG = [b"x" * 1_000_000] + [0] * (BATCH_SAMPLES - 1)


@pytest.mark.parametrize("labels", [[0], [True] * BATCH_SAMPLES, [-1] * BATCH_SAMPLES, "cat", None, HUGE, LONG])
def test_pickled_labels_that_do_not_fit_are_refused(labels: Any, tmp_path: Path) -> None:
    members = python_members()
    batch = pickle.loads(members[FIRST_PY])
    members[FIRST_PY] = pickle.dumps({**batch, b"labels": labels}, protocol=2)
    message = refused(write_archive(tmp_path / "a.tar.gz", members))
    assert "label" in message
    assert len(message) < 500


def unpickling_refused(content: bytes) -> str:
    with pytest.raises(DataError) as caught:
        cifar_pickle.read_dictionary(io.BytesIO(content), len(content), 20, Spool(Path(), (3, 32, 32)))
    assert str(caught.value).isprintable()
    return str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x02}r" + (10**7).to_bytes(4, "little") + b".",
        b"}p10000000\n.",
        b"\x80\x05\x96" + bytes((0, 0, 0, 6, *bytes(4))),
    ],
    ids=["LONG_BINPUT", "PUT", "BYTEARRAY8"],
)
def test_a_short_pickle_takes_little_memory_whatever_numbers_it_states(content: bytes) -> None:
    """pickle.Unpickler takes 160 MB for the first two, and up to 64 GiB for other numbers."""
    tracemalloc.start()
    try:
        with suppress(DataError):
            cifar_pickle.read_dictionary(io.BytesIO(content), len(content), 20, Spool(Path(), (3, 32, 32)))
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("end", [b"Ns.", b"d."])
def test_tuples_as_keys_are_refused(end: bytes) -> None:
    """The time to hash 60 levels of pairs would be 2^60 steps; with 300,000 levels the process crashed."""
    start = b"(" if end == b"d." else b"}"
    assert "keys that are not text" in unpickling_refused(start + b"N" + b"\x85" * 9 + b"N"[: end == b"d."] + end)
    assert "keys that are not text" in unpickling_refused(b"}(N\x85Nu.")


def test_opcodes_that_cifar_does_not_need_are_refused() -> None:
    for opcode in (pickle.DUP, pickle.EMPTY_SET, pickle.FROZENSET, pickle.NEWOBJ, pickle.OBJ, pickle.INST, pickle.EXT1):
        assert f"not a readable pickle: KeyError: {opcode[0]}" in unpickling_refused(b"}(N\x85" + opcode + b"Ns.")


def test_a_pickle_sets_no_attributes_of_functions() -> None:
    message = unpickling_refused(b"c_codecs\nencode\n(N}S'__doc__'\nS'forged'\nstb.")
    assert "sets attributes of other objects" in message
    assert "forged" not in str(cifar_pickle._encode.__doc__)


@pytest.mark.timeout(20)
def test_the_encoding_of_text_is_text() -> None:
    """As text, these lists would have 8^14 parts."""
    import _codecs

    nested: list[Any] = []
    for _ in range(14):
        nested = [nested] * 8
    content = pickle.dumps({b"data": Hostile(_codecs.encode, "x", nested)}, protocol=2)
    assert "encodes something that is not text" in unpickling_refused(content)


def test_long_names_and_control_characters_of_a_pickle_are_not_printed() -> None:
    assert len(unpickling_refused(b"c" + b"\x1b[31m" * 5000 + b"\nx\n.")) < 500
    assert len(unpickling_refused(b"I" + b"x" * 5000 + b"\n.")) < 500


@pytest.mark.parametrize("content", [b"", b"\x80\x02}q", b"garbage", pickle.dumps([1], 2), b"I1\n\x8e\xff" * 9])
def test_damaged_pickle_is_refused(content: bytes, tmp_path: Path) -> None:
    members = python_members()
    members[FIRST_PY] = content
    assert FIRST_PY in refused(write_archive(tmp_path / "a.tar.gz", members))
