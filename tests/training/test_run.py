"""dptrain.training.run: when ranks die, the others end with the bits of an uninterrupted run."""

from __future__ import annotations

import random
import shutil
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from ranks_that_can_die import Death, on_ranks_that_can_die
from selection import quick_first
from training_runs import Memory, configuration, packed, run

from dptrain.checkpoint.format import read_checkpoint
from dptrain.config.files import read_toml
from dptrain.config.train import TrainConfig
from dptrain.errors import PeerError, PreemptedError, RankLostError
from dptrain.health.interruption import Interruption
from dptrain.parallel.communicator import Communicator
from dptrain.training.events import Event, RunFinished, RunStarted
from dptrain.training.loop import train

# An epoch of 7 steps and one more: checkpoints after 3 and 6, an evaluation after 7 and at the end.
RANKS, LAST_STEP = 3, 8
NOTHING = "nothing"  # is what `train` returns on a rank other than 0


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packed(tmp_path_factory.mktemp("run") / "set")


@pytest.fixture(scope="module")
def undisturbed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    config = configuration(data, tmp_path_factory.mktemp("undisturbed") / "run", max_steps=LAST_STEP)
    return str(run(config)[0]["params_sha256"])


def elastic(data: Path, run_dir: Path, **changes: Any) -> TrainConfig:
    # Ranks are threads here, so there is no watch for stalls.
    options = {"elastic": True, "checkpoint_every": "3", "stall_limit": 0.0, "max_steps": LAST_STEP}
    return configuration(data, run_dir, **(options | changes))


def train_with_deaths(config: TrainConfig, deaths: Sequence[Death]) -> tuple[dict[int, Any], list[int]]:
    """The results of `train` on the surviving ranks, and how many collectives each rank has called."""
    results, world = on_ranks_that_can_die(RANKS, lambda communicator: train(config, communicator) or NOTHING, deaths)
    assert len(results) == RANKS - len(world.dead)
    return results, world.calls


def assert_undisturbed(config: TrainConfig, results: dict[int, Any], undisturbed: str) -> None:
    assert [result.params_sha256 for result in results.values() if result != NOTHING] == [undisturbed]
    checkpoints = sorted((Path(config.run_dir) / "checkpoints").iterdir())
    states = [read_checkpoint(path).state for path in checkpoints]
    assert [state.step for state in states][-1] == LAST_STEP
    assert states[-1].params_sha256 == undisturbed
    assert states[-1].progress.test_accuracy is not None


@pytest.fixture(scope="module")
def calls(data: Path, undisturbed: str, tmp_path_factory: pytest.TempPathFactory) -> int:
    """Collectives of each rank in a run in which no rank dies."""
    config = elastic(data, tmp_path_factory.mktemp("calls") / "run")
    results, counts = train_with_deaths(config, [])
    assert_undisturbed(config, results, undisturbed)
    assert len(set(counts)) == 1
    return counts[0]


@pytest.mark.slow
@pytest.mark.parametrize("every", [6, pytest.param(1, marks=pytest.mark.long)])
@pytest.mark.parametrize("rank", range(RANKS))
@pytest.mark.parametrize("without_data", [None, "all"])
def test_a_rank_may_die_in_any_collective_of_a_run(
    rank: int, without_data: str | None, every: int, data: Path, undisturbed: str, calls: int, tmp_path: Path
) -> None:
    """It dies before it sends its part; or after that, and the collective returns success without data to the others.

    A rank that dies after the others have the data is the same as one that dies before its part of the next collective.
    In a normal test run one rank dies in each collective in one way; with -m long each rank in both ways.
    """
    others = [other for other in range(RANKS) if other != rank]
    affected = None if without_data is None else others
    first = (2 * rank + (without_data is None)) % every
    for call in range(first, calls, every):
        config = elastic(data, tmp_path / f"run-{call}")
        results, _ = train_with_deaths(config, [Death(rank, call, affected)])
        assert len(results) == RANKS - 1
        assert_undisturbed(config, results, undisturbed)


@quick_first("seed", [*range(6), *(pytest.param(seed, marks=pytest.mark.long) for seed in range(6, 30))])
def test_a_second_rank_may_die_at_any_time_after_the_first(
    seed: int, data: Path, undisturbed: str, calls: int, tmp_path: Path
) -> None:
    """Often during the recovery: the second death is at most 25 collectives later."""
    draw = random.Random(seed)
    first, second = draw.sample(range(RANKS), 2)
    call = draw.randrange(calls)
    choices = [None, [], [second], [third for third in range(RANKS) if third not in (first, second)]]
    deaths = [
        Death(first, call, draw.choice(choices)),
        Death(second, call + draw.randrange(25), draw.choice([None, []])),
    ]
    config = elastic(data, tmp_path / "run")
    results, _ = train_with_deaths(config, deaths)
    assert_undisturbed(config, results, undisturbed)
    assert len(results) <= RANKS - 1  # the second rank may have ended before its death


SHARED_UPDATE: dict[str, Any] = {"optimizer": "muon", "model_options": {"widths": [3, 5]}}


@pytest.fixture(scope="module")
def calls_of_shared_updates(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, str]:
    """Collectives of each rank in such a run in which no rank dies, and the hash of one process."""
    folder = tmp_path_factory.mktemp("shared updates")
    finished, _ = run(configuration(data, folder / "alone", max_steps=LAST_STEP, **SHARED_UPDATE))
    config = elastic(data, folder / "run", **SHARED_UPDATE)
    results, counts = train_with_deaths(config, [])
    assert_undisturbed(config, results, finished["params_sha256"])
    return counts[0], finished["params_sha256"]


@pytest.mark.slow
@pytest.mark.parametrize("rank", range(RANKS))
@pytest.mark.parametrize("without_data", [None, "all"])
def test_a_rank_may_die_while_the_ranks_share_out_an_update(
    rank: int, without_data: str | None, data: Path, calls_of_shared_updates: tuple[int, str], tmp_path: Path
) -> None:
    """Muon adds two collectives to a step: the death is in one of those of the last two steps."""
    calls, expected = calls_of_shared_updates
    others = None if without_data is None else [other for other in range(RANKS) if other != rank]
    for call in range(calls - 30 + 2 * rank + (without_data is None), calls, 6):
        config = elastic(data, tmp_path / f"run-{call}", **SHARED_UPDATE)
        results, _ = train_with_deaths(config, [Death(rank, call, others)])
        assert_undisturbed(config, results, expected)


def test_elastic_is_not_saved_with_the_run(data: Path, undisturbed: str, tmp_path: Path) -> None:
    """`--config RUN/config.toml` must work with any MPI, and most MPIs do not support --elastic."""
    config = elastic(data, tmp_path / "run")
    results, _ = train_with_deaths(config, [])
    assert_undisturbed(config, results, undisturbed)
    assert read_toml(tmp_path / "run" / "config.toml").get("elastic", False) is False


def test_without_elastic_a_death_is_an_error(data: Path, tmp_path: Path) -> None:
    with pytest.raises(RankLostError):
        train_with_deaths(elastic(data, tmp_path / "run", elastic=False), [Death(1, 20)])


def test_all_deaths_are_reported_also_during_a_recovery(data: Path, tmp_path: Path) -> None:
    memories = {rank: Memory() for rank in range(RANKS)}

    def program(communicator: Communicator) -> None:
        train(elastic(data, tmp_path / "run"), communicator, [memories[communicator.rank]])

    on_ranks_that_can_die(RANKS, program, [Death(1, 20), Death(2, 23)])
    assert memories[0].lost == [[1, 2]]


class Asked(Interruption):
    """A signal has already arrived."""

    signal_name = "SIGTERM"


@pytest.mark.slow
def test_a_signal_that_came_before_a_death_ends_the_run_after_the_recovery(
    data: Path, undisturbed: str, tmp_path: Path
) -> None:
    """The end waits for the recovery, because only then all ranks can save the same step."""
    config = elastic(data, tmp_path / "run")

    def program(communicator: Communicator) -> str:
        interruption = Asked() if communicator.rank == 0 else Interruption()
        with pytest.raises((PreemptedError, PeerError), match="stopped by SIGTERM") as caught:
            train(config, communicator, [], interruption)
        return str(caught.value)

    # Calls of the first step follow those of the start.
    ended = [set(on_ranks_that_can_die(RANKS, program, [Death(2, call)])[0]) for call in range(8, 40, 3)]
    assert {0, 1} in ended
    assert all({0, 1} <= found for found in ended)  # all ranks, if the run had ended before
    again, _ = run(elastic(data, tmp_path / "run", elastic=False))
    assert again["params_sha256"] == undisturbed


def test_a_new_rank_0_with_another_disk_makes_a_complete_folder_and_reports_it(
    data: Path, undisturbed: str, tmp_path: Path
) -> None:
    config = elastic(data, tmp_path / "run")
    memories = {rank: Memory() for rank in range(RANKS)}

    class LosesTheDisk(Memory):
        def handle(self, event: Event) -> None:
            if isinstance(event, RunStarted):
                shutil.rmtree(tmp_path / "run")

    memories[0] = LosesTheDisk()

    def program(communicator: Communicator) -> RunFinished | str:
        return train(config, communicator, [memories[communicator.rank]]) or NOTHING

    results, _ = on_ranks_that_can_die(RANKS, program, [Death(0, 30)])
    assert_undisturbed(config, results, undisturbed)
    assert memories[1].lost == [[0]]
    assert memories[1].lines == [
        f"the run continues in {tmp_path / 'run'} on {socket.gethostname()}, a new folder: "
        "the earlier checkpoints are on the host that was lost"
    ]
    saved = read_toml(tmp_path / "run" / "config.toml")
    assert saved["model"] == config.model
