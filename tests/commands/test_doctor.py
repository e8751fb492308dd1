"""`dptrain doctor` as a user starts it: on this machine, on a broken one, and on ranks."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mpi_runs import mpirun, own_mpi

from dptrain.commands import doctor as command
from dptrain.commands.doctor import lines, ranks_and_hosts
from dptrain.doctor import examination
from dptrain.doctor.examination import Report, examine_ranks, not_connected
from dptrain.doctor.finding import Finding, failure, ok, warning
from dptrain.doctor.isolated import EndedEarlyError
from dptrain.system.blas import missing_instructions
from dptrain.system.signals import EndedBySignal

pytestmark = pytest.mark.slow  # each run starts several processes


def doctor(cwd: Path, *words: str, modules: Path | None = None, **options: Any) -> subprocess.CompletedProcess[str]:
    """A run in which Python finds `modules` first."""
    path = [str(modules)] if modules else []
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*path, *filter(None, sys.path)])}
    program = [sys.executable, "-m", "dptrain", "doctor", *words]
    return subprocess.run(
        program, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120, check=False, **options
    )


def named(finding: Finding, check: str) -> Finding:
    return replace(finding, check=check)


def found_in(done: subprocess.CompletedProcess[str]) -> dict[str, list[dict[str, Any]]]:
    """The findings of --json by their checks."""
    by_check: dict[str, list[dict[str, Any]]] = {}
    for finding in json.loads(done.stdout)["findings"]:
        by_check.setdefault(finding["check"], []).append(finding)
    return by_check


def test_a_machine_that_works_passes(tmp_path: Path) -> None:
    done = doctor(tmp_path, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    assert (report["failed"], report["hosts"]) == (False, [socket.gethostname()])
    assert all(finding["remedy"] for finding in report["findings"] if finding["result"] != "ok")
    ((computation,), (numpy,)) = found_in(done)["computation"], found_in(done)["NumPy"]
    assert len(computation["facts"]["sha256"]) == 64
    assert numpy["facts"]["numpy"] == computation["facts"]["environment"]["numpy"]
    assert list(tmp_path.iterdir()) == []


def test_on_a_broken_machine_each_check_stands_alone(tmp_path: Path) -> None:
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / "mpi4py.py").write_text("raise ImportError('libmpi.so.40: cannot open shared object file')")
    (modules / "numpy.py").write_text("__version__ = '1.26.4'")
    (modules / "h5py.py").write_text("import os; print('libhdf5 aborts', flush=True); os.abort()")
    done = doctor(tmp_path, modules=modules)
    assert (done.returncode, done.stderr) == (1, "")
    assert "Traceback" not in done.stdout
    text = done.stdout.splitlines()
    failed = [line.split(maxsplit=1)[1] for line in text if line.startswith("failure")]
    assert [" ".join(line.split()[:3]) for line in failed] == [
        "NumPy 1.26.4, " + f"{modules}/numpy.py".rpartition("/")[0],
        "BLAS ModuleNotFoundError: No",
        "computation ModuleNotFoundError: No",
        "HDF5 the process",
        "MPI library ImportError:",
    ]
    assert "was ended by SIGABRT: libhdf5 aborts" in failed[3]
    assert text[-1] == "24 checks: 5 failures, " + text[-1].partition("failures, ")[2]
    remedies = [text[number + 1] for number, line in enumerate(text) if line.startswith("failure")]
    assert all(line.strip().startswith("-> ") for line in remedies)
    assert "repair NumPy first" in remedies[1]
    assert "dptrain train works without MPI" in remedies[4]


def test_low_limits_are_failures_and_not_tracebacks(tmp_path: Path) -> None:
    limit = (resource.RLIMIT_NOFILE, (8, 8))
    done = doctor(tmp_path, "--json", preexec_fn=lambda: resource.setrlimit(*limit))
    assert (done.returncode, done.stderr) == (1, "")
    found = found_in(done)
    assert found["open files"][0]["found"] == "at most 8, expected at least 512"
    assert found["NumPy"][0]["found"].startswith("no process can be started for this check: Too many open files")


def test_ranks_that_cannot_reach_each_other_are_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """As after the mpirun of another MPI: each process finds itself alone."""
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "0")
    report = examine_ranks([ok("well")], 60)
    assert (report.failed, report.connected) == (True, False)
    assert "a launcher started 2 ranks, but the MPI library of mpi4py" in report.findings[-1][0].found


def test_ranks_that_do_not_answer_in_time_are_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def late(function: str, value: Any, timeout: float) -> list[Any]:
        raise EndedEarlyError(f"the process of this check did not end within {timeout:g} s", [])

    monkeypatch.setattr(examination, "answers_of", late)
    report = examine_ranks([ok("well")], 7)
    assert (report.failed, report.connected) == (True, False)
    assert report.findings[-1][0].found.endswith("did not end within 7 s")


OTHER_KERNELS = """
import os, sys
from dptrain.system.launched import launched_rank
os.environ["OPENBLAS_CORETYPE"] = "Sandybridge" if launched_rank() == 1 else "Haswell"
from dptrain.commands.main import main
sys.exit(main(["doctor", *sys.argv[1:]]))
"""


@pytest.mark.mpi
@pytest.mark.skipif(bool(missing_instructions()), reason="a CPU without AVX2 and FMA")
def test_of_four_ranks_one_with_another_result_is_reported_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(OTHER_KERNELS)
    done = mpirun(own_mpi(), 4, tmp_path / "program.py", "--json", cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert "dptrain:" not in done.stderr
    assert json.loads(done.stdout)["hosts"] == [socket.gethostname()] * 4
    found = found_in(done)
    for check in ("NumPy", "MPI library", "ranks", "same software", "collectives"):  # equal findings once
        (finding,) = found[check]
        assert (finding["result"], finding["ranks"]) == ("ok", [0, 1, 2, 3]), finding
    assert "4 ranks" in found["ranks"][0]["found"]
    assert [(kernels["facts"]["blas_core"], kernels["ranks"]) for kernels in found["BLAS"]] == [
        ("Haswell", [0, 2, 3]),
        ("Sandybridge", [1]),
    ]
    (bits,) = found["same bits"]
    assert (bits["result"], bits["ranks"]) == ("failure", [0, 1, 2, 3])
    assert bits["found"].startswith(f"rank 1 on {socket.gethostname()} computed SHA-256")
    assert bits["found"].endswith("blas_core is Sandybridge, not Haswell")


# Which rank prints, and with which status it ends


def ends(
    rank: int, report: Report | EndedBySignal, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str, str]:
    """Status, output and errors of the command on one of 2 ranks that finds this, or gets a signal meanwhile."""

    def examine(*_: Any) -> Report:
        if isinstance(report, EndedBySignal):
            raise report
        return report

    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", str(rank))
    monkeypatch.setattr(command, "TURN", 0)
    monkeypatch.setattr(command, "examine_process", lambda _: [named(ok("well"), "NumPy")])
    monkeypatch.setattr(command, "examine_ranks", examine)
    status = command.main([])
    return status, *capsys.readouterr()


def test_only_rank_0_prints_the_report_of_all_ranks_and_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """mpirun ends all ranks when the first one fails: another rank must not fail before rank 0 has printed."""
    report = Report(["a", "b"], [(named(failure("full", "free some"), "disk"), [1])])
    status, out, err = ends(0, report, monkeypatch, capsys)
    assert (status, err) == (1, "")
    assert out.startswith("failure  disk  rank 1 on b: full\n")
    assert ends(1, report, monkeypatch, capsys) == (0, "", "")


def test_a_rank_that_is_not_connected_reports_its_failures_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    report = not_connected(
        [named(ok("well"), "NumPy"), named(failure("none", "install it"), "MPI library")], "no answer"
    )
    status, out, err = ends(1, report, monkeypatch, capsys)
    assert (status, out) == (1, "")
    name = socket.gethostname()
    assert err == f"dptrain: rank 1 on {name} failed: MPI library: none; ranks: no answer -> install it\n"


def test_a_signal_while_ranks_connect_is_reported_by_rank_0(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ended = EndedBySignal(signal.SIGTERM)
    assert ends(1, ended, monkeypatch, capsys) == (128 + signal.SIGTERM, "", "")
    status, out, _ = ends(0, ended, monkeypatch, capsys)
    assert status == 1
    assert "failure  ranks  SIGTERM ended this rank while it waited for the others" in out


# The report


def test_a_line_says_which_ranks_have_a_finding_and_what_to_do() -> None:
    findings = [
        (named(ok("2 cores"), "cores"), [0, 1, 3]),
        (named(warning("1 core", "give it more"), "cores"), [2]),
        (named(failure("odd \x1b[31m name", "rename it"), "disk"), [0, 1, 2, 3]),
    ]
    assert lines(Report(["a", "a", "b", "b"], findings)) == [
        "ok       cores  ranks 0-1, 3 on a, b: 2 cores",
        "warning  cores  rank 2 on b: 1 core",
        "                -> give it more",
        r"failure  disk   odd \x1b[31m name",
        "                -> rename it",
        "",
        "2 checks: 1 failure, 1 warning",
    ]


def test_many_hosts_are_counted() -> None:
    hosts = [f"node{rank // 2}" for rank in range(10)]
    assert ranks_and_hosts(range(10), hosts) == "ranks 0-9 on 5 hosts, the first is node0"
    assert ranks_and_hosts([4], hosts) == "rank 4 on node2"
