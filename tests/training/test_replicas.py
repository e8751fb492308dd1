"""dptrain.training.agreement: a rank whose state differs in one bit is reported with the first tensor that differs."""

from __future__ import annotations

import socket
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mpi_runs import PROGRAMS, mpirun, own_mpi
from selection import examples
from thread_ranks import on_ranks
from training_runs import flags, packed

from dptrain.arrays.layout import Layout
from dptrain.checkpoint.state import Progress, TrainingState
from dptrain.errors import DptrainError, PeerError, TrainingError
from dptrain.parallel.communicator import Communicator
from dptrain.training.agreement import check_replicas

LAYOUT = Layout({"conv1.weight": (2, 3), "conv1.bias": (2,), "linear1.weight": (5,)})
LAYOUTS = {"parameters": LAYOUT, "momentum": LAYOUT}
TENSORS = [f"{words} {name}" for words in ("parameter", "momentum of") for name in LAYOUT.shapes]
HOST = socket.gethostname()


def same_states(ranks: int) -> list[TrainingState]:
    numbers = np.random.default_rng(0).normal(size=(2, LAYOUT.size)).astype(np.float32)
    state = TrainingState(dict(zip(LAYOUTS, numbers, strict=True)), Progress(step=7))
    return [state.copy() for _ in range(ranks)]


def disturb(state: TrainingState, tensor: str, position: int = 0) -> None:
    """Flip the lowest bit of one number."""
    vector = state.vectors["momentum" if tensor.startswith("momentum") else "parameters"]
    values = vector[LAYOUT.slices[tensor.split()[-1]]]
    values[position % len(values) :].view(np.uint32)[0] ^= 1


def error_message(states: list[TrainingState]) -> str:
    """The error of rank 0, or ""; all ranks must raise the same text."""

    def program(communicator: Communicator) -> DptrainError | None:
        try:
            check_replicas(states[communicator.rank], LAYOUTS, communicator)
        except DptrainError as error:
            return error
        return None

    errors = on_ranks(len(states), program)
    if not any(errors):
        return ""
    assert [type(error) for error in errors] == [TrainingError] + [PeerError] * (len(states) - 1)
    assert len({str(error) for error in errors}) == 1
    assert all(error is not None and error.agreed for error in errors)
    return str(errors[0])


@pytest.mark.parametrize("ranks", [1, 2, 5])
def test_identical_replicas_pass_the_check(ranks: int) -> None:
    assert error_message(same_states(ranks)) == ""


@given(st.integers(3, 6), st.data(), st.sampled_from(TENSORS), st.integers(0, 10))
@examples(40)
def test_one_wrong_bit_is_reported_with_rank_host_and_tensor(
    ranks: int, data: st.DataObject, tensor: str, position: int
) -> None:
    states, odd = same_states(ranks), data.draw(st.integers(0, ranks - 1))
    disturb(states[odd], tensor, position)
    assert error_message(states).startswith(
        f"step 7: rank {odd} on {HOST} differs from the others ({ranks - 1} of {ranks} agree) from {tensor} on; suspect"
    )


@pytest.mark.parametrize("first", range(len(TENSORS)))
def test_the_first_tensor_that_differs_is_reported(first: int) -> None:
    states = same_states(3)
    for tensor in TENSORS[first:]:
        disturb(states[2], tensor)
    assert f"from {TENSORS[first]} on" in error_message(states)


def test_each_rank_that_differs_is_reported_with_its_first_tensor() -> None:
    states = same_states(5)
    disturb(states[1], "parameter linear1.weight")
    disturb(states[4], "momentum of conv1.bias")
    for words in (
        "rank 1 on",
        "(3 of 5 agree) from parameter linear1.weight on",
        "rank 4 on",
        "from momentum of conv1.bias on",
    ):
        assert words in error_message(states)
    assert "rank 0" not in error_message(states)


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_without_a_majority_no_rank_is_assumed_correct(ranks: int) -> None:
    """All different, or two against two."""
    states = same_states(ranks)
    for state, position in zip(states, [0, 0, 1, 1] if ranks == 4 else [0, 1, 2], strict=False):
        disturb(state, "parameter conv1.bias", 0)
        disturb(state, "parameter linear1.weight", position)
    everyone = ", ".join(f"rank {rank} on {HOST}" for rank in range(ranks))
    assert f"{everyone} differ from parameter linear1.weight on, and no majority says which are right" in error_message(
        states
    )


def test_a_difference_that_disappears_is_reported_anyway() -> None:
    class Flickering(TrainingState):
        def digest(self) -> str:
            return "not what it is"

    states = same_states(3)
    states[1] = Flickering(**vars(states[1]))
    assert "rank 1 on" in error_message(states)
    assert "from a tensor that was not found again on" in error_message(states)


@pytest.mark.mpi
@pytest.mark.once
@pytest.mark.parametrize(
    ("tensor", "step", "noticed", "last"), [("parameter conv1.bias", 5, 6, 3), ("momentum of linear1.weight", 7, 7, 6)]
)
def test_a_rank_that_differs_is_reported_before_the_next_checkpoint_is_written(
    tensor: str, step: int, noticed: int, last: int, tmp_path: Path
) -> None:
    words = ["train", *flags(packed(tmp_path / "set"), tmp_path / "run", checkpoint_every="3")]
    done = mpirun(own_mpi(), 3, PROGRAMS / "disturbed_rank.py", "1", str(step), tensor, *words, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.count("dptrain: error:") == 1
    found = f"step {noticed}: rank 1 on {HOST} differs from the others (2 of 3 agree) from {tensor} on"
    assert found in done.stderr
    assert sorted((tmp_path / "run/checkpoints").iterdir())[-1].name == f"step-{last:08d}.h5"
