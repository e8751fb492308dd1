import itertools

import numpy as np
import pytest

from dptrain.bench.step import layer_times, measure_step, training_flops
from dptrain.bench.workload import make_workload
from dptrain.checkpoint.state import TrainingState
from dptrain.config.train import TrainConfig
from dptrain.nn import Flatten, Linear, WhiteningConv2d
from dptrain.nn.network import Network
from dptrain.nn.zoo import convnet, linear
from dptrain.parallel.communicator import Communicator
from dptrain.training.session import Engine


def small_workload() -> tuple[Engine, TrainingState]:
    config = TrainConfig(model_options={"widths": [3]}, batch_size=6, threads=2)
    return make_workload(config, Communicator(), (2, 8, 8), classes=4, shards=2)


def test_flops_follow_from_the_definition() -> None:
    conv1, conv2, linear1 = 2 * 27 * 32 * 32 * 32, 2 * 288 * 64 * 16 * 16, 2 * 4096 * 10
    network = Network(convnet((3, 32, 32), 10), (3, 32, 32))
    assert training_flops(network) == 2 * conv1 + 3 * conv2 + 3 * linear1
    first_without_weights = Network(linear((3, 4, 4), 10), (3, 4, 4))
    assert training_flops(first_without_weights) == 3 * 2 * 48 * 10
    fixed_weight = Network([WhiteningConv2d(), Flatten(), Linear(10)], (3, 4, 4))
    assert training_flops(fixed_weight) == 2 * 12 * 24 * 9 + 3 * 2 * 24 * 9 * 10


@pytest.mark.slow
def test_the_figures_are_consistent() -> None:
    engine, state = small_workload()
    figures = measure_step(engine, state, batch_size=6, steps=5)
    assert state.step == 15  # 10 to warm up
    assert figures["images_per_second"] == 6 / (figures["milliseconds_per_step"]["median"] / 1e3)
    flops = training_flops(engine.network)
    per_core = figures["images_per_second"] * flops / 2
    np.testing.assert_allclose(figures["gflops_per_core"], per_core / 1e9)
    np.testing.assert_allclose(figures["share_of_sgemm"], figures["gflops_per_core"] / figures["sgemm_gflops"])
    longest = 5 * figures["milliseconds_per_step"]["most"] / 1e3
    assert 0 < sum(figures["seconds"][0].values()) <= longest
    assert [row["layer"] for row in figures["layers"]] == [stage.name for stage in engine.network.stages]


def test_measuring_layers_does_not_change_the_results() -> None:
    engine, state = small_workload()
    before = state.parameters.copy()
    for row in layer_times(engine, state):
        assert row["forward"] > 0
        assert row["backward"] > 0
    np.testing.assert_array_equal(state.parameters, before)


def test_a_layers_time_is_the_sum_over_all_blocks_of_a_microbatch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that advances by one second at each reading: a call takes a second, 40 samples are 3 blocks."""
    ticks = itertools.count()
    monkeypatch.setattr("dptrain.bench.step.time.perf_counter", lambda: float(next(ticks)))
    config = TrainConfig(model="linear", batch_size=40, threads=1)
    workload = make_workload(config, Communicator(), (1, 4, 4), classes=2, shards=1)
    each = pytest.approx(1e6 * 3 / 40)
    flatten, linear = layer_times(*workload)
    assert (flatten["forward"], flatten["backward"]) == (each, 0)  # no layer before it has parameters
    assert (linear["forward"], linear["backward"]) == (each, each)
