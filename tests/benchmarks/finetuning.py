"""Fine-tuning against training from scratch, at equal steps: CIFAR-10's 10 classes, then 5 of them with few images.

    python tests/benchmarks/finetuning.py [--archive cifar-10-binary.tar.gz] [--seeds 3] [--out FOLDER]

The source is a convnet that is trained for 3 epochs on 10,000 of the first 40,000 training images. The target has five
classes, with 1,000 of the last 10,000 training images and 200 test images. All its runs make 50 steps of 40 images.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data_prep.images import ImageData, LabelledImages
from data_prep.pack import pack
from data_prep.sources.cifar10 import SOURCE
from dptrain.config.train import TrainConfig
from dptrain.parallel.communicator import Communicator
from dptrain.training.loop import train

CHOSEN = ("bird", "cat", "deer", "dog", "frog")
WAYS: dict[str, dict[str, Any]] = {
    "from scratch": {},
    "fine-tuned": {},
    "fine-tuned, --freeze conv1": {"freeze": "conv1"},
}


class Figures(NamedTuple):
    """Test accuracies by way, one for each seed; that of the source."""

    accuracies: dict[str, list[float]]
    source: float


def pack_both(archive: Path | None, folder: Path) -> None:
    """Pack the data sets folder/ten and folder/five."""
    parser = argparse.ArgumentParser()
    assert SOURCE.add_arguments is not None
    SOURCE.add_arguments(parser)
    options = parser.parse_args(["--archive", str(archive)] if archive else [])
    data = SOURCE.read(argparse.Namespace(**vars(options), folder=folder))
    images, labels = data.train.images[:], data.train.labels
    ten = LabelledImages(images[:40_000], labels[:40_000])
    pack(folder / "ten", ImageData("ten", data.classes, ten, data.test, layout="channels_first"), limit=10_000)
    numbers = [list(data.classes).index(name) for name in CHOSEN]
    few = _of_classes(images[40_000:], labels[40_000:], numbers)
    test = _of_classes(data.test.images[:], data.test.labels, numbers)
    pack(folder / "five", ImageData("five", CHOSEN, few, test, layout="channels_first"), limit=1_000)


def _of_classes(images: Any, labels: Any, numbers: list[int]) -> LabelledImages:
    """The images of these classes, which are numbered again from 0."""
    chosen = np.isin(labels, numbers)
    return LabelledImages(images[chosen], np.searchsorted(numbers, labels[chosen]))


def accuracy(data: Path, run_dir: Path, **changes: Any) -> float:
    """The test accuracy of a run, in percent."""
    finished = train(TrainConfig(data=str(data), run_dir=str(run_dir), **changes), Communicator())
    assert finished is not None
    return 100 * finished.test_accuracy


def compare(archive: Path | None, folder: Path, seeds: int) -> Figures:
    """Train the source, and the target in every way and with every seed."""
    pack_both(archive, folder)
    source = accuracy(folder / "ten", folder / "source", epochs=3)
    found: dict[str, list[float]] = {}
    for way, options in WAYS.items():
        init = {} if way == "from scratch" else {"init_from": str(folder / "source")}
        found[way] = [
            accuracy(folder / "five", folder / f"{way}-{seed}", epochs=2, batch_size=40, seed=seed, **init, **options)
            for seed in range(seeds)
        ]
    return Figures(found, source)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archive", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary:
        figures = compare(options.archive, options.out or Path(temporary), options.seeds)
    print(f"source: {figures.source:.2f} %, {time.perf_counter() - started:.0f} s in all")
    for way, values in figures.accuracies.items():
        each = ", ".join(f"{value:.2f}" for value in values)
        print(f"{way}: {statistics.mean(values):.2f} % ({each})")


if __name__ == "__main__":
    main()
