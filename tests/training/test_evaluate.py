"""dptrain.training.evaluate: the figures of a plain loop, from any number of ranks and threads."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from data_sets import image_data
from mpi_runs import dptrain, own_mpi
from networks import ready
from training_runs import configuration, packed, run, session_and_state

from dptrain.arrays.memory import Workspace
from dptrain.bench.workload import random_data, random_samples
from dptrain.checkpoint.format import read_checkpoint
from dptrain.data.batches import Normalisation
from dptrain.data.manifest import read_manifest
from dptrain.data.shard import read_shard
from dptrain.nn import Conv2d, Flatten, Linear, Network
from dptrain.parallel.communicator import Communicator
from dptrain.parallel.pool import ShardThreads
from dptrain.training.evaluate import Evaluation, EvaluationWork, evaluate
from dptrain.training.evaluate_checkpoint import evaluate_checkpoint

TEST_SAMPLES = 137  # over two shards: 69 and 68, so each ends with an uneven batch


def plain_loop(data: Path, checkpoint: Path) -> Evaluation:
    """Sample by sample in float64, by the definition."""
    read, manifest = read_checkpoint(checkpoint), read_manifest(data)
    network = session_and_state(configuration(data, data))[0].network
    parameters = read.state.parameters.astype(np.float64)
    mean, std = (np.array(values)[:, None, None] for values in (manifest.mean, manifest.std))
    losses, samples, correct = [], [0] * len(manifest.classes), [0] * len(manifest.classes)
    for shard in range(manifest.shard_count):
        part = read_shard(data, manifest, "test", shard)
        for image, label in zip(part.images, part.labels.tolist(), strict=True):
            x = ((image / 255 - mean) / std).transpose(1, 2, 0)[:, :, None]
            logits = network.predict(ready(network, parameters), x, Workspace(np.float64))[0].tolist()
            losses.append(math.log(sum(math.exp(z - max(logits)) for z in logits)) + max(logits) - logits[label])
            samples[label] += 1
            correct[label] += logits.index(max(logits)) == label
    return Evaluation(sum(losses) / len(losses), tuple(samples), tuple(correct))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A data set whose test shards are uneven, and a checkpoint trained on it."""
    folder = tmp_path_factory.mktemp("evaluate")
    data = packed(folder / "set", test=TEST_SAMPLES, shards=4)
    run(configuration(data, folder / "run"))
    return data, folder / "run" / "checkpoints" / "step-00000014.h5"


def evaluation_of(data: Path, checkpoint: Path, threads: int = 1) -> Evaluation:
    return evaluate_checkpoint(read_checkpoint(checkpoint), checkpoint, data, Communicator(), threads=threads)


def test_non_finite_parameters_give_a_non_finite_loss_without_a_warning() -> None:
    """Winograd's transform of the kernels uses them before the first sample."""
    network = Network([Conv2d(2, 3, algorithm="winograd4"), Flatten(), Linear(2)], (1, 6, 6))
    manifest, _ = random_data(Communicator(), (1, 6, 6), classes=2, shards=1, samples=3)
    vectors = network.initial(0)
    vectors["parameters"][0] = np.inf
    shards = {0: random_samples((1, 6, 6), 2, 0, 3)}
    work = EvaluationWork(network, shards, Normalisation(manifest), longest=3)
    found = evaluate(work, vectors, ShardThreads(1), Communicator())
    assert not math.isfinite(found.loss)
    assert found.samples == 3


def test_loss_and_accuracy_equal_those_of_a_plain_loop_over_the_samples(trained: tuple[Path, Path]) -> None:
    found, expected = evaluation_of(*trained), plain_loop(*trained)
    assert found.loss == pytest.approx(expected.loss, rel=1e-5)
    assert (found.class_samples, found.class_correct) == (expected.class_samples, expected.class_correct)
    assert found.accuracy == sum(expected.class_correct) / TEST_SAMPLES


@pytest.mark.parametrize("shards", [1, 2, 5])
def test_every_test_sample_counts_once(shards: int, tmp_path: Path) -> None:
    data = packed(tmp_path / "set", test=TEST_SAMPLES, shards=shards)
    session, state = session_and_state(configuration(data, tmp_path / "run", batch_size=5 * shards))
    found = evaluate(session.evaluation, state.vectors, session.pool, Communicator())
    labels = image_data(train=101, test=TEST_SAMPLES, shape=(2, 6, 7)).test.labels
    assert found.class_samples == tuple(np.bincount(labels, minlength=5).tolist())


@pytest.mark.parametrize("threads", [3, 8])
def test_the_number_of_threads_does_not_change_a_bit_of_the_figures(threads: int, trained: tuple[Path, Path]) -> None:
    assert evaluation_of(*trained, threads=threads) == evaluation_of(*trained, threads=1)


@pytest.mark.mpi
def test_any_number_of_ranks_reports_the_figures_of_one_process_once(
    trained: tuple[Path, Path], tmp_path: Path
) -> None:
    data, checkpoint = trained
    alone = dptrain("eval", checkpoint, data, "--json", cwd=tmp_path)
    assert alone.returncode == 0, alone.stderr
    for ranks in (2, 3):
        together = dptrain("eval", checkpoint, data, "--json", cwd=tmp_path, mpi=own_mpi(), ranks=ranks)
        assert (together.returncode, together.stdout) == (0, alone.stdout), together.stderr
    assert json.loads(alone.stdout)["samples"] == TEST_SAMPLES
