"""dptrain.checkpoint.state: what the hashes of a state include, and the initial state of a run."""

from __future__ import annotations

import hashlib
import struct

import numpy as np
import pytest

from dptrain.checkpoint.state import Layouts, Progress, TrainingState, initial_state, vector_layouts
from dptrain.nn.network import Network
from dptrain.nn.zoo import convnet

VALUES = [0.0, -0.0, 1.5, float("nan"), float("inf"), 1e-45]


def state_of(parameters: list[float], momentum: list[float]) -> TrainingState:
    vectors = {"parameters": parameters, "buffers": [], "momentum": momentum}
    return TrainingState({name: np.array(values, np.float32) for name, values in vectors.items()})


def small_network() -> Network:
    return Network(convnet((2, 6, 7), 5, widths=[3]), (2, 6, 7))


def layouts(network: Network) -> Layouts:
    return vector_layouts(network, ("momentum",))


def test_params_sha256_is_the_hash_of_little_endian_float32() -> None:
    packed = struct.pack(f"<{len(VALUES)}f", *VALUES)
    assert state_of(VALUES, [0.0] * 6).params_sha256 == hashlib.sha256(packed).hexdigest()


def test_params_sha256_is_the_same_for_big_endian_memory() -> None:
    swapped = TrainingState({"parameters": np.array(VALUES, ">f4")})
    assert swapped.params_sha256 == state_of(VALUES, [0.0] * 6).params_sha256


@pytest.mark.parametrize("vector", ["parameters", "momentum"])
def test_one_bit_anywhere_changes_the_hash_of_the_state(vector: str) -> None:
    state = state_of(VALUES, VALUES)
    hashes = {state.digest()}
    for bit in range(32 * len(VALUES)):
        changed = state_of(VALUES, VALUES)
        changed.vectors[vector].view(np.uint8)[bit // 8] ^= 1 << bit % 8
        hashes.add(changed.digest())
        assert (changed.params_sha256 == state.params_sha256) == (vector == "momentum")
    assert len(hashes) == 1 + 32 * len(VALUES)


def test_a_run_starts_with_the_parameters_of_its_seed_and_zero_momentum() -> None:
    network = small_network()
    state = initial_state(network, layouts(network), 3)
    assert np.array_equal(state.parameters, network.initial(3)["parameters"])
    assert {name: vector.dtype for name, vector in state.vectors.items()} == dict.fromkeys(layouts(network), np.float32)
    assert not state.vectors["momentum"].any()
    assert state.progress == Progress()


def test_the_seed_decides_the_initial_state() -> None:
    network = small_network()
    small_layouts = layouts(network)
    assert (
        initial_state(network, small_layouts, 3).digest() == initial_state(small_network(), small_layouts, 3).digest()
    )
    assert len({initial_state(network, small_layouts, seed).params_sha256 for seed in range(20)}) == 20


def test_vectors_start_on_a_cache_line() -> None:
    network = small_network()
    state = initial_state(network, layouts(network), 0)
    for one in (state, state.copy()):
        assert [one.vectors[name].ctypes.data % 64 for name in ("parameters", "momentum")] == [0, 0]


def test_a_copy_is_equal_and_shares_no_memory() -> None:
    state = state_of(VALUES, VALUES)
    copied = state.copy()
    assert (copied.digest(), copied.progress) == (state.digest(), state.progress)
    assert copied.progress is not state.progress
    assert not any(np.shares_memory(copied.vectors[name], state.vectors[name]) for name in state.vectors)
