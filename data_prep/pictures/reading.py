"""From pictures with classes to the splits that are packed: options, broken pictures, and the test split."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from dptrain.data.manifest import LARGEST_IMAGE, Preparation, Provenance
from dptrain.errors import DataError, UsageError
from dptrain.system.arguments import whole
from dptrain.system.text import counted, shown

from .. import report
from ..images import BrokenPicturesError, ImageData, LabelledImages, not_recorded
from ..splits import add_test_fraction, check_no_split_is_there, choose_rows, drawn_test_split
from ..spool import SpooledRows
from .classes import Picture, classes_of
from .containers import Container
from .decode import DECODER, FITS, Form
from .decoding import Decoded, decode_all

SIZE = [32, 32]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of every source that decodes pictures."""
    height, width = SIZE
    parser.add_argument(
        "--size",
        type=whole(),
        nargs=2,
        default=SIZE,
        metavar=("H", "W"),
        help=f"height and width of the packed images (default: {height} {width})",
    )
    parser.add_argument(
        "--fit",
        choices=FITS,
        default=FITS[0],
        help="for another aspect ratio: crop the centre, squash, or pad with black (default: crop)",
    )
    parser.add_argument("--grey", action="store_true", help="pack grey images instead of RGB")
    add_test_fraction(parser)
    parser.add_argument("--skip-broken", action="store_true", help="leave out pictures that cannot be decoded")
    text = "processes that decode pictures (default: one for each core)"
    not_recorded(parser.add_argument("--processes", type=whole(), metavar="N", help=text))


def read_pictures(
    name: str,
    source: Provenance,
    container: Container,
    pictures: Sequence[Picture],
    options: argparse.Namespace,
    classes: Sequence[str] = (),
) -> ImageData:
    """Decode pictures; the order of samples is that of `pictures`. `classes` gives the order of the classes.

    BrokenPicturesError for broken pictures unless they are to be skipped.
    """
    splits = _splits(pictures, options)
    height, width = options.size
    if 3 * height * width > LARGEST_IMAGE:
        raise UsageError(f"--size {height} {width}: expected images of at most {LARGEST_IMAGE:,} bytes")
    _, labels, rows = _distributed(pictures, splits, classes, options)
    flags = {name: getattr(options, name) for name in ("limit", "validation_fraction", "seed")}
    # An error before the decoding.
    choose_rows({split: labels[places] for split, places in rows.items()}, shards=options.shards or 1, **flags)
    form = Form((1 if options.grey else 3, height, width), options.fit)
    processes = options.processes or len(os.sched_getaffinity(0))
    numbers = [picture.number for picture in pictures]
    decoded = decode_all(container.contents, numbers, form, options.folder, processes)
    broken = {container.files[number]: why for number, why in sorted(decoded.broken.items())}
    _report_broken(broken, len(pictures), skip=options.skip_broken)
    _report_sizes(decoded, options.size)
    kept = [picture for picture in pictures if picture.number not in decoded.broken]
    names, labels, rows = _distributed(kept, splits, classes, options)
    if "test" not in splits.values():
        drawn, count = len(rows["test"]), len(rows["test"]) + len(rows["train"])
        report(f"note: {drawn:,} of {count:,} pictures, drawn from each class, are the test split")
    parts = _parts(kept, labels, rows, decoded)
    preparation = Preparation(
        decoder=DECODER,
        fit=form.fit,
        broken=len(decoded.broken),
        sizes=len(decoded.sizes),
        smallest=min(decoded.sizes),
        largest=max(decoded.sizes),
    )
    return ImageData(
        name, names, **parts, source=source, layout="channels_first", preparation=preparation, broken=broken
    )


def _splits(pictures: Sequence[Picture], options: argparse.Namespace) -> dict[str, str]:
    """The split that each split of the pictures becomes; the test split is missing if it is to be split off."""
    found = {picture.split for picture in pictures}
    if found == {""}:
        return {"": "train"}
    if "train" not in found:
        raise DataError("there are no pictures of the split train")
    if "validation" in found and "test" not in found and options.test_fraction is None:
        report("note: without a split test, the validation pictures are the test split; or give --test-fraction")
        return {"train": "train", "validation": "test"}
    check_no_split_is_there(found, options)
    return {split: split for split in found}


def _check_splits(pictures: Sequence[Picture], splits: dict[str, str]) -> None:
    """DataError if a split has lost all its pictures, or has a class of which there is nothing to learn from."""
    classes: dict[str, set[str]] = {split: set() for split in splits.values()}
    for picture in pictures:
        classes[splits[picture.split]].add(picture.label)
    for split, found in classes.items():
        if not found:
            raise DataError(f"none of the pictures of the {split} split can be decoded")
        if unknown := sorted(found - classes["train"]):
            raise DataError(
                f"the {split} split has pictures of {shown(', '.join(unknown), 200)}, of which the training split has "
                "none"
            )


def _ordered(classes: Sequence[str], labels: Sequence[str]) -> list[str]:
    if missing := sorted(set(labels) - set(classes)):
        raise DataError(f"--classes lacks {shown(', '.join(missing), 300)}, of which there are pictures")
    return list(classes)


def _distributed(
    pictures: Sequence[Picture], splits: dict[str, str], classes: Sequence[str], options: argparse.Namespace
) -> tuple[Sequence[str], NDArray[np.int64], dict[str, NDArray[np.intp]]]:
    """The names of the classes, the class of each picture (n,), and the places of the pictures of each split.

    UsageError or DataError for pictures that do not fit the options.
    """
    _check_splits(pictures, splits)
    labels, names = classes_of(picture.label for picture in pictures)
    if classes:
        labels = names = _ordered(classes, labels)
    number_of = {label: number for number, label in enumerate(labels)}
    numbers = np.array([number_of[picture.label] for picture in pictures], np.int64)
    found = np.array([splits[picture.split] for picture in pictures])
    rows = {split: np.flatnonzero(found == split) for split in splits.values()}
    if "test" not in rows:
        apart = drawn_test_split(numbers[rows["train"]], options)
        rows["train"], rows["test"] = rows["train"][~apart], rows["train"][apart]
    return names, numbers, rows


def _parts(
    pictures: Sequence[Picture], labels: NDArray[np.int64], rows: dict[str, NDArray[np.intp]], decoded: Decoded
) -> dict[str, LabelledImages]:
    """The splits by name."""
    numbers = np.array([picture.number for picture in pictures], np.intp)
    return {
        split: LabelledImages(
            SpooledRows(decoded.spool, numbers[places]),
            labels[places],
            [pictures[place].name for place in places.tolist()],
        )
        for split, places in rows.items()
    }


def _report_broken(broken: Mapping[str, str], count: int, *, skip: bool) -> None:
    """List all broken pictures: to decode again for the others would take as long.

    BrokenPicturesError for them unless they are skipped, and if there are no others.
    """
    for name, why in broken.items():
        report(f"broken: {shown(name, 500)}: {why}")
    if len(broken) == count:
        raise BrokenPicturesError(f"none of the {counted(count, 'picture')} can be decoded", broken)
    if broken and not skip:
        raise BrokenPicturesError(
            f"broken pictures: {len(broken):,} of {count:,}; repair or remove them, or leave them out by --skip-broken",
            broken,
        )
    if broken:
        report(f"note: broken pictures are left out: {len(broken):,} of {count:,}")


def _report_sizes(decoded: Decoded, size: Sequence[int]) -> None:
    if len(decoded.sizes) == 1 and (found := next(iter(decoded.sizes))) != tuple(size) and max(found) <= 256:
        report(f"note: all pictures are {found[0]}x{found[1]}; --size {found[0]} {found[1]} keeps their size")
