"""dptrain.pack and dptrain.DataSet: from arrays and paths, with the flags of the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from picture_files import write_pictures

from data_prep.__main__ import main
from dptrain import DataSet, pack
from dptrain.errors import DataError, UsageError

RANDOM = np.random.default_rng(3)
LABELS = np.arange(40) % 4


def images(*shape: int) -> np.ndarray:
    return RANDOM.integers(0, 256, (40, *shape), dtype=np.uint8)


@pytest.mark.parametrize("shape", [(6, 7), (6, 7, 3), (3, 6, 7)], ids=["grey", "channels last", "channels first"])
def test_arrays_are_packed_and_read_back(shape: tuple[int, ...], tmp_path: Path) -> None:
    train, test = images(*shape), images(*shape)
    names: Any = np.array(["a,b", "c", "d", "e"])
    data = pack((train, LABELS), tmp_path / "set", test=(test, LABELS.tolist()), shards=4, classes=names)
    expected = {2: train[:, None] if train.ndim == 3 else train, 3: None}[len(shape)]
    if expected is None:
        expected = train.transpose(0, 3, 1, 2) if shape[-1] == 3 else train
    found, labels = data.arrays()
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(labels, LABELS)
    assert data.classes == ("a,b", "c", "d", "e")
    assert data.verify() == []
    assert data.splits == ("train", "test")


def test_a_fifth_of_each_class_becomes_the_test_split(tmp_path: Path) -> None:
    data = pack((images(6, 7), LABELS), tmp_path / "set", shards=2)
    assert np.bincount(data.arrays("test")[1]).tolist() == [2] * 4
    halves = pack((images(6, 7), LABELS), tmp_path / "half", shards=2, test_fraction=0.5)
    assert np.bincount(halves.arrays("test")[1]).tolist() == [5] * 4


def test_a_path_is_packed_as_on_the_command_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    names = [f"{split}/{kind}/{number}.png" for split in ("train", "test") for kind in "ab" for number in range(3)]
    write_pictures(tmp_path / "pictures", names)
    data = pack(tmp_path / "pictures", tmp_path / "program", size=(5, 4), shards=2, fit="pad")
    assert capfd.readouterr().out == ""
    words = ["images", "--from", str(tmp_path / "pictures"), str(tmp_path / "command"), "--size", "5", "4"]
    assert main([*words, "--shards", "2", "--fit", "pad"]) == 0
    first, second = (DataSet(tmp_path / name) for name in ("program", "command"))
    assert data.image_shape == (3, 5, 4)
    assert first.info() | {"folder": ""} == second.info() | {"folder": ""}


def test_wrong_arguments_are_explained_and_leave_no_folder(tmp_path: Path) -> None:
    pair, out = (images(6, 7), LABELS), tmp_path / "set"
    cases: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
        (pair, {"shard": 4}, UsageError, "(?<!-)shard"),
        (pair, {"validation": pair}, UsageError, "pack needs a test split"),
        ((images(6, 7) / 255, LABELS), {}, DataError, "float64.*expected uint8"),
        ((images(6, 7), LABELS[:3]), {}, DataError, r"shape \(3,\)"),
        (pair, {"classes": ["a"]}, DataError, "for 1 class"),
        ("shapes", {"classes": ["a"]}, UsageError, "(?<!-)classes"),
        ("shapes", {"test": pair}, UsageError, "are for a pair of arrays"),
        (images(6, 7), {}, UsageError, "source is ndarray .*or a pair: images and labels"),
        (pair, {"json": True}, UsageError, "json is an argument of the command line"),
        ((images(6, 7)[:3], [0, 1, 2]), {}, DataError, "test images are uint8 .*expected at least one image"),
        (([images(6, 7)[0], images(5, 7)[0]] * 20, LABELS), {}, DataError, "train_images: this list cannot become an"),
        ((images(6, 7), [[1], [1, 2]]), {}, DataError, "train_labels: this list cannot become an .* of one shape"),
        ((images(6, 7), LABELS.astype("M8[D]")), {}, DataError, r"labels is datetime64\[D\] of .*expected integers of"),
        ((images(6, 7), LABELS.astype(object)), {}, DataError, "train_labels is object of .*expected integers of"),
        (pair, {"test": pair, "validation": images(6, 7)}, UsageError, "^validation: found array"),
        (pair, {"test": pair, "validation": (images(6), LABELS)}, DataError, "array validation_images is uint8"),
        ("idx", {"classes": ["a", "b,c"]}, UsageError, "the class 'b,c' has a comma"),
        (tmp_path, {"name": "mine"}, UsageError, "name is 'mine', but a name is for a pair of arrays"),
        ("verify", {}, UsageError, "no source of images"),
        (tmp_path / "missing.npz", {}, UsageError, "no such file"),
        ("picz", {}, UsageError, "picz: no such file or folder, and no source has this name"),
        ("--help", {}, UsageError, "expected a path or the name of a source"),
        (5, {}, UsageError, "source is int 5, expected a path, the name of a source, or a pair"),
        (pair, {"classes": 5}, UsageError, "classes is 5, expected a list of names"),
        (pair, {"classes": "dogs"}, UsageError, "classes is 'dogs', expected a list of names"),
        (pair, {"classes": {"a", "b"}}, UsageError, "expected a list of names in the order of the labels"),
        (pair, {"validation": 0.2}, UsageError, "for a share use validation_fraction=0.2"),
        (pair, {"test": 0.2}, UsageError, "for a share use test_fraction=0.2"),
        (pair, {"validation_split": 0.2}, UsageError, "did you mean 'validation_fraction'"),
        (write_pictures(tmp_path / "pets", ["a/1.png"]), {"image_size": 24}, UsageError, "did you mean 'size'"),
        (tmp_path, {"size": 24}, UsageError, r"expected height and width: size=\(24, 24\)"),
    ]
    for source, options, kind, text in cases:
        with pytest.raises(kind, match=text):
            pack(source, out, **options)
        assert not out.exists()


def test_a_folder_that_is_no_path_is_refused() -> None:
    with pytest.raises(UsageError, match="folder is 5, expected a path"):
        pack((images(6, 7), LABELS), 5)  # type: ignore[arg-type]


def test_a_small_set_gets_fewer_shards(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data = pack((images(6, 7)[:20], LABELS[:20] + 1), tmp_path / "set")
    assert data.info()["shards"] == 4
    notes = capfd.readouterr().err
    assert "packed in 4 shards instead of 8, because a split has few samples" in notes
    assert "no label is 0; are the labels numbered from 1? then subtract 1" in notes
    with pytest.raises(UsageError, match="the test split has 4 samples"):
        pack((images(6, 7)[:20], LABELS[:20]), tmp_path / "other", shards=8)


def test_an_existing_data_set_is_replaced_only_by_force(tmp_path: Path) -> None:
    first = pack((images(6, 7), LABELS), tmp_path / "set", shards=2)
    with pytest.raises(DataError, match="force"):
        pack((images(6, 7), LABELS), tmp_path / "set", shards=4)
    assert DataSet(first).info() == first.info()
    assert pack((images(6, 7), LABELS), tmp_path / "set", shards=4, force=True).info()["shards"] == 4


def test_a_data_set_is_described(api_data: Path, tmp_path: Path) -> None:
    data = DataSet(str(api_data))
    assert "101 train, 37 test images, 5 classes" in repr(data)
    assert data.card("CC0")["license"] == "CC0"
    assert data.preview(tmp_path / "a.png", samples=2, augment="zero").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(UsageError, match="has the splits train, test"):
        data.arrays("validation")
    with pytest.raises(DataError):
        DataSet(tmp_path)


def test_problems_of_a_damaged_data_set_are_listed(tmp_path: Path) -> None:
    data = pack((images(6, 7), LABELS), tmp_path / "set", shards=2)
    shard = next((tmp_path / "set").glob("train-000*"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    assert len(data.verify()) == 1
    with pytest.raises(DataError, match=shard.name):
        data.arrays()
