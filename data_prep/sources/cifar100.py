"""CIFAR-100: 60,000 colour images of 32x32 pixels in 100 fine classes, which belong to 20 coarse ones."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..cifar import Contents, add_archive_argument, is_archive, read_archive
from ..download import find_archive
from ..images import ImageData, ImageSource

URL = "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz"
SHA256 = "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec"
VARIABLE = "DPTRAIN_CIFAR100_ARCHIVE"
COARSE = """
aquatic_mammals fish flowers food_containers fruit_and_vegetables household_electrical_devices household_furniture
insects large_carnivores large_man-made_outdoor_things large_natural_outdoor_scenes large_omnivores_and_herbivores
medium_mammals non-insect_invertebrates people reptiles small_mammals trees vehicles_1 vehicles_2
"""
FINE = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant flatfish
forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle
mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar
sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle wardrobe whale willow_tree
wolf woman worm
"""
NAMES = {"coarse": tuple(COARSE.split()), "fine": tuple(FINE.split())}  # in the order of a record's label bytes


def contents(labels: str) -> Contents:
    """What the archives hold, with the "coarse" or the "fine" labels."""
    return Contents(
        name="cifar100" if labels == "fine" else "cifar100-coarse",
        title="CIFAR-100",
        binary=tuple(f"cifar-100-binary/{name}" for name in (f"{labels}_label_names.txt", "train.bin", "test.bin")),
        pickled=tuple(f"cifar-100-python/{name}" for name in ("meta", "train", "test")),
        samples=(50_000, 10_000),
        published_sha256=(SHA256, "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7"),
        classes=NAMES[labels],
        label_bytes=len(NAMES),
        label_byte=[*NAMES].index(labels),
        labels_key=f"{labels}_labels".encode(),
        names_key=f"{labels}_label_names".encode(),
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_archive_argument(parser, "cifar-100", VARIABLE, URL)
    parser.add_argument(
        "--labels", choices=[*NAMES], default="fine", help="100 fine or 20 coarse classes (default: fine)"
    )


def read(archive: Path | None, labels: str, out: Path) -> ImageData:
    return read_archive(find_archive(archive, VARIABLE, URL, SHA256), contents(labels), out)


SOURCE = ImageSource(
    "cifar100",
    "pack CIFAR-100 from a published archive",
    add_arguments,
    lambda options: read(options.archive, options.labels, options.folder),
    path_flag="--archive",
    detects=lambda path: is_archive(path, "cifar-100"),
    example="data/cifar100 --labels coarse",
)
