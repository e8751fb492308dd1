"""Runs of `dptrain` commands, and checks that apply to each of them."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
from pathlib import Path

from mpi_runs import dptrain
from training_runs import flags

from dptrain.checkpoint.format import read_checkpoint
from dptrain.commands.main import main

Done = subprocess.CompletedProcess[str]


def assert_one_error(done: Done, *words: str, status: int = 1, ranks: bool = False) -> None:
    """stderr is one line, the error; under mpirun its notice may follow."""
    assert done.returncode == status, done.stdout + done.stderr
    lines = done.stderr.splitlines()
    errors = [line for line in lines if line.startswith("dptrain: error: ")]
    assert len(errors) == 1, done.stderr
    assert ranks or lines == errors, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    for word in words:
        assert word in errors[0]


def assert_nothing_half_written(run_dir: Path) -> None:
    """Every checkpoint is complete, every line of the metrics is JSON, no temporary file is left."""
    for path in run_dir.rglob("*"):
        assert "partial" not in path.name
        if path.suffix == ".h5":
            read_checkpoint(path)
        if path.suffix == ".jsonl":
            for line in path.read_text().splitlines():
                json.loads(line)


def train(data: Path, run_dir: Path, *more: str, **changes: object) -> Done:
    return dptrain("train", *flags(data, run_dir, **changes), *more, cwd=run_dir.parent)


def dptrain_here(*arguments: str | Path, cwd: Path) -> Done:
    """`dptrain` within this process, which saves half a second."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.chdir(cwd), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main([str(argument) for argument in arguments])
    return subprocess.CompletedProcess(arguments, status, out.getvalue(), err.getvalue())


def train_here(data: Path, run_dir: Path, *more: str, **changes: object) -> Done:
    return dptrain_here("train", *flags(data, run_dir, **changes), *more, cwd=run_dir.parent)
