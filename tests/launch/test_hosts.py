"""Runs on two hosts, with the launcher and a real Slurm: lost nodes, cancellation, preemption, a cut network.

They need root, the Debian packages iproute2, openssh-server, slurmctld, slurmd, slurm-client, munge and libpmix2, and
Open MPI and MPICH (see tests/mpi_runs.py); they fail where one is missing. About 20 minutes:

    python -m pytest -m hosts tests/launch/test_hosts.py
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fault_runs import alone, assert_all_sound, fault_data, job, words
from host_runs import (
    SlurmJob,
    kill_on,
    on,
    reached,
    revive,
    sbatch,
    script,
    several_hosts,
    start_on,
    starts,
    variables,
    wait_for,
)
from launch_runs import CHECKOUT
from mpi_runs import python_of

from dptrain.checkpoint.format import read_checkpoint

pytestmark = [pytest.mark.hosts, pytest.mark.timeout(400)]

Tally = Callable[[str, float], None]
EPOCHS = 16
LAST = 50 * EPOCHS
DAEMON = "bin/prted|hydra_pmi_proxy"
RANK = "dptrain train"
RANK_ONLY = "^[^ ]*python[^ ]* (-P )?-m dptrain train"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fault_data(tmp_path_factory.mktemp("hosts") / "set")


@pytest.fixture(scope="module")
def undisturbed(data: Path) -> str:
    """The params_sha256 of an undisturbed run in one process."""
    run_dir = data.parent / "undisturbed"
    with job(alone(trainer(data, run_dir)), run_dir) as run:
        status, _, err = run.end(timeout=120)
    assert status == 0, err
    return final_hash(run_dir)


@pytest.fixture
def cluster(undisturbed: str) -> Iterator[None]:
    """Two new hosts with Slurm."""
    with several_hosts(2):
        yield


def trainer(data: Path, run_dir: Path, **changes: object) -> list[str]:
    return words(data, run_dir, **({"epochs": EPOCHS, "checkpoint_every": "10", "stall_limit": 10.0} | changes))


def final_hash(run_dir: Path) -> str:
    return read_checkpoint(run_dir / "checkpoints" / f"step-{LAST:08d}.h5").state.params_sha256


def submitted(data: Path, run_dir: Path, *options: str, step: int = 20) -> SlurmJob:
    """A job that has made some steps."""
    started = sbatch(run_dir, trainer(data, run_dir), *options)
    started.wait_for_step(step)
    return started


def assert_same_result(started: SlurmJob, undisturbed: str, seconds: float = 150) -> None:
    state = started.wait_for_state("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", seconds=seconds)
    assert state == "COMPLETED", started.printed
    assert final_hash(started.run_dir) == undisturbed
    assert_all_sound(started.run_dir)


@pytest.mark.parametrize(
    ("option", "state"), [((), "CANCELLED"), (("--signal=TERM", "--batch"), "FAILED")], ids=["all", "batch"]
)
def test_scancel_saves_a_checkpoint_and_the_job_is_not_requeued(
    option: tuple[str, ...], state: str, cluster: None, data: Path, undisturbed: str, tmp_path: Path, tally: Tally
) -> None:
    started = submitted(data, tmp_path / "run")
    on(1, "scancel", *option, started.number)
    seconds = wait_for(lambda: started.state == state, lambda: started.shown, 60)
    wait_for(lambda: "slurm.sh: cancelled: status 75, not requeued" in started.printed, lambda: started.printed, 60)
    tally(f"scancel {' '.join(option)}: seconds until cancelled", seconds)
    assert started.shown["Restarts"] == "0"
    saved = max(int(path.stem[5:]) for path in (started.run_dir / "checkpoints").glob("step-*.h5"))
    assert saved == reached(started.run_dir)
    again = sbatch(started.run_dir, trainer(data, started.run_dir))
    assert_same_result(again, undisturbed)
    assert starts(started.run_dir) == [0, saved]


def test_usr1_to_the_batch_script_saves_and_requeues(
    cluster: None, data: Path, undisturbed: str, tmp_path: Path
) -> None:
    started = submitted(data, tmp_path / "run")
    on(1, "scancel", "--signal=USR1", "--batch", started.number)
    wait_for(lambda: started.shown["Restarts"] == "1", lambda: started.printed, 60)
    assert_same_result(started, undisturbed)
    assert len(starts(started.run_dir)) == 2


def test_the_time_limit_saves_and_requeues(cluster: None, data: Path, undisturbed: str, tmp_path: Path) -> None:
    """The shortest limit is a minute, checked every 30 s: the ranks are stopped until Slurm sends the signal."""
    started = submitted(data, tmp_path / "run", "--time=1", "--signal=B:USR1@30")
    for node in (1, 2):
        on(node, "pkill", "-STOP", "-f", RANK_ONLY)
    wait_for(lambda: "SIGUSR1: saving a checkpoint" in started.printed, lambda: started.printed, 120)
    for node in (1, 2):
        on(node, "pkill", "-CONT", "-f", RANK_ONLY)
    wait_for(lambda: started.shown["Restarts"] == "1", lambda: started.printed, 60)
    on(1, "scontrol", "update", f"JobId={started.number}", "TimeLimit=10")
    assert_same_result(started, undisturbed)
    assert len(starts(started.run_dir)) == 2


def test_a_preempted_job_saves_and_is_requeued(
    cluster: None, data: Path, undisturbed: str, tmp_path: Path, tally: Tally
) -> None:
    started = submitted(data, tmp_path / "run")
    urgent = ("--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 5")
    on(1, "sbatch", "--parsable", *urgent)
    tally(
        "preemption: seconds until requeued",
        wait_for(lambda: started.shown["Restarts"] == "1", lambda: started.printed, 90),
    )
    last = reached(started.run_dir)
    saved = max(int(path.stem[5:]) for path in (started.run_dir / "checkpoints").glob("step-*.h5"))
    assert saved == last
    assert_same_result(started, undisturbed)
    assert starts(started.run_dir) == [0, saved]


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("mpi", ["openmpi", "mpich"])
@pytest.mark.parametrize("way", ["hosts", "hostfile", "slurm"])
def test_ranks_on_two_hosts_have_separate_cores_and_the_bits_of_one_process(
    way: str, mpi: str, ranks: int, cluster: None, data: Path, undisturbed: str, tmp_path: Path
) -> None:
    run_dir, each = tmp_path / "run", ranks // 2
    (tmp_path / "hostfile").write_text(f"node1 slots={each}\nnode2:{each}\n")
    named = {"hosts": ["--hosts", f"node1:{each},node2:{each}"], "hostfile": ["--hostfile", str(tmp_path / "hostfile")]}
    command = [str(python_of(mpi)), "-m", "launch", *named.get(way, []), "--", "train", *trainer(data, run_dir)]
    if way == "slurm":
        spread = ("--nodes=2", f"--ntasks={ranks}", f"--ntasks-per-node={each}", f"--chdir={CHECKOUT}")
        command = ["sbatch", "--wait", *spread, f"--output={tmp_path}/out", f"--wrap={shlex.join(command)}"]
    process = start_on(1, *command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    wait_for(lambda: reached(run_dir) >= 5 or process.poll() is not None, lambda: "step 5", 60)
    cores = {node: [cores_of(node, rank) for rank in on(node, "pgrep", "-f", RANK_ONLY).split()] for node in (1, 2)}
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert final_hash(run_dir) == undisturbed
    everything = os.sched_getaffinity(0)
    for bound in cores.values():
        assert len(bound) == each
        assert all(len(one) == len(everything) // each for one in bound)
        assert set().union(*bound) == everything


def cores_of(node: int, process: str) -> set[int]:
    """The CPUs that a process of a node may use."""
    mask = on(node, "grep", "Cpus_allowed:", f"/proc/{process}/status").split()[1]
    return {cpu for cpu in range(256) if int(mask.replace(",", ""), 16) >> cpu & 1}


def test_an_mpich_run_on_hosts_that_is_asked_to_end_saves_and_leaves_nothing(
    cluster: None, data: Path, undisturbed: str, tmp_path: Path
) -> None:
    with launcher(data, tmp_path / "run", mpi="mpich") as process:
        on(1, "pkill", "-TERM", "-f", "python[^ ]* -m launch")
        status, err = ended(process)
    assert status == 75, err
    saved = max(int(path.stem[5:]) for path in (tmp_path / "run" / "checkpoints").glob("step-*.h5"))
    assert saved == reached(tmp_path / "run")
    for node in (1, 2):
        assert on(node, "sh", "-c", "pgrep -f '[h]ydra|[-]m dptrain' || true") == ""
        assert on(node, "ls", "/dev/shm") == ""
    with launcher(data, tmp_path / "run", mpi="mpich") as process:
        status, err = ended(process)
    assert status == 0, err
    assert final_hash(tmp_path / "run") == undisturbed


@pytest.mark.parametrize("killed", [DAEMON, RANK, "."], ids=["daemon", "rank", "all"])
@pytest.mark.parametrize("under", ["slurm", "openmpi", "mpich"])
def test_a_run_whose_processes_on_a_node_are_killed_is_restarted(
    under: str, killed: str, cluster: None, data: Path, undisturbed: str, tmp_path: Path, tally: Tally
) -> None:
    if under != "slurm":
        with launcher(data, tmp_path / "run", mpi=under) as process:
            kill_job_on_node2(killed)
            status, err = ended(process)
        assert status == 0, err
        assert final_hash(tmp_path / "run") == undisturbed
    else:
        started = submitted(data, tmp_path / "run")
        kill_job_on_node2(killed)
        assert_same_result(started, undisturbed)
    survives = (under, killed) == ("mpich", DAEMON)  # MPICH's ranks continue without their proxy
    assert survives or len(starts(tmp_path / "run")) > 1


def test_a_job_whose_node_loses_its_power_is_requeued_by_slurm(
    cluster: None, data: Path, undisturbed: str, tmp_path: Path, tally: Tally
) -> None:
    started = submitted(data, tmp_path / "run")
    script("hosts.sh", "crash", "2")
    seconds = wait_for(lambda: started.shown["Restarts"] == "1", lambda: started.printed, 90)
    tally("power failure under Slurm: seconds until requeued", seconds)
    revive(2)
    assert_same_result(started, undisturbed)
    assert len(starts(started.run_dir)) == 2


def test_a_host_without_power_is_left_out_if_fewer_ranks_are_allowed(
    cluster: None, data: Path, undisturbed: str, tmp_path: Path, tally: Tally
) -> None:
    with launcher(data, tmp_path / "run", "--min-ranks", "1") as process:
        script("hosts.sh", "crash", "2")
        status, err = ended(process, 200)
    assert status == 0, err
    assert "cannot be reached and are left out: node2" in err
    assert final_hash(tmp_path / "run") == undisturbed
    attempts = [json.loads(line) for line in (tmp_path / "run" / "attempts.jsonl").read_text().splitlines()]
    assert [attempt["ranks"] for attempt in attempts] == [2, 1]
    tally("power failure under the launcher: seconds of the first attempt", attempts[0]["seconds"])


def test_restarts_continue_until_a_cut_network_works_again(
    cluster: None, data: Path, undisturbed: str, tmp_path: Path, tally: Tally
) -> None:
    with launcher(data, tmp_path / "run", restarts=1) as process:
        script("hosts.sh", "cut", "2")
        kill_on(1, RANK)
        attempts = tmp_path / "run" / "attempts.jsonl"
        wait_for(lambda: attempts.exists() and len(attempts.read_text().splitlines()) >= 4, attempts.read_text, 90)
        script("hosts.sh", "join", "2")
        status, err = ended(process)
    assert status == 0, err
    assert "no step was made" in err
    assert final_hash(tmp_path / "run") == undisturbed


def test_ranks_on_other_hosts_have_the_variables_of_the_launcher_and_leave_nothing(
    cluster: None, data: Path, undisturbed: str, tmp_path: Path
) -> None:
    with launcher(data, tmp_path / "run") as process:
        rank = on(2, "pgrep", "-f", RANK).split()[-1]
        found = set(on(2, "cat", f"/proc/{rank}/environ").split("\0"))
        status, err = ended(process)
    assert status == 0, err
    wanted = {f"{name}={value}" for name, value in variables().items() if name in ("PATH", "PYTHONPATH")}
    assert wanted | {"OPENBLAS_NUM_THREADS=1", "OMP_NUM_THREADS=1", "DPTRAIN_PROGRESS=lines"} <= found
    left = on(2, "find", "/mnt", "-mindepth", "1", "-not", "-path", "/mnt/slurm*", "-not", "-path", "/mnt/munge*")
    assert left == ""


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("--mpi=none", "srun started 2 processes that cannot reach each other: use srun --mpi=pmix for Open MPI"),
        ("--mpi=pmi2", "a launcher started 2 ranks, but the MPI library of mpi4py (Open MPI"),
    ],
)
def test_srun_without_the_right_protocol_is_refused_with_the_right_one(
    option: str, expected: str, cluster: None, data: Path, tmp_path: Path
) -> None:
    words = ["srun", option, "-N2", "-n2", sys.executable, "-m", "dptrain", "train", *trainer(data, tmp_path / "run")]
    process = start_on(1, *words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert f"dptrain: error: {expected}" in err
    assert "mpirun" not in err.split("dptrain: error: ")[1].splitlines()[0]
    assert not (tmp_path / "run").exists()


class launcher:  # noqa: N801 - a context manager
    """`python -m launch` on node1 with one rank on each node, once the run has made 20 steps."""

    def __init__(self, data: Path, run_dir: Path, *options: str, restarts: int = 3, mpi: str = "openmpi") -> None:
        self.run_dir = run_dir
        self.command = [
            *(str(python_of(mpi)), "-m", "launch", "--hosts", "node1:1,node2:1"),
            *("--max-restarts", str(restarts), *options, "--", "train", *trainer(data, run_dir)),
        ]

    def __enter__(self) -> subprocess.Popen[str]:
        self.errors = self.run_dir.with_name("errors").open("w+")
        self.process = start_on(1, *self.command, stdout=subprocess.DEVNULL, stderr=self.errors.fileno())
        self.process.errors = self.errors  # type: ignore[attr-defined]
        wait_for(lambda: reached(self.run_dir) >= 20 or self.process.poll() is not None, lambda: "step 20", 60)
        return self.process

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self.errors.close()


def ended(process: subprocess.Popen[str], timeout: float = 150) -> tuple[int, str]:
    """Status and standard error."""
    status = process.wait(timeout)
    process.errors.seek(0)  # type: ignore[attr-defined]
    return status, process.errors.read()  # type: ignore[attr-defined]


def kill_job_on_node2(killed: str) -> None:
    """Kill the processes of the job on node2 that match; "." matches all."""
    if killed != ".":
        kill_on(2, killed)
        return
    on(2, "pkill", "-9", "-f", f"{DAEMON}|{RANK}|slurmstepd")
