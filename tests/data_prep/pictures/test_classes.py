"""data_prep.pictures.classes: which pictures belong to which class and split."""

from __future__ import annotations

import pytest

from data_prep.pictures.classes import classes_of, find_pictures
from data_prep.pictures.containers import Container
from dptrain.errors import DataError


def container(*files: str, empty: tuple[str, ...] = ()) -> Container:
    folders = {"/".join(name.split("/")[:end]) for name in files for end in range(1, name.count("/") + 1)}
    return Container(sorted(files), sorted(folders | set(empty)), lambda numbers: iter([]))


def found(*files: str) -> list[tuple[str, str, str]]:
    """Name, class and split of each picture."""
    return [picture[1:] for picture in find_pictures(container(*files))[0]]


def refused(*files: str, empty: tuple[str, ...] = ()) -> str:
    with pytest.raises(DataError) as caught:
        find_pictures(container(*files, empty=empty))
    return str(caught.value)


def test_a_folder_is_a_class_with_all_pictures_below_it() -> None:
    assert found("cats/1.PNG", "cats/more/2.jpeg", "dogs/3.webp") == [
        ("cats/1.PNG", "cats", ""),
        ("cats/more/2.jpeg", "cats", ""),
        ("dogs/3.webp", "dogs", ""),
    ]


def test_folders_of_splits_are_recognised_by_their_usual_names() -> None:
    names = ("train/cats/1.png", "Test/cats/2.png", "valid/dogs/3.png", "training/dogs/4.png")
    assert {name: split for name, _, split in found(*names)} == {
        "train/cats/1.png": "train",
        "Test/cats/2.png": "test",
        "valid/dogs/3.png": "validation",
        "training/dogs/4.png": "train",
    }
    assert {label for _, label, _ in found(*names)} == {"cats", "dogs"}


def test_folders_around_all_others_are_left_out() -> None:
    assert [one[1:] for one in found("set/images/cats/1.png", "set/images/dogs/2.png")] == [("cats", ""), ("dogs", "")]
    assert [one[1:] for one in found("set/train/cats/1.png", "set/test/dogs/2.png")] == [
        ("dogs", "test"),
        ("cats", "train"),
    ]
    assert found("train/cats/1.png") == [("train/cats/1.png", "cats", "train")]
    assert found("cats/1.png") == [("cats/1.png", "cats", "")]


def test_a_loose_picture_does_not_hide_the_folders_of_classes_and_splits() -> None:
    names = ("set/train/cats/1.png", "set/train/dogs/1.png", "set/test/cats/2.png", "set/cover.png", "a.png")
    pictures, notes = find_pictures(container(*names))
    assert [(picture.label, picture.split) for picture in pictures] == [
        ("cats", "test"),
        ("cats", "train"),
        ("dogs", "train"),
    ]
    assert notes == ["pictures in no folder of a class are left out (2), such as a.png"]
    assert {label for _, label, _ in found("cats/1.png", "cats/more/2.png")} == {"cats"}


def test_other_files_and_pictures_outside_the_classes_are_counted() -> None:
    pictures, notes = find_pictures(container("cats/1.png", "cats/notes.txt", "dogs/2.png", "a.png", "b.png", "readme"))
    assert [picture.name for picture in pictures] == ["cats/1.png", "dogs/2.png"]
    assert notes == [
        "other files are left out (2): files of .png, .jpg, .jpeg, .webp, .gif are read",
        "pictures in no folder of a class are left out (2), such as a.png",
    ]


def test_what_has_no_classes_or_an_empty_one_is_refused() -> None:
    assert "has 2 pictures, but no folder for each class: expected" in refused("1.png", "2.png", "readme")
    assert "no pictures: expected a folder for each class" in refused("cats/readme")
    assert refused("cats/1.bmp", "dogs/2.TIFF").endswith("; 2 pictures of BMP, TIFF, HEIC or AVIF: convert to PNG")
    _, notes = find_pictures(container("cats/1.png", "dogs/2.png", "dogs/3.tif", "dogs/4.txt"))
    assert notes[0].startswith("other files are left out (2): files of .png")
    assert notes[0].endswith(" are read; 1 picture of BMP, TIFF, HEIC or AVIF: convert to PNG")
    assert "dogs: the folder of this class has no pictures" in refused("cats/1.png", "dogs/readme")
    assert "test/dogs: the folder of this class has no pictures" in refused(
        "train/cats/1.png", "train/dogs/2.png", "test/cats/3.png", empty=("test/dogs",)
    )
    assert "other/cats/2.png is not in the folder of a split" in refused("train/cats/1.png", "other/cats/2.png")


def test_classes_are_in_the_order_of_their_numbers_or_letters() -> None:
    assert classes_of(["10", "9", "9", "100"]) == (["9", "10", "100"], ["9", "10", "100"])
    assert classes_of(["1" * 5000, "2"])[0] == ["2", "1" * 5000]
    assert classes_of(["b", "10", "9"]) == (["10", "9", "b"], ["10", "9", "b"])


def test_the_name_of_a_class_can_be_printed() -> None:
    assert classes_of([" \udcff a\n", "dögs 🐕"])[1] == ["\\udcff a\\n", "dögs 🐕"]
