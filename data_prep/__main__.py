"""Pack image data into the HDF5 shards that dptrain trains on, and check packed sets.

dptrain data-prep cifar10 data/cifar10 [--archive FILE] [--shards 8] [--limit N] [--force]
dptrain data-prep shapes data/shapes [--train 10000] [--test 2000]
dptrain data-prep verify data/cifar10
dptrain data-prep info data/cifar10
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from typing import Any

from dptrain.errors import DownloadError
from dptrain.system.arguments import Parser, path_argument, whole
from dptrain.system.failures import failure
from dptrain.system.signals import ended_by_exception
from dptrain.system.start import start_program
from dptrain.system.streams import drop_failed_writes, finish_output, write_to_stderr
from dptrain.system.text import shown

from .cifar10 import describe_archive, read_archive
from .download import ARCHIVE_VARIABLE, URL, find_archive
from .pack import ImageData, pack
from .shapes import read_shapes
from .staging import check_target
from .verify import info, verify

# In a checkout this package lies at the top; an installed one is dptrain.data_prep.
PROGRAM = "python -m data_prep" if __package__ == "data_prep" else "dptrain data-prep"
COMMANDS = {
    "cifar10": "pack CIFAR-10 from a published archive",
    "shapes": "draw and pack ten classes of coloured shapes; needs no download",
    "verify": "check every hash and every record of a packed data set",
    "info": "tell what a packed data set is",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, 1 for data, 2 for usage, 128 + n after signal n."""
    start_program()
    try:
        try:
            options = _parser().parse_args(arguments)
        except SystemExit:  # --help
            finish_output()
            return 0
        if "shards" in options:  # it packs: the result is the data set, not what is printed
            drop_failed_writes()
        status: int = options.run(options)
        finish_output()
    except (Exception, KeyboardInterrupt) as error:
        text, status = failure(error)
        drop_failed_writes()
        if text:
            _say(f"error: {text}" + "; no partial files are left" * isinstance(error, KeyboardInterrupt))
    return status


def _say(text: str) -> None:
    """Write a line on standard error, after the name of this program as it was typed."""
    write_to_stderr(f"{PROGRAM.removeprefix('python -m ')}: {text}")


def _parser() -> Parser:
    """The parser; `run` is the function to call with its result."""
    parser = Parser(PROGRAM, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in COMMANDS.items():
        _add_options(name, commands.add_parser(name, help=text, description=text))
    return parser


def _add_options(name: str, command: argparse.ArgumentParser) -> None:
    """The flags of one command and the function that runs it."""
    command.add_argument("folder", metavar="OUT", type=path_argument, help="the data set's folder")
    command.add_argument("--json", action="store_true", help="print the result as JSON")
    command.set_defaults(run={"cifar10": _cifar10, "shapes": _shapes, "verify": _verify, "info": _info}[name])
    if name == "cifar10":
        command.add_argument(
            "--archive",
            type=path_argument,
            metavar="FILE",
            help="cifar-10-binary.tar.gz or cifar-10-python.tar.gz (default: the environment variable "
            f"{ARCHIVE_VARIABLE}, else the cache, else downloaded from {URL})",
        )
        command.add_argument(
            "--limit",
            type=whole(1),
            metavar="N",
            help="keep only N training images and a fifth as many test images, classes in equal numbers",
        )
        command.add_argument(
            "--optional", action="store_true", help="if it cannot be downloaded, end with a note (status 69)"
        )
    if name == "shapes":
        command.add_argument("--train", type=whole(1), default=10_000, metavar="N", help="training images (10000)")
        command.add_argument("--test", type=whole(1), default=2_000, metavar="N", help="test images (2000)")
    if name in ("cifar10", "shapes"):
        command.add_argument("--shards", type=whole(1), default=8, metavar="S", help="shards of each split (8)")
        command.add_argument("--seed", type=whole(0), default=0, metavar="N", help="of every random choice (0)")
        command.add_argument("--force", action="store_true", help="replace a data set that is there")


def _cifar10(options: argparse.Namespace) -> int:
    started = time.monotonic()
    check_target(options.folder, force=options.force)  # before a download of minutes, not after it
    try:
        archive = find_archive(options.archive)
    except DownloadError as error:
        if not options.optional:
            raise
        _say(f"note: {shown(error)}")
        return error.status
    data = read_archive(archive)
    print(describe_archive(archive, data.source), file=sys.stderr if options.json else sys.stdout)
    return _pack(options, data, options.limit, started)


def _shapes(options: argparse.Namespace) -> int:
    started = time.monotonic()
    check_target(options.folder, force=options.force)
    return _pack(options, read_shapes(options.train, options.test, options.seed), None, started)


def _pack(options: argparse.Namespace, data: ImageData, limit: int | None, started: float) -> int:
    pack(options.folder, data, shards=options.shards, seed=options.seed, limit=limit, force=options.force)
    facts = info(options.folder)
    if options.json:
        _print_json(facts)
    else:
        print(f"{_summary(facts)}, {time.monotonic() - started:.1f} s")
    return 0


def _verify(options: argparse.Namespace) -> int:
    result = verify(options.folder)
    if options.json:
        _print_json(result.as_json())
    for problem in result.problems:
        _say(f"error: {shown(problem)}")
    if not result.problems and not options.json:
        print(f"{_summary(info(options.folder))}: all sound")
        for split, text in result.index_ranges.items():
            print(f"  {split} index {text}; class counts {' '.join(map(str, result.class_counts[split]))}")
    return 1 if result.problems else 0


def _info(options: argparse.Namespace) -> int:
    facts = info(options.folder)
    if options.json:
        _print_json(facts)
        return 0
    source = facts["source"]
    published = {True: "published", False: "not a published archive", None: "no published archive exists"}
    print(_summary(facts))
    print(f"  classes   {shown(', '.join(facts['classes']))}")
    print(f"  images    {' x '.join(map(str, facts['image_shape']))} (channels, height, width), uint8")
    print(f"  mean      {' '.join(f'{value:.6f}' for value in facts['mean'])}")
    print(f"  std       {' '.join(f'{value:.6f}' for value in facts['std'])}")
    origin = shown(source["archive"] or source["name"])
    print(f"  source    {origin} ({published[source['published']]}), seed {facts['seed']}")
    if source["sha256"]:
        print(f"  SHA-256   {shown(source['sha256'])} of the archive")
    print(f"  SHA-256   {facts['manifest_sha256']} of the data set")
    return 0


def _summary(facts: dict[str, Any]) -> str:
    """A data set in one line."""
    return (
        f"{shown(facts['folder'])}: {shown(facts['name'])}, {facts['samples']['train']:,} training and "
        f"{facts['samples']['test']:,} test images, {len(facts['classes'])} classes, {facts['shards']} shards each, "
        f"{facts['bytes'] / 1e6:.1f} MB"
    )


def _print_json(value: dict[str, Any]) -> None:
    print(json.dumps(value, indent=1))


def run(arguments: Sequence[str] | None = None) -> int:
    """`main` in a process of its own, where a signal removes what is half-written."""
    with ended_by_exception():
        return main(arguments)


if __name__ == "__main__":
    sys.exit(run())
