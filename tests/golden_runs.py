"""Portable training runs for the golden hashes; as a program it prints the hash of each run as JSON.

    python tests/golden_runs.py DATA FOLDER

DATA is a data set of `dptrain prep shapes`, FOLDER a new folder for the runs.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from dptrain.system.blas import request_one_thread, request_portable_kernels

IMAGES = "--train", "640", "--test", "64"  # of the data set, in 8 shards
# Values of the configuration; each run makes 10 steps.
RUNS: dict[str, dict[str, Any]] = {
    "convnet": {"epochs": 1},
    "batch norm, GELU and Muon": {
        "epochs": 1,
        "model": "golden",
        "optimizer": "muon",
        "schedule": "triangle",
        "crop": "reflect",
        "flip": True,
    },
}


def build(input_shape: tuple[int, int, int], classes: int) -> list[Any]:
    """A small network of many kinds of layers."""
    from dptrain import nn

    return [
        nn.Conv2d(24, 2),
        nn.GELU(),
        nn.Conv2d(32, 3, padding=1),
        nn.BatchNorm2d(),
        nn.GELU(),
        nn.MaxPool2d(2),
        nn.Residual([nn.Conv2d(32, 3, padding=1), nn.BatchNorm2d(), nn.SiLU()]),
        nn.Conv2d(32, 3, padding=1, groups=32),
        nn.Dropout(0.1),
        nn.Conv2d(48, 3, stride=2, padding=1),
        nn.BatchNorm2d(),
        nn.GELU(),
        nn.GlobalAvgPool2d(),
        nn.Flatten(),
        nn.Linear(classes),
    ]


def hashes(data: Path, folder: Path) -> dict[str, str]:
    """The hash of the parameters at the end of each run, and the test loss, which depends on all bits, too."""
    from dptrain.config.train import TrainConfig
    from dptrain.nn.zoo import ARCHITECTURES
    from dptrain.parallel.communicator import Communicator
    from dptrain.training.loop import train

    ARCHITECTURES["golden"] = build
    found = {}
    for number, (name, values) in enumerate(RUNS.items()):
        common: dict[str, Any] = {
            "data": str(data),
            "run_dir": str(folder / str(number)),
            "batch_size": 64,
            "portable": True,
        }
        finished = train(TrainConfig(**common, **values), Communicator())
        assert finished is not None
        found[name] = f"{finished.params_sha256} {finished.test_loss!r}"
    return found


if __name__ == "__main__":
    request_one_thread()
    request_portable_kernels()
    print(json.dumps(hashes(Path(sys.argv[1]), Path(sys.argv[2])), indent=4))
