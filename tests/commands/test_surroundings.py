"""dptrain in a hostile environment: output that cannot be written, odd file names, exhausted limits."""

from __future__ import annotations

import errno
import json
import os
import pty
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_runs import assert_nothing_half_written
from training_runs import LAST_STEP, flags

from dptrain.commands.main import main
from dptrain.errors import LimitError
from dptrain.system.failures import refused

pytestmark = pytest.mark.slow  # starts many processes

PRINTS = """
from dptrain.nn.layers.flatten import Flatten
from dptrain.nn.layers.linear import Linear

class Prints(Flatten):
    def forward(self, x, call):
        print("a user's layer prints \\u20ac", "x" * 3000)
        return super().forward(x, call)

def build(input_shape, classes):
    return [Prints(), Linear(classes)]
"""


def dptrain(*arguments: str | Path, redirect: str = "", **options: Any) -> subprocess.CompletedProcess[str]:
    """dptrain as a shell starts it, with buffered output, and the streams redirected."""
    environment = {**os.environ, **options.pop("variables", {})}
    command = ["bash", "-c", f'"$@" {redirect}', "bash", sys.executable, "-m", "dptrain", *map(str, arguments)]
    defaults = {"capture_output": True, "env": environment, "errors": "surrogateescape", "timeout": 60, "check": False}
    return subprocess.run(command, **{**defaults, **options})


# Output that cannot be written


@pytest.mark.parametrize("redirect", [">/dev/full", "<&- >&- 2>&-", "| exit"])
def test_training_continues_when_its_output_fails(redirect: str, data: Path, tmp_path: Path) -> None:
    """Found in the field: a full disk or a closed terminal behind the output ended runs of hours."""
    (tmp_path / "prints.py").write_text(PRINTS)
    words = flags(data, tmp_path / "run", threads=2, model="prints.py:build", model_options={})
    redirect = redirect.replace("exit", 'exit; exit "${PIPESTATUS[0]}"')
    done = dptrain("train", *words, redirect=redirect, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert_nothing_half_written(tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["event"] == "step"] == list(range(1, LAST_STEP + 1))


def test_a_summary_that_cannot_be_written_is_a_warning(data: Path, tmp_path: Path) -> None:
    done = dptrain("train", *flags(data, tmp_path / "run"), "--json", redirect=">/dev/full", cwd=tmp_path)
    assert done.returncode == 0
    assert done.stderr == "dptrain: the line of --json could not be written; metrics.jsonl has the same figures\n"


@pytest.mark.parametrize("redirect", [">/dev/full", ">&-"])
@pytest.mark.parametrize("command", ["inspect RUN", "eval RUN DATA", "train --help", "prep info DATA"])
def test_a_result_that_cannot_be_printed_is_one_error(
    command: str, redirect: str, data: Path, trained: Path, tmp_path: Path
) -> None:
    words = [{"RUN": str(trained), "DATA": str(data)}.get(word, word) for word in command.split()]
    done = dptrain(*words, redirect=redirect, cwd=tmp_path)
    program = "dptrain prep" if "prep" in command else "dptrain"
    reason = "No space left on device" if "full" in redirect else "Bad file descriptor"
    assert done.returncode == 1
    assert done.stderr == f"{program}: error: standard output cannot be written: {reason}\n"


def test_training_continues_when_its_terminal_is_closed(data: Path, tmp_path: Path) -> None:
    """Found in the field: a job started with `&` and disowned outlives its terminal; its next output ended it."""
    command = [sys.executable, "-m", "dptrain", "train", *flags(data, tmp_path / "run", epochs=30, batch_size=4)]
    master, slave = pty.openpty()
    with subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, start_new_session=True) as process:
        os.close(slave)
        deadline = time.monotonic() + 30
        while not list(tmp_path.glob("run/checkpoints/*.h5")):
            os.set_blocking(master, False)
            try:
                os.read(master, 1 << 16)
            except BlockingIOError:
                time.sleep(0.01)
            assert time.monotonic() < deadline
        os.close(master)
        assert process.wait(timeout=60) == 0
    assert (tmp_path / "run" / "metrics.jsonl").read_text().count('"event": "epoch"') == 30


@pytest.mark.parametrize("variables", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "LANG": "C"}])
def test_training_works_with_ascii_output(variables: dict[str, str], data: Path, tmp_path: Path) -> None:
    odd = shutil.copytree(data, tmp_path / "sét")
    done = dptrain("train", *flags(odd, tmp_path / "run"), cwd=tmp_path, variables=variables)
    assert (done.returncode, done.stderr) == (0, "")
    assert "test accuracy" in done.stdout


def test_a_signal_to_a_benchmark_leaves_no_files(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "dptrain", "bench", "data", "--samples", "8000"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        while not list(tmp_path.glob("dptrain-bench-*/*")):
            assert process.poll() is None
            time.sleep(0.01)
        process.terminate()
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (128 + signal.SIGTERM, "dptrain: error: interrupted: SIGTERM\n")
    assert list(tmp_path.iterdir()) == []


# File names


@pytest.mark.parametrize("name", ["data", "run_dir", "model", "resume"])
def test_a_name_that_a_run_cannot_save_is_one_error(
    name: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Found in the field: bytes that are not UTF-8 in a path ended with a traceback when config.toml was written."""
    values: dict[str, Any] = {"data": data, "run_dir": tmp_path / "run", name: f"{tmp_path}/odd\udcff:build"}
    words = flags(**values)
    assert main(["train", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("dptrain: error: --")
    assert r"odd\udcff:build, expected a name in UTF-8" in line
    assert list(tmp_path.iterdir()) == []


def test_names_that_are_not_utf8_work_where_they_are_not_saved(data: Path, trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"odd \xff")
    shutil.copytree(data, folder / "set")
    shutil.copytree(trained, folder / "run")
    shutil.copytree(data, folder / os.fsdecode(b"other \xff"))
    (folder / "settings.toml").write_text("lr = 0.1\n")
    words = flags(Path("set"), Path("new"))
    assert dptrain("train", *words, "--config", folder / "settings.toml", cwd=folder).returncode == 0
    assert dptrain("train", *flags(Path(), Path("new"))[:3], cwd=folder / os.fsdecode(b"other \xff")).returncode == 0
    for command in (["inspect", folder / "run"], ["eval", folder / "run", folder / "set"], ["eval", "new", "set"]):
        done = dptrain(*command, cwd=folder)
        assert (done.returncode, done.stderr) == (0, "")


LONG = "a" * 300


@pytest.mark.parametrize(
    "words",
    [
        ["train", LONG],
        ["train", "DATA", "--run-dir", LONG],
        ["train", "DATA", "--run-dir", "run", "--resume", LONG],
        ["train", "DATA", "--config", LONG],
        ["train", "DATA", "--model", f"{LONG}.py:build"],
        ["eval", LONG, "DATA"],
        ["inspect", LONG],
    ],
)
def test_a_name_that_is_too_long_is_one_error(
    words: list[str], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([str(data) if word == "DATA" else word for word in words]) in (1, 2)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("dptrain: error: ")
    assert "ile name too long" in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("key", ["data", "run-dir", "resume", "model"])
def test_a_name_with_a_nul_character_is_one_error(key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "settings.toml").write_text(f'{key} = "a\\u0000b:build"\n')
    assert main(["train", "--config", str(tmp_path / "settings.toml")]) == 2
    assert re.search(r"a\\x00b.*cannot contain the character NUL", capsys.readouterr().err)


# Limits of the machine


@pytest.mark.parametrize("widths", [10**12, 10**18, 3 * 10**7])
def test_a_network_too_large_for_memory_is_one_error(
    widths: int, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = flags(data, tmp_path / "run", model_options={"widths": [widths]})
    assert main(["train", *words]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "memory" in line
    assert "use a smaller" in line
    assert not (tmp_path / "run").exists()


def test_options_that_are_nested_too_deeply_are_one_error(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(data), "--model-options", f"widths = {'[' * 5000}{']' * 5000}"]) in (1, 2)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("dptrain: error: ")
    assert len(line) < 3000


def limit(kind: int, size: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(kind, (size, size))


@pytest.mark.parametrize(
    ("kind", "size", "words"),
    [
        (resource.RLIMIT_AS, 400 << 20, "out of memory"),
        (resource.RLIMIT_NOFILE, 8, "Too many open files"),
    ],
)
def test_an_exhausted_limit_is_one_error(kind: int, size: int, words: str, data: Path, tmp_path: Path) -> None:
    options = {"threads": 2, "model_options": {"widths": [64, 64]}}
    done = dptrain("train", *flags(data, tmp_path / "run", **options), cwd=tmp_path, preexec_fn=limit(kind, size))
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("dptrain: error: ")
    assert words in line


def test_a_limit_of_threads_is_one_error(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_more(*_: Any) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("threading.Thread.start", no_more)
    assert main(["train", *flags(data, tmp_path / "run")]) == 1
    assert "no more threads can be started" in capsys.readouterr().err


def test_a_deleted_working_directory_is_no_problem_or_one_error(data: Path, trained: Path, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    leave = f"rmdir {gone};"
    script = f'cd {gone}; {leave} "$@"'
    statuses = {}
    for words in (["inspect", trained], ["prep", "shapes", "here"], ["train", *flags(data, tmp_path / "run")]):
        gone.mkdir(exist_ok=True)
        command = ["bash", "-c", script, "bash", sys.executable, "-m", "dptrain", *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        statuses[str(words[0])] = done.returncode
        assert "Traceback" not in done.stderr
    assert statuses == {"inspect": 0, "prep": 1, "train": 0}


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), "out of memory; use a smaller --batch-size"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "a\x1b"), r"a\x1b: File name too long; choose a shorter"),
        (OSError(errno.ENOSPC, "No space left on device", "x"), "x: No space left on device; free some space"),
        (BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), "the limit of processes is reached"),
        (
            ImportError("libx.so: failed to map segment from shared object", name="x"),
            "out of memory while loading a library",
        ),
        (RuntimeError("can't start new thread"), "no more threads"),
        (RuntimeError("Could not determine home directory."), "set HOME"),
        (ValueError("embedded null byte"), "NUL"),
        (ZeroDivisionError("division by zero"), None),
        (ValueError("a mistake"), None),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "a user's file"), None),
    ],
)
def test_errors_of_the_system_are_explained_and_mistakes_are_not(error: Exception, expected: str | None) -> None:
    found = refused(error)
    assert (found is None) == (expected is None)
    assert expected is None or expected in str(found)
    assert found is None or isinstance(found, LimitError)
