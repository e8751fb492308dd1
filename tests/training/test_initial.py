"""dptrain.training.initial: initial values from training images, on any number of ranks, saved and evaluated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from selection import quick_first
from thread_ranks import on_ranks
from training_runs import configuration, packed

from dptrain.bench.workload import make_workload
from dptrain.checkpoint.format import read_checkpoint
from dptrain.config.train import TrainConfig
from dptrain.data.batches import Normalisation
from dptrain.errors import ModelError
from dptrain.nn.layers.whitening import WhiteningConv2d
from dptrain.parallel.communicator import Communicator
from dptrain.training import initial
from dptrain.training.evaluate_checkpoint import evaluate_checkpoint
from dptrain.training.initial import SampleImages, first_state, sample_images
from dptrain.training.loop import train
from dptrain.training.session import set_up

WHITENED = """
from dptrain.nn import Flatten, Linear, ReLU, Tensor, WhiteningConv2d, zeros


def build(input_shape, classes):
    return [WhiteningConv2d(), ReLU(), Flatten(), Linear(classes)]


class Failing(Flatten):
    def tensors(self):
        return [Tensor("mean", (1,), zeros, kind="buffer", from_images=lambda blocks: next(blocks))]


def fails(input_shape, classes):
    return [Failing(), Linear(classes)]
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """101 samples in 4 shards of 26 and 25."""
    return packed(tmp_path_factory.mktemp("data") / "set")


@pytest.fixture
def whitened(tmp_path: Path) -> dict[str, Any]:
    """The keys of a run whose network begins with a whitening convolution."""
    (tmp_path / "whitened.py").write_text(WHITENED)
    return {"model": f"{tmp_path / 'whitened.py'}:build", "model_options": {}}


@pytest.mark.parametrize(("images", "size"), [(18, 64 << 20), (5000, 64 << 20), (5000, 18 * 84)])
def test_the_first_images_of_each_shard_are_taken_in_the_order_of_the_shards(
    images: int, size: int, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(initial, "SAMPLE_IMAGES", images)
    monkeypatch.setattr(initial, "SAMPLE_BYTES", size)  # an image has 84
    alone = set_up(configuration(data, tmp_path / "run"), Communicator()).shards.train
    found = sample_images(alone, 4, Communicator())
    numbers = [4, 5, 4, 5] if images == 18 or size == 18 * 84 else [26, 25, 25, 25]
    expected = [alone[shard].images[:number] for shard, number in enumerate(numbers)]
    np.testing.assert_array_equal(found, np.concatenate(expected))


@quick_first("ranks", [1, 2, 3])
def test_the_filters_are_the_same_on_every_rank(
    ranks: int, data: Path, tmp_path: Path, whitened: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(initial, "BLOCK", 16)
    config = configuration(data, tmp_path / "run", **whitened)

    def filters(communicator: Communicator) -> bytes:
        architecture = session.architecture  # threads of one process cannot import the model's file at the same time
        of_rank = set_up(config, communicator, architecture=architecture)
        state = first_state(of_rank, of_rank.take_step.layouts, config.seed)
        return of_rank.network.layout.views(state.parameters)["whitening1.weight"].tobytes()

    session = set_up(config, Communicator())
    images = SampleImages(sample_images(session.shards.train, 4, Communicator()), Normalisation(session.manifest))
    layer = session.network.layers[0]
    assert isinstance(layer, WhiteningConv2d)
    assert set(on_ranks(ranks, filters)) == {layer.filters(images).astype(np.float32).tobytes()}
    (one,) = SampleImages(images.images[:9], images.normalise)
    assert one.shape == (6, 7, 9, 2)


def test_filters_are_saved_and_neither_trained_nor_computed_again(
    data: Path, tmp_path: Path, whitened: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configuration(data, tmp_path / "run", max_steps=3, checkpoint_every="1", **whitened)
    on_ranks(1, lambda rank: train(config, rank))

    def computed_again(*arguments: object) -> None:
        raise AssertionError("the filters are computed again")

    monkeypatch.setattr(WhiteningConv2d, "filters", computed_again)
    (finished,) = on_ranks(1, lambda rank: train(configuration(data, tmp_path / "run", **whitened), rank))
    assert finished is not None
    paths = sorted((tmp_path / "run" / "checkpoints").glob("step-*.h5"))
    checkpoints = [read_checkpoint(path) for path in (paths[0], paths[-1])]
    first, last = (one.layouts["parameters"].views(one.state.parameters) for one in checkpoints)
    np.testing.assert_array_equal(first["whitening1.weight"], last["whitening1.weight"])
    assert not np.array_equal(first["whitening1.bias"], last["whitening1.bias"])
    found = evaluate_checkpoint(checkpoints[1], paths[-1], data, Communicator(), model=whitened["model"], threads=1)
    assert (found.accuracy, found.loss) == (finished.test_accuracy, finished.test_loss)


def test_random_images_of_a_measurement_are_whitened(whitened: dict[str, Any]) -> None:
    config = TrainConfig(model=whitened["model"], batch_size=6, threads=1)
    engine, state = make_workload(config, Communicator(), (2, 8, 8), classes=4, shards=2)
    weight = engine.network.layout.views(state.parameters)["whitening1.weight"]
    assert 0.5 < float(np.square(weight[:8]).sum(axis=(1, 2, 3)).mean()) < 2  # pixels of variance 1, uncorrelated


def test_an_error_of_a_users_initial_values_from_images_is_one_error(
    data: Path, tmp_path: Path, whitened: dict[str, Any]
) -> None:
    model = whitened["model"].replace(":build", ":fails")
    session = set_up(configuration(data, tmp_path / "run", model=model, model_options={}), Communicator())
    with pytest.raises(ModelError, match=r"fails: its initial parameters: .*not an iterator.*whitened.py, line "):
        first_state(session, session.take_step.layouts, 0)
