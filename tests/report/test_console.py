"""dptrain.report.console: a bar where a person looks on, plain lines elsewhere, silence on other ranks."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from launch_runs import CHECKOUT
from training_runs import flags, packed

from dptrain.report.console import Progress, on_terminal

ESCAPE = "\x1b["


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
            except OSError:  # Linux's way of saying that the other end is closed
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


def test_the_bar_says_when_it_evaluates(data: Path, tmp_path: Path) -> None:
    """Found in the field: a bar that stood still for the minutes of an evaluation."""
    wide = {"COLUMNS": "140", "TTY_COMPATIBLE": "1", "DPTRAIN_PROGRESS": "bar"}
    code = (
        "from dptrain.report.console import Progress; p = Progress(shown=True); p.start(0, 9); "
        "p.step(1, 'epoch 1/2', None); p.phase('epoch 1/2  evaluating'); p.stop()"
    )
    assert "epoch 1/2  evaluating" in output_on_terminal([sys.executable, "-c", code], tmp_path, **wide)


@pytest.mark.parametrize("variable", ["JPY_PARENT_PID", "COLAB_RELEASE_TAG"])
def test_a_notebook_gets_one_line_an_epoch(data: Path, tmp_path: Path, variable: str) -> None:
    """Found in the field: a notebook gives commands a terminal, and saved each frame of the bar as a line."""
    output = output_on_terminal(train_command(data, tmp_path / "run"), tmp_path, **{variable: "1"})
    assert ESCAPE not in output
    assert [line.split(" (")[0] for line in output.splitlines() if line.startswith(("epoch", "step"))] == [
        "epoch 1/2",
        "epoch 2/2",
    ]


def test_the_launcher_in_a_notebook_asks_for_no_bar(tmp_path: Path) -> None:
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


def test_lines_can_be_asked_for_on_a_terminal(data: Path, tmp_path: Path) -> None:
    output = output_on_terminal(train_command(data, tmp_path / "run"), tmp_path, DPTRAIN_PROGRESS="lines")
    assert ESCAPE not in output
    assert "step 14  epoch 2/2" in output


@pytest.mark.parametrize(
    ("told", "terminal", "launched", "bar"),
    [
        (None, True, False, True),
        (None, False, False, False),
        (None, True, True, False),  # Open MPI gives every rank a pseudo-terminal
        ("bar", False, True, True),
        ("lines", True, False, False),
    ],
)
def test_a_bar_is_for_terminals_or_where_the_launcher_asks_for_one(
    told: str | None, terminal: bool, launched: bool, bar: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("DPTRAIN_PROGRESS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MPI_LOCALNRANKS", "PMIX_RANK", "PMI_RANK"):
        monkeypatch.delenv(name, raising=False)
    if told:
        monkeypatch.setenv("DPTRAIN_PROGRESS", told)
    if launched:
        monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    assert on_terminal() == bar


@pytest.mark.parametrize("told", ["lines", "bar"])
def test_what_is_not_shown_prints_nothing(
    told: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DPTRAIN_PROGRESS", told)
    progress = Progress(shown=False)
    progress.start(0, 10)
    progress.step(1, "loss", "step 1  loss")
    progress.say("hello")
    progress.stop()
    assert capfd.readouterr() == ("", "")


def test_only_logged_steps_have_a_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DPTRAIN_PROGRESS", "lines")
    progress = Progress(shown=True)
    progress.start(0, 10)
    for step in (1, 2, 3):
        progress.step(step, "loss 0.5", "step 2  loss 0.5" if step == 2 else None)
    progress.stop()
    assert capsys.readouterr().out == "step 2  loss 0.5\n"


def test_a_bar_prints_lines_as_they_are_and_can_be_stopped_twice(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Square brackets are markup to rich, and names between colons emoji: a folder name must not lose them."""
    monkeypatch.setenv("DPTRAIN_PROGRESS", "bar")
    progress = Progress(shown=True)
    progress.start(0, 10)
    progress.say("runs/[bold]x:heart:")
    progress.step(1, "loss", None)
    progress.stop()
    progress.stop()
    assert "runs/[bold]x:heart:" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["lines", "bar"])
def test_a_name_with_escape_sequences_does_not_reach_the_terminal_as_it_is(
    kind: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found in the field: names from files could move the cursor, set the title, or imitate lines of dptrain."""
    monkeypatch.setenv("DPTRAIN_PROGRESS", kind)
    progress = Progress(shown=True)
    progress.start(0, 10)
    progress.say("data \x1b[2Jset\nnext \udcff")
    progress.stop()
    assert r"data \x1b[2Jset\nnext \udcff" in capsys.readouterr().out


def test_a_long_line_is_not_folded_by_the_bar(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Paths and hashes are copied from the terminal."""
    monkeypatch.setenv("DPTRAIN_PROGRESS", "bar")
    monkeypatch.setenv("COLUMNS", "80")
    line = "params_sha256 " + 64 * "a" + " last checkpoint " + 60 * "b"
    progress = Progress(shown=True)
    progress.start(0, 10)
    progress.say(line)
    progress.stop()
    assert line in capsys.readouterr().out
