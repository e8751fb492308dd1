"""dptrain.report.console: a bar where a person watches, plain lines elsewhere."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from launch_runs import CHECKOUT
from training_runs import configuration, flags, packed

from dptrain import __version__
from dptrain.checkpoint.format import read_checkpoint
from dptrain.parallel.communicator import Communicator
from dptrain.report.console import Console, on_terminal
from dptrain.training.events import EvaluationStarted, Note, RanksLost, RunFacts, RunStarted, StepFinished
from dptrain.training.loop import train

ESCAPE = "\x1b["
FACTS = RunFacts("runs/one", "data", 101, 37, (2, 6, 7), 5, 4, "convnet", 100, epochs=2, steps_per_epoch=7,
                 last_step=14, ranks=1, threads=2, connection="one process", mpi="no MPI")  # fmt: skip


def begun() -> Console:
    """The console of a run that has begun."""
    console = Console()
    console.handle(RunStarted(FACTS, 0, None))
    return console


def step(number: int, *, logged: bool = False) -> StepFinished:
    return StepFinished(number, 1, 0.5, 1.0, 0.1, 100.0, {}, logged)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packed(tmp_path_factory.mktemp("progress") / "set")


def output_on_terminal(command: list[str], cwd: Path, **environment: str) -> str:
    """What a process writes when its standard output is a terminal."""
    here, there = pty.openpty()
    variables = {key: value for key, value in os.environ.items() if key not in ("DPTRAIN_PROGRESS", "NO_COLOR")}
    variables |= {"TERM": "xterm-256color", "COLUMNS": "140", "LINES": "40"} | environment
    with subprocess.Popen(command, stdout=there, stderr=there, stdin=there, cwd=cwd, env=variables) as process:
        os.close(there)
        chunks = []
        while True:
            try:
                chunk = os.read(here, 65536)
            except OSError:  # Linux: the other end is closed
                break
            if not chunk:
                break
            chunks.append(chunk)
        os.close(here)
    output = b"".join(chunks).decode()
    assert process.returncode == 0, output
    return output


def train_command(data: Path, run_dir: Path) -> list[str]:
    return [sys.executable, "-m", "dptrain", "train", *flags(data, run_dir)]


def test_a_terminal_gets_a_bar_that_reaches_the_last_step(data: Path, tmp_path: Path) -> None:
    output = output_on_terminal(train_command(data, tmp_path / "run"), tmp_path)
    assert ESCAPE in output
    assert "14/14" in output
    assert "epoch 2/2" in output
    assert "test accuracy" in output
    assert "\nstep 1  epoch" not in output


def test_the_bar_shows_an_evaluation(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Found in the field: the bar did not move during an evaluation of some minutes."""
    for name, value in {"COLUMNS": "140", "TTY_COMPATIBLE": "1", "DPTRAIN_PROGRESS": "bar"}.items():
        monkeypatch.setenv(name, value)
    console = begun()
    console.handle(step(1))
    console.handle(EvaluationStarted(1, 1))
    console.close()
    assert "epoch 1/2  evaluating" in capsys.readouterr().out


@pytest.mark.parametrize("variable", ["JPY_PARENT_PID", "COLAB_RELEASE_TAG"])
def test_a_notebook_gets_one_line_an_epoch(data: Path, tmp_path: Path, variable: str) -> None:
    """Found in the field: a notebook gives commands a terminal, and saved each frame of the bar as a line."""
    output = output_on_terminal(train_command(data, tmp_path / "run"), tmp_path, **{variable: "1"})
    assert ESCAPE not in output
    assert [line.split(" (")[0] for line in output.splitlines() if line.startswith(("epoch", "step"))] == [
        "epoch 1/2",
        "epoch 2/2",
    ]


def test_the_launcher_in_a_notebook_requests_no_bar(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from launch.__main__ import bar_columns; print(bar_columns())"]
    assert output_on_terminal(command, CHECKOUT).strip().isdecimal()
    assert output_on_terminal(command, CHECKOUT, JPY_PARENT_PID="1").strip() == "None"


def test_a_pipe_gets_plain_lines(data: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        train_command(data, tmp_path / "run"), capture_output=True, text=True, cwd=tmp_path, check=True
    )
    assert ESCAPE not in done.stdout + done.stderr
    assert "\r" not in done.stdout
    lines = done.stdout.splitlines()
    assert [int(line.split()[1]) for line in lines if line.startswith("step ")] == list(range(1, 15))
    assert any(line.startswith("epoch 1/2 (step 7)  training loss") for line in lines)
    assert done.stderr == ""


def test_plain_lines_can_be_requested_on_a_terminal(data: Path, tmp_path: Path) -> None:
    output = output_on_terminal(train_command(data, tmp_path / "run"), tmp_path, DPTRAIN_PROGRESS="lines")
    assert ESCAPE not in output
    assert "step 14  epoch 2/2" in output


@pytest.mark.parametrize(
    ("wanted", "terminal", "launched", "bar"),
    [
        (None, True, False, True),
        (None, False, False, False),
        (None, True, True, False),  # Open MPI gives every rank a pseudo-terminal
        ("bar", False, True, True),
        ("lines", True, False, False),
    ],
)
def test_the_bar_is_shown_on_terminals_or_if_the_launcher_requests_it(
    wanted: str | None, terminal: bool, launched: bool, bar: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("DPTRAIN_PROGRESS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MPI_LOCALNRANKS", "PMIX_RANK", "PMI_RANK"):
        monkeypatch.delenv(name, raising=False)
    if wanted:
        monkeypatch.setenv("DPTRAIN_PROGRESS", wanted)
    if launched:
        monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    assert on_terminal() == bar


def test_only_logged_steps_have_a_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DPTRAIN_PROGRESS", "lines")
    console = begun()
    capsys.readouterr()
    for number in (1, 2, 3):
        console.handle(step(number, logged=number == 2))
    assert [line.split("  loss")[0] for line in capsys.readouterr().out.splitlines()] == ["step 2  epoch 1/2"]


def test_lost_ranks_are_reported(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console()  # of a new rank 0, which nothing was reported to before
    console.handle(RanksLost(FACTS, 5, [0, 2], 0.25))
    console.handle(step(6, logged=True))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "rank 0, 2 died: 1 rank of 2 threads continue from step 5 after 0.25 s"
    assert lines[1].startswith("step 6  epoch 1/2")


@pytest.mark.parametrize(
    "line",
    [
        "runs/[bold]x:heart:",  # markup and emoji to rich
        "params_sha256 " + 64 * "a" + " last checkpoint " + 60 * "b",  # is copied from the terminal: not folded
    ],
)
def test_the_bar_prints_lines_unchanged(
    line: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DPTRAIN_PROGRESS", "bar")
    monkeypatch.setenv("COLUMNS", "80")
    console = begun()
    console.handle(Note(line))
    console.close()
    console.close()
    assert line in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["lines", "bar"])
def test_escape_sequences_in_a_name_do_not_reach_the_terminal(
    kind: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found in the field: names from files could move the cursor, set the title, or imitate lines of dptrain."""
    monkeypatch.setenv("DPTRAIN_PROGRESS", kind)
    console = begun()
    console.handle(Note("data \x1b[2Jset\nnext \udcff"))
    console.close()
    assert r"data \x1b[2Jset\nnext \udcff" in capsys.readouterr().out


def test_the_console_describes_the_start_and_the_end_of_a_run(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first line has model and data, the last the place of the results; a resumed run names its checkpoint."""
    for max_steps, resumed in ((3, ""), (0, f", from {tmp_path / 'run/checkpoints/step-00000003.h5'} (step 3)")):
        config = configuration(data, tmp_path / "run", log_every=5, max_steps=max_steps)
        with closing(Console()) as console:
            train(config, Communicator(), [console], connection="one process")
        out = capsys.readouterr().out
        assert f"run    {tmp_path / 'run'}{resumed}\n" in out
    assert f"dptrain {__version__}: one process, 1 shard at a time\n" in out
    assert "101 training and 37 test images 2x6x7, 5 classes, 4 shards" in out
    assert "7 steps an epoch, 14 in all" in out
    assert [line.split()[1] for line in out.splitlines() if line.startswith("step ")] == ["5", "10"]
    assert f"last checkpoint {tmp_path / 'run/checkpoints/step-00000014.h5'}\n" in out
    right = re.search(r"^test accuracy ([\d.]+) % \((\d+) of 37\)$", out, re.MULTILINE)
    best = re.search(r"best checkpoint (\S+) \(test accuracy ([\d.]+) %, step (\d+)\)", out)
    assert right is not None
    assert best is not None
    assert float(right[1]) == pytest.approx(100 * int(right[2]) / 37, abs=0.005)
    state = read_checkpoint(Path(best[1])).state
    assert (Path(best[1]).name, state.step) == ("best.h5", int(best[3]))
    assert 100 * (state.progress.test_accuracy or 0) == pytest.approx(float(best[2]), abs=0.005)
