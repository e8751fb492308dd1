"""data_prep.sources.hdf5: arrays of a foreign HDF5 file are packed; one that is forged ends only its own process."""

from __future__ import annotations

import random
from contextlib import suppress
from pathlib import Path

import h5py
import numpy as np
import pytest
from data_sets import read_source

from data_prep import hdf5_program, hdf5_stream
from data_prep.__main__ import main
from data_prep.images import ImageData
from dptrain.data.manifest import read_manifest
from dptrain.data.shard import read_shard
from dptrain.errors import DataError

IMAGES = np.random.default_rng(0).integers(0, 256, (30, 6, 8, 3), dtype=np.uint8)
LABELS = (np.arange(30) % 3).astype(">i4")
NAMES = ("--arrays", "train/images,train/labels,test/images,test/labels")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Compressed images, in groups, as many programs write them."""
    path = tmp_path / "foreign.h5"
    with h5py.File(path, "w") as file:
        for split, rows in (("train", slice(None)), ("test", slice(12))):
            file.create_dataset(f"{split}/images", data=IMAGES[rows], compression="gzip", chunks=(4, 6, 8, 3))
            file[f"{split}/labels"] = LABELS[rows, None]
    return path


def read_hdf5(path: Path, *words: str) -> ImageData:
    return read_source("hdf5", path, path.parent / "out", *words)


def refused(path: Path, *words: str) -> str:
    with pytest.raises(DataError) as caught:
        read_hdf5(path, *words)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.slow
def test_every_pixel_and_label_is_packed(path: Path) -> None:
    out = path.parent / "out"
    assert main([str(path), str(out), *NAMES, "--shards", "1"]) == 0
    manifest = read_manifest(out)
    for split in ("train", "test"):
        samples = read_shard(out, manifest, split, 0)
        assert np.array_equal(samples.images, IMAGES[samples.index].transpose(0, 3, 1, 2))
        assert np.array_equal(samples.labels, LABELS[samples.index])


@pytest.mark.slow
def test_missing_arrays_are_named(path: Path) -> None:
    assert "holds test/images, test/labels, train/images, train/labels; expected x_train" in refused(path)
    assert "expected a, b, c, d" in refused(path, "--arrays", "a,b,c,d")


@pytest.mark.slow
def test_links_and_arrays_outside_the_file_are_refused(path: Path) -> None:
    with h5py.File(path, "a") as file:
        file["soft"] = h5py.SoftLink("/train/images")
        file["group"] = h5py.ExternalLink(str(path), "/train")
        file.create_dataset("outside", (30, 6, 8, 3), "u1", external=[("/etc/passwd", 0, h5py.h5f.UNLIMITED)])
        layout = h5py.VirtualLayout((30, 6, 8, 3), "u1")
        layout[:] = h5py.VirtualSource(path.name, "train/images", (30, 6, 8, 3))
        file.create_virtual_dataset("virtual", layout)
        file["null"] = h5py.Empty("u1")
        file.create_dataset("zeros", (1 << 40, 1, 1), "u1", chunks=(1 << 20, 1, 1))
        file.create_dataset("text", data=np.array([b"a"] * 30, object), dtype=h5py.string_dtype())
    for name, reason in (
        ("outside", "outside is stored outside the file"),
        ("null", "null is empty: it has no shape"),
        ("virtual", "virtual is stored outside the file"),
        ("zeros", "zeros has 1,099,511,627,776 bytes, of which 0 are stored"),
        ("text", "text is stored outside the file, or is not an array of numbers"),
    ):
        assert reason in refused(path, "--arrays", f"{name},train/labels")
    for name in ("soft", "group/images"):  # they are not among the names either
        assert f"expected {name}, train/labels" in refused(path, "--arrays", f"{name},train/labels")


def test_a_file_that_is_not_hdf5_or_is_missing_is_refused(path: Path) -> None:
    path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(200))
    assert "cannot be read as HDF5: OSError: Unable to" in refused(path)
    path.write_bytes(b"")
    assert "file signature not found" in refused(path)
    path.unlink()
    assert "cannot be read: No such file" in refused(path)


@pytest.mark.slow
def test_any_altered_bytes_are_read_or_refused(path: Path) -> None:
    whole, draw = path.read_bytes(), random.Random(0)
    for _ in range(5):
        content = bytearray(whole)
        for place in draw.sample(range(8, 4000), 8):
            content[place] = draw.randrange(256)
        path.write_bytes(content)
        with suppress(DataError):
            read_hdf5(path, *NAMES)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("more", [0, 1, 400_000])
def test_names_of_any_length_are_refused_and_the_process_ends(
    more: int, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process fills the pipe with its output, and waits until somebody reads it."""
    with h5py.File(path, "w") as file:
        for number in range(10):
            file[f"{number}" * 60_000] = LABELS
    length = 10 * (60_000 + len('"", ')) + len("\n")  # of a list in JSON: its brackets replace a comma and a space
    monkeypatch.setattr(hdf5_stream, "LONGEST_NAMES", length - more)
    expected = f"the names of its arrays are longer than {length - more:,} bytes" if more else "holds 00"
    assert expected in refused(path)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("status", [0, hdf5_program.FAILED])
def test_a_process_may_write_any_number_of_errors(
    status: int, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As libhdf5 may, for a forged file: before its output, and after it."""
    program = tmp_path / "program.py"
    errors = "sys.stderr.write('Why: ' + 'many words ' * 100_000); sys.stderr.flush()"
    program.write_text(f"import os, sys\n{errors}\nprint('[]', flush=True)\n{errors}\nos._exit({status})\n")
    monkeypatch.setattr(hdf5_program, "__file__", str(program))
    expected = "cannot be read as HDF5: Why: many words" if status else "holds no arrays"
    assert expected in refused(path)
