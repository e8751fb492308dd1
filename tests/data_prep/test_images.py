"""data_prep.images: wrong arrays and names are refused before anything is written."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_runs import assert_one_error
from data_sets import image_data
from mpi_runs import dptrain
from selection import quick_first

from data_prep.images import ImageData, LabelledImages, checked
from data_prep.pack import pack
from dptrain.data.manifest import MANIFEST, check_names, read_manifest
from dptrain.data.shard import read_shard
from dptrain.errors import DataError, UsageError

GOOD = image_data(train=60, test=30, shape=(3, 8, 9))


def of_shape(*shape: int, layout: Any = None) -> ImageData:
    """Random images whose axes after the first are `shape`."""
    random = np.random.default_rng(0)
    train, test = (
        LabelledImages(random.integers(0, 256, (n, *shape), np.uint8), random.integers(0, 5, n)) for n in (60, 30)
    )
    return ImageData("mine", GOOD.classes, train, test, layout=layout)


def refused(data: ImageData) -> str:
    """The one-line error for this data."""
    with pytest.raises(DataError) as caught:
        checked(data)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700
    return str(caught.value)


# Layout


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (2, 5, 7), (4, 9, 5)])
def test_up_to_four_channels_first_need_no_layout(shape: tuple[int, int, int]) -> None:
    assert checked(of_shape(*shape)).train.images.shape[1:] == shape


@pytest.mark.parametrize("shape", [(32, 32, 3), (28, 28, 1), (8, 9, 4)])
def test_images_that_look_like_channels_last_are_refused_with_both_layouts(shape: tuple[int, int, int]) -> None:
    """Found in the field: (n, H, W, C), the layout of Pillow and Keras, was packed as 32 channels of 32 x 3 pixels."""
    message = refused(of_shape(*shape))
    assert 'layout="channels_last") for (n, H, W, C)' in message
    assert 'layout="channels_first" for (n, C, H, W)' in message


@pytest.mark.parametrize("shape", [(3, 32, 4), (16, 8, 8), (4, 4, 4), (5, 3, 9), (64, 1, 1), (3, 3, 3), (1, 28, 1)])
def test_any_other_shape_needs_a_layout(shape: tuple[int, int, int]) -> None:
    assert "state what that is" in refused(of_shape(*shape))
    assert checked(of_shape(*shape, layout="channels_first")).train.images.shape[1:] == shape
    height, width, channels = shape
    last = checked(of_shape(*shape, layout="channels_last")).train.images
    assert last.shape[1:] == (channels, height, width)


def test_both_layouts_of_the_same_images_give_the_same_bytes(tmp_path: Path) -> None:
    last = replace(
        GOOD,
        layout="channels_last",
        train=replace(GOOD.train, images=np.ascontiguousarray(GOOD.train.images.transpose(0, 2, 3, 1))),
        test=replace(GOOD.test, images=GOOD.test.images.transpose(0, 2, 3, 1)),
    )
    pack(tmp_path / "first", GOOD, shards=2)
    pack(tmp_path / "last", last, shards=2)
    assert read_manifest(tmp_path / "first").sha256 == read_manifest(tmp_path / "last").sha256


def test_an_unknown_layout_is_refused() -> None:
    assert "expected 'channels_first' or 'channels_last'" in refused(of_shape(3, 8, 8, layout="NHWC"))


@pytest.mark.parametrize(
    "order",
    [
        np.asfortranarray,
        lambda images: np.repeat(images, 2, axis=0)[::2],
        lambda images: images[:, ::-1, ::-1, ::-1].copy()[:, ::-1, ::-1, ::-1],
    ],
    ids=["Fortran", "every second", "reversed"],
)
def test_images_in_any_memory_order_give_the_same_bytes(order: Callable[[Any], Any], tmp_path: Path) -> None:
    other = replace(GOOD, train=replace(GOOD.train, images=order(GOOD.train.images)))
    pack(tmp_path / "plain", GOOD, shards=2)
    pack(tmp_path / "other", other, shards=2)
    assert read_manifest(tmp_path / "plain").sha256 == read_manifest(tmp_path / "other").sha256


# Images and labels


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda images: images / 255.0, "float64 of the shape (60, 3, 8, 9), expected uint8 (n, C, H, W) or"),
        (lambda images: images > 3, "bool of the shape (60, 3, 8, 9), expected uint8"),
        (lambda images: images.astype(object), "object of the shape"),
        (lambda images: images.astype(int), "; convert values of 0 to 255 by images.astype(np.uint8)"),
        (lambda images: images.reshape(60, -1), "; give each image its shape by images.reshape(-1, C, H, W)"),
        (
            lambda images: images[:, 0],
            "the shape (60, 8, 9), expected uint8 (n, C, H, W) or (n, H, W, C); add the axis of grey",
        ),
        (lambda images: images[:0], "expected at least one image and one pixel"),
        (lambda images: images[:, :, :0], "expected at least one image and one pixel"),
        (
            lambda images: images[:-1],
            "train labels are int64 of the shape (60,): 59 images, but 60 labels; expected one for each",
        ),
        (lambda images: images[:, :, :-1], "train images (C, H, W) are (3, 7, 9), test images (3, 8, 9)"),
    ],
)
def test_wrong_images_are_refused_with_advice(change: Callable[[Any], Any], words: str) -> None:
    assert words in refused(replace(GOOD, train=replace(GOOD.train, images=change(GOOD.train.images))))


@pytest.mark.parametrize(
    "change",
    [
        *(lambda labels, kind=kind: labels.astype(kind) for kind in ("u1", "i1", "i4", "u8", ">i4", ">u2")),
        lambda labels: np.repeat(labels, 3)[::3],
        lambda labels: labels.tolist(),
    ],
)
def test_labels_of_any_integer_type_give_the_same_data_set(change: Callable[[Any], Any], tmp_path: Path) -> None:
    pack(tmp_path / "plain", GOOD, shards=2)
    pack(tmp_path / "other", replace(GOOD, train=replace(GOOD.train, labels=change(GOOD.train.labels))), shards=2)
    assert read_manifest(tmp_path / "plain").sha256 == read_manifest(tmp_path / "other").sha256
    assert read_shard(tmp_path / "other", read_manifest(tmp_path / "other"), "train", 0).labels.dtype == np.int64


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda labels: labels.astype(float), "float64 of the shape (60,), expected integers"),
        (lambda labels: labels > 2, "bool of the shape (60,), expected integers"),
        (lambda labels: labels.astype(str), "; number the classes by names, labels = np.unique(labels, return_inverse"),
        (lambda labels: labels - 1, "labels run from -1 to 3, expected 0 to 4 for 5 classes"),
        (lambda labels: labels + 1, "from 1 to 5, expected 0 to 4 for 5 classes; are the labels numbered from 1?"),
        (lambda labels: labels.astype("u8") + 2**63, "expected 0 to 4"),
        (lambda labels: labels[:, None], "int64 of the shape (60, 1), expected integers of the shape (60,)"),
        (lambda labels: np.eye(5, dtype=int)[labels], "labels.argmax(axis=1)"),
    ],
)
def test_wrong_labels_are_refused_with_advice(change: Callable[[Any], Any], words: str) -> None:
    message = refused(replace(GOOD, train=replace(GOOD.train, labels=change(GOOD.train.labels))))
    assert words in message


def test_a_limit_or_seed_out_of_range_is_a_usage_error(tmp_path: Path) -> None:
    wrong: list[dict[str, Any]] = [{"limit": -5}, {"limit": 0}, {"seed": -1}, {"seed": 2**63}]
    for options in wrong:
        with pytest.raises(UsageError, match="expected 0 to"):
            pack(tmp_path / "set", GOOD, shards=2, **options)


def test_suspicious_data_is_noted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pack(tmp_path / "plain", GOOD, shards=2)
    assert capsys.readouterr().err == ""
    dark = replace(
        GOOD,
        train=replace(GOOD.train, images=GOOD.train.images // 128),
        test=replace(GOOD.test, labels=np.minimum(GOOD.test.labels, 2)),
    )
    pack(tmp_path / "dark", dark, shards=2)
    first, second = capsys.readouterr().err.splitlines()
    assert first == "data_prep: note: the test split has no images of 2 classes: class-3, class-4"
    assert second.startswith("data_prep: note: all pixels are 0 or 1, expected 0 to 255")


# Names

BAD_NAMES: list[tuple[list[Any], str]] = [
    (["cat", "dog", "cat"], "classes 0 and 2 have the same name, 'cat'"),
    (["caf\u00e9", "cafe\u0301"], "classes 0 and 1 have the same name"),
    (["cat", ""], "the name of class 1 is '', expected text of 1 to 200 characters without control characters"),
    (["cat", " dog"], "the name of class 1 is ' dog', expected"),
    (["cat", "\t"], "the name of class 1 is '\\t', expected"),
    (["cat", "d\0g"], "the name of class 1 is 'd\\x00g', expected"),
    (["cat", "d\x1b[31mog"], "the name of class 1 is 'd\\x1b[31mog', expected"),
    (["cat", "d\udcffg"], "the name of class 1 is 'd\\udcffg', expected"),
    (["cat", "a\u2028b"], "the name of class 1 is 'a\\u2028b', expected"),
    (["x" * 201, "cat"], "the name of class 0 is 'xxx"),
    (["cat", 7], "the name of class 1 is 7, expected text"),
    ([], "expected a list of one or more names"),
]


@pytest.mark.parametrize(("classes", "words"), BAD_NAMES)
def test_names_that_a_checkpoint_cannot_hold_or_that_look_alike_are_refused(classes: list[Any], words: str) -> None:
    with pytest.raises(DataError) as caught:
        check_names("mine", classes)
    assert words in str(caught.value)
    assert str(caught.value).isprintable()


def test_names_of_any_script_are_accepted() -> None:
    """Case makes a difference: some data sets have a class for the letter a and one for A."""
    check_names(
        "mine", ["a", "A", "\u732b", "\u0915\u0941\u0924\u094d\u0924\u093e", "ice cream", "x" * 200, "\U0001f600"]
    )


def test_a_string_is_not_a_list_of_names() -> None:
    with pytest.raises(DataError, match="expected a list of one or more names"):
        check_names("mine", "cat")


@pytest.mark.parametrize("name", ["", "a\nb", "\udcff", None])
def test_the_name_of_the_data_set_is_checked_too(name: Any) -> None:
    assert "the name of the data set" in refused(replace(GOOD, name=name))


def test_packing_checks_names_and_writes_nothing(tmp_path: Path) -> None:
    for classes, _ in BAD_NAMES:
        with pytest.raises(DataError, match="class"):
            pack(tmp_path / "set", replace(GOOD, classes=classes))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@quick_first("name", ["a", "d\0g", "d\udcffg"])
def test_training_on_a_data_set_with_invalid_names_is_refused_at_the_start(name: str, tmp_path: Path) -> None:
    """Found in the field: training failed at its first checkpoint; `eval` left out one of two classes of one name."""
    data = tmp_path / "set"
    pack(data, replace(GOOD, classes=("a", "b", "c", "d", "e")), shards=2)
    manifest = json.loads((data / MANIFEST).read_text())
    manifest["classes"][1] = name
    (data / MANIFEST).write_text(json.dumps(manifest))
    done = dptrain("train", data, "--run-dir", tmp_path / "run", "--batch-size", "2", cwd=tmp_path)
    assert_one_error(done, str(data), "class", "pack the data set again")
    assert not (tmp_path / "run").exists()
