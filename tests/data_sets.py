"""Small generated image data and CIFAR-10 archives for tests."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import struct
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_prep.__main__ import make_parser
from data_prep.pack import ImageData, LabelledImages
from data_prep.sources.cifar10 import BATCHES, CONTENTS

BATCH_SAMPLES = 20  # of the small archives: two of each class a batch
SMALL_CIFAR10 = replace(CONTENTS, samples=(BATCH_SAMPLES,) * len(BATCHES))


def image_data(
    train: int = 101, test: int = 37, classes: int = 5, shape: tuple[int, int, int] = (2, 5, 7), seed: int = 0
) -> ImageData:
    """Random images of random classes, so class sizes differ."""
    generator = np.random.default_rng(seed)
    train_split, test_split = (
        LabelledImages(
            generator.integers(0, 256, (count, *shape), dtype=np.uint8),
            generator.integers(0, classes, count, dtype=np.int64),
        )
        for count in (train, test)
    )
    names = tuple(f"class-{number}" for number in range(classes))
    return ImageData("random", names, train_split, test_split, layout="channels_first")


def idx_bytes(array: np.ndarray) -> bytes:
    """The content of an IDX file of unsigned bytes."""
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_idx_files(folder: Path) -> None:
    """Random images 28x28 of 10 classes, in files with the names of MNIST's."""
    folder.mkdir()
    for split, part in (("train", (data := image_data(100, 40, 10, (1, 28, 28))).train), ("t10k", data.test)):
        labels = part.labels.astype(np.uint8)
        for name, array in ((f"{split}-images-idx3-ubyte", part.images[:, 0]), (f"{split}-labels-idx1-ubyte", labels)):
            (folder / f"{name}.gz").write_bytes(gzip.compress(idx_bytes(array)))


def cifar10_records(samples: int = BATCH_SAMPLES, seed: int = 0) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Pixels uint8 (samples, 3072) and labels uint8 (samples,) of each of the six batches."""
    generator = np.random.default_rng(seed)
    pixels = [generator.integers(0, 256, (samples, 3072), dtype=np.uint8) for _ in BATCHES]
    labels = [generator.permutation(np.arange(samples, dtype=np.uint8) % 10) for _ in BATCHES]
    return pixels, labels


def binary_members(samples: int = BATCH_SAMPLES) -> dict[str, bytes]:
    """Member names and contents of a cifar-10-binary.tar.gz."""
    members = {"cifar-10-batches-bin/batches.meta.txt": ("\n".join(CONTENTS.classes) + "\n\n").encode()}
    for name, pixels, labels in zip(BATCHES, *cifar10_records(samples), strict=True):
        members[f"cifar-10-batches-bin/{name}.bin"] = np.concatenate([labels[:, None], pixels], axis=1).tobytes()
    return members


def python_members(samples: int = BATCH_SAMPLES) -> dict[str, bytes]:
    """Member names and contents of a cifar-10-python.tar.gz."""
    meta = {b"label_names": [name.encode() for name in CONTENTS.classes], b"num_vis": 3072}
    members = {"cifar-10-batches-py/batches.meta": pickle.dumps(meta, protocol=2)}
    for name, pixels, labels in zip(BATCHES, *cifar10_records(samples), strict=True):
        batch = {b"batch_label": b"x", b"labels": labels.tolist(), b"data": pixels, b"filenames": [b"a.png"]}
        members[f"cifar-10-batches-py/{name}"] = pickle.dumps(batch, protocol=2)
    return members


def write_archive(path: Path, members: dict[str, bytes]) -> Path:
    """A .tar.gz of regular files."""
    with gzip.open(path, "wb", compresslevel=1) as zipped, tarfile.open(fileobj=zipped, mode="w") as tar:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return path


def read_source(name: str, path: Path, out: Path, *words: str) -> ImageData:
    """What a source reads from a path, for a data set of one shard at `out`, with these words of the command line."""
    options = make_parser().parse_args([name, str(out), "--from", str(path), "--shards", "1", *words])
    data: ImageData = options.source.read(options)
    return data


def folder_bytes(folder: Path) -> dict[str, bytes]:
    """Every file of a folder by name."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def run_data_prep(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """`python -m data_prep` in a new process."""
    return subprocess.run(
        [sys.executable, "-m", "data_prep", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **environment},
        check=False,
    )


# Defines `peak()`: the most memory that a program has used, KiB. ru_maxrss would have that of its parent too.
PEAK_MEMORY = """
def peak():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM:"))
"""


def assert_one_line_error(done: subprocess.CompletedProcess[str], *words: str, status: int = 1) -> None:
    """The process ended with `status` and one line on stderr with all of `words`."""
    assert done.returncode == status, done.stderr
    assert done.stderr.startswith("data_prep: error: ")
    assert done.stderr.count("\n") == 1, done.stderr
    for word in words:
        assert word in done.stderr


def find_archive() -> Path | None:
    """A real cifar-10-binary.tar.gz, or None where there is none; in CI that is a failure."""
    named = os.environ.get("DPTRAIN_CIFAR10_ARCHIVE")
    path = Path(named) if named else Path.home() / ".cache" / "dptrain" / "cifar-10-binary.tar.gz"
    path = path.with_name("cifar-10-binary.tar.gz")
    if not path.exists() and os.environ.get("CI"):
        pytest.fail(f"no CIFAR-10 archive at {path}; name one with DPTRAIN_CIFAR10_ARCHIVE")
    return path if path.exists() else None
