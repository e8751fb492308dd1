"""data_prep.sources.npy: a folder of .npy files is packed as an .npz file of the same arrays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_sets import read_source

from data_prep.__main__ import main
from dptrain.data.manifest import read_manifest
from dptrain.errors import DataError

RANDOM = np.random.default_rng(0)
LABELS = np.arange(20) % 4
ARRAYS: dict[str, Any] = {
    "x_train": RANDOM.integers(0, 256, (20, 5, 6, 3), dtype=np.uint8),
    "y_train": LABELS,
    "x_test": RANDOM.integers(0, 256, (20, 5, 6, 3), dtype=np.uint8),
    "y_test": LABELS[::-1],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "arrays"
    folder.mkdir()
    for name, array in ARRAYS.items():
        np.save(folder / name, array)
    return folder


def test_it_gives_the_same_samples_as_an_npz_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(folder.parent / "arrays.npz", **ARRAYS)
    (folder / "._x_train.npy").write_bytes(b"of macOS")
    for path, out in ((folder, folder.parent / "a"), (folder.parent / "arrays.npz", folder.parent / "b")):
        assert main([str(path), str(out), "--shards", "2"]) == 0
    notes = capsys.readouterr().err
    assert f"note: {folder} is read as npy" in notes
    assert "not read" not in notes
    from_folder, from_npz = (read_manifest(folder.parent / name) for name in "ab")
    assert (from_folder.name, from_npz.name) == ("arrays", "arrays")
    for split, entries in from_folder.splits.items():
        assert [one.contents_sha256 for one in entries] == [one.contents_sha256 for one in from_npz.splits[split]]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x_test", b"", "array x_test is not a .npy file of format 1.0, or is damaged"),
        ("y_test", b"cut", "array y_test ends after 19 of 20 labels"),
        (
            "y_train",
            None,
            "holds x_test, x_train, y_test; expected x_train, y_train, x_test, y_test, x_val, y_val or x_tr",
        ),
    ],
)
def test_a_missing_or_damaged_file_is_refused(name: str, content: bytes | None, message: str, folder: Path) -> None:
    path = folder / f"{name}.npy"
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content and path.read_bytes()[:-1])
    with pytest.raises(DataError) as caught:
        read_source("npy", folder, folder.parent / "out")
    assert f"{folder}: {message}" in str(caught.value)


def test_two_files_of_one_array_are_refused(folder: Path) -> None:
    (folder / "x_train.NPY").write_bytes(b"")
    with pytest.raises(DataError, match="arrays: array x_train occurs twice"):
        read_source("npy", folder, folder.parent / "out")


def test_a_length_of_thousands_of_digits_is_refused(folder: Path) -> None:
    """Python reads such a number in hexadecimal, and does not print it."""
    for shape in (f"(0x{'f' * 5000}, 5, 6, 3)", f"(5, 0x{'f' * 5000}, 6)"):
        header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}}}\n".encode()
        (folder / "x_train.npy").write_bytes(b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header)
        with pytest.raises(DataError, match=r"array x_train is not a \.npy file of format 1\.0, or is damaged"):
            read_source("npy", folder, folder.parent / "out")
