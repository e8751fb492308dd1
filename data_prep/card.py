"""The card of a data set: what it holds and where it comes from, as JSON or Markdown."""

from __future__ import annotations

import argparse
import json
import re
import shlex
from pathlib import Path
from typing import Any

from dptrain.data.manifest import read_manifest
from dptrain.errors import DataError, UsageError
from dptrain.system.arguments import path_argument
from dptrain.system.outputs import write_output
from dptrain.system.text import shown

from .verify import info, verify

FORMATS = (".md", ".json")
MARKUP = re.compile(r"([\\`*_\[\]<>|~$&])")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--license", default="", metavar="TEXT", help="licence of the images, for the card")
    help = "write the card to this file, FILE.md or FILE.json, instead of printing it"
    parser.add_argument("--output", type=path_argument, metavar="FILE", help=help)


def run(options: argparse.Namespace) -> int:
    """Print or write the card; returns the exit status."""
    output: Path | None = options.output
    if output is not None and output.suffix not in FORMATS:
        raise UsageError(f"--output {shown(output)}: expected a name that ends with {' or '.join(FORMATS)}")
    facts = card(options.folder, options.license)
    as_json = output.suffix == ".json" if output is not None else options.json
    text = json.dumps(facts, indent=1) if as_json else markdown(facts)
    if output is None:
        print(text)
        return 0
    write_output(output, f"{text}\n".encode(), "--output")
    print(json.dumps(facts, indent=1) if options.json else f"{shown(output)}: the card of {shown(facts['name'])}")
    return 0


def card(folder: Path, license: str = "") -> dict[str, Any]:
    """The facts of a card as plain values. Every file of the data set is checked; DataError for the first problem."""
    manifest = read_manifest(folder)
    checked = verify(folder)
    if checked.problems:
        raise DataError(f"no card of a data set with problems: {checked.problems[0]}")
    counts = checked.class_counts
    facts = info(folder)
    kept = ("image_shape", "samples", "mean", "std", "shards", "bytes", "seed", "preparation")
    packed = [*manifest.command, "--shards", str(manifest.shard_count)] if manifest.command else []
    return {
        "name": manifest.name,
        "license": license or None,
        "source": facts["source"],
        "classes": [
            {"name": name, **{split: counts[split][number] for split in counts}}
            for number, name in enumerate(manifest.classes)
        ],
        **{name: facts[name] for name in kept},
        "manifest_sha256": manifest.sha256,
        "command": packed,
    }


def markdown(facts: dict[str, Any]) -> str:
    """A card as Markdown."""
    channels, height, width = facts["image_shape"]
    splits, source = list(facts["samples"]), facts["source"]
    rows = [
        ("licence", _escaped(facts["license"] or "not stated")),
        ("source", _escaped(source["name"])),
        *([("archive", _archive(source))] if source["archive"] else []),
        ("images", f"{channels} x {height} x {width} (channels, height, width), 8 bits"),
        *((f"{split} samples", f"{facts['samples'][split]:,}") for split in splits),
        ("shards of each split", str(facts["shards"])),
        *_preparation(facts["preparation"]),
        ("size", f"{facts['bytes'] / 1e6:.1f} MB"),
        ("seed of the packing", str(facts["seed"])),
        ("SHA-256 of the manifest", f"`{facts['manifest_sha256']}`"),
    ]
    pixels = [
        (str(c), f"{m:.6f}", f"{s:.6f}") for c, (m, s) in enumerate(zip(facts["mean"], facts["std"], strict=True))
    ]
    classes = [
        (str(number), _escaped(one["name"]), *(f"{one[split]:,}" for split in splits))
        for number, one in enumerate(facts["classes"])
    ]
    parts = [
        f"# {_escaped(facts['name'])}",
        _table(("", ""), rows),
        "## Pixels of the training split, scaled to 0 to 1",
        _table(("channel", "mean", "standard deviation"), pixels),
        "## Classes",
        _table(("label", "name", *splits), classes),
    ]
    if facts["command"]:
        name, *options = facts["command"]
        parts += [
            "## How it was packed",
            f"```bash\n{shown(shlex.join(['dptrain', 'prep', name, 'OUT', *options]))}\n```",
        ]
    return "\n\n".join(parts)


def _preparation(facts: dict[str, Any] | None) -> list[tuple[str, str]]:
    """How picture files were read, see `dptrain.data.manifest.Preparation`."""
    if facts is None:
        return []
    smallest, largest = (" x ".join(map(str, facts[name])) for name in ("smallest", "largest"))
    return [
        ("decoder", _escaped(facts["decoder"])),
        ("other aspect ratios", _escaped(facts["fit"])),
        ("sizes of the pictures", f"{facts['sizes']:,}, from {smallest} to {largest} (height, width)"),
        ("broken pictures left out", f"{facts['broken']:,}"),
    ]


def _archive(source: dict[str, Any]) -> str:
    verdict = "a published archive" if source["published"] else "not a published archive"
    return f"{_escaped(source['archive'])}, {verdict}, SHA-256 `{source['sha256']}`"


def _escaped(text: str) -> str:
    """Text that Markdown shows as it is."""
    return MARKUP.sub(r"\\\1", shown(text))


def _table(head: tuple[str, ...], rows: list[Any]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
