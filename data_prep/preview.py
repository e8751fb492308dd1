"""A contact sheet: some training images of each class, as they are and with augmentation, and the mean images."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dptrain.data.augmentation import AugmentationConfig, add_augment_flag, expanded, read_augmentation
from dptrain.data.batches import ShardBatches
from dptrain.data.manifest import Manifest, read_manifest
from dptrain.data.shard import read_shard
from dptrain.data.transforms import Images, Transform, make_transforms
from dptrain.system.arguments import path_argument, whole
from dptrain.system.keys import Scope, add_flags_of, check_needs, flag, key
from dptrain.system.outputs import write_output
from dptrain.system.text import counted, shown

from .contact_sheet import Row, draw_sheet, sheet_size


@dataclass(frozen=True)
class PreviewConfig(AugmentationConfig):
    """The keys of `dptrain train` that decide how training images look."""

    seed: int = key(0, Scope.RUN, "seed of all random draws", at_least=0)


KEYS = {one.name: one for one in fields(PreviewConfig) if one.metadata["scope"] is not Scope.PROCESS}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--png", type=path_argument, required=True, metavar="FILE", help="the picture to write")
    parser.add_argument("--samples", type=whole(), default=8, metavar="N", help="images of each class (default: 8)")
    parser.add_argument("--classes", type=whole(), default=20, metavar="N", help="at most N classes (default: 20)")
    parser.add_argument("--epochs", type=whole(), default=2, metavar="N", help="augmented epochs (default: 2)")
    group = parser.add_argument_group("augmentation, as for dptrain train")
    help = "TOML file for dptrain train; only its augmentation and seed are used, and flags win"
    group.add_argument("--config", type=path_argument, metavar="FILE", help=help)
    add_flags_of(group, KEYS.values())
    add_augment_flag(group)


def run(options: argparse.Namespace) -> int:
    """Draw the sheet of a data set and print its facts; returns the exit status."""
    facts = draw(options)
    if options.json:
        print(json.dumps(facts, indent=1))
        return 0
    width, height = facts["size"]
    drawn, used = len(facts["classes"]), facts["augmentation"]
    print(f"{shown(options.png)}: {width} x {height} pixels, {drawn} of {facts['of_classes']} classes")
    print(
        f"  augmentation    {used or 'none; show it with its flags, such as --augment reflect, or with --config FILE'}"
    )
    return 0


def draw(options: argparse.Namespace) -> dict[str, Any]:
    """Draw the sheet of a data set; returns its facts. UsageError if the picture cannot be written."""
    config = configuration(vars(options))
    manifest = read_manifest(options.folder)
    transforms = make_transforms(config, manifest.image_shape, manifest.mean)
    names = manifest.classes[: options.classes]
    epochs = options.epochs if transforms else 0
    groups = 1 + len(names)
    sheet_size(manifest.image_shape, 1 + options.samples, groups + len(names) * epochs, groups)  # for its check
    sheet = Collection(manifest, len(names), options.samples, epochs)
    for shard in range(manifest.shard_count):
        sheet.add(options.folder, shard, config.seed, transforms)
    used = described(config)
    counts = counted(manifest.samples("train"), "training image"), counted(len(manifest.classes), "class")
    title = f"{manifest.name}: {', '.join(counts)}"
    notes = (f"augmentation: {used}" if used else "without augmentation", "first column: mean image")
    content, size = draw_sheet(title, notes, sheet.rows(names))
    write_output(options.png, content, "--png")
    shape = {"size": size, "classes": list(names), "of_classes": len(manifest.classes)}
    return {"file": str(options.png), **shape, "epochs": epochs, "augmentation": used}


def configuration(options: Mapping[str, Any]) -> PreviewConfig:
    """The keys from the file of --config, then from flags; UsageError as in `dptrain train`."""
    given = {name: value for name, value in options.items() if name in KEYS or name == "augment"}
    saved = read_augmentation(options["config"], KEYS) if options["config"] else {}
    config = PreviewConfig(**(expanded(saved) | expanded(given)))
    check_needs(config, given)
    return config


def described(config: PreviewConfig) -> str:
    """The flags of a configuration that are not the default, such as `--crop zero --flip`."""
    found = []
    for name, one in KEYS.items():
        value = getattr(config, name)
        if value != one.default:
            found.append(flag(name) if value is True else f"{flag(name)} {value}")
    return " ".join(found)


class Collection:
    """Images of the first classes of a data set, and the sums of all its training images."""

    def __init__(self, manifest: Manifest, classes: int, samples: int, epochs: int) -> None:
        """Keeps up to `samples` images of each class, unchanged and in so many augmented epochs."""
        self.manifest, self.samples = manifest, samples
        self.counts = np.zeros(classes + 1, np.int64)  # the last is that of all classes, as in `sums`
        self.sums = np.zeros((classes + 1, *manifest.image_shape), np.int64)
        self.kept: list[list[Images]] = [[] for _ in range(classes)]
        self.augmented: list[list[list[Images]]] = [[[] for _ in range(classes)] for _ in range(epochs)]

    def add(self, folder: Path, shard: int, seed: int, transforms: list[Transform]) -> None:
        """Add a shard of the training split; raises DataError."""
        samples = read_shard(folder, self.manifest, "train", shard)
        chosen: list[NDArray[np.intp]] = []
        for number, kept in enumerate(self.kept):
            rows = np.flatnonzero(samples.labels == number)
            self.counts[number] += len(rows)
            self.sums[number] += samples.images[rows].sum(axis=0, dtype=np.int64)
            chosen.append(rows[: self.samples - sum(map(len, kept))])
            kept.append(samples.images[chosen[-1]])
        self.counts[-1] += len(samples)
        self.sums[-1] += samples.images.sum(axis=0, dtype=np.int64)
        batches = ShardBatches(samples, shard, self.manifest, size=1, seed=seed, transforms=transforms)
        for epoch, of_classes in enumerate(self.augmented):
            positions = np.argsort(batches.order(epoch))  # by row
            for rows, kept in zip(chosen, of_classes, strict=True):
                kept.append(batches.augmented(epoch, positions[rows])[0])

    def rows(self, names: tuple[str, ...]) -> list[Row]:
        """The rows of the sheet: all classes together, then for each class its images and its augmented epochs."""
        means = np.rint(self.sums / np.maximum(self.counts, 1)[:, None, None, None]).astype(np.uint8)
        none = means[:0]
        rows = [Row("all classes", means[-1:], none)]
        for number, name in enumerate(names):
            rows.append(Row(f"{number} {name}", means[number : number + 1], np.concatenate(self.kept[number])))
            for epoch, of_classes in enumerate(self.augmented):
                rows.append(Row(f"epoch {epoch + 1}", none, np.concatenate(of_classes[number]), augmented=True))
        return rows
