"""dptrain.report.pictures: the pictures of a run, made from the predictions of its last evaluation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from training_runs import configuration, finished, packed

from dptrain.checkpoint.format import read_checkpoint
from dptrain.data.manifest import read_manifest
from dptrain.data.shard import read_shard
from dptrain.parallel.communicator import Communicator
from dptrain.report.drawing import confusion_picture
from dptrain.report.page.pictures import Picture
from dptrain.report.pictures import pictures
from dptrain.training.evaluate_checkpoint import evaluate_checkpoint
from dptrain.training.events import RunFinished

SHAPE = (3, 8, 8)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packed(tmp_path_factory.mktemp("pictures") / "set", shape=SHAPE)


@pytest.fixture(scope="module")
def event(data: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFinished:
    return finished(configuration(data, tmp_path_factory.mktemp("pictures") / "run", report=True))


def tiles(page: Picture, top: int, down: int, across: int, side: int, factor: int) -> list[bytes]:
    """The pictures on a page from the first row on, without their enlargement."""
    found = []
    for row in range(top, page.shape[0] - side, down):
        for column in range(10, page.shape[1] - side, across):
            found.append(np.ascontiguousarray(page[row : row + side : factor, column : column + side : factor]))
    return [tile.tobytes() for tile in found if (tile != 255).any()]


def test_the_confusion_matrix_is_that_of_the_last_checkpoint(data: Path, event: RunFinished) -> None:
    checkpoint = Path(event.last_checkpoint)
    evaluation = evaluate_checkpoint(read_checkpoint(checkpoint), checkpoint, data, Communicator(), predictions=True)
    assert evaluation.predictions is not None
    matrix = np.zeros((5, 5), np.int64)
    np.add.at(matrix, (evaluation.predictions.labels, evaluation.predictions.predicted), 1)
    expected = confusion_picture(matrix, read_manifest(data).classes)
    assert np.array_equal(pictures(event)["test/confusion"], expected)


def test_the_mistakes_are_images_of_the_test_split_most_confident_first(data: Path, event: RunFinished) -> None:
    predictions = event.predictions
    assert predictions is not None
    shards = [read_shard(data, read_manifest(data), "test", shard) for shard in range(4)]
    images = {int(number): image for one in shards for number, image in zip(one.index, one.images, strict=True)}
    wrong = [row for row in range(37) if predictions.labels[row] != predictions.predicted[row]]
    wrong.sort(key=lambda row: -predictions.confidence[row])
    assert len(wrong) > 12
    expected = [images[int(predictions.index[row])].transpose(1, 2, 0).tobytes() for row in wrong[:24]]
    assert tiles(pictures(event)["test/mistakes"], 56, 96 + 3 * 18 + 8, 136 + 8, 96, 12) == expected


def test_the_filters_are_those_of_the_last_checkpoint(event: RunFinished) -> None:
    state = read_checkpoint(Path(event.last_checkpoint)).state
    weight = state.vectors["parameters"][: 3 * 3 * 3 * 3].reshape(3, 3, 3, 3)  # (O, C, KH, KW), the first tensor
    found = tiles(pictures(event)["network/first_filters"], 56, 48 + 8, 48 + 8, 48, 16)
    for tile, kernel in zip(found, weight, strict=True):
        values = np.frombuffer(tile, np.uint8).reshape(3, 3, 3).astype(float) / 127.5 - 1
        expected = kernel.transpose(1, 2, 0) / np.abs(kernel).max()
        np.testing.assert_allclose(values, expected, atol=0.51 / 127.5)


def test_a_network_without_convolution_has_no_picture_of_filters(data: Path, tmp_path: Path) -> None:
    event = finished(configuration(data, tmp_path / "run", report=True, model="linear", model_options={}))
    assert set(pictures(event)) == {"test/confusion", "test/mistakes"}


def test_a_network_without_mistakes_has_no_picture_of_them(event: RunFinished) -> None:
    assert event.predictions is not None
    right = event.predictions.rows(np.flatnonzero(event.predictions.labels == event.predictions.predicted))
    assert set(pictures(event._replace(predictions=right))) == {"test/confusion", "network/first_filters"}


def test_without_predictions_there_are_no_pictures(data: Path, tmp_path: Path) -> None:
    assert pictures(finished(configuration(data, tmp_path / "run", report=False))) == {}
