"""The keys of augmentation: flags and TOML keys of `dptrain train` and of `dptrain prep preview`.

Imports no NumPy: the launcher reads configurations too. The transforms are in `dptrain.data.transforms`.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from dataclasses import Field, dataclass
from pathlib import Path
from typing import Any

from dptrain.errors import UsageError
from dptrain.system import files
from dptrain.system.keys import Config, Scope, from_toml, key
from dptrain.system.text import shown

BORDERS = ("none", "reflect", "zero")
TTA = ("none", "mirror", "mirror-translate")
FILL = re.compile(r"mean|\d{1,2}|1\d\d|2[0-4]\d|25[0-5]", re.ASCII).fullmatch, "mean, or a pixel value from 0 to 255"
BITS, PROCESS = Scope.BITS, Scope.PROCESS


@dataclass(frozen=True)
class AugmentationConfig(Config):
    """augmentation"""

    crop: str = key("none", BITS, "shift images randomly; how to fill the border", choices=BORDERS)
    crop_pixels: int = key(
        4, BITS, "for --crop: largest shift in each direction", at_least=1, below=1025, needs=("crop", None)
    )
    flip: bool = key(False, BITS, "mirror half of the images, chosen at random (not for digits or text)")
    alternating_flip: bool = key(
        False, BITS, "for --flip: choose once, then mirror each image in every other epoch", needs=("flip", None)
    )
    resized_crop: float = key(
        0.0, BITS, "enlarge a random part of this share of the area, or more (0: off)", at_least=0.0, below=1.0
    )
    resized_crop_aspect: float = key(
        1.3333,
        BITS,
        "for --resized-crop: largest ratio of the sides of the part",
        at_least=1.0,
        below=100.0,
        needs=("resized_crop", None),
    )
    brightness: float = key(0.0, BITS, "multiply pixels by a random factor, at most this from 1 (0: off)", at_least=0.0)
    contrast: float = key(
        0.0, BITS, "multiply differences to the mean by a random factor, at most this from 1 (0: off)", at_least=0.0
    )
    cutout: int = key(0, BITS, "side in pixels of a random square, filled with the mean color (0: off)", at_least=0)
    cutout_fill: str = key(
        "mean", BITS, "for --cutout: mean, or a pixel value", rule=FILL, metavar="mean|N", needs=("cutout", None)
    )
    tta: str = key("none", PROCESS, "test-time augmentation: mean logits of mirrored and shifted images", choices=TTA)


def add_augment_flag(parser: argparse._ActionsContainer) -> None:
    """Add --augment, the short form of --crop and --flip."""
    help = "short for --crop BORDER --flip (none: neither)"
    metavar = "|".join(BORDERS)
    parser.add_argument("--augment", choices=BORDERS, metavar=metavar, default=argparse.SUPPRESS, help=help)


def expanded(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values with `augment`, the short form, as `crop` and `flip`, where these are not given."""
    border = values.get("augment")
    short = {} if border is None else {"crop": border, "flip": border != "none"}
    return short | {name: value for name, value in values.items() if name != "augment"}


def read_augmentation(path: Path, keys: Mapping[str, Field[Any]]) -> dict[str, Any]:
    """Values of some keys, and of `augment`, from a TOML file for `dptrain train`; its other keys are ignored.

    UsageError if the file cannot be read, or has a value that cannot be used.
    """
    try:
        found = {name.replace("-", "_"): value for name, value in files.parse_toml(files.read_text(path)).items()}
        values = {name: from_toml(key, found[name]) for name, key in keys.items() if name in found}
    except (OSError, ValueError, UsageError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"--config {shown(path)}: {reason}") from error
    return values | {name: value for name, value in found.items() if name == "augment"}
