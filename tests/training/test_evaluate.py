"""dptrain.training.evaluate: the figures of a plain loop, from any number of ranks and threads."""

from __future__ import annotations

import json
import math
from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from command_runs import assert_one_error, dptrain_here, train_here
from data_sets import image_data
from mpi_runs import dptrain, own_mpi
from networks import ready
from selection import quick_first
from thread_ranks import on_ranks
from training_runs import configuration, packed, run, session_and_state

from dptrain.arrays.memory import Workspace
from dptrain.bench.workload import random_data, random_samples
from dptrain.checkpoint.format import read_checkpoint
from dptrain.data.augmentation import TTA
from dptrain.data.batches import Normalisation
from dptrain.data.manifest import read_manifest
from dptrain.data.shard import read_shard
from dptrain.data.transforms import views
from dptrain.nn import Conv2d, Flatten, Linear, Network
from dptrain.parallel.communicator import Communicator
from dptrain.parallel.pool import ShardThreads
from dptrain.report.jsonl import JsonLines
from dptrain.training.evaluate import Evaluation, EvaluationWork, evaluate
from dptrain.training.evaluate_checkpoint import evaluate_checkpoint
from dptrain.training.loop import train

TEST_SAMPLES = 137  # over two shards: 69 and 68, so each ends with an uneven batch


def plain_loop(data: Path, checkpoint: Path, tta: str = "none") -> Evaluation:
    """Sample by sample in float64, by the definition."""
    read, manifest = read_checkpoint(checkpoint), read_manifest(data)
    network = session_and_state(configuration(data, data))[0].network
    parameters = read.state.parameters.astype(np.float64)
    mean, std = (np.array(values)[:, None, None] for values in (manifest.mean, manifest.std))
    losses, samples, correct = [], [0] * len(manifest.classes), [0] * len(manifest.classes)
    for shard in range(manifest.shard_count):
        part = read_shard(data, manifest, "test", shard)
        for image, label in zip(part.images, part.labels.tolist(), strict=True):
            mean_logits = np.zeros(len(manifest.classes))
            for weight, view in views(image[None], tta):
                x = ((view[0] / 255 - mean) / std).transpose(1, 2, 0)[:, :, None]
                mean_logits += weight * network.predict(ready(network, parameters), x, Workspace(np.float64))[0]
            logits = mean_logits.tolist()
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


def evaluation_of(data: Path, checkpoint: Path, threads: int = 1, tta: str = "none") -> Evaluation:
    return evaluate_checkpoint(read_checkpoint(checkpoint), checkpoint, data, Communicator(), threads=threads, tta=tta)


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


@quick_first("tta", TTA)
def test_loss_and_accuracy_equal_those_of_a_plain_loop_over_the_samples(trained: tuple[Path, Path], tta: str) -> None:
    found, expected = evaluation_of(*trained, tta=tta), plain_loop(*trained, tta)
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


@quick_first("threads", [3, 8])
def test_the_number_of_threads_does_not_change_a_bit_of_the_figures(threads: int, trained: tuple[Path, Path]) -> None:
    for tta in ("none", "mirror-translate"):
        assert evaluation_of(*trained, threads=threads, tta=tta) == evaluation_of(*trained, tta=tta)


@pytest.mark.slow
@quick_first("tta", ["mirror", "mirror-translate"])
def test_a_run_reports_test_time_augmentation_in_addition_on_any_number_of_ranks(
    tta: str, trained: tuple[Path, Path], tmp_path: Path
) -> None:
    """The parameters and the other figures stay the same, and `dptrain eval` gives the same figures."""
    data, checkpoint = trained
    augmented = evaluation_of(*trained, tta=tta)
    plain = evaluation_of(*trained)
    for ranks in (1, 2, 3):
        config = configuration(data, tmp_path / str(ranks), tta=tta)
        with closing(JsonLines()) as log:
            finished = on_ranks(ranks, partial(train, config, reporters=[log]))[0]
        assert finished is not None
        assert finished.params_sha256 == read_checkpoint(checkpoint).state.params_sha256
        assert (finished.test_loss, finished.test_accuracy) == (plain.loss, plain.accuracy)
        assert (finished.tta_loss, finished.tta_accuracy) == (augmented.loss, augmented.accuracy)
        last = json.loads((tmp_path / str(ranks) / "metrics.jsonl").read_text().splitlines()[-1])
        figures = {"test_loss": augmented.loss, "test_accuracy": augmented.accuracy}
        assert last == {"event": "tta", "step": 14, "tta": tta, **figures}
    assert augmented.loss != plain.loss


def test_test_time_augmentation_uses_the_average_of_the_parameters(tmp_path: Path) -> None:
    data = packed(tmp_path / "set")
    finished, _ = run(configuration(data, tmp_path / "run", average="ema", tta="mirror", lr=0.3))
    path = sorted((tmp_path / "run" / "checkpoints").iterdir())[-1]
    averaged = evaluation_of(data, path, tta="mirror")
    assert (finished["tta_loss"], finished["tta_accuracy"]) == (averaged.loss, averaged.accuracy)
    checkpoint = read_checkpoint(path)
    layouts = {name: one for name, one in checkpoint.layouts.items() if not name.startswith("average")}
    raw = checkpoint.restricted(layouts, path)
    assert evaluate_checkpoint(raw, path, data, Communicator(), threads=1, tta="mirror").loss != averaged.loss


@pytest.mark.slow
def test_train_and_eval_print_the_accuracy_with_test_time_augmentation(
    trained: tuple[Path, Path], tmp_path: Path
) -> None:
    data, checkpoint = trained
    done = train_here(data, tmp_path / "run", "--tta", "mirror", "--json")
    words = "with test-time augmentation (mirror)"
    assert f" % {words}\n" in done.stdout
    accuracy = json.loads(done.stdout.splitlines()[-1])["tta_accuracy"]
    assert (
        f"accuracy {100 * accuracy:.2f} % ("
        in dptrain_here("eval", "run", data, "--tta", "mirror", cwd=tmp_path).stdout
    )
    done = dptrain_here("eval", checkpoint, data, "--tta", "mirror", cwd=tmp_path)
    assert f"of {TEST_SAMPLES}), {words}\n" in done.stdout
    as_json = json.loads(dptrain_here("eval", checkpoint, data, "--tta", "mirror", "--json", cwd=tmp_path).stdout)
    assert (as_json["tta"], as_json["accuracy"]) == ("mirror", accuracy)
    done = dptrain_here("eval", checkpoint, data, "--tta", "mirrors", cwd=tmp_path)
    assert_one_error(done, "--tta is 'mirrors'; did you mean 'mirror'", status=2)


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
