"""dptrain.checkpoint.state: what a state's hashes cover, and where a run begins."""

from __future__ import annotations

import hashlib
import struct

import numpy as np
import pytest

from dptrain.checkpoint.state import TrainingState, initial_state
from dptrain.nn.network import Network
from dptrain.nn.zoo import convnet

VALUES = [0.0, -0.0, 1.5, float("nan"), float("inf"), 1e-45]


def state_of(parameters: list[float], momentum: list[float]) -> TrainingState:
    return TrainingState(np.array(parameters, np.float32), np.array(momentum, np.float32))


def small_network() -> Network:
    return Network(convnet((2, 6, 7), 5, widths=[3]), (2, 6, 7))


def test_params_sha256_is_that_of_little_endian_float32() -> None:
    packed = struct.pack(f"<{len(VALUES)}f", *VALUES)
    assert state_of(VALUES, [0.0] * 6).params_sha256 == hashlib.sha256(packed).hexdigest()


def test_params_sha256_is_the_same_for_big_endian_memory() -> None:
    swapped = TrainingState(np.array(VALUES, ">f4"), np.zeros(6, np.float32))
    assert swapped.params_sha256 == state_of(VALUES, [0.0] * 6).params_sha256


@pytest.mark.parametrize("vector", ["parameters", "momentum"])
def test_one_bit_anywhere_changes_the_hash_of_the_state(vector: str) -> None:
    state = state_of(VALUES, VALUES)
    hashes = {state.sha256}
    for bit in range(32 * len(VALUES)):
        changed = state_of(VALUES, VALUES)
        getattr(changed, vector).view(np.uint8)[bit // 8] ^= 1 << bit % 8
        hashes.add(changed.sha256)
        assert (changed.params_sha256 == state.params_sha256) == (vector == "momentum")
    assert len(hashes) == 1 + 32 * len(VALUES)


def test_a_run_begins_with_the_seeds_parameters_and_no_momentum() -> None:
    network = small_network()
    state = initial_state(network, 3)
    assert np.array_equal(state.parameters, network.initial(3)["parameters"])
    assert state.parameters.dtype == state.momentum.dtype == np.float32
    assert not state.momentum.any()
    assert (state.step, state.samples_seen, state.epoch_samples, state.test_accuracy) == (0, 0, 0, None)


def test_the_seed_decides_the_initial_state() -> None:
    network = small_network()
    assert initial_state(network, 3).sha256 == initial_state(small_network(), 3).sha256
    assert len({initial_state(network, seed).params_sha256 for seed in range(20)}) == 20


def test_vectors_begin_on_a_cache_line() -> None:
    state = initial_state(small_network(), 0)
    assert state.parameters.ctypes.data % 64 == state.momentum.ctypes.data % 64 == 0
