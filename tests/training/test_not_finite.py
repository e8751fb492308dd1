"""dptrain.training.finite: non-finite values are reported with step, shard, rank and layer, and never saved."""

from __future__ import annotations

import itertools
import json
import socket
from contextlib import closing
from pathlib import Path
from typing import Any

import broken_layers
import numpy as np
import pytest
from broken_layers import PLACES, fingerprint
from command_runs import assert_nothing_half_written, assert_one_error
from hypothesis import given
from hypothesis import strategies as st
from mpi_runs import dptrain, own_mpi
from selection import examples
from thread_ranks import on_ranks
from training_runs import SHARDS, configuration, flags, packed, session_and_state

from dptrain.arrays.layout import Layout
from dptrain.arrays.memory import Workspace
from dptrain.checkpoint.format import read_checkpoint
from dptrain.checkpoint.state import Progress, TrainingState
from dptrain.errors import TrainingError
from dptrain.nn.network import Outcome
from dptrain.parallel.communicator import Communicator
from dptrain.training.finite import check_finite, first_of_all_shards
from dptrain.training.session import Session

HOST = socket.gethostname()
LAYOUT = Layout({"conv1.weight": (2, 3), "conv1.bias": (2,), "linear1.weight": (5,)})
BROKEN = {
    "output": "the output of {} holds nan",
    "gradient": "the gradient of {}.slope holds inf",
    "input gradient": "the gradient of the input of {} holds nan",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packed(tmp_path_factory.mktemp("diagnosis") / "set")


@pytest.fixture(scope="module")
def plain(data: Path) -> tuple[Session, TrainingState]:
    return session_and_state(configuration(data, data / "run"))


def broken_model(session: Session, place: str, how: str, shards: set[int], step: int) -> dict[str, Any]:
    """Configuration of a network that breaks for those shards' microbatches of a step of the first epoch."""
    batches = session.take_step.work.batches
    microbatches = [fingerprint(batches[shard].batch(0, step, Workspace())[0]) for shard in sorted(shards)]
    options = {"place": place, "how": how, "microbatches": microbatches}
    return {"model": f"{broken_layers.__file__}:build", "model_options": options}


@pytest.mark.slow
@given(
    place=st.sampled_from(PLACES),
    how=st.sampled_from(list(BROKEN)),
    shards=st.sets(st.integers(0, SHARDS - 1), min_size=1),
    threads=st.sampled_from([1, 2, 4]),
)
@examples(30)
def test_the_lowest_broken_shard_is_reported_with_its_layer(
    place: str, how: str, shards: set[int], threads: int, data: Path, plain: tuple[Session, TrainingState]
) -> None:
    """On several threads most shards are computed by helper processes, and examined by this one."""
    broken = broken_model(plain[0], place, how, shards, step=1)
    session, state = session_and_state(configuration(data, data / "run", threads=threads, **broken))
    with closing(session.pool):
        session.take_step(state, 0, 0, 0.01)
        before = state.digest(), state.step
        with pytest.raises(TrainingError) as caught:
            session.take_step(state, 0, 1, 0.01)
        assert (state.digest(), state.step) == before
        session.take_step(state, 0, 2, 0.01)
    assert str(caught.value).startswith(
        f"step 2: the {'loss is nan' if how == 'output' else 'gradient is not finite'}, at learning rate 0.01; in "
        f"{len(shards)} of {SHARDS} shards, the first is shard {min(shards)} (rank 0 on {HOST}): "
        f"{BROKEN[how].format(place)}. The parameters were not changed"
    )


@pytest.mark.parametrize(
    "fills", [(2e38,) * 2 * SHARDS, (*(np.nan,) * SHARDS, *(1.0,) * SHARDS)], ids=["overflow of the sum", "not again"]
)
def test_a_sum_of_finite_shards_that_is_not_finite_is_reported(
    fills: tuple[float, ...], data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gradients that the network computes, one after the other, are full of these numbers."""
    session, state = session_and_state(configuration(data, data / "run"))
    values = iter(fills)

    def fill(parameters: Any, images: Any, labels: Any, gradient: Any, workspace: Any, **options: Any) -> Outcome:
        gradient.fill(next(values))
        return Outcome(1.0, 0)

    monkeypatch.setattr(session.network, "loss_and_grad", fill)
    with pytest.raises(TrainingError) as caught:
        session.take_step(state, 0, 0, 0.01)
    for words in (
        "step 1: the gradient is not finite",
        "recomputed, every shard is finite: either the sum overflowed, or the error was not reproducible",
        f"in the sum: the gradient of conv1.weight holds {'inf' if fills[0] == 2e38 else 'nan'}.",
    ):
        assert words in str(caught.value)


@pytest.mark.parametrize("first", LAYOUT.shapes)
def test_the_first_parameter_that_is_not_finite_in_the_sum_is_reported(first: str) -> None:
    total = np.zeros(LAYOUT.size, np.float32)
    total[LAYOUT.slices[first].stop - 1 :] = np.inf
    sentences = on_ranks(
        2, lambda communicator: first_of_all_shards({communicator.rank: ""}, total, LAYOUT, communicator)
    )
    assert len(set(sentences)) == 1
    assert sentences[0].endswith(f"in the sum: the gradient of {first} holds inf")


def test_a_sum_with_only_the_loss_not_finite_is_reported() -> None:
    (sentence,) = on_ranks(
        1,
        lambda communicator: first_of_all_shards(
            {0: "", 1: ""}, np.zeros(LAYOUT.size, np.float32), LAYOUT, communicator
        ),
    )
    assert sentence.endswith("in the sum: only the loss is not finite")


@given(broken=st.sets(st.integers(0, 7), min_size=1), ranks=st.integers(1, 8))
@examples(20)
def test_all_ranks_report_the_lowest_broken_shard_and_its_rank(broken: set[int], ranks: int) -> None:
    blocks = np.array_split(np.arange(8), ranks)
    found = [{int(shard): f"it is {shard}" if shard in broken else "" for shard in block} for block in blocks]
    sentences = on_ranks(
        ranks, lambda communicator: first_of_all_shards(found[communicator.rank], np.zeros(13), LAYOUT, communicator)
    )
    holder = next(rank for rank, block in enumerate(blocks) if min(broken) in block)
    expected = f"in {len(broken)} of 8 shards, the first is shard {min(broken)} (rank {holder} on {HOST}): it is "
    assert set(sentences) == {expected + str(min(broken))}


TENSORS = list(itertools.product(("parameters", "momentum"), LAYOUT.shapes))


@pytest.mark.parametrize("first", range(len(TENSORS)))
@pytest.mark.parametrize("bad", ["nan", "inf", "-inf"])
def test_the_first_tensor_of_a_state_that_is_not_finite_is_reported(bad: str, first: int) -> None:
    layouts = {"parameters": LAYOUT, "buffers": Layout({}), "momentum": LAYOUT}
    vectors = {name: np.ones(layout.size, np.float32) for name, layout in layouts.items()}
    state = TrainingState(vectors, Progress(step=9))
    check_finite(state, layouts, Communicator())
    for vector, name in TENSORS[first:]:
        vectors[vector][LAYOUT.slices[name].start] = np.float32(bad)
    vector, name = TENSORS[first]
    words = f"the parameter {name}" if vector == "parameters" else f"the momentum of {name}"
    with pytest.raises(TrainingError, match=rf"^step 9: after the update {words} holds {bad}\. Nothing of this step"):
        check_finite(state, layouts, Communicator())


@pytest.mark.mpi
@pytest.mark.once
def test_a_broken_shard_on_the_last_rank_is_reported_once_and_earlier_checkpoints_stay(
    data: Path, plain: tuple[Session, TrainingState], tmp_path: Path
) -> None:
    """Shards 2 and 3 are on rank 2; the step is the fifth."""
    broken = broken_model(plain[0], "trap2", "input gradient", {3}, step=4)
    options = ", ".join(f"{key} = {json.dumps(value)}" for key, value in broken["model_options"].items())
    words = [*flags(data, tmp_path / "run", checkpoint_every="2", **broken), "--model-options", options]
    done = dptrain("train", *words, cwd=tmp_path, mpi=own_mpi(), ranks=3, timeout=60)
    where = f"in 1 of 4 shards, the first is shard 3 (rank 2 on {HOST}): the gradient of the input of trap2 holds nan"
    assert_one_error(done, "step 5: the gradient is not finite", where, ranks=True)
    assert_nothing_half_written(tmp_path / "run")
    checkpoints = sorted((tmp_path / "run" / "checkpoints").iterdir())
    assert [path.name for path in checkpoints] == ["step-00000002.h5", "step-00000004.h5"]
    assert read_checkpoint(checkpoints[-1]).state.step == 4
