"""dptrain.parallel.communicator: processes with or without a launcher; no rank waits forever for a failed one."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mpi_runs import PROGRAMS, mpirun, own_mpi, python_of
from selection import quick_first

from dptrain.errors import DownloadError, PeerError, UsageError
from dptrain.parallel.communicator import Communicator, known_to_all, together
from dptrain.parallel.mpi import launched_rank, launched_size

SECONDS = 20.0  # a job with a failed rank must end much earlier


@pytest.mark.parametrize(
    ("environment", "size", "rank"),
    [
        ({}, None, 0),
        ({"PATH": "/bin", "OMP_NUM_THREADS": "4"}, None, 0),
        # A login node or the batch script of a job is not a step of it: there MPI has no other ranks.
        ({"SLURM_NTASKS": "4", "SLURM_JOB_ID": "17", "SLURM_PROCID": "0"}, None, 0),
        # Open MPI 5's mpirun
        ({"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "3", "PMIX_RANK": "3"}, 4, 3),
        ({"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0", "PMIX_RANK": "0"}, 1, 0),
        # MPICH's, with Hydra
        ({"PMI_SIZE": "2", "PMI_RANK": "1", "PMI_FD": "9", "MPI_LOCALNRANKS": "2", "MPI_LOCALRANKID": "1"}, 2, 1),
        # srun --mpi=pmix, whole job and a step of fewer tasks
        ({"SLURM_NTASKS": "8", "SLURM_PROCID": "5", "PMIX_RANK": "5", "PMIX_NAMESPACE": "slurm.pmix.17.0"}, 8, 5),
        ({"SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "2", "PMIX_RANK": "1"}, 2, 1),
        ({"PMIX_RANK": "1"}, 0, 1),
        ({"OMPI_COMM_WORLD_SIZE": "four", "OMPI_COMM_WORLD_RANK": "first"}, 0, 0),
        # mpirun in a step of srun
        (
            {"SLURM_STEP_NUM_TASKS": "4", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1", "PMIX_RANK": "1"},
            2,
            1,
        ),
        # srun --mpi=pmi2
        ({"SLURM_NTASKS": "8", "SLURM_PROCID": "5", "PMI_SIZE": "8", "PMI_RANK": "5", "PMI_FD": "3"}, 8, 5),
    ],
)
def test_size_and_rank_come_from_the_launchers_variables(
    environment: dict[str, str], size: int | None, rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", environment)
    assert (launched_size(), launched_rank()) == (size, rank)


def test_collectives_of_one_process_are_the_identity() -> None:
    alone = Communicator()
    vector = np.arange(5, dtype=np.float32)
    received, joined = np.zeros_like(vector), np.zeros_like(vector)
    alone.alltoall(vector, [5], received, [5])
    alone.allgather_slices(vector, joined, [5])
    alone.allreduce(vector)
    alone.barrier()
    for result in (received, joined, vector):
        np.testing.assert_array_equal(result, np.arange(5))
    assert (alone.rank, alone.size) == (0, 1)
    assert alone.broadcast("x") == "x"
    assert alone.allgather("x") == ["x"]
    alone.abort(7)  # there is no other rank to end


class OneOfSeveral(Communicator):
    """A rank whose peers gather these values (None at this rank's place)."""

    def __init__(self, rank: int, others: list[Any]) -> None:
        self.rank, self.size, self.others = rank, len(others), others

    def allgather(self, value: Any) -> list[Any]:
        return [value if rank == self.rank else other for rank, other in enumerate(self.others)]


DISK_FULL = ("disk 1 is full", 69)


def in_together(communicator: Communicator, error: Exception | None = None) -> None:
    """Raise the error, if one is given, inside `together`."""
    with together(communicator):
        if error is not None:
            raise error


def test_nothing_happens_when_no_rank_fails() -> None:
    in_together(Communicator())
    in_together(OneOfSeveral(1, [None, None, None]))


def test_error_of_one_process_is_raised_as_it_is() -> None:
    with pytest.raises(DownloadError) as caught:
        in_together(Communicator(), DownloadError("the disk is full"))
    assert str(caught.value) == "the disk is full"
    assert caught.value.agreed


def test_the_error_of_one_rank_starts_with_rank_and_host() -> None:
    with pytest.raises(DownloadError) as caught:
        in_together(OneOfSeveral(1, [None, None, None]), DownloadError("the disk is full"))
    assert str(caught.value) == f"rank 1 on {socket.gethostname()}: the disk is full"
    assert caught.value.agreed


@pytest.mark.parametrize("fails_too", [False, True])
def test_other_ranks_end_with_the_status_of_the_lowest_failed_rank(fails_too: bool) -> None:
    with pytest.raises(PeerError) as caught:
        in_together(OneOfSeveral(2, [None, DISK_FULL, None, None]), UsageError("another matter") if fails_too else None)
    assert (str(caught.value), caught.value.status, caught.value.agreed) == (*DISK_FULL, True)


def test_a_failure_of_every_rank_is_reported_once_without_a_rank() -> None:
    with pytest.raises(DownloadError) as caught:
        in_together(OneOfSeveral(0, [None, DISK_FULL]), DownloadError("the disk is full"))
    assert str(caught.value) == "the disk is full"


def test_an_unforeseen_exception_is_raised_at_once() -> None:
    """The other ranks may never gather: the job is aborted instead."""
    with pytest.raises(ZeroDivisionError):
        in_together(OneOfSeveral(0, [None, DISK_FULL]), ZeroDivisionError())


def test_an_error_of_every_rank_is_reported_by_rank_0() -> None:
    reported = known_to_all(OneOfSeveral(0, [None, None]), UsageError("no such flag"))
    assert (type(reported), str(reported), reported.status, reported.agreed) == (UsageError, "no such flag", 2, True)
    silent = known_to_all(OneOfSeveral(1, [None, None]), UsageError("no such flag"))
    assert (type(silent), silent.status, silent.agreed) == (PeerError, 2, True)


CONNECT = """
import sys
from dptrain.errors import DptrainError
from dptrain.parallel.mpi import connect
try:
    communicator, line = connect()
except DptrainError as error:
    sys.exit(f"refused: {error}")
print(communicator.size, "mpi4py.MPI" in sys.modules, line)
"""
WITHOUT_MPI4PY = "import sys; sys.modules['mpi4py'] = None\n"
# What mpi4py 4.1 says when there is no MPI library behind it.
WITHOUT_LIBRARY = """
import sys, types
class NoLibrary(types.ModuleType):
    rc = types.SimpleNamespace()
    def __getattr__(self, name):
        raise RuntimeError("cannot load MPI library\\nlibmpi.so: cannot open shared object file")
sys.modules["mpi4py"] = NoLibrary("mpi4py")
"""


def connect_in_a_process(before: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
    """`connect` in a new process with only these variables of a launcher."""
    launched = re.compile(r"(OMPI|PMI|PMIX|SLURM)_|MPI_LOCAL")
    inherited = {name: value for name, value in os.environ.items() if not launched.match(name)}
    return subprocess.run(
        [sys.executable, "-c", before + CONNECT],
        env={**inherited, **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_process_without_a_launcher_never_loads_mpi() -> None:
    done = connect_in_a_process()
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "1 False one process (not started by mpirun)\n"


@quick_first(
    "variables",
    [
        {"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"},
        {"PMI_RANK": "0", "PMI_SIZE": "1", "PMI_FD": "1000"},  # also a shell that was started as a rank
        {"SLURM_STEP_NUM_TASKS": "1", "PMIX_RANK": "0", "SLURM_STEP_ID": "0"},
    ],
)
def test_a_single_rank_does_not_load_mpi(variables: dict[str, str]) -> None:
    done = connect_in_a_process(WITHOUT_MPI4PY, **variables)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "1 False one process (the only rank)\n"


@quick_first("missing", [WITHOUT_MPI4PY, WITHOUT_LIBRARY], ids=["mpi4py", "library"])
def test_several_launched_processes_without_mpi_are_refused(missing: str) -> None:
    done = connect_in_a_process(missing, PMI_SIZE="4")
    assert done.returncode == 1
    assert done.stderr.startswith("refused: a launcher started 4 ranks, but MPI cannot be loaded (")
    assert "pip install" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.mpi
def test_mpirun_of_a_library_that_mpi4py_does_not_use_is_refused() -> None:
    own_mpi()
    done = connect_in_a_process(OMPI_COMM_WORLD_SIZE="4", OMPI_COMM_WORLD_RANK="2")
    assert done.returncode == 1
    assert "refused: a launcher started 4 ranks, but the MPI library of mpi4py (" in done.stderr
    assert ") finds 1: start with dptrain launch, or with the mpirun beside" in done.stderr
    assert str(Path(sys.executable)) in done.stderr


STEP = {"SLURM_JOB_ID": "17", "SLURM_STEP_ID": "0", "SLURM_PROCID": "1", "SLURM_NTASKS": "4"}


def test_srun_without_pmi_is_refused_with_what_to_do() -> None:
    """Each task would train alone, and all of them would write to one run folder."""
    done = connect_in_a_process(**STEP, SLURM_STEP_NUM_TASKS="4")
    assert done.returncode == 1
    assert "refused: srun started 4 processes" in done.stderr
    assert "use srun --mpi=pmix for Open MPI, srun --mpi=pmi2 for MPICH" in done.stderr


@pytest.mark.mpi
def test_srun_with_the_protocol_of_another_mpi_is_refused_with_the_right_one() -> None:
    found, variables = own_mpi(), {"SLURM_STEP_NUM_TASKS": "4", **STEP}
    if found == "openmpi":
        variables |= {"PMI_RANK": "1", "PMI_SIZE": "4"}
    else:
        variables |= {"PMIX_RANK": "1", "PMIX_NAMESPACE": "slurm.pmix.17.0"}
    done = connect_in_a_process(**variables)
    assert done.returncode == 1
    assert "refused: a launcher started 4 ranks" in done.stderr
    assert "use srun --mpi=pmix for Open MPI, srun --mpi=pmi2 for MPICH" in done.stderr


@quick_first(
    "variables",
    [
        {"SLURM_JOB_ID": "17", "SLURM_NTASKS": "4", "SLURM_NNODES": "2"},  # the shell of salloc, or a batch script
        {**STEP, "SLURM_STEP_ID": "4294967290", "SLURM_STEP_NUM_TASKS": "1"},  # salloc with an interactive step
    ],
)
def test_variables_of_an_allocation_do_not_make_a_process_a_rank(variables: dict[str, str]) -> None:
    done = connect_in_a_process(**variables)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "1 False one process (not started by mpirun)\n"


@pytest.mark.slow
def test_a_rank_above_0_of_an_unknown_number_does_not_train_alone() -> None:
    own_mpi()
    done = connect_in_a_process(PMIX_RANK="1")
    assert done.returncode != 0
    assert "one process" not in done.stdout


@pytest.mark.mpi
def test_mpirun_of_mpich_cannot_start_ranks_of_open_mpi(tmp_path: Path) -> None:
    hydra = python_of("mpich").with_name("mpirun")
    done = subprocess.run(
        [str(hydra), "-n", "2", str(python_of("openmpi")), "-c", CONNECT],
        cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode != 0
    assert "refused: a launcher started 2 ranks, but the MPI library of mpi4py (Open MPI" in done.stderr


@pytest.mark.mpi
def test_collectives_of_several_ranks(tmp_path: Path) -> None:
    mpi, ranks = own_mpi(), 3
    done = mpirun(mpi, ranks, PROGRAMS / "collectives.py", cwd=tmp_path, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{ranks} ranks (")
    assert {"openmpi": "Open MPI", "mpich": "MPICH"}[mpi] in done.stdout


def run_failing(
    how: str, failing: str, folder: Path
) -> tuple[subprocess.CompletedProcess[str], list[str], dict[str, str]]:
    """The finished job of 3 ranks, its error lines, and the status of each rank that ended by itself."""
    start = time.monotonic()
    done = mpirun(own_mpi(), 3, PROGRAMS / "failing_command.py", how, failing, cwd=folder, timeout=60)
    assert time.monotonic() - start < SECONDS
    # A notice of Open MPI ends with a zero byte, and may come first.
    errors = [line.lstrip("\0") for line in done.stderr.splitlines() if "dptrain: error: " in line]
    return done, errors, {path.name: path.read_text() for path in folder.glob("ended-*")}


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("failing", "reported"), [("1,2", "rank 1 on HOST: disk 1 is full"), ("0,1,2", "disk 0 is full")]
)
def test_a_failure_within_together_is_reported_once_and_ends_every_rank(
    failing: str, reported: str, tmp_path: Path
) -> None:
    done, errors, ended = run_failing("together", failing, tmp_path)
    assert errors == [f"dptrain: error: {reported.replace('HOST', socket.gethostname())}"]
    assert ended == {"ended-0": "69", "ended-1": "69", "ended-2": "69"}
    assert done.returncode == 69
    assert "Traceback" not in done.stderr


@pytest.mark.mpi
def test_a_flag_that_every_rank_refuses_is_reported_once(tmp_path: Path) -> None:
    done, errors, ended = run_failing("usage", "0", tmp_path)
    assert len(errors) == 1
    assert "--no-such-flag" in errors[0]
    assert ended == {"ended-0": "2", "ended-1": "2", "ended-2": "2"}
    assert done.returncode == 2


@pytest.mark.mpi
def test_error_of_a_rank_that_others_wait_for_ends_the_job(tmp_path: Path) -> None:
    done, errors, ended = run_failing("alone", "1", tmp_path)
    assert len(errors) == 1
    # Open MPI's notice of the abort may follow in the same line.
    assert errors[0].startswith(f"dptrain: error: rank 1 on {socket.gethostname()}: disk 1 is full")
    assert set(ended) <= {"ended-1"}  # with MPICH it may continue for a moment after the abort
    assert done.returncode != 0
    assert "Traceback" not in done.stderr


@pytest.mark.mpi
def test_uncaught_exception_shows_rank_host_and_traceback_and_ends_the_job(tmp_path: Path) -> None:
    done, errors, ended = run_failing("exception", "1", tmp_path)
    where = f"dptrain: error: rank 1 on {socket.gethostname()} failed: "
    assert errors == [f"{where}ZeroDivisionError: unforeseen"]
    assert re.search(r"^ZeroDivisionError: unforeseen", done.stderr, re.MULTILINE)
    assert "Traceback (most recent call last)" in done.stderr
    assert "failing_command.py" in done.stderr
    assert set(ended) <= {"ended-1"}  # with MPICH it may continue for a moment after the abort
    assert done.returncode != 0
