"""data_prep.sources.idx: IDX files are read as LeCun's page states, or refused with their name."""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from data_sets import idx_bytes
from hypothesis import given
from hypothesis import strategies as st
from selection import examples

from data_prep import spool
from data_prep.__main__ import main
from data_prep.sources import idx
from data_prep.sources.idx import FILES, read_idx
from dptrain.data.manifest import read_manifest
from dptrain.data.shard import read_shard
from dptrain.errors import DataError

USUAL = {
    (split, kind): f"{'train' if split == 'train' else 't10k'}-{kind}-idx{3 if kind == 'images' else 1}-ubyte"
    for split, kind in FILES
}
IMAGES = {
    "train": np.random.default_rng(0).integers(0, 256, (30, 4, 6), dtype=np.uint8),
    "test": np.random.default_rng(1).integers(0, 256, (10, 4, 6), dtype=np.uint8),
}
LABELS = {"train": np.arange(30, dtype=np.uint8) % 3, "test": np.arange(10, dtype=np.uint8) % 3}


def contents() -> dict[tuple[str, str], bytes]:
    return {(split, kind): idx_bytes((IMAGES if kind == "images" else LABELS)[split]) for split, kind in FILES}


def written(folder: Path, files: Mapping[tuple[str, str], bytes], *, begin: str = "", end: str = "") -> Path:
    folder.mkdir(exist_ok=True)
    for key, content in files.items():
        (folder / f"{begin}{USUAL[key]}{end}").write_bytes(gzip.compress(content) if end == ".gz" else content)
    return folder


@pytest.mark.parametrize("end", ["", ".gz"])
def test_every_pixel_and_label_is_packed(end: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = written(tmp_path / "my digits", contents(), end=end), tmp_path / "out"
    assert main([str(folder), str(out), "--shards", "2"]) == 0
    assert f"note: {folder} is read as idx" in capsys.readouterr().err
    manifest = read_manifest(out)
    assert (manifest.name, manifest.classes, manifest.image_shape) == ("my digits", ("0", "1", "2"), (1, 4, 6))
    for split in ("train", "test"):
        for shard in range(2):
            samples = read_shard(out, manifest, split, shard)
            assert np.array_equal(samples.images[:, 0], IMAGES[split][samples.index])
            assert np.array_equal(samples.labels, LABELS[split][samples.index])
    assert main(["verify", str(out)]) == 0


def test_images_are_read_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "BLOCK", 7 * 24)
    data = read_idx(written(tmp_path / "set", contents(), end=".gz"), tmp_path)
    assert np.array_equal(data.train.images[np.arange(30)][:, 0], IMAGES["train"])


def test_the_usual_variants_of_the_names_are_known(tmp_path: Path) -> None:
    for number, name in enumerate(("emnist-letters-train-images-idx3-ubyte.gz", "train-images.idx3-ubyte")):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / name).touch()
        assert idx.detects(tmp_path / str(number))
    assert not idx.detects(tmp_path)
    assert (
        read_idx(written(tmp_path / "letters", contents(), begin="emnist-letters-"), tmp_path).name == "emnist-letters"
    )


def test_a_file_is_preferred_to_the_same_with_gz(tmp_path: Path) -> None:
    folder = written(tmp_path / "set", contents())
    (folder / f"{USUAL['train', 'images']}.gz").write_bytes(b"not this one")
    assert len(read_idx(folder, tmp_path).train.labels) == 30


def test_names_in_capital_letters_are_the_same_files(tmp_path: Path) -> None:
    folder = written(tmp_path / "set", contents(), end=".gz")
    for path in folder.iterdir():
        path.rename(path.with_name(path.name.upper()))
    data = read_idx(folder, tmp_path)
    assert np.array_equal(data.train.images[np.arange(30)][:, 0], IMAGES["train"])
    assert np.array_equal(data.test.labels, LABELS["test"])
    written(folder, {IMAGES_FILE: b"not this one"})
    with pytest.raises(DataError, match=f"{USUAL[IMAGES_FILE]}: begins with"):  # a file without .gz is preferred
        read_idx(folder, tmp_path)


def test_classes_get_names(tmp_path: Path) -> None:
    folder = written(tmp_path / "set", contents())
    assert read_idx(folder, tmp_path, "Shirt,Ankle boot,T-shirt/top").classes == ("Shirt", "Ankle boot", "T-shirt/top")
    with pytest.raises(DataError, match="--classes has 2 names, but there are labels up to 2"):
        read_idx(folder, tmp_path, "a,b")


IMAGES_FILE, LABELS_FILE = ("train", "images"), ("test", "labels")


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (IMAGES_FILE, lambda content: content[:-1], "ends after 29 of 30 images"),
        (IMAGES_FILE, lambda content: content + b"x", "has more bytes than its header states"),
        (IMAGES_FILE, lambda content: content[:9], "not a complete IDX file, damaged or truncated"),
        (IMAGES_FILE, lambda content: b"", "begins with nothing, expected 0 0 8 3"),
        (IMAGES_FILE, lambda content: b"\0\0\x0d\3" + content[4:], "begins with 0 0 13 3, expected 0 0 8 3"),
        (IMAGES_FILE, lambda content: content[:8] + b"\0\0\0\0" + content[12:], "states 30 images of 0 x 6 pixels"),
        (IMAGES_FILE, lambda content: content[:8] + b"\xff\xff" + content[10:], "states 30 images of 4294901764 x 6"),
        (LABELS_FILE, lambda content: content[:-1], "ends after 9 of 10 labels"),
        (LABELS_FILE, lambda content: content + b"x", "has more bytes than its header states"),
        (LABELS_FILE, lambda content: content[:7] + b"\x0b" + content[8:], "states 11 labels for 10 images"),
    ],
)
@pytest.mark.parametrize("end", ["", ".gz"])
def test_a_damaged_file_is_refused_with_its_name(
    end: str, file: tuple[str, str], change: Callable[[bytes], bytes], message: str, tmp_path: Path
) -> None:
    files = contents()
    files[file] = change(files[file])
    folder = written(tmp_path / "set", files, end=end)
    with pytest.raises(DataError, match=f"{re.escape(str(folder / USUAL[file]))}{end}: .*{message}"):
        read_idx(folder, tmp_path)


def test_a_truncated_or_altered_gz_is_refused(tmp_path: Path) -> None:
    folder = written(tmp_path / "set", contents(), end=".gz")
    path = folder / f"{USUAL[IMAGES_FILE]}.gz"
    whole = path.read_bytes()
    for damaged in (
        whole[:-4],
        whole[:100],
        whole[:10] + b"\x07" + whole[11:],  # a block of no known type
        whole[:-6] + b"\0" + whole[-5:],
        b"plain",
    ):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=f"{path}: not a complete IDX file, damaged or truncated"):
            read_idx(folder, tmp_path)


def test_two_files_of_one_part_are_refused_and_hidden_files_ignored(tmp_path: Path) -> None:
    folder = written(tmp_path / "set", contents())
    (folder / f"._{USUAL[IMAGES_FILE]}").write_bytes(b"of macOS")
    assert len(read_idx(folder, tmp_path).train.labels) == 30
    (folder / "test-labels-idx1-ubyte").write_bytes(contents()[LABELS_FILE])
    with pytest.raises(DataError, match="test-labels-idx1-ubyte and t10k-labels-idx1-ubyte are the same part of a set"):
        read_idx(folder, tmp_path)


def test_names_of_files_are_escaped_in_errors(tmp_path: Path) -> None:
    folder = written(tmp_path / "set", contents(), begin="\x1b[31m-")
    (folder / "\x1b[31m-test-labels-idx1-ubyte").write_bytes(contents()[LABELS_FILE])
    with pytest.raises(DataError, match=r"\\x1b\[31m-test-labels.* are the same part of a set") as caught:
        read_idx(folder, tmp_path)
    assert str(caught.value).isprintable()


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    folder = written(tmp_path / "set", contents())
    (folder / USUAL[IMAGES_FILE]).unlink()
    (folder / USUAL[IMAGES_FILE]).mkdir()
    with pytest.raises(DataError, match=f"{USUAL[IMAGES_FILE]}: cannot be read: not a regular file"):
        read_idx(folder, tmp_path)


def test_missing_files_and_files_of_two_sets_are_refused(tmp_path: Path) -> None:
    files = contents()
    del files[LABELS_FILE]
    with pytest.raises(DataError, match=r"set: no t10k-labels-idx\*-ubyte \(with or without .gz\)"):
        read_idx(written(tmp_path / "set", files), tmp_path)
    written(tmp_path / "set", files, begin="emnist-")
    with pytest.raises(DataError, match=r"files of 2 sets \(without a prefix, emnist-\*\); give each a folder"):
        read_idx(tmp_path / "set", tmp_path)
    with pytest.raises(DataError, match="nowhere: cannot be read: No such file"):
        read_idx(tmp_path / "nowhere", tmp_path)


@given(content=st.binary(max_size=80), valid=st.integers(0, 8), end=st.sampled_from(["", ".gz"]))
@examples(200)
def test_any_bytes_are_read_or_refused(
    content: bytes, valid: int, end: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Also after the first bytes of a valid header."""
    files = contents()
    files[IMAGES_FILE] = files[IMAGES_FILE][:valid] + content
    folder = written(tmp_path_factory.mktemp("fuzz"), files, end=end)
    with suppress(DataError):
        assert len(read_idx(folder, folder).train.images) == 30
