"""python -m data_prep as users run it: real processes, their output and exit status."""

from __future__ import annotations

import json
import os
import resource
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from data_sets import (
    SMALL_CIFAR10,
    assert_one_line_error,
    binary_members,
    run_data_prep,
    write_archive,
)

from data_prep import __main__ as program
from data_prep.sources import SOURCES, cifar10
from dptrain.data.manifest import read_manifest
from dptrain.system.files import file_sha256

SMALL = ("--train", "40", "--test", "20", "--shards", "4")


@pytest.fixture
def small_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small archive, for runs in this process: the size of a batch is set to fit."""
    monkeypatch.setattr(cifar10, "CONTENTS", SMALL_CIFAR10)
    return write_archive(tmp_path / "small.tar.gz", binary_members())


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """`main` in this process, with the same result as `run_data_prep`."""
    status = program.main([*map(str, arguments)])
    return subprocess.CompletedProcess(arguments, status, *capsys.readouterr())


@pytest.mark.slow
def test_shapes_are_packed_verified_and_described(tmp_path: Path) -> None:
    out = tmp_path / "shapes"
    packed = run_data_prep("shapes", out, *SMALL)
    assert (packed.returncode, packed.stderr) == (0, "")
    assert "40 training and 20 test images, 10 classes, 4 shards each" in packed.stdout
    verified = run_data_prep("verify", out)
    assert verified.returncode == 0
    assert "no problems found" in verified.stdout
    described = run_data_prep("info", out)
    assert "image shape     3 32 32\n" in described.stdout
    assert "bar circle" in described.stdout


def test_stdout_has_only_the_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "shapes"
    facts = json.loads(run(capsys, "shapes", out, *SMALL, "--json").stdout)
    assert facts["samples"] == {"train": 40, "test": 20}
    assert json.loads(run(capsys, "info", out, "--json").stdout) == facts
    report = json.loads(run(capsys, "verify", out, "--json").stdout)
    assert report["ok"] is True
    assert report["manifest_sha256"] == facts["manifest_sha256"]


def test_verify_prints_every_bad_file_and_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "shapes"
    run(capsys, "shapes", out, *SMALL)
    (out / "train-000-of-004.h5").unlink()
    (out / "test-003-of-004.h5").write_bytes(b"")
    done = run(capsys, "verify", out)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("data_prep: error: ") == done.stderr.count("\n") == 2
    assert "train-000-of-004.h5: cannot be read: No such file" in done.stderr
    assert "test-003-of-004.h5: 0 bytes" in done.stderr
    report = run(capsys, "verify", out, "--json")
    assert report.returncode == 1
    assert len(json.loads(report.stdout)["problems"]) == 2


def test_verify_and_info_without_a_data_set_are_a_one_line_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in ("verify", "info"):
        assert_one_line_error(run(capsys, command, tmp_path), "not a data set")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("cifar", "OUT"), ("cifar: no such file", "did you mean 'cifar10'")),
        (("cifar10", "OUT", "--archve=x"), ("did you mean '--archive'",)),
        (("shapes",), ("OUT",)),
        (("shapes", "OUT", "--seed", "-1"), ("--seed", "at least 0")),
        (("shapes", "OUT", "--seed", str(2**63)), (f"found '{2**63}', expected at most {2**63 - 1}",)),
        (("shapes", "OUT", "--validation-split", "0.1"), ("did you mean '--validation-fraction'?",)),
        (("shapes", "OUT", "--shards", "21", "--train", "40", "--test", "20"), ("--shards 21", "test split has 20")),
    ],
)
def test_wrong_command_line_is_a_one_line_error_with_status_2(
    arguments: tuple[str, ...], words: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = tuple(str(tmp_path / "set") if word == "OUT" else word for word in arguments)
    assert_one_line_error(run(capsys, *arguments), *words, status=2)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("rank", [0, 1])
def test_packing_under_mpirun_is_refused_once(
    rank: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Found in the field: one process packed, and the other failed because of the first."""
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", str(rank))
    text = "data_prep: error: prep runs on one process: start it without mpirun; nothing is packed\n"
    assert program.main(["shapes", str(tmp_path / "set"), *SMALL]) == (0 if rank else 2)
    assert capsys.readouterr().err == ("" if rank else text)
    assert not (tmp_path / "set").exists()


def test_folder_that_cannot_be_created_is_a_one_line_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert_one_line_error(run(capsys, "shapes", tmp_path / "file" / "set", *SMALL), "not a folder")
    assert_one_line_error(run(capsys, "shapes", "/proc/set", *SMALL), "/proc", "images cannot be stored there")


FILES_OF_64_KIB = (
    "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16)); "
    "sys.argv = ['data_prep', *sys.argv[1:]]; runpy.run_module('data_prep', run_name='__main__')"
)


@pytest.mark.slow
def test_full_disk_is_a_one_line_error_and_leaves_no_files(tmp_path: Path) -> None:
    # For a process, a limit of file size is like a full disk, and it needs no root.
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 1 << 16
    command = [sys.executable, "-c", FILES_OF_64_KIB, "shapes", str(tmp_path / "set"), "--train", "400", "--test", "40"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert_one_line_error(done, "File too large", "free some space")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT])
def test_signal_while_packing_removes_partial_files(number: signal.Signals, tmp_path: Path) -> None:
    """Found in the field: SIGQUIT, SIGUSR1 and others left a half-written folder. Two signals are one request."""
    out = tmp_path / "set"
    # So many shards that writing them takes seconds.
    counts = ("--train", "1000", "--test", "1000", "--shards", "1000")
    command = [sys.executable, "-m", "data_prep", "shapes", str(out), *counts]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("set/.partial/*.h5")):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.01)
    while process.poll() is None:  # until it ends, all within two seconds
        os.kill(process.pid, number)
        time.sleep(0.01)
    _stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert stderr.decode() == f"data_prep: error: interrupted: {number.name}; no partial files are left\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_signal_that_was_ignored_at_the_start_does_not_end_packing(tmp_path: Path) -> None:
    """Found in the field: every `&` in a script ignores SIGINT, nohup SIGHUP."""
    command = [sys.executable, "-m", "data_prep", "shapes", str(tmp_path / "set"), "--train", "200", "--shards", "200"]
    process = subprocess.Popen(command, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    while not list(tmp_path.glob("set/.partial/*.h5")):
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGHUP)
    assert process.wait(timeout=60) == 0


def test_packing_and_info_say_whether_the_archive_is_a_published_one(
    small_archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["cifar10", str(tmp_path / "set"), "--archive", str(small_archive), "--shards", "2", "--force"]
    sha256 = file_sha256(small_archive)
    for published, words in (
        ((), f"archive         small.tar.gz, NOT a published archive: results may differ (SHA-256 {sha256})"),
        ((sha256,), f"archive         small.tar.gz, a published archive (SHA-256 {sha256})"),
    ):
        monkeypatch.setattr(cifar10, "CONTENTS", replace(SMALL_CIFAR10, published_sha256=published))
        assert program.main(arguments) == 0
        assert words in capsys.readouterr().out
        assert read_manifest(tmp_path / "set").source.published is bool(published)
        assert program.main(["info", str(tmp_path / "set")]) == 0
        assert words in capsys.readouterr().out


def test_limit_is_kept(small_archive: Path, tmp_path: Path) -> None:
    arguments = ["cifar10", str(tmp_path / "set"), "--archive", str(small_archive), "--shards", "2", "--limit", "30"]
    assert program.main(arguments) == 0
    manifest = read_manifest(tmp_path / "set")
    assert (manifest.samples("train"), manifest.samples("test")) == (30, 6)


def test_damaged_archive_is_a_one_line_error_and_leaves_no_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.tar.gz").write_bytes(b"not an archive")
    done = run(capsys, "cifar10", tmp_path / "set", "--archive", tmp_path / "a.tar.gz")
    assert_one_line_error(done, "a.tar.gz", "not a complete .tar.gz")
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize(
    ("make", "words", "status"),
    [
        (os.mkfifo, "not a regular file", 1),
        (os.mkdir, "not a regular file", 1),
        (lambda path: path.symlink_to("gone"), "is a symbolic link to gone, which does not exist", 2),
    ],
    ids=["pipe", "folder", "dangling link"],
)
def test_an_archive_that_is_not_a_file_is_a_one_line_error_at_once(
    make: Callable[[Path], None], words: str, status: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path / "a.tar.gz")
    done = run(capsys, "cifar10", tmp_path / "set", "--archive", tmp_path / "a.tar.gz")
    assert_one_line_error(done, "a.tar.gz", words, status=status)
    assert not (tmp_path / "set").exists()


def test_names_from_an_archive_or_a_path_reach_the_terminal_escaped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = write_archive(tmp_path / "a\x1b[31m.tar.gz", {"evil\x1b]0;title\x07": b"x"})
    done = run(capsys, "cifar10", tmp_path / "set", "--archive", archive)
    assert_one_line_error(done, "not a CIFAR-10 archive", r"\x1b]0;title\x07", r"a\x1b[31m.tar.gz")
    assert "\x1b" not in done.stderr
    packed = run(capsys, "shapes", tmp_path / "s\x1b[31m", *SMALL)
    assert packed.returncode == 0
    assert "\x1b" not in packed.stdout + packed.stderr


@pytest.mark.parametrize("command", [*program.COMMANDS, *(source.name for source in SOURCES)])
def test_each_help_has_an_example_that_is_a_valid_command_line(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert program.main([command, "--help"]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    (line,) = out.split("example:\n")[1].strip().splitlines()
    words = shlex.split(line.split(f" {command} ", 1)[1])
    assert str(program.make_parser().parse_args([command, *words]).folder).startswith("data/")
