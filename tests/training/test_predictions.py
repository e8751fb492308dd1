"""dptrain.training.predictions: what an evaluation predicts for each sample, from any number of ranks and threads."""

from __future__ import annotations

import csv
import io
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from networks import ready
from selection import quick_first
from thread_ranks import on_ranks
from training_runs import configuration, packed, run, session_and_state

from dptrain.arrays.memory import Workspace
from dptrain.checkpoint.format import read_checkpoint
from dptrain.data.manifest import read_manifest
from dptrain.data.shard import read_shard
from dptrain.errors import UsageError
from dptrain.parallel.communicator import Communicator
from dptrain.training.evaluate_checkpoint import CheckpointEvaluation, evaluate_checkpoint
from dptrain.training.predictions import Predictions

LAST = "checkpoints/step-00000014.h5"
NAMES = ["class-0", "class-1", "class-2", "class-3", "class-4"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A data set whose test shards are uneven, and a checkpoint trained on it."""
    folder = tmp_path_factory.mktemp("predictions")
    data = packed(folder / "set", test=137)
    run(configuration(data, folder / "run"))
    return data, folder / "run" / LAST


def evaluation_of(
    trained: tuple[Path, Path], communicator: Communicator, threads: int = 1, *, predictions: bool = True
) -> CheckpointEvaluation:
    data, path = trained
    checkpoint = read_checkpoint(path)
    return evaluate_checkpoint(checkpoint, path, data, communicator, threads=threads, predictions=predictions)


def predictions_of(trained: tuple[Path, Path], communicator: Communicator, threads: int = 1) -> Predictions:
    found = evaluation_of(trained, communicator, threads).predictions
    assert found is not None
    return found


def test_predictions_equal_those_of_a_plain_loop_in_float64(trained: tuple[Path, Path]) -> None:
    data, path = trained
    found = predictions_of(trained, Communicator())
    network = session_and_state(configuration(data, data))[0].network
    parameters, manifest = read_checkpoint(path).state.parameters.astype(np.float64), read_manifest(data)
    mean, std = (np.array(values)[:, None, None] for values in (manifest.mean, manifest.std))
    expected = {}
    for shard in range(manifest.shard_count):
        part = read_shard(data, manifest, "test", shard)
        for image, label, index in zip(part.images, part.labels.tolist(), part.index.tolist(), strict=True):
            x = ((image / 255 - mean) / std).transpose(1, 2, 0)[:, :, None]
            logits = network.predict(ready(network, parameters), x, Workspace(np.float64))[0]
            share = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
            expected[index] = (label, int(logits.argmax()), float(share.max()))
    assert found.index.tolist() == sorted(expected)
    for row, index in enumerate(found.index.tolist()):
        label, predicted, share = expected[index]
        assert (found.labels[row], found.predicted[row]) == (label, predicted)
        assert found.confidence[row] == pytest.approx(share, rel=1e-5)


@quick_first(("ranks", "threads"), [(1, 3), (2, 1), (3, 2)])
def test_ranks_and_threads_do_not_change_a_bit(ranks: int, threads: int, trained: tuple[Path, Path]) -> None:
    alone = predictions_of(trained, Communicator())
    for found in on_ranks(ranks, partial(predictions_of, trained, threads=threads)):
        assert found.to_csv(NAMES) == alone.to_csv(NAMES)
        assert found.confidence.tobytes() == alone.confidence.tobytes()


def test_an_evaluation_has_predictions_only_if_it_is_asked_and_the_same_figures(trained: tuple[Path, Path]) -> None:
    plain, asked = (evaluation_of(trained, Communicator(), predictions=one) for one in (False, True))
    assert plain.predictions is None
    assert plain == asked


def test_the_last_event_of_a_run_has_the_predictions_of_its_last_checkpoint(tmp_path: Path) -> None:
    data = packed(tmp_path / "set")
    found = run(configuration(data, tmp_path / "run", report=True))[0]["predictions"]
    assert found.to_csv(NAMES) == predictions_of((data, tmp_path / "run" / LAST), Communicator()).to_csv(NAMES)
    assert run(configuration(data, tmp_path / "run", report=False))[0]["predictions"] is None


PREDICTIONS = Predictions(
    np.array([0, 3, 4, 8, 9]),
    np.array([2, 0, 1, 1, 0]),
    np.array([2, 1, 0, 1, 1]),
    np.array([0.9, 0.5, 0.75, 1, 0.5], np.float32),
    np.zeros((5, 0), np.float32),
)


def test_the_confusion_matrix_has_true_classes_as_rows() -> None:
    assert PREDICTIONS.confusion(3).tolist() == [[0, 2, 0], [1, 1, 0], [0, 0, 1]]
    for classes in (2, None):  # these have no probabilities of all classes
        with pytest.raises(UsageError, match="expected at least 3: pass their number"):
            PREDICTIONS.confusion(classes)
    assert "samples, accuracy" in repr(PREDICTIONS)
    assert repr(PREDICTIONS.rows(np.zeros(0, np.int64))) == "<Predictions: 0 samples>"
    assert (PREDICTIONS.correct, PREDICTIONS.accuracy) == (2, 0.4)


def test_mistakes_come_from_the_most_confident_on() -> None:
    assert PREDICTIONS.mistakes(2).index.tolist() == [4, 3]
    assert PREDICTIONS.mistakes(9).index.tolist() == [4, 3, 9]  # equal probabilities in the order of the samples


def test_csv_is_read_back_also_with_names_that_need_quotes() -> None:
    names = ['a "cat", big', "dog,", "ünï"]
    rows = list(csv.reader(io.StringIO(PREDICTIONS.to_csv(names))))
    assert rows[0] == ["index", "class", "predicted", "probability"]
    assert rows[3] == ["4", "dog,", 'a "cat", big', "0.75"]
    assert [np.float32(row[3]) for row in rows[1:]] == PREDICTIONS.confidence.tolist()
