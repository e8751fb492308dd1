"""Guarantees for ranks that die, stop or get a signal: jobs of real ranks, disturbed at random moments.

Each trial has a seed, from which it draws the rank and the moment. A few trials run in every test run; many with
`pytest -m long tests/faults/test_faults.py`. In the end the counts are printed.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import socket
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from command_runs import assert_one_error
from fault_runs import (
    LAST_STEP,
    Job,
    alone,
    assert_all_sound,
    fault_data,
    final_sha256,
    job,
    launched,
    undisturbed_sha256,
    words,
)
from mpi_runs import dptrain, own_mpi

from dptrain.errors import PREEMPTED
from dptrain.system.signals import ENDING, SAME_REQUEST
from launch.signals import signal_label

pytestmark = pytest.mark.mpi

LATEST = LAST_STEP - 100  # signals come at most some milliseconds after this step, before the run ends

Tally = Callable[[str, float], None]


def trials(short: int, long: int, mpich: int = 1) -> Iterable[Any]:
    """Seeds: the first few for every test run, the first `mpich` of them also with MPICH, all for the long test run."""
    once = [pytest.param(seed, marks=pytest.mark.once) for seed in range(mpich, short)]
    return [*range(mpich), *once, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(short, short + long))]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fault_data(tmp_path_factory.mktemp("faults") / "set")


@pytest.fixture(scope="module")
def undisturbed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    return undisturbed_sha256(data, tmp_path_factory.mktemp("undisturbed") / "run")


def send_signal(started: Job, rank: int, number: signal.Signals = signal.SIGKILL) -> None:
    os.kill(started.ranks()[rank], number)


@pytest.mark.parametrize("seed", trials(2, 100))
def test_a_restart_after_a_killed_rank_gives_the_same_bits(
    seed: int, data: Path, undisturbed: str, tmp_path: Path, tally: Tally
) -> None:
    draw = random.Random(seed)
    ranks = draw.choice([2, 3, 4])
    trainer = words(data, tmp_path / "run")
    with job(launched(own_mpi(), ranks, "--max-restarts", "1", trainer=trainer), tmp_path / "run") as started:
        started.wait_until_training(ranks, draw.randint(1, LATEST))
        time.sleep(draw.uniform(0, 0.03))
        send_signal(started, seed % ranks)
        step_before = started.newest_step()
        status, _, err = started.end()
    assert status == 0, err
    assert "launch: attempt 1 on " in err
    assert "SIGKILL" in err
    assert final_sha256(tmp_path / "run") == undisturbed
    tally("runs with a rank killed, restarted to the same bits; steps made before", step_before)
    tally("runs after such a restart without a corrupt checkpoint; checkpoints", assert_all_sound(tmp_path / "run"))


@pytest.mark.ulfm
@pytest.mark.parametrize("seed", trials(2, 50))
def test_elastic_ranks_continue_without_killed_ones(
    seed: int, data: Path, undisturbed: str, tmp_path: Path, tally: Tally
) -> None:
    """Kills 1 or more of 3 or 4 ranks, also rank 0, but not all; some during the recovery from another death."""
    draw = random.Random(seed)
    ranks = 3 + seed % 2
    killed = draw.sample(range(ranks), draw.randint(1, ranks - 1))
    trainer = words(data, tmp_path / "run")
    with job(launched("openmpi", ranks, "--elastic", trainer=trainer), tmp_path / "run") as started:
        started.wait_until_training(ranks, draw.randint(1, LATEST))
        time.sleep(draw.uniform(0, 0.03))
        processes = started.ranks()
        for rank in killed:
            with contextlib.suppress(ProcessLookupError, KeyError):  # the rank has already ended
                os.kill(processes[rank], signal.SIGKILL)
            time.sleep(draw.choice([0, 0.002, 0.02, 0.1, 0.4]))
        status, _, err = started.end()
    assert status == 0, err
    assert final_sha256(tmp_path / "run") == undisturbed
    assert_all_sound(tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    recoveries = [line for line in lines if line["event"] == "recovery"]
    assert killed[0] in {rank for line in recoveries for rank in line["lost"]} <= set(killed)
    for line in recoveries:
        tally("recoveries of elastic runs; seconds", line["recovery_seconds"])
    tally("elastic runs that continued to the same bits; ranks killed", len(killed))


@pytest.mark.parametrize("seed", trials(2, 50))
def test_a_run_stopped_at_a_random_step_resumes_with_other_ranks_and_threads(
    seed: int, data: Path, undisturbed: str, tmp_path: Path, tally: Tally
) -> None:
    draw = random.Random(seed)
    stop = draw.randint(1, LAST_STEP - 1)
    for last in (stop, 0):
        ranks, threads = draw.choice([0, 1, 2, 3, 4]), draw.choice([1, 2, 3])
        trainer = words(data, tmp_path / "run", max_steps=last, threads=threads)
        command = launched(own_mpi(), ranks, trainer=trainer) if ranks else alone(trainer)
        with job(command, tmp_path / "run") as started:
            status, out, err = started.end()
        assert status == 0, err
        assert json.loads(out.splitlines()[-1])["step"] == (last or LAST_STEP)
    assert final_sha256(tmp_path / "run") == undisturbed
    tally("runs stopped, and resumed on other ranks and threads with the same bits; step", stop)


@pytest.mark.parametrize("seed", trials(3, 20))
def test_a_signal_ends_the_run_with_a_checkpoint_and_status_75(
    seed: int, data: Path, undisturbed: str, tmp_path: Path, tally: Tally
) -> None:
    """The signal goes to rank 0, to the launcher, and to the other ranks; also during evaluations and writes."""
    draw = random.Random(seed)
    ranks, target = 3, (0, 3, 1, 2)[seed % 4]
    number = draw.choice(ENDING if target < ranks else [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
    trainer = words(data, tmp_path / "run")
    with job(launched(own_mpi(), ranks, trainer=trainer), tmp_path / "run") as started:
        started.wait_until_training(ranks, draw.randint(1, LATEST))
        time.sleep(draw.uniform(0, 0.03))
        signalled_at = time.monotonic()
        os.kill(started.ranks()[target] if target < ranks else started.process.pid, number)
        status, _, err = started.end(timeout=20)
        seconds = time.monotonic() - signalled_at
    assert status == 75, err
    asked = f"{number.name} at rank {target}" if target < ranks else signal_label(number)
    assert f"launch: stopped by {asked}: " in err
    assert seconds < 10
    stopped = started.newest_step()
    assert (tmp_path / "run" / "checkpoints" / f"step-{stopped:08d}.h5").exists()
    with job(launched(own_mpi(), 2, trainer=trainer), tmp_path / "run") as again:
        status, _, err = again.end()
    assert status == 0, err
    assert final_sha256(tmp_path / "run") == undisturbed
    tally("runs ended by a signal with a checkpoint and status 75; seconds", seconds)


@pytest.mark.once
@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGQUIT])
def test_one_process_with_workers_saves_a_checkpoint_after_any_signal_that_ends_it(
    number: signal.Signals, data: Path, undisturbed: str, tmp_path: Path
) -> None:
    """Found in the field: a closed terminal (SIGHUP) killed the run. The signal also goes to the workers."""
    trainer = words(data, tmp_path / "run", threads=2)
    with job(alone(trainer), tmp_path / "run") as started:
        started.wait_for(lambda: started.newest_step() >= 20, timeout=60)
        # More signals of the same request until the run ends, as from Slurm and a trap.
        while started.process.poll() is None:
            os.killpg(started.process.pid, number)
            time.sleep(0.02)
        status, _, err = started.end()
    assert (status, err.count("dptrain: stopped by")) == (75, 1), err
    with job(alone(trainer), tmp_path / "run") as again:
        status, _, err = again.end()
    assert status == 0, err
    assert final_sha256(tmp_path / "run") == undisturbed


@pytest.mark.once
def test_signals_that_were_ignored_at_the_start_do_not_end_a_run(data: Path, tmp_path: Path) -> None:
    """Found in the field: `&` in a script ignores SIGINT, but Ctrl-C meant for `tail` ended the training."""
    ignoring = ["bash", "-c", 'trap "" INT HUP; exec "$@"', "bash"]
    with job([*ignoring, *alone(words(data, tmp_path / "run", threads=2))], tmp_path / "run") as started:
        started.wait_for(lambda: started.newest_step() >= 20, timeout=60)
        for number in (signal.SIGINT, signal.SIGHUP):
            os.killpg(started.process.pid, number)
        status, _, err = started.end()
    assert status == 0, err


@pytest.mark.once
@pytest.mark.alone
def test_ctrl_z_stops_a_run_with_its_workers_without_a_stall_report(data: Path, tmp_path: Path) -> None:
    """As a terminal's Ctrl-Z and `fg` do it, to the whole group."""
    trainer = words(data, tmp_path / "run", threads=2, stall_limit=0.5)
    with job(alone(trainer), tmp_path / "run") as started:
        started.wait_for(lambda: started.newest_step() >= 20, timeout=60)
        os.killpg(started.process.pid, signal.SIGSTOP)  # the new session has no terminal that sends SIGTSTP
        time.sleep(0.2)
        step = started.newest_step()
        time.sleep(1.5)
        assert started.newest_step() == step < LAST_STEP
        os.killpg(started.process.pid, signal.SIGCONT)
        status, _, err = started.end()
    assert (status, err) == (0, "")


@pytest.mark.ulfm
def test_an_elastic_run_is_restarted_when_all_its_ranks_die(data: Path, undisturbed: str, tmp_path: Path) -> None:
    trainer = words(data, tmp_path / "run")
    command = launched("openmpi", 3, "--elastic", "--max-restarts", "1", trainer=trainer)
    with job(command, tmp_path / "run") as started:
        started.wait_until_training(3, 50)
        for process in started.ranks().values():
            os.kill(process, signal.SIGKILL)
        status, _, err = started.end()
    assert status == 0, err
    assert "attempt 1 on 3 ranks ended with status 70" in err
    assert final_sha256(tmp_path / "run") == undisturbed


@pytest.mark.ulfm
@pytest.mark.parametrize("rank", [0, 2])
def test_a_second_signal_to_one_rank_of_an_elastic_run_ends_all(rank: int, data: Path, tmp_path: Path) -> None:
    """Another rank is stopped; mpirun does not tell the others about a rank that exits with a status other than 0."""
    with job(launched("openmpi", 3, "--elastic", trainer=words(data, tmp_path / "run")), tmp_path / "run") as started:
        started.wait_until_training(3)
        send_signal(started, 1, signal.SIGSTOP)
        for _ in range(2):
            send_signal(started, rank, signal.SIGTERM)
            time.sleep(SAME_REQUEST + 0.5)
        status, _, err = started.end(timeout=20)
    assert status == 128 + signal.SIGTERM, err


@pytest.mark.ulfm
def test_an_elastic_run_reports_its_error_and_is_not_restarted(data: Path, tmp_path: Path) -> None:
    trainer = words(data, tmp_path / "run", lr=1e30, warmup_steps=0)
    command = launched("openmpi", 3, "--elastic", "--max-restarts", "1", trainer=trainer)
    with job(command, tmp_path / "run") as started:
        status, _, err = started.end()
    assert status == 1, err
    assert err.count("dptrain: error: step") == 1
    assert "restarting" not in err


def test_a_second_signal_to_a_stopped_run_ends_it_at_once(data: Path, tmp_path: Path) -> None:
    """One rank is stopped, so the others cannot agree on a step."""
    with job(launched(own_mpi(), 3, trainer=words(data, tmp_path / "run")), tmp_path / "run") as started:
        started.wait_until_training(3)
        send_signal(started, 1, signal.SIGSTOP)
        started.process.send_signal(signal.SIGTERM)
        time.sleep(SAME_REQUEST + 0.5)
        assert started.process.poll() is None
        signalled_at = time.monotonic()
        started.process.send_signal(signal.SIGTERM)
        status, _, _ = started.end()
        assert time.monotonic() - signalled_at < 10
    # mpirun continues a stopped rank before it ends all. Sometimes the ranks just have time to save, and report that.
    assert status in (128 + signal.SIGTERM, PREEMPTED)
    assert_all_sound(tmp_path / "run")


STALL_LIMIT = 2.0


@pytest.mark.parametrize(
    ("rank", "flag"),
    [(0, ""), pytest.param(2, "", marks=pytest.mark.once), pytest.param(1, "--elastic", marks=pytest.mark.ulfm)],
)
def test_a_stopped_rank_is_reported_and_ends_the_job_if_configured(
    rank: int, flag: str, data: Path, tmp_path: Path, tally: Tally
) -> None:
    limits = {"stall_limit": STALL_LIMIT, "stall_abort": 1.0}
    trainer = words(data, tmp_path / "run", **limits)
    with job(launched(own_mpi(), 3, *flag.split(), trainer=trainer), tmp_path / "run") as started:
        started.wait_until_training(3)
        process = started.ranks()[rank]
        os.kill(process, signal.SIGSTOP)
        signalled_at = time.monotonic()
        line = started.line_of_stderr("has been silent for")
        seconds = time.monotonic() - signalled_at
        step = started.newest_step()
        status, _, err = started.end()
    assert f"dptrain: rank {rank} on {socket.gethostname()} (process {process})" in line
    assert re.search(rf"in step ({step}|{step + 1}|{step + 2})\b", line), (step, line)
    assert seconds < STALL_LIMIT + 2
    assert "dptrain: error: rank" in err
    assert status in (76, 137)  # MPICH may report a rank that it killed
    tally("stopped ranks named; seconds after the limit", seconds - STALL_LIMIT)


@pytest.mark.once
@pytest.mark.parametrize("seconds", [7, pytest.param(600, marks=[pytest.mark.long, pytest.mark.timeout(900)])])
def test_no_rank_is_reported_in_ordinary_training(seconds: int, data: Path, tmp_path: Path, tally: Tally) -> None:
    """With checkpoints all the time, evaluations, more ranks than cores, and a limit far below the usual one."""
    trainer = words(data, tmp_path / "run", stall_limit=5.0, epochs=100_000)
    with job(launched(own_mpi(), 3, trainer=trainer), tmp_path / "run") as started:
        started.wait_until_training(3)
        time.sleep(seconds)
        started.process.send_signal(signal.SIGTERM)
        status, _, err = started.end()
    assert status == 75, err
    assert "dptrain: rank" not in err
    assert "dptrain: all ranks" not in err
    tally("trainings without a false alarm; seconds", seconds)


def test_without_ulfm_elastic_says_what_to_use_instead(data: Path, tmp_path: Path) -> None:
    """With any MPI; mpirun is started without --with-ft ulfm."""
    done = dptrain("train", *words(data, tmp_path / "run"), "--elastic", cwd=tmp_path, mpi=own_mpi(), ranks=2)
    assert_one_error(done, "--elastic needs ULFM", "--with-ft ulfm", "--max-restarts", status=2, ranks=True)
    assert not (tmp_path / "run").exists()
