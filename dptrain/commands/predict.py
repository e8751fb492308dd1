"""`dptrain predict`: the classes of pictures."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from dptrain.commands import inspect
from dptrain.config.train import model_name
from dptrain.errors import FAILED, CheckpointError, DataError, UsageError
from dptrain.system.arguments import Parser, argument, path_argument, whole
from dptrain.system.paths import typed_path
from dptrain.system.streams import write_to_stderr
from dptrain.system.text import shown

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dptrain.parallel.communicator import Communicator
    from dptrain.training.classifier import Classifier

AT_ONCE = 256  # pictures in memory
WITH_BARS = 8  # pictures whose top classes are shown; of more, one line with the first class of each
BAR = 30  # characters

Item = TypeVar("Item")


EXAMPLES = """
examples:
  dptrain predict photo.png    with the convnet of dptrain
  dptrain predict photos/ --checkpoint runs/one --top 1
  dptrain predict - --json < photo.png
"""


def add_arguments(parser: Parser) -> None:
    """Add the pictures and the flags."""
    parser.add_argument(
        "pictures",
        nargs="+",
        metavar="IMAGE",
        help="a PNG, JPEG, WebP or GIF file, a folder or archive of them, or - for a picture on standard input",
    )
    parser.add_argument(
        "--checkpoint",
        type=path_argument,
        metavar="C",
        help="checkpoint file or run folder (default: a convnet that comes with dptrain, for CIFAR-10's 10 classes)",
    )
    help = "FILE.py:FUNCTION, for a checkpoint that was trained with one"
    parser.add_argument("--model", type=argument(model_name), default="", metavar="NAME", help=help)
    parser.add_argument("--top", type=whole(), default=3, metavar="K", help="classes to show (default: 3)")
    parser.add_argument("--json", action="store_true", help="print one JSON object for each picture, each on a line")


def run(parsed: argparse.Namespace, communicator: Communicator, connection: str) -> int:
    """Print the classes of all pictures; the exit status is 1 if one of them is broken."""
    from dptrain.data_prep.pictures.decode import Form, quiet_pillow
    from dptrain.parallel.communicator import together
    from dptrain.training.classifier import SHIPPED, Classifier

    with together(communicator):
        if communicator.size > 1:
            raise UsageError("predict runs on one process: start it without mpirun")
        path = parsed.checkpoint or SHIPPED
        classifier = Classifier(inspect.open_checkpoint(path), path, parsed.model)
        if classifier.image_shape[0] not in (1, 3):
            raise CheckpointError(
                f"{shown(path)}: its images have {classifier.image_shape[0]} channels, and pictures are grey or RGB"
            )
    form = Form(classifier.image_shape, classifier.fit)
    broken = found = 0
    with quiet_pillow, ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
        for group in _groups(_files(parsed.pictures), AT_ONCE):
            decoded = list(threads.map(partial(_decoded, form=form), group))
            with_bars = not found and len(group) <= WITH_BARS
            for (name, _), one in zip(group, decoded, strict=True):
                if isinstance(one, str):
                    write_to_stderr(f"dptrain: error: {shown(name)}: {one}")
                    broken += 1
            rows = [(name, one) for (name, _), one in zip(group, decoded, strict=True) if not isinstance(one, str)]
            _print_classes(rows, classifier, parsed, with_bars=with_bars)
            found += len(group)
    if not found:
        raise DataError(f"no pictures in {shown(', '.join(parsed.pictures), 300)}")
    if broken > 1:
        write_to_stderr(f"dptrain: {broken:,} of {found:,} pictures cannot be read")
    return FAILED if broken else 0


def _groups(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """All items, in lists of at most `size`."""
    iterator = iter(items)
    while group := list(islice(iterator, size)):
        yield group


def _files(arguments: Iterable[str]) -> Iterator[tuple[str, bytes | str]]:
    """Names of pictures, each with its content or its path; DataError for a folder or archive that cannot be read."""
    from dptrain.data_prep.pictures.containers import LARGEST_FILE, is_archive, opened
    from dptrain.data_prep.pictures.decode import is_picture

    for name in arguments:
        path = Path(typed_path(name))
        if name == "-":
            yield name, sys.stdin.buffer.read(LARGEST_FILE + 1)
        elif path.is_dir() or is_archive(path):
            with opened(path) as container:
                numbers = [number for number, name in enumerate(container.files) if is_picture(name)]
                for number, content in container.contents(numbers):
                    yield str(path / container.files[number]), content
        else:
            yield name, str(path)


def _decoded(file: tuple[str, bytes | str], form: Any) -> NDArray[np.uint8] | str:
    """The pixels of a picture, or why it is broken."""
    from dptrain.data_prep.pictures.decode import decode_file

    content = file[1]
    try:
        pixels: NDArray[np.uint8] = decode_file(content, form)[0]
    except DataError as error:
        return str(error)
    return pixels


def _print_classes(
    rows: list[tuple[str, NDArray[np.uint8]]], classifier: Classifier, parsed: argparse.Namespace, *, with_bars: bool
) -> None:
    """The classes of some pictures: as JSON, as a line each, or with bars."""
    import numpy as np

    if not rows:
        return
    probabilities = classifier.probabilities(np.stack([pixels for _, pixels in rows]))
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, : parsed.top]
    width = max(len(shown(name)) for name in classifier.classes)
    longest = max(len(shown(name)) for name, _ in rows)
    for (name, _), one, best in zip(rows, probabilities.tolist(), order.tolist(), strict=True):
        top = [(classifier.classes[number], one[number]) for number in best]
        if parsed.json:
            classes = [{"class": name, "probability": round(share, 6)} for name, share in top]
            text = name.encode(errors="surrogateescape").decode(errors="replace")  # JSON has no other bytes
            print(json.dumps({"image": text, "classes": classes}))
        elif with_bars:
            print(shown(name))
            for label, share in top:
                print(f"  {shown(label):<{width}}  {100 * share:6.2f} %  {'█' * round(BAR * share)}".rstrip())
        else:
            print(f"{shown(name):<{longest}}  {100 * top[0][1]:6.2f} %  {shown(top[0][0])}")
