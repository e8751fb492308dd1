"""dptrain.doctor.mpi: another mpirun than that of mpi4py's library, a broken mpi4py, and root."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from selection import quick_first

from dptrain.doctor import mpi
from dptrain.doctor.finding import FAILURE, OK, WARNING
from dptrain.doctor.isolated import run_isolated
from dptrain.doctor.mpi import check_mpirun, check_user, kind_of

OPEN_MPI_4, OPEN_MPI_5 = "mpirun (Open MPI) 4.1.4", "mpirun (Open MPI) 5.0.11"


@pytest.mark.parametrize(
    ("version", "kind"),
    [
        ("Open MPI v5.0.11, package: Open MPI user@localhost", "Open MPI 5"),
        ("mpirun (Open MPI) 4.1.4\n\nReport bugs to http://www.open-mpi.org/", "Open MPI 4"),
        ("MPICH Version:\t4.3.0", "MPICH"),
        ("HYDRA build details:\n    Version:    4.3.0", "MPICH"),
        ("Intel(R) MPI Library for Linux* OS, Version 2021.11", "Intel MPI"),
        ("CRAY MPICH version 8.1.25", "MPICH"),
        ("something else", mpi.NOT_KNOWN),
    ],
)
def test_the_mpi_is_known_by_its_version(version: str, kind: str) -> None:
    assert kind_of(version) == kind


@pytest.fixture
def no_other_mpirun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The only mpirun on PATH is that of the test; there is none beside Python."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/usr/bin{os.pathsep}/bin")


@pytest.mark.usefixtures("no_other_mpirun")
@pytest.mark.parametrize(
    ("version", "library", "result"),
    [
        (OPEN_MPI_5, "Open MPI 5", OK),
        (OPEN_MPI_4, "Open MPI 5", WARNING),
        ("HYDRA build details:", "Open MPI 5", WARNING),
        (OPEN_MPI_5, "MPICH", WARNING),
        (OPEN_MPI_5, "", OK),  # the library cannot be loaded, which is a failure of its own
    ],
)
def test_an_mpirun_of_another_mpi_is_a_warning(
    version: str, library: str, result: str, fake_mpirun: Callable[..., str]
) -> None:
    path = fake_mpirun(version)
    found = check_mpirun(library)
    assert found.result == result
    assert found.found.startswith(f"{path} is {kind_of(version)}")
    assert result == OK or f"but mpi4py has {library}" in found.found


@pytest.mark.usefixtures("no_other_mpirun")
def test_the_right_mpirun_beside_python_is_recommended(tmp_path: Path, fake_mpirun: Callable[..., str]) -> None:
    beside = tmp_path / "bin" / "mpirun"
    Path(fake_mpirun(OPEN_MPI_5)).rename(beside)
    found = check_mpirun("Open MPI 5")
    assert (found.result, found.found) == (WARNING, f"{beside} is Open MPI 5, which is not on PATH")
    fake_mpirun(OPEN_MPI_4)
    found = check_mpirun("Open MPI 5")
    assert found.found == f"{tmp_path}/mpirun is Open MPI 4, {beside} is Open MPI 5, and mpi4py has Open MPI 5"
    assert found.remedy == f"start ranks with dptrain launch, or type {beside}"


@pytest.mark.usefixtures("no_other_mpirun")
def test_a_broken_or_missing_mpirun_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mpirun").write_text("#!/no/such/interpreter\n")
    (tmp_path / "mpirun").chmod(0o755)
    assert "is broken ([Errno 2]" in check_mpirun("MPICH").found
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    found = check_mpirun("MPICH")
    assert (found.result, found.found) == (WARNING, f"no mpirun beside {tmp_path}/bin/python nor on PATH")
    assert "pip install" in found.remedy


def test_root_is_a_warning_with_open_mpi_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*mpi.ROOT_ALLOWED, "OMPI_COMM_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    found = check_user("Open MPI 5")
    assert found.result == WARNING
    assert "set OMPI_ALLOW_RUN_AS_ROOT=1 and OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1" in found.remedy
    assert check_user("MPICH").result == OK
    for name in mpi.ROOT_ALLOWED:
        monkeypatch.setenv(name, "1")
    assert check_user("Open MPI 5").result == OK
    monkeypatch.delenv("OMPI_ALLOW_RUN_AS_ROOT")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert check_user("Open MPI 5").found == "not root"


@quick_first(
    ("module", "words"),
    [
        ("__version__ = '3.1.6'", "mpi4py 3.1.6"),
        ("raise RuntimeError('cannot load MPI library')", "RuntimeError: cannot load MPI library"),
        ("import os; os.kill(os.getpid(), 11)", "the process of this check was ended by SIGSEGV"),
    ],
)
def test_an_mpi4py_that_does_not_work_is_a_failure(
    module: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mpi4py.py").write_text(module)
    monkeypatch.syspath_prepend(str(tmp_path))
    (found,) = run_isolated("MPI library", "dptrain.doctor.mpi:checks", mpi.REMEDY)
    assert (found.check, found.result) == ("MPI library", FAILURE)
    assert found.found.startswith(words)
    assert "pip install" in found.remedy


def test_the_library_and_its_package_are_found() -> None:
    (found,) = run_isolated("MPI library", "dptrain.doctor.mpi:checks", mpi.REMEDY)
    assert found.result == OK
    assert found.facts["path"].startswith(sys.prefix) == bool(found.facts["package"])
    assert Path(found.facts["path"]).exists()
    assert found.facts["mpi"] in ("MPICH", "Open MPI 5")
