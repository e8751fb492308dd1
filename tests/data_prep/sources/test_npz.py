"""data_prep.sources.npz: arrays of an .npz file are packed, or refused with the reason."""

from __future__ import annotations

import io
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_sets import read_source
from hypothesis import given
from hypothesis import strategies as st
from numpy.lib import format as npy
from selection import examples

from data_prep import spool
from data_prep.__main__ import main
from data_prep.images import ImageData
from dptrain.data.manifest import Provenance, read_manifest
from dptrain.data.shard import read_shard
from dptrain.errors import DataError, UsageError
from dptrain.system.files import file_sha256

RANDOM = np.random.default_rng(0)
LABELS = np.arange(30) % 3


def images(*shape: int) -> np.ndarray:
    return RANDOM.integers(0, 256, (30, *shape), dtype=np.uint8)


def saved(path: Path, **arrays: Any) -> Path:
    """Arrays as Keras names them; those given replace the defaults."""
    defaults = {"x_train": images(6, 8, 3), "y_train": LABELS, "x_test": images(6, 8, 3)[:12], "y_test": LABELS[:12]}
    np.savez_compressed(path, **(defaults | arrays))
    return path


def read_npz(path: Path, *words: str) -> ImageData:
    return read_source("npz", path, path.parent / "out", *words)


def refused(path: Path, *words: str) -> str:
    with pytest.raises(DataError) as caught:
        read_npz(path, *words)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_pixel_and_label_is_packed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = saved(tmp_path / "my set.npz"), tmp_path / "out"
    arrays = np.load(path)
    assert main([str(path), str(out), "--shards", "2", "--classes", "a,b,c"]) == 0
    assert f"note: {path} is read as npz" in capsys.readouterr().err
    manifest = read_manifest(out)
    assert (manifest.name, manifest.classes, manifest.image_shape) == ("my set", ("a", "b", "c"), (3, 6, 8))
    assert manifest.source == Provenance("npz", "my set.npz", file_sha256(path))
    for split in ("train", "test"):
        for shard in range(2):
            samples = read_shard(out, manifest, split, shard)
            assert np.array_equal(samples.images, arrays[f"x_{split}"][samples.index].transpose(0, 3, 1, 2))
            assert np.array_equal(samples.labels, arrays[f"y_{split}"][samples.index])


@pytest.mark.parametrize(
    ("shape", "layout", "expected"),
    [
        ((6, 8), None, (1, 6, 8)),
        ((6, 8, 3), None, (3, 6, 8)),
        ((3, 6, 8), None, (3, 6, 8)),
        ((2, 6, 3), "channels_last", (3, 2, 6)),
        ((2, 6, 3), "channels_first", (2, 6, 3)),
        ((9, 6, 8), "channels_first", (9, 6, 8)),
    ],
)
@pytest.mark.parametrize("block", [1, 300, 1 << 20])
def test_the_order_of_axes_is_known_by_the_shape_or_stated(
    shape: tuple[int, ...],
    layout: str | None,
    expected: tuple[int, int, int],
    block: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(spool, "BLOCK", block)
    array = images(*shape)
    path = saved(tmp_path / "a.npz", x_train=array, x_test=array[:12])
    found = read_npz(path, *(["--layout", layout] if layout else [])).train.images
    assert found.shape == (30, *expected)
    last = len(shape) == 3 and expected != shape
    right = array.transpose(0, 3, 1, 2) if last else array.reshape(30, *expected)
    assert np.array_equal(found[np.arange(30)], right)


def test_medmnist_and_arrays_of_other_names_are_read(tmp_path: Path) -> None:
    grey, column = images(6, 8), LABELS[:, None].astype(np.uint8)
    medmnist: dict[str, Any] = {
        "train_images": grey,
        "train_labels": column,
        "val_images": grey,
        "test_images": grey[:12],
    }
    np.savez(tmp_path / "medmnist.npz", **medmnist, test_labels=column[:12])
    data = read_npz(tmp_path / "medmnist.npz")
    assert (data.train.labels.tolist(), len(data.test.labels)) == (LABELS.tolist(), 12)
    np.savez(tmp_path / "other.npz", a=grey, b=LABELS, c=grey[:12], d=LABELS[:12])
    assert len(read_npz(tmp_path / "other.npz", "--arrays", "a,b,c,d").test.images) == 12
    assert "holds a, b, c, d; expected x_train, y_train" in refused(tmp_path / "other.npz")
    assert "name yours by --arrays" in refused(tmp_path / "other.npz")
    assert "expected a, b, c, e" in refused(tmp_path / "other.npz", "--arrays", "a,b,c,e")
    with pytest.raises(UsageError, match="--arrays has 3 names, expected 2, 4 or 6: images, labels of each of train"):
        read_npz(tmp_path / "other.npz", "--arrays", "a,b,c")


def test_validation_images_are_read(tmp_path: Path) -> None:
    arrays: dict[str, Any] = {f"{split}_images": images(6, 8) for split in ("train", "val", "test")}
    np.savez(tmp_path / "a.npz", **arrays, train_labels=LABELS, val_labels=LABELS[::-1], test_labels=LABELS)
    validation = read_npz(tmp_path / "a.npz").validation
    assert validation is not None
    assert np.array_equal(validation.images[np.arange(30)][:, 0], arrays["val_images"])
    assert np.array_equal(validation.labels, LABELS[::-1])


def test_validation_images_beside_the_names_of_keras_are_read_and_arrays_that_are_not_are_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    validation = images(6, 8, 3)
    path = saved(tmp_path / "a.npz", x_val=validation, y_val=LABELS[::-1])
    found = read_npz(path).validation
    assert found is not None
    assert np.array_equal(found.images[np.arange(30)], validation.transpose(0, 3, 1, 2))
    assert np.array_equal(found.labels, LABELS[::-1])
    assert capsys.readouterr().err == ""
    path = saved(tmp_path / "b.npz", x_val=validation, weights=LABELS)  # without y_val
    assert read_npz(path).validation is None
    assert capsys.readouterr().err == "data_prep: note: arrays that are not read (2): weights, x_val\n"


def test_without_a_test_split_a_share_of_each_class_becomes_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    array = images(6, 8)
    np.savez(tmp_path / "a.npz", images=array, labels=LABELS)
    for words, count in (((), 6), (("--test-fraction", "0.5"), 15)):
        data = read_npz(tmp_path / "a.npz", *words)
        assert np.bincount(data.test.labels).tolist() == [count // 3] * 3
        assert f"note: {count} of 30 images, drawn from each class, are the test split" in capsys.readouterr().err
        parts = [part.images[np.arange(len(part.labels))] for part in (data.train, data.test)]
        both = np.concatenate(parts)[:, 0]
        assert sorted(one.tobytes() for one in both) == sorted(one.tobytes() for one in array)
        labels = dict(zip((one.tobytes() for one in array), LABELS.tolist(), strict=True))
        found = np.concatenate([data.train.labels, data.test.labels]).tolist()
        assert [labels[one.tobytes()] for one in both] == found
    with pytest.raises(UsageError, match="--test-fraction: there is a test split already"):
        read_npz(saved(tmp_path / "b.npz"), "--test-fraction", "0.5")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x_train": images(6, 8, 3) / 255}, "x_train is float64 of the shape (30, 6, 8, 3), expected uint8 of"),
        ({"x_train": images(6)}, "(n, C, H, W); give each image its shape by images.reshape("),
        (
            {"x_train": images(6, 8, 3).astype(int)},
            "(n, C, H, W); convert values of 0 to 255 by images.astype(np.uint8)",
        ),
        ({"x_train": LABELS, "y_train": images(6, 8)}, "; images come first, then their labels"),
        ({"x_train": images(6, 8)[:0], "y_train": LABELS[:0]}, "of the shape (0, 6, 8): it holds no images"),
        ({"x_train": images(6, 0, 3)}, "of the shape (30, 6, 0, 3): it holds no images"),
        ({"x_train": images(9, 9, 9)}, "(30, 9, 9, 9); state the order of its axes by --layout channels_first or"),
        ({"x_train": images(2, 9, 3)}, "(30, 2, 9, 3); state the order of its axes by"),
        ({"x_train": np.asfortranarray(images(6, 8, 3))}, "x_train is stored column by column; save numpy.ascont"),
        ({"x_train": np.array([None, 1])}, "x_train is object of the shape (2,), expected"),
        (
            {"y_train": LABELS * 1.0},
            "expected integers of the shape (30,), one for each image; convert them by labels.astype",
        ),
        (
            {"y_train": np.eye(3)[LABELS]},
            "(30, 3), expected integers of the shape (30,), one for each image; convert one-hot rows",
        ),
        (
            {"y_train": LABELS[:29]},
            "y_train is int64 of the shape (29,): 30 images, but 29 labels; expected one for each",
        ),
        (
            {"y_train": LABELS.astype(str)},
            "; number the classes by names, labels = np.unique(labels, return_inverse=True)",
        ),
    ],
)
def test_arrays_that_do_not_fit_are_refused_with_the_remedy(
    arrays: dict[str, Any], message: str, tmp_path: Path
) -> None:
    assert message in refused(saved(tmp_path / "a.npz", **arrays))


def test_labels_beyond_any_number_of_classes_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.npz", y_train=LABELS * 2**60)
    with pytest.raises(DataError, match="labels up to 2305843009213693952, expected at most 65,535"):
        read_npz(path)


def with_member(path: Path, name: str, content: bytes) -> Path:
    """The archive with another content of a member."""
    with zipfile.ZipFile(path) as archive:
        members = {one: archive.read(one) for one in archive.namelist()} | {name: content}
    with zipfile.ZipFile(path, "w") as archive:
        for one, data in members.items():
            archive.writestr(one, data)
    return path


def test_images_larger_than_any_data_set_may_have_are_refused_by_their_shape(tmp_path: Path) -> None:
    header = io.BytesIO()
    npy.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (30, 40_000, 40_000)})
    path = with_member(saved(tmp_path / "a.npz"), "x_train.npy", header.getvalue())
    assert "x_train is uint8 of the shape (30, 40000, 40000), expected" in refused(path)


def test_an_array_that_ends_before_its_shape_is_refused(tmp_path: Path) -> None:
    for name, kept, message in (("x_train", -1, "ends after 29 of 30 images"), ("y_train", -1, "29 of 30 labels")):
        path = saved(tmp_path / f"{name}.npz")
        content = zipfile.ZipFile(path).read(f"{name}.npy")[:kept]
        assert message in refused(with_member(path, f"{name}.npy", content))


def test_more_bytes_than_the_shape_needs_and_arrays_of_one_name_are_refused(tmp_path: Path) -> None:
    for name in ("x_train", "y_test"):
        path = saved(tmp_path / f"{name}.npz")
        longer = zipfile.ZipFile(path).read(f"{name}.npy") + b"x"
        assert f"array {name} has more bytes than its shape needs" in refused(with_member(path, f"{name}.npy", longer))
    path = saved(tmp_path / "a.npz")
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("y_train.npy", archive.read("y_train.npy"))
    assert "array y_train occurs twice" in refused(path)


def test_an_archive_of_another_compression_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.npz")
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    assert refused(path).endswith(": x_train.npy is compressed by another method than deflate: make the archive again")


@pytest.mark.parametrize(
    "header", [b"", b"\x93NUMPY\2\0", b"\x93NUMPY\3\0", b"\x93NUMPY\1\0\1\0(", b"\x93NUMPY\1\0\3\0'a\n"]
)
def test_an_array_with_a_damaged_header_is_refused(header: bytes, tmp_path: Path) -> None:
    message = refused(with_member(saved(tmp_path / "a.npz"), "x_train.npy", header + bytes(100)))
    assert "array x_train is not a .npy file of format 1.0, or is damaged" in message


def test_a_damaged_archive_is_refused_and_an_encrypted_one_is_not_called_damaged(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.npz")
    whole = path.read_bytes()
    encrypted = whole.replace(b"PK\1\2" + whole[whole.index(b"PK\1\2") + 4 :][:4], b"PK\1\2\x14\0\x14\0")
    flags = encrypted.index(b"PK\1\2") + 8
    encrypted = encrypted[:flags] + b"\1" + encrypted[flags + 1 :]
    middle = len(whole) // 4
    data = 30 + whole[26] + whole[28]  # where the first member's data begin, after its header, name and extra field
    no_type = whole[:data] + b"\x07" + whole[data + 1 :]
    method = whole.index(b"PK\1\2") + 10
    unknown_method = whole[:8] + b"\x63" + whole[9:method] + b"\x63" + whole[method + 1 :]
    zeros = whole[:middle] + bytes(64) + whole[middle + 64 :]
    for damaged in (whole[:-30], b"", zeros, no_type):
        path.write_bytes(damaged)
        assert "not a complete .npz file, damaged or truncated: " in refused(path)
    path.write_bytes(encrypted)
    assert refused(path).endswith(": x_train.npy is encrypted: make the archive again without a password")
    path.write_bytes(unknown_method)
    assert "x_train.npy is compressed by another method" in refused(path)
    path.unlink()
    assert "cannot be read: No such file" in refused(path)


def test_a_pickle_is_not_loaded(tmp_path: Path) -> None:
    mark = tmp_path / "was-run"

    class Hostile:
        def __reduce__(self) -> Any:
            import os

            return os.mkdir, (str(mark),)

    content = io.BytesIO()
    np.save(content, np.array([Hostile()], dtype=object), allow_pickle=True)
    assert "is object of the shape (1,)" in refused(
        with_member(saved(tmp_path / "a.npz"), "y_test.npy", content.getvalue())
    )
    assert not mark.exists()


HEADER = b"\x93NUMPY\1\0"


@given(content=st.binary(max_size=60), start=st.sampled_from([b"", HEADER, HEADER + b"\x46\0{'descr': '|u1', "]))
@examples(60)
def test_any_bytes_of_an_array_are_read_or_refused(
    content: bytes, start: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    path = with_member(saved(folder / "a.npz"), "x_train.npy", start + content)
    with suppress(DataError):
        read_npz(path)


@given(changes=st.lists(st.tuples(st.integers(0, 4095), st.integers(0, 255)), min_size=1, max_size=3))
@examples(60)
def test_any_altered_byte_of_the_file_is_harmless(
    changes: list[tuple[int, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    path = saved(folder / "a.npz", x_train=images(3, 3), x_test=images(3, 3)[:12])
    content = bytearray(path.read_bytes())
    for place, value in changes:
        content[place % len(content)] = value
    path.write_bytes(content)
    with suppress(DataError):
        read_npz(path)


@pytest.mark.parametrize("split", ["test", "validation"])
def test_a_split_that_is_there_is_not_drawn_and_this_is_found_before_images_are_read(
    split: str, tmp_path: Path
) -> None:
    one = np.zeros((2, 4, 4), np.uint8), np.zeros(2, np.uint8)
    names = [f"{split}_{kind}" for split in ("train", "test", "val") for kind in ("images", "labels")]
    np.savez(tmp_path / "a.npz", **dict(zip(names, one * 3, strict=True)))  # type: ignore[arg-type]
    with_member(tmp_path / "a.npz", "train_images.npy", b"damaged")
    with pytest.raises(DataError, match="array train_images is not a"):
        read_source("npz", tmp_path / "a.npz", tmp_path / "out")
    with pytest.raises(UsageError, match=f"--{split}-fraction: there is a {split} split already"):
        read_source("npz", tmp_path / "a.npz", tmp_path / "out", f"--{split}-fraction", "0.5")
