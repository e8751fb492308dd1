"""Classes and splits of pictures by the names of their folders.

    cats/one.jpg, dogs/two.png                                  a folder for each class
    train/cats/one.jpg, test/cats/two.jpg, val/dogs/three.png   the same in a folder for each split

One folder around all of these, as archives often have, is left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from dptrain.data.manifest import LONGEST_NAME
from dptrain.errors import DataError
from dptrain.system.text import counted, shown

from .containers import Container
from .decode import SUFFIXES, is_picture

READ = f"files of {', '.join(SUFFIXES)} are read"
OTHER_FORMATS = (".bmp", ".tif", ".tiff", ".heic", ".heif", ".avif")  # pictures that are not read
SPLIT_FOLDERS = {
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
}


class Picture(NamedTuple):
    """A picture's number in its container, its name, its class, and its split ("" if it is not given)."""

    number: int
    name: str
    label: str
    split: str


def find_pictures(container: Container) -> tuple[list[Picture], list[str]]:
    """The pictures in folders of classes, in the order of their names, and notes for the user.

    DataError if there are none, or if a folder of a class is empty.
    """
    numbers = [number for number, name in enumerate(container.files) if is_picture(name)]
    top = _common_folders([container.files[number] for number in numbers])
    below = {number: container.files[number].split("/")[top:] for number in numbers}
    splits = any(parts[0].lower() in SPLIT_FOLDERS for parts in below.values() if len(parts) > 1)
    pictures, loose = [], []
    for number, parts in below.items():
        name = container.files[number]
        if len(parts) < 2 + splits:
            loose.append(name)
            continue
        split = SPLIT_FOLDERS.get(parts[0].lower(), "") if splits else ""
        if splits and not split:
            raise DataError(
                f"{shown(name)} is not in the folder of a split; beside others, the folders may be {_listed()}"
            )
        pictures.append(Picture(number, name, parts[splits], split))
    if not pictures:
        expected = "expected a folder for each class, such as cats/one.jpg and dogs/two.png"
        if loose:
            raise DataError(
                f"has {counted(len(loose), 'picture')}, but no folder for each class: {expected}; or list the pictures "
                "and their classes in a table: see the source csv"
            )
        raise DataError("; ".join([f"no pictures: {expected}; {READ}", *_of_other_formats(container.files)]))
    _check_no_folder_is_empty(container, pictures, top + splits)
    others = [name for name in container.files if not is_picture(name)]
    return pictures, _notes(others, loose)


def classes_of(labels: Iterable[str]) -> tuple[list[str], list[str]]:
    """The different labels in order, and the names of these classes: by number if all are numbers, else by letters."""
    found = set(labels)
    numeric = all(label.isascii() and label.isdecimal() for label in found)
    # As numbers, which may be too long for int().
    by_number = (lambda label: (len(label.lstrip("0")), label.lstrip("0"), label)) if numeric else None
    ordered = sorted(found, key=by_number)
    return ordered, [shown(label, LONGEST_NAME).strip() for label in ordered]


def _common_folders(names: Sequence[str]) -> int:
    """The number of folders around all class folders.

    A folder is one of them if it is the only one, and has other folders but no pictures, or several other folders, or
    that of a split.
    """
    count, parts = 0, [name.split("/") for name in names]
    while True:
        top = {one[count] for one in parts if len(one) > count + 1}
        inside = {one[count + 1].lower() for one in parts if len(one) > count + 2}
        alone = len(inside) < 2 and any(len(one) == count + 2 for one in parts)
        if len(top) != 1 or min(top).lower() in SPLIT_FOLDERS or not inside:
            return count
        if alone and not inside & SPLIT_FOLDERS.keys():
            return count
        count += 1


def _check_no_folder_is_empty(container: Container, pictures: Sequence[Picture], depth: int) -> None:
    """DataError for the folder of a class, at this depth, without a picture."""
    used = {tuple(picture.name.split("/")[: depth + 1]) for picture in pictures}
    around = {parts[:depth] for parts in used}
    for folder in container.folders:
        parts = tuple(folder.split("/"))
        if len(parts) == depth + 1 and parts[:depth] in around and parts not in used:
            raise DataError(f"{shown(folder)}: the folder of this class has no pictures; remove it, or add some")


def _of_other_formats(names: Sequence[str]) -> list[str]:
    """The number of pictures that are not read, and what to do."""
    count = sum(name.lower().endswith(OTHER_FORMATS) for name in names)
    return [f"{counted(count, 'picture')} of BMP, TIFF, HEIC or AVIF: convert to PNG"] if count else []


def _notes(others: Sequence[str], loose: Sequence[str]) -> list[str]:
    notes = []
    if others:
        notes.append("; ".join([f"other files are left out ({len(others):,}): {READ}", *_of_other_formats(others)]))
    if loose:
        notes.append(f"pictures in no folder of a class are left out ({len(loose):,}), such as {shown(loose[0], 200)}")
    return notes


def _listed() -> str:
    return ", ".join(SPLIT_FOLDERS)
