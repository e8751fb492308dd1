"""data_prep.sources.cifar100: both archives are read, with fine and with coarse labels."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from data_sets import write_archive

from data_prep.__main__ import main
from data_prep.cifar import Contents, read_archive
from data_prep.sources import cifar100
from data_prep.sources.cifar100 import NAMES, contents
from dptrain.data.manifest import read_manifest
from dptrain.errors import DataError

SAMPLES = {"train": 300, "test": 100}
PIXELS = {
    split: np.random.default_rng(number).integers(0, 256, (count, 3072), dtype=np.uint8)
    for number, (split, count) in enumerate(SAMPLES.items())
}
FINE = {split: np.arange(count, dtype=np.uint8) * 7 % 100 for split, count in SAMPLES.items()}
COARSE = {split: fine // 5 for split, fine in FINE.items()}
LABELS = {"fine": FINE, "coarse": COARSE}


def small(labels: str) -> Contents:
    return replace(contents(labels), samples=tuple(SAMPLES.values()))


def binary_members() -> dict[str, bytes]:
    members = {
        f"cifar-100-binary/{kind}_label_names.txt": "\n".join(names).encode() + b"\n" for kind, names in NAMES.items()
    }
    for split, pixels in PIXELS.items():
        records = np.concatenate([COARSE[split][:, None], FINE[split][:, None], pixels], axis=1)
        members[f"cifar-100-binary/{split}.bin"] = records.tobytes()
    return members


def pickled_members() -> dict[str, bytes]:
    meta = {f"{kind}_label_names".encode(): [name.encode() for name in names] for kind, names in NAMES.items()}
    members = {"cifar-100-python/meta": pickle.dumps(meta, protocol=2)}
    for split, pixels in PIXELS.items():
        batch = {f"{kind}_labels".encode(): LABELS[kind][split].tolist() for kind in NAMES} | {b"data": pixels}
        members[f"cifar-100-python/{split}"] = pickle.dumps(batch, protocol=2)
    return members


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small archive with the name of the published one, for runs in this process."""
    monkeypatch.setattr(cifar100, "contents", small)
    return write_archive(tmp_path / "cifar-100-binary.tar.gz", binary_members())


@pytest.mark.parametrize("labels", ["fine", "coarse"])
@pytest.mark.parametrize("members", [binary_members, pickled_members])
def test_pixels_and_labels_are_read(members: Callable[[], dict[str, bytes]], labels: str, tmp_path: Path) -> None:
    path = write_archive(tmp_path / "a.tar.gz", {"x/readme": b"x", **members()})
    data = read_archive(path, replace(contents(labels), samples=tuple(SAMPLES.values())), tmp_path)
    for split, part in (("train", data.train), ("test", data.test)):
        assert np.array_equal(part.images[:].reshape(-1, 3072), PIXELS[split])
        assert np.array_equal(part.labels, LABELS[labels][split])
    assert data.classes == NAMES[labels]


def test_the_archive_is_detected_by_its_name_and_packed(archive: Path, tmp_path: Path) -> None:
    assert main([str(archive), str(tmp_path / "fine")]) == 0
    assert main(["cifar100", str(tmp_path / "coarse"), "--labels", "coarse", "--archive", str(archive)]) == 0
    fine, coarse = (read_manifest(tmp_path / name) for name in ("fine", "coarse"))
    assert (len(fine.classes), len(coarse.classes)) == (100, 20)
    assert (fine.name, coarse.name) == ("cifar100", "cifar100-coarse")
    assert fine.mean == coarse.mean
    assert (fine.samples("train"), fine.samples("test")) == (300, 100)


def test_the_archive_of_cifar_10_is_refused_with_what_it_lacks(tmp_path: Path) -> None:
    path = write_archive(tmp_path / "a.tar.gz", {"cifar-10-batches-bin/data_batch_1.bin": b"x"})
    with pytest.raises(DataError, match=r"not a CIFAR-100 archive: .* lacks cifar-100-binary/fine_label_names\.txt"):
        read_archive(path, contents("fine"), tmp_path)


def test_a_label_above_the_classes_is_refused(tmp_path: Path) -> None:
    members = binary_members()
    members["cifar-100-binary/test.bin"] = b"\x14" + members["cifar-100-binary/test.bin"][1:]
    path = write_archive(tmp_path / "a.tar.gz", members)
    with pytest.raises(DataError, match=r"test\.bin: labels is not a list of 100 whole numbers from 0 to 19"):
        read_archive(path, replace(contents("coarse"), samples=tuple(SAMPLES.values())), tmp_path)


def test_the_published_archives_have_60000_images_in_100_fine_and_20_coarse_classes() -> None:
    assert contents("fine").samples == (50_000, 10_000)
    for names, count in ((NAMES["fine"], 100), (NAMES["coarse"], 20)):
        assert len(set(names)) == count
        assert sorted(names) == list(names)
