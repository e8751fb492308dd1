"""dptrain.doctor.files: folders, locks, shared memory and limits that are too small."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import subprocess
import sys
import tempfile
import threading
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

from dptrain.doctor import files
from dptrain.doctor.files import check_folder, check_limit, check_locks, check_shared_memory, check_threads, checks
from dptrain.doctor.finding import FAILURE, OK, WARNING, run_all

Disk = namedtuple("Disk", "f_bavail f_frsize f_blocks")


def free(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """Every disk has this many bytes free."""
    monkeypatch.setattr(os, "statvfs", lambda _: Disk(size // 4096, 4096, 1 << 20))


def test_a_folder_that_can_be_written_is_left_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free(monkeypatch, 77 << 30)
    found = check_folder(tmp_path)
    assert (found.result, found.found) == (OK, f"{tmp_path} can be written, at least 64 GiB free")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_a_warning_and_a_folder_that_cannot_be_written_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = check_folder(tmp_path / "missing")
    assert (missing.result, missing.found) == (
        FAILURE,
        f"{tmp_path / 'missing'} cannot be written: No such file or directory",
    )
    free(monkeypatch, 300 << 20)
    found = check_folder(tmp_path)
    assert found.result == WARNING
    assert "has 300 MiB free" in found.found


def test_a_quota_is_noticed_by_writing(tmp_path: Path) -> None:
    program = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        f"resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)); from pathlib import Path; "
        f"from dptrain.doctor.files import check_folder; print(check_folder(Path({str(tmp_path)!r})).found)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == f"{tmp_path} cannot be written: File too large\n"


def test_a_deleted_working_directory_is_a_failure_of_its_checks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    found = {finding.check: finding for finding in run_all(checks())}
    assert found["working directory"].result == found["file locks"].result == FAILURE
    assert "No such file or directory" in found["working directory"].found
    assert found["temporary files"].result == OK
    monkeypatch.chdir(tmp_path)


def test_a_file_system_without_locks_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HDF5_USE_FILE_LOCKING", "FALSE")
    assert check_locks(tmp_path).found.endswith("can be locked; HDF5_USE_FILE_LOCKING=FALSE")

    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    found = check_locks(tmp_path)
    assert (found.result, "without locks" in found.found) == (WARNING, True)


def test_little_or_no_shared_memory_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    monkeypatch.setenv("OMPI_COMM_WORLD_LOCAL_SIZE", "8")
    free(monkeypatch, 64 << 20)  # Docker's default
    found = check_shared_memory(tmp_path)
    assert (found.result, found.found) == (WARNING, f"{tmp_path} has 64 MiB free, but 8 ranks may take 128")
    assert "--shm-size" in found.remedy
    monkeypatch.setenv("OMPI_COMM_WORLD_LOCAL_SIZE", "4")
    assert check_shared_memory(tmp_path).result == OK
    assert check_shared_memory(tmp_path / "missing").result == FAILURE


@pytest.mark.parametrize("result", [FAILURE, WARNING, OK])
@pytest.mark.parametrize("limit", files.LIMITS, ids=lambda limit: limit.name)
def test_a_low_limit_is_reported(limit: files.Limit, result: str, monkeypatch: pytest.MonkeyPatch) -> None:
    size = {FAILURE: limit.needed - 1, WARNING: limit.least - 1, OK: limit.least}[result]
    monkeypatch.setattr(resource, "getrlimit", lambda _: (size, resource.RLIM_INFINITY))
    found = check_limit(limit)
    assert found.result == result
    assert f"at most {size:,}" in found.found
    assert result == OK or f"ulimit {limit.flag} (this user may set it to unlimited)" in found.remedy


def test_a_real_limit_of_open_files_is_found() -> None:
    program = (
        "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40)); from dptrain.doctor.files import *; "
        "found = check_limit(LIMITS[0]); print(found.result, found.found)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "failure at most 40, expected at least 512\n"


def test_too_few_threads_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_threads(tmp_path).result == OK
    for name, text in (("pids.max", "100\n"), ("pids.current", "90\n")):
        group = tmp_path / "sys/fs/cgroup/job"
        group.mkdir(parents=True, exist_ok=True)
        (group / name).write_text(text)
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/job\n")
    found = check_threads(tmp_path)
    assert (found.result, found.found) == (WARNING, "the control group allows 10 more processes and threads")
    start, started = threading.Thread.start, list[threading.Thread]()

    def third_fails(thread: threading.Thread) -> None:
        if len(started) == 3:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", third_fails)
    found = check_threads(tmp_path)
    assert (found.result, found.found) == (FAILURE, "no more than 3 threads can be started")
    assert not any(thread.is_alive() for thread in started)


def test_a_missing_folder_for_temporary_files_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/no/such/folder")
    (found,) = run_all(check for check in checks() if check.name == "temporary files")
    assert (found.result, found.found) == (FAILURE, "/no/such/folder cannot be written: No such file or directory")
