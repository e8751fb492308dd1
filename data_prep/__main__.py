"""Pack image data into the HDF5 shards that dptrain trains on, and check packed sets.

dptrain data-prep cifar10 data/cifar10 [--archive FILE] [--shards 8] [--limit N] [--force]
dptrain data-prep shapes data/shapes [--train 10000] [--test 2000]
dptrain data-prep verify data/cifar10
dptrain data-prep info data/cifar10
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import sys
import time
from collections.abc import Sequence
from typing import Any, NoReturn

from dptrain.errors import DownloadError, DptrainError, ReaderGoneError, UsageError
from dptrain.system.limits import refused
from dptrain.system.paths import path_argument
from dptrain.system.signals import EndedBySignal, ended_by_exception
from dptrain.system.start import start_program
from dptrain.system.streams import drop_failed_writes, finish_output, write_to_stderr
from dptrain.system.suggestions import did_you_mean
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
    """Run one command; gives the exit status: 0, 1 for data, 2 for usage, 128 + n after signal n."""
    start_program()
    try:
        try:
            options = _parse(sys.argv[1:] if arguments is None else arguments)
        except SystemExit:  # --help
            finish_output()
            return 0
        if "shards" in options:  # it packs: the result is the data set, not what is printed
            drop_failed_writes()
        status: int = options.run(options)
        finish_output()
    except ReaderGoneError as error:
        drop_failed_writes()
        return error.status
    except KeyboardInterrupt as error:
        write_to_stderr(f"data_prep: error: ended by {str(error) or 'SIGINT'}; nothing half-written is left")
        return error.status if isinstance(error, EndedBySignal) else 128 + signal.SIGINT
    except Exception as error:
        known = error if isinstance(error, DptrainError) else refused(error)
        if known is None:
            raise
        write_to_stderr(f"data_prep: error: {shown(known)}")
        drop_failed_writes()
        return known.status
    return status


class _Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are UsageErrors."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see: {self.prog} --help)")


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Options of the command line; `run` is the function to call. Raises UsageError."""
    parser = _Parser(PROGRAM, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    parsers = {name: commands.add_parser(name, help=text, description=text) for name, text in COMMANDS.items()}
    for name, command in parsers.items():
        _add_options(name, command)
    if arguments and not arguments[0].startswith("-") and arguments[0] not in COMMANDS:
        raise UsageError(f"unknown command {shown(repr(arguments[0]), 100)}; {did_you_mean(arguments[0], COMMANDS)}")
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        word = next((word for word in unknown if word.startswith("-")), unknown[0])
        flag = word.partition("=")[0]
        known = re.findall(r"--[a-z][a-z-]*", parsers[options.command].format_help())
        hint = did_you_mean(flag, set(known), f"see {parser.prog} {options.command} --help")
        raise UsageError(f"unknown {'flag' if flag.startswith('-') else 'argument'} {shown(flag, 100)}; {hint}")
    return options


def _add_options(name: str, command: argparse.ArgumentParser) -> None:
    """The flags of one command and the function that runs it."""
    command.allow_abbrev = False
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
            type=_count,
            metavar="N",
            help="keep only N training images and a fifth as many test images, classes in equal numbers",
        )
        command.add_argument(
            "--optional", action="store_true", help="if it cannot be downloaded, end with a note (status 69)"
        )
    if name == "shapes":
        command.add_argument("--train", type=_count, default=10_000, metavar="N", help="training images (10000)")
        command.add_argument("--test", type=_count, default=2_000, metavar="N", help="test images (2000)")
    if name in ("cifar10", "shapes"):
        command.add_argument("--shards", type=_count, default=8, metavar="S", help="shards of each split (8)")
        command.add_argument("--seed", type=_seed, default=0, metavar="N", help="of every random choice (0)")
        command.add_argument("--force", action="store_true", help="replace a data set that is there")


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number of 1 or more")
    return int(text)


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**63:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number from 0 to 2^63 - 1")
    return int(text)


def _cifar10(options: argparse.Namespace) -> int:
    started = time.monotonic()
    check_target(options.folder, force=options.force)  # before a download of minutes, not after it
    try:
        archive = find_archive(options.archive)
    except DownloadError as error:
        if not options.optional:
            raise
        print(f"data_prep: note: {shown(error)}", file=sys.stderr)
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
        print(f"data_prep: error: {shown(problem)}", file=sys.stderr)
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
