"""Jobs that tests disturb on purpose: start them, find their processes, send signals, and check the results."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

from launch_runs import shared_memory_of
from mpi_runs import python_of
from training_runs import configuration, flags, packed, run

from dptrain.checkpoint.format import read_checkpoint
from dptrain.parallel.mpi import RANK_VARIABLES
from launch.cleanup import mapped, segments

JOB_VARIABLE = "DPTRAIN_TEST_JOB"

# 250 steps of some milliseconds: long enough for a signal, short enough for many trials. A checkpoint after every step,
# so that one is being written for much of the time.
SHARDS, STEPS_PER_EPOCH, EPOCHS = 8, 50, 5
LAST_STEP = STEPS_PER_EPOCH * EPOCHS
OPTIONS: dict[str, Any] = {
    "epochs": EPOCHS,
    "batch_size": 32,
    "model_options": {"widths": [8]},
    "checkpoint_every": "1",
    "log_every": 1,
    "threads": 1,
}


def fault_data(folder: Path) -> Path:
    return packed(folder, shards=SHARDS, train=STEPS_PER_EPOCH * 32, test=200, shape=(3, 16, 16))


def words(data: Path, run_dir: Path, **changes: Any) -> list[str]:
    """The arguments of `dptrain train`."""
    return [*flags(data, run_dir, **(OPTIONS | changes)), "--json"]


@dataclass
class Job:
    """A command with the processes that it has started."""

    process: subprocess.Popen[str]
    name: str
    run_dir: Path
    shared_before: set[Path]
    shared: set[Path] = field(default_factory=set)  # the segments that its ranks were seen to use
    lines: list[str] = field(default_factory=list)  # lines of stderr read so far

    def processes(self) -> list[int]:
        """All processes of the job, by a variable that they have inherited."""
        return [
            int(entry.name)
            for entry in Path("/proc").iterdir()
            if entry.name.isdecimal() and self.name in _environment(entry).get(JOB_VARIABLE, "")
        ]

    def ranks(self) -> dict[int, int]:
        """Process ids of the trainers by rank, as mpirun has numbered them."""
        found = {}
        for process in self.processes():
            environment = _environment(Path(f"/proc/{process}"))
            rank = next((int(environment[name]) for name in RANK_VARIABLES if name in environment), None)
            if rank is not None:
                found[rank] = process
        return found

    def wait_until_training(self, ranks: int, step: int = 1, timeout: float = 60) -> None:
        """Wait until all ranks have started and the step is done."""
        self.wait_for(lambda: self.newest_step() >= step and len(self.ranks()) == ranks, timeout)
        with contextlib.suppress(OSError):  # a rank has ended
            self.shared |= shared_memory_of(self.ranks().values())

    def wait_for(self, holds: Callable[[], bool], timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while not holds():
            assert self.process.poll() is None, self.end()
            assert time.monotonic() < deadline, "it does not come"
            time.sleep(0.005)

    def newest_step(self) -> int:
        """The last logged step, -1 before the first."""
        with contextlib.suppress(OSError, ValueError, IndexError):
            return int(json.loads((self.run_dir / "metrics.jsonl").read_text().splitlines()[-1])["step"])
        return -1

    def line_of_stderr(self, words: str) -> str:
        """Wait for the first line with these words."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)
            if words in line:
                return line
        raise AssertionError(self.lines)

    def end(self, timeout: float = 60) -> tuple[int, str, str]:
        """Wait for its end: its status and output. No process or shared memory may remain."""
        out, err = self.process.communicate(timeout=timeout)
        deadline = time.monotonic() + 2
        while (left := self.processes()) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not left, f"processes left behind: {left}"
        left_memory = [path for path in self.shared if path.exists()]
        assert not left_memory, f"shared memory left behind: {left_memory}"
        assert_no_shared_memory_since(self.shared_before)
        return self.process.returncode, out, "".join(self.lines) + err


ALONE = re.compile(r"^sm_segment\..*0000\.\d+$")


def assert_no_shared_memory_since(earlier: set[Path]) -> None:
    """No segment of MPI is left that was not there earlier and that no process maps.

    A segment of another test's job counts only if it stays: its launcher removes it a moment after the ranks. One of
    Open MPI in a process without mpirun is of another test: its job has the number 0 (the last four digits).
    """
    deadline = time.monotonic() + 5
    new = {path for path in segments() - earlier if not ALONE.search(path.name)}
    while new:
        maps = mapped()
        new = {path for path in new & segments() if str(path) not in maps}
        assert time.monotonic() < deadline, f"shared memory left behind: {new}"
        time.sleep(0.05 if new else 0)


def _environment(entry: Path) -> dict[str, str]:
    with contextlib.suppress(OSError):
        pairs = (entry / "environ").read_bytes().split(b"\0")
        return dict(pair.decode(errors="replace").split("=", 1) for pair in pairs if b"=" in pair)
    return {}


@contextmanager
def job(command: list[str], run_dir: Path) -> Iterator[Job]:
    """A command in a new session; its remaining processes are killed at the end."""
    name, shared_before = uuid4().hex, segments()
    process = subprocess.Popen(
        command,
        cwd=run_dir.parent,
        env={**os.environ, JOB_VARIABLE: name},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    started = Job(process, name, run_dir, shared_before)
    try:
        yield started
    finally:
        for left in started.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(left, signal.SIGKILL)
        process.communicate(timeout=30)


def launched(mpi: str, ranks: int, *arguments: str, trainer: list[str]) -> list[str]:
    """`python -m launch` of the environment with that MPI."""
    python = str(python_of(mpi))
    return [python, "-m", "launch", "-n", str(ranks), *arguments, "--", "train", *trainer]


def alone(trainer: list[str]) -> list[str]:
    """The trainer as one process, without MPI."""
    return [sys.executable, "-m", "dptrain", "train", *trainer]


def undisturbed_sha256(data: Path, run_dir: Path) -> str:
    """The hash that every run of `words` must end with: of one process, this one, without checkpoints on the way."""
    finished, _ = run(configuration(data, run_dir, **(OPTIONS | {"checkpoint_every": "0"})))
    assert finished["step"] == LAST_STEP
    return str(finished["params_sha256"])


def final_sha256(run_dir: Path) -> str:
    """The hash in the checkpoint of the last step, which must exist."""
    return read_checkpoint(run_dir / "checkpoints" / f"step-{LAST_STEP:08d}.h5").state.params_sha256


def assert_all_sound(run_dir: Path) -> int:
    """Every checkpoint is valid and none was renamed; returns their number."""
    files = sorted((run_dir / "checkpoints").iterdir())
    for path in files:
        if not path.name.endswith(".partial"):  # of a writer that was killed; the next run removes it
            read_checkpoint(path)
    return len(files)
