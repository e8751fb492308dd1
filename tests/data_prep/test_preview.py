"""data_prep.preview: the contact sheet shows the images that training sees."""

from __future__ import annotations

import io
import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_sets import image_data
from numpy.typing import NDArray
from PIL import Image

from data_prep import __main__ as program
from data_prep.contact_sheet import GAP, LABEL, MARGIN, Row, draw_sheet
from data_prep.pack import pack
from data_prep.preview import KEYS, Collection, PreviewConfig, configuration, described
from dptrain.arrays.memory import Workspace
from dptrain.config.recipes import FOLDER as RECIPES
from dptrain.config.train import KEYS as TRAIN_KEYS
from dptrain.config.train import TrainConfig
from dptrain.data.loading import load_shards
from dptrain.data.manifest import read_manifest
from dptrain.data.transforms import make_transforms
from dptrain.errors import UsageError
from dptrain.system.keys import Scope
from dptrain.training.session import make_batches

SHAPE = (3, 8, 9)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data") / "set"
    pack(out, image_data(shape=SHAPE), shards=4)
    return out


def collected(
    folder: Path, config: PreviewConfig, *, classes: int = 5, samples: int = 8, epochs: int = 2
) -> Collection:
    manifest = read_manifest(folder)
    found = Collection(manifest, classes, samples, epochs)
    for shard in range(manifest.shard_count):
        transforms = make_transforms(config, manifest.image_shape, manifest.mean)
        found.add(folder, shard, config.seed, transforms)
    return found


def test_images_and_means_are_those_of_their_class(folder: Path) -> None:
    train = image_data(shape=SHAPE).train
    found = collected(folder, PreviewConfig(), classes=4)
    names = ("a", "b", "c", "d")
    every, *rows = (row for row in found.rows(names) if not row.augmented)
    np.testing.assert_array_equal(every.first[0], np.rint(train.images.mean(axis=0)))
    assert [row.label for row in rows] == ["0 a", "1 b", "2 c", "3 d"]
    for number, row in enumerate(rows):
        of_class = {image.tobytes() for image in train.images[train.labels == number]}
        np.testing.assert_array_equal(row.first[0], np.rint(train.images[train.labels == number].mean(axis=0)))
        shown = [image.tobytes() for image in row.images]
        assert len(shown) == len(set(shown)) == 8
        assert set(shown) <= of_class


def test_augmented_images_are_those_of_the_training_batches(folder: Path) -> None:
    """The batches of training are normalised; the sheet has the pixels before that."""
    keys: dict[str, Any] = {"flip": True, "alternating_flip": True, "crop": "zero", "resized_crop": 0.5, "cutout": 3}
    keys |= {"brightness": 0.3, "seed": 5}
    manifest = read_manifest(folder)
    batches = make_batches(
        TrainConfig(batch_size=16, **keys), manifest, load_shards(folder, manifest, range(4), 1, ("train",))
    )
    mean, std = np.array(manifest.mean), np.array(manifest.std)
    found = collected(folder, PreviewConfig(**keys), samples=3)
    for epoch in range(2):
        seen: dict[bytes, NDArray[np.uint8]] = {}  # by the image without augmentation
        for one in batches.values():
            for step in range(7):
                images, _ = one.batch(epoch, step, Workspace())
                pixels = np.rint((images * std + mean) * 255).astype(np.uint8).transpose(2, 3, 0, 1)
                originals = one.samples.images[one.order(epoch)[step * 4 : step * 4 + 4]]
                seen |= {image.tobytes(): pixel for image, pixel in zip(originals, pixels, strict=True)}
        assert len(seen) == 101
        for kept, augmented in zip(found.kept, found.augmented[epoch], strict=True):
            originals, shown = np.concatenate(kept), np.concatenate(augmented)
            assert len(originals) == len(shown) == 3
            for image, result in zip(originals, shown, strict=True):
                np.testing.assert_array_equal(result, seen[image.tobytes()])


def test_the_keys_are_those_of_training() -> None:
    """All that decide training images, with the same defaults and rules; and no others."""
    decide = [name for name in TRAIN_KEYS if name in {one.name for one in fields(PreviewConfig)}]
    assert set(KEYS) == {name for name in decide if TRAIN_KEYS[name].metadata["scope"] is not Scope.PROCESS}
    for name, key in KEYS.items():
        assert key.default == TRAIN_KEYS[name].default
        assert {**key.metadata, "help": ""} == {**TRAIN_KEYS[name].metadata, "help": ""}


def test_flags_win_over_the_file_whose_other_keys_are_ignored(tmp_path: Path) -> None:
    path = tmp_path / "my.toml"
    path.write_text(
        'model = "resnet20"\nepochs = 3\naugment = "zero"\ncrop-pixels = 2\nseed = 7\n[model-options]\nx = 1\n'
    )
    saved = PreviewConfig(crop="zero", flip=True, crop_pixels=2, seed=7)
    assert configuration({"config": path, "png": "x"}) == saved
    assert configuration({"config": path, "flip": False, "cutout": 3}) == replace(saved, flip=False, cutout=3)
    assert configuration({"config": path, "augment": "none"}) == replace(saved, crop="none", flip=False)
    assert configuration({"config": RECIPES / "resnet9.toml"}) == PreviewConfig(crop="reflect", flip=True, cutout=8)
    assert configuration({"config": None}) == PreviewConfig()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('crop = "reflection"', "--crop is 'reflection'; did you mean 'reflect'"),
        ("cutout = -1", "--cutout is -1, expected at least 0"),
        ("seed = 1.5", "--seed is 1.5, expected a whole number"),
        ("cutout = ", "Invalid value"),
    ],
)
def test_a_file_with_a_wrong_value_is_one_error(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "my.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"--config .*my\.toml: ") as caught:
        configuration({"config": path})
    assert words in str(caught.value)


def test_the_augmentation_is_described_by_its_flags() -> None:
    assert described(PreviewConfig()) == ""
    config = PreviewConfig(crop="zero", flip=True, cutout=4, cutout_fill="0", brightness=0.2, seed=3)
    assert described(config) == "--crop zero --flip --brightness 0.2 --cutout 4 --cutout-fill 0 --seed 3"


def run(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, str, str]:
    status = program.main(["preview", *map(str, words)])
    return status, *capsys.readouterr()


def test_a_sheet_is_drawn_with_the_flags_of_train(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    png = tmp_path / "sheet.png"
    status, out, _ = run(capsys, folder, "--png", png, "--flip", "--cutout", "3", "--samples", "2", "--json")
    facts = json.loads(out)
    assert (status, facts["augmentation"], facts["epochs"]) == (0, "--flip --cutout 3", 2)
    with Image.open(png) as sheet:
        assert list(sheet.size) == facts["size"]
        augmented = sheet.size
    status, out, _ = run(capsys, folder, "--png", png, "--samples", "2")
    assert status == 0
    assert "5 of 5 classes" in out
    assert "augmentation    none; show it" in out
    with Image.open(png) as sheet:
        assert sheet.size[1] < augmented[1]


def test_wrong_flags_are_the_errors_of_train(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    png = tmp_path / "sheet.png"
    for words, expected in (
        (["--crop-pixels", "2"], "--crop-pixels has no effect without --crop"),
        (["--crop", "mirror"], "--crop is 'mirror'"),
        (["--cutout", "8"], "--cutout 8 needs images of at least 9 x 9 pixels, these are 8 x 9"),
        (["--samples", "100", "--classes", "5", "--epochs", "99999", "--flip"], "use fewer --samples"),
        (["--png", str(tmp_path / "no" / "x.png")], "cannot be written: No such file"),
    ):
        status, out, error = run(capsys, folder, "--png", png, *words)
        assert (status, out) == (2, "")
        assert expected in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("shape", "size", "factor"),
    [((1, 28, 28), (56, 56), 2), ((2, 32, 20), (64, 40), 2), ((4, 5, 5), (60, 60), 12), ((3, 4, 90), (4, 90), 1)],
)
def test_images_of_any_shape_are_drawn_as_they_are(
    shape: tuple[int, int, int], size: tuple[int, int], factor: int
) -> None:
    """The pixels of every tile, enlarged by a whole factor; gray of one or two channels, color of three or more."""
    images = np.random.default_rng(0).integers(0, 256, (4, *shape), dtype=np.uint8)
    content, _ = draw_sheet(
        "title", ["note"], [Row("all", images[:1], images[:0]), Row("one", images[1:2], images[2:])]
    )
    with Image.open(io.BytesIO(content)) as opened:
        sheet = np.asarray(opened)
    height, width = size
    tops = [2 * MARGIN + 2 * 18 + MARGIN, 0]
    tops[1] = tops[0] + max(height, 18) + GAP + MARGIN
    places = [(tops[0], 0), (tops[1], 0), (tops[1], 1), (tops[1], 2)]
    for image, (top, column) in zip(images, places, strict=True):
        left = MARGIN + LABEL + column * (width + GAP) + MARGIN * (column > 0)
        tile = sheet[top : top + height, left : left + width]
        channels = image[:3] if shape[0] > 2 else image[[0, 0, 0]]
        expected = channels.transpose(1, 2, 0).repeat(factor, 0).repeat(factor, 1)
        np.testing.assert_array_equal(tile, expected)


def test_large_images_are_reduced_to_the_mean_of_their_pixels() -> None:
    images = np.full((2, 3, 512, 256), 40, np.uint8)
    images[:, :, ::2] = 80
    content, _ = draw_sheet("title", [], [Row("all", images[:1], images[1:])])
    with Image.open(io.BytesIO(content)) as opened:
        sheet = np.asarray(opened)
    tile = sheet[2 * MARGIN + 18 + MARGIN :, MARGIN + LABEL :][:128, :64]
    assert (tile == 60).all()


@pytest.mark.parametrize("name", ["x" * 200, "日本語", "\N{GRINNING FACE}", "ab\u202ecd", "a b"])
def test_every_class_name_can_be_drawn_and_stays_left_of_the_images(name: str) -> None:
    images = np.zeros((1, 1, 32, 32), np.uint8)
    content, _ = draw_sheet(name, [], [Row(name, images, images)])
    plain, _ = draw_sheet(name, [], [Row("", images, images)])
    with Image.open(io.BytesIO(content)) as one, Image.open(io.BytesIO(plain)) as other:
        changed = np.argwhere((np.asarray(one) != np.asarray(other)).any(axis=2))
    assert len(changed)
    assert changed[:, 1].min() >= MARGIN - 1
    assert changed[:, 1].max() < MARGIN + LABEL
