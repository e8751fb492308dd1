"""Pack image data into HDF5 shards for dptrain, and check packed data sets.

dptrain prep PATH OUT [--shards S] [--limit N] [--force]   # the source is found by the file or folder PATH
dptrain prep SOURCE OUT --from PATH                        # the same with the name of the source
dptrain prep cifar10 OUT
dptrain prep verify OUT
dptrain prep info OUT
dptrain prep preview OUT --png FILE
dptrain prep card OUT
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from os.path import exists, expanduser
from pathlib import Path
from typing import Any

from dptrain.errors import DownloadError, UsageError
from dptrain.system.arguments import Parser, path_argument, share, whole
from dptrain.system.failures import failure
from dptrain.system.launched import launched_rank, launched_size
from dptrain.system.paths import typed_path
from dptrain.system.signals import ended_by_exception
from dptrain.system.start import start_program
from dptrain.system.streams import drop_failed_writes, finish_output
from dptrain.system.suggestions import did_you_mean
from dptrain.system.text import counted, shown

from . import PROGRAM, card, preview, report
from .images import BrokenPicturesError, ImageData, ImageSource
from .pack import pack
from .sources import SOURCES
from .staging import check_target
from .verify import info, verify

WORDS = {"train": "training", "test": "test", "validation": "validation"}
OTHER_NAMES = {  # of flags in other programs
    **dict.fromkeys(("validation-split", "val-split"), "did you mean '--validation-fraction'?"),
    "test-split": "did you mean '--test-fraction'?",
    **dict.fromkeys(("image-size", "img-size", "target-size"), "did you mean '--size', for pictures?"),
}
COMMANDS = ("verify", "info", "preview", "card")  # besides the sources


@ended_by_exception()
def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit status: 0, 1 for an error in the data, 2 for usage, 128 + n after signal n.

    After a signal, partial files are removed.
    """
    start_program()
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if (launched_size() or 1) > 1 and words and words[0] not in COMMANDS:
            if launched_rank() > 0:
                return 0  # another status would end rank 0 before it reports
            raise UsageError("prep runs on one process: start it without mpirun; nothing is packed")
        words = _with_source(words)
        options = make_parser().parse_args(words)
        if "shards" in options:  # the result is the data set, not the output
            drop_failed_writes()
        status: int = options.run(options)
        finish_output()
    except SystemExit:  # --help
        finish_output()
        return 0
    except (Exception, KeyboardInterrupt) as error:
        text, status, _ = failure(error)
        drop_failed_writes()
        if text:
            report(f"error: {text}" + "; no partial files are left" * isinstance(error, KeyboardInterrupt))
    return status


def _with_source(words: list[str]) -> list[str]:
    """The words PATH OUT ... as SOURCE --flag PATH OUT ...; UsageError if no source can read the path."""
    text, *others = words or [""]
    if not text or text.startswith("-") or text in (*COMMANDS, *(source.name for source in SOURCES)):
        return words
    if not exists(expanduser(text)):  # noqa: PTH110, PTH111 - do not raise
        names = [*COMMANDS, *(source.name for source in SOURCES)]
        advice = did_you_mean(text, names, f"see {_program()} --help")
        raise UsageError(f"{shown(text)}: no such file or folder, and no source has this name; {advice}")
    if not others:
        raise UsageError(f"the folder for the data set is missing: {_program()} {shown(text)} OUT")
    path = Path(typed_path(text))
    try:
        found = next((source for source in SOURCES if source.path_flag and source.detects(path)), None)
    except OSError as error:
        raise UsageError(f"{shown(path)}: cannot be read: {error.strerror}") from error
    if found is None:
        if path.is_file() and path.name.lower().endswith((".npy", "ubyte", "ubyte.gz")):
            raise UsageError(
                f"{shown(path)}: images and labels are in several such files; pack their folder: {_program()} "
                f"{shown(path.parent)} OUT"
            )
        raise UsageError(f"{shown(path)}: no source can read this; see {_program()} --help for the sources")
    if any(word.split("=")[0] == found.path_flag for word in others):
        raise UsageError(f"{shown(path)} is given, and {found.path_flag} too: leave one out")
    report(f"note: {shown(path)} is read as {found.name}")
    return [found.name, found.path_flag, text, *others]


def _program() -> str:
    return PROGRAM if " " in PROGRAM else f"python -m {PROGRAM}"


class PrepParser(Parser):
    """A Parser that knows the names of other programs for these flags."""

    explanations = OTHER_NAMES


def make_parser() -> Parser:
    parser = PrepParser(_program(), description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for source in SOURCES:
        parents = _packing_options(), _source_options(source)
        command = _add_command(commands, source.name, source.help, source.example, *parents)
        command.set_defaults(run=_pack, source=source)
    for name, text, example, run in (
        ("verify", "check every hash and every record of a packed data set", "data/pets", _verify),
        ("info", "describe a packed data set", "data/pets --json", _info),
    ):
        _add_command(commands, name, text, example, _json_option()).set_defaults(run=run)
    for name, module, text, example in (
        (
            "preview",
            preview,
            "draw images of each class, with and without augmentation",
            "data/pets --png pets.png --augment reflect",
        ),
        (
            "card",
            card,
            "print the card of a data set, as Markdown or JSON",
            "data/pets --license CC0 --output card.md",
        ),
    ):
        command = _add_command(commands, name, text, example, _json_option())
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return parser


def _json_option() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    return parser


def _packing_options() -> argparse.ArgumentParser:
    """Options that do not change which images are packed."""
    parser = _json_option()
    parser.add_argument(
        "--shards", type=whole(), metavar="S", help="shards of each split (default: 8, fewer for small sets)"
    )
    parser.add_argument("--force", action="store_true", help="replace an existing data set")
    return parser


def _source_options(source: ImageSource) -> argparse.ArgumentParser:
    """Options that decide which images are packed."""
    parser = Parser(add_help=False, allow_abbrev=False)
    source.add_arguments(parser)
    parser.add_argument(
        "--limit",
        type=whole(),
        metavar="N",
        help="pack only N training images and N / 5 test images, with balanced classes",
    )
    parser.add_argument(
        "--validation-fraction",
        type=share,
        metavar="F",
        help="make this share of each class of the training images the validation split (default: none)",
    )
    parser.add_argument("--seed", type=whole(0), default=0, metavar="N", help="seed of all random choices (default: 0)")
    return parser


def _add_command(commands: Any, name: str, text: str, example: str, *parents: argparse.ArgumentParser) -> Any:
    """A command with the arguments of `parents`; `example` has the words after its name."""
    command = commands.add_parser(
        name,
        help=text,
        description=f"{text[0].upper()}{text[1:]}.",
        epilog=f"example:\n  {_program()} {name} {example}\n" if example else "",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=parents,
    )
    command.add_argument("folder", metavar="OUT", type=path_argument, help="folder of the data set")
    return command


def pack_source(*words: str) -> None:
    """Pack a data set as `dptrain prep` does for these words: a source or a path, the folder of the data set, flags.

    Raises UsageError, DataError or DownloadError.
    """
    if words[0].startswith("-"):
        raise UsageError(f"source begins with a dash: {shown(words[0], 80)}; expected a path or the name of a source")
    options = make_parser().parse_args(_with_source(list(words)))
    if "shards" not in options:
        raise UsageError(
            f"{shown(words[0])} is no source of images; choose from {', '.join(one.name for one in SOURCES)}"
        )
    _read_and_pack(options)


def _pack(options: argparse.Namespace) -> int:
    broken: dict[str, Any] = {}  # the broken pictures, of a source of pictures
    try:
        data = _read_and_pack(options)
        if data.preparation is not None:
            broken["broken_pictures"] = data.broken
    except BrokenPicturesError as error:
        if options.json:
            print(json.dumps({"error": str(error), "broken_pictures": error.broken}, indent=1))
        raise
    except DownloadError as error:
        if not getattr(options, "optional", False):
            raise
        report(f"note: {shown(error)}")
        return error.status
    return _info(options, **broken)


def _read_and_pack(options: argparse.Namespace) -> ImageData:
    # Before a long download, not after it.
    check_target(options.folder, force=options.force, source=getattr(options, "path", None))
    data: ImageData = options.source.read(options)
    counts = {name: getattr(options, name) for name in ("shards", "seed", "limit", "validation_fraction")}
    pack(options.folder, data, **counts, force=options.force, command=_command(options))
    return data


def _command(options: argparse.Namespace) -> list[str]:
    """The words of a command line that packs the same images."""
    words: list[str] = [options.source.name]
    for action in _source_options(options.source)._actions:
        value, flag = getattr(options, action.dest), action.option_strings[0]
        if value == action.default or not vars(action).get("recorded", True):
            continue
        values = [] if value is True else list(map(str, value if isinstance(value, list) else [value]))
        if values and values[0].startswith("-"):  # not the next flag
            flag, values = f"{flag}={values[0]}", values[1:]
        words += [flag, *values]
    return words


def _verify(options: argparse.Namespace) -> int:
    result = verify(options.folder)
    if options.json:
        print(json.dumps({"ok": not result.problems, **asdict(result)}, indent=1))
    for problem in result.problems:
        report(f"error: {shown(problem)}")
    if not result.problems and not options.json:
        print(f"{_summary(info(options.folder))}: no problems found")
        for split, counts in result.class_counts.items():
            print(f"  {split} samples of each class: {' '.join(map(str, counts))}")
    return 1 if result.problems else 0


def _info(options: argparse.Namespace, **more: Any) -> int:
    """Print what is known of a data set; `more` is for --json."""
    facts = info(options.folder)
    if options.json:
        print(json.dumps(facts | more, indent=1))
        return 0
    print(_summary(facts))
    source = facts["source"]
    if source["archive"] is not None:
        verdict = {
            True: ", a published archive",
            False: ", NOT a published archive: results may differ",
            None: "",
        }[source["published"]]
        facts["archive"] = f"{source['archive']}{verdict} (SHA-256 {source['sha256']})"
    if (preparation := facts["preparation"]) is not None:
        smallest, largest = (f"{height}x{width}" for height, width in (preparation["smallest"], preparation["largest"]))
        count = preparation["sizes"]
        sizes = f"1 size, {smallest}" if count == 1 else f"{count:,} sizes, from {smallest} to {largest}"
        facts["pictures"] = (
            f"{sizes}; fitted by {preparation['fit']}; decoded by {preparation['decoder']}; "
            f"{preparation['broken']:,} broken and left out"
        )
    for name in ("archive", "pictures", "classes", "image_shape", "mean", "std", "seed", "command", "manifest_sha256"):
        if name in facts:
            value = " ".join(map(str, facts[name])) if isinstance(facts[name], list) else facts[name]
            print(f"  {name.replace('_', ' '):<16}{shown(value)}")
    for split, counts in (facts["class_counts"] or {}).items():
        print(f"  {'class counts':<16}{split}: {shown(' '.join(map(str, counts)))} (labels read, hashes not checked)")
    return 0


def _summary(facts: dict[str, Any]) -> str:
    """A data set in one line."""
    counts = [f"{count:,} {WORDS[split]}" for split, count in facts["samples"].items()]
    return (
        f"{shown(facts['folder'])}: {shown(facts['name'])}, {', '.join(counts[:-1])} and {counts[-1]} images, "
        f"{counted(len(facts['classes']), 'class')}, {counted(facts['shards'], 'shard')} each, "
        f"{facts['bytes'] / 1e6:.1f} MB"
    )


if __name__ == "__main__":
    sys.exit(main())
