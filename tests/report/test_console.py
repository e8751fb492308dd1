"""dptrain.report.console: a live view where a person watches, lines elsewhere, and the quiet and JSON forms."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from command_runs import assert_one_error, train_here
from launch_runs import CHECKOUT
from selection import quick_first
from terminals import Terminal
from training_runs import configuration, flags, packed

from dptrain import __version__
from dptrain.checkpoint.format import read_checkpoint
from dptrain.parallel.communicator import Communicator
from dptrain.report.console import Console, on_terminal
from dptrain.training.events import EvaluationFinished, Note, RanksLost, RunFacts, RunStarted, StepFinished
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
    """What a process writes when its standard output is a terminal of 140 columns."""
    with Terminal(command, cwd, columns=140, variables=environment) as terminal:
        assert terminal.finish() == 0, terminal.lines
        return terminal.written.decode().replace("\r\n", "\n")


def train_command(data: Path, run_dir: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "dptrain", "train", *flags(data, run_dir), *more]


@pytest.mark.slow
@quick_first("variable", ["JPY_PARENT_PID", "COLAB_RELEASE_TAG"])
def test_a_notebook_gets_one_line_an_epoch(data: Path, tmp_path: Path, variable: str) -> None:
    """Found in the field: a notebook gives commands a terminal, and saved each frame of the bar as a line."""
    output = output_on_terminal(train_command(data, tmp_path / "run"), tmp_path, **{variable: "1"})
    assert ESCAPE not in output
    assert [line.split("  ")[0] for line in output.splitlines() if line.startswith(("epoch", "step "))] == [
        "epoch 1/2",
        "epoch 2/2",
    ]


@pytest.mark.slow
def test_the_launcher_requests_a_view_only_for_a_terminal_that_can_show_it() -> None:
    command = [sys.executable, "-c", "from launch.__main__ import view_columns; print(view_columns())"]
    assert output_on_terminal(command, CHECKOUT).strip() == "140"
    assert output_on_terminal(command, CHECKOUT, JPY_PARENT_PID="1").strip() == "None"
    assert output_on_terminal(command, CHECKOUT, TERM="dumb").strip() == "None"


def test_a_pipe_gets_one_line_an_epoch(data: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        train_command(data, tmp_path / "run"), capture_output=True, text=True, cwd=tmp_path, check=True
    )
    assert "\x1b" not in done.stdout + done.stderr
    assert "\r" not in done.stdout
    lines = [line for line in done.stdout.splitlines() if re.match(r"(epoch|step) \d", line)]
    assert [line.split("  loss")[0] for line in lines] == ["epoch 1/2  step 7", "epoch 2/2  step 14"]
    assert done.stderr == ""


@pytest.mark.slow
def test_lines_can_be_requested_on_a_terminal(data: Path, tmp_path: Path) -> None:
    output = output_on_terminal(train_command(data, tmp_path / "run"), tmp_path, DPTRAIN_PROGRESS="lines")
    assert ESCAPE not in output
    assert "epoch 2/2  step 14  loss" in output


@pytest.mark.slow
def test_quiet_prints_the_result_alone_and_warnings_on_standard_error(data: Path, tmp_path: Path) -> None:
    output = output_on_terminal([*train_command(data, tmp_path / "run"), "--quiet"], tmp_path)
    assert re.fullmatch(rf"{tmp_path}/run: test accuracy [\d.]+ %, test loss [\d.]+, [\d.]+ s\n", output)
    again = train_here(data, tmp_path / "run", "--quiet", "--json", epochs=3, warmup_steps=99)
    assert again.returncode == 0
    assert json.loads(again.stdout)["step"] == 21  # the line of --json is the result
    assert "dptrain: the warm-up never ends" in again.stderr
    assert all(line.startswith("dptrain: ") for line in again.stderr.splitlines())


@pytest.mark.slow
def test_log_json_prints_the_lines_of_metrics_jsonl(data: Path, tmp_path: Path) -> None:
    output = output_on_terminal([*train_command(data, tmp_path / "run"), "--log-json", "--tta", "mirror"], tmp_path)
    lines = [json.loads(line) for line in output.splitlines()]
    logged = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    for one in (lines[0], logged[0]):
        assert one.pop("time")  # each line has its own
    assert lines == logged
    assert [line["event"] for line in lines] == ["start", *["step"] * 7, "epoch", *["step"] * 7, "epoch", "tta"]


def test_quiet_and_log_json_exclude_each_other(data: Path, tmp_path: Path) -> None:
    assert_one_error(train_here(data, tmp_path / "run", "--quiet", "--log-json"), "not allowed with", status=2)


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
def test_the_view_is_shown_on_terminals_or_if_the_launcher_requests_it(
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


def test_lines_have_the_time_left(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """7 steps of 10 s, the first of 30 s, and an evaluation of 4 s: 7 steps and one evaluation are left."""
    now = 0.0
    monkeypatch.setattr("dptrain.report.pace.time.perf_counter", lambda: now)
    monkeypatch.setenv("DPTRAIN_PROGRESS", "lines")
    console = begun()
    capsys.readouterr()
    for number in range(1, 8):
        now += 30 if number == 1 else 10
        console.handle(step(number))
    now += 4
    console.handle(EvaluationFinished(7, 1, 2.5, 0.5, 2.25, 0.25, 0.1, 1234.5, {}, [], 4.0, "", repeated=False))
    first, last = capsys.readouterr().out.splitlines()[0], capsys.readouterr()
    assert last.out == ""
    epoch = "epoch 1/2  step 7  loss 2.5000, accuracy 50.00 %  test loss 2.2500, accuracy 25.00 %  1,234 images/s"
    assert first == f"{epoch}  1:14 left"


def test_time_and_memory_are_estimated_once_from_measured_steps(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr("dptrain.report.pace.time.perf_counter", lambda: now)
    monkeypatch.setattr("dptrain.report.console.used_memory", lambda: 200 << 20)
    monkeypatch.setenv("DPTRAIN_PROGRESS", "lines")
    console = begun()
    capsys.readouterr()
    for number in range(1, 14):
        now += 1.0
        console.handle(step(number))
    assert capsys.readouterr().out == (
        "estimated time  14.0 s, and evaluations (measured: 11 steps)\nmemory          200 MiB\n"
    )


def test_lost_ranks_are_reported(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console()  # of a new rank 0, which nothing was reported to before
    console.handle(RanksLost(FACTS, 5, [0, 2], 0.25))
    console.handle(step(6, logged=True))
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["rank 0, 2 died: 1 rank of 2 threads continue from step 5 after 0.25 s"]


@pytest.mark.parametrize(
    "line",
    [
        "runs/[bold]x:heart:",  # markup and emoji to rich
        "params_sha256 " + 64 * "a" + " last checkpoint " + 60 * "b",  # is copied from the terminal: not folded
    ],
)
def test_the_view_leaves_lines_unchanged(
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
        assert f"run folder    {tmp_path / 'run'}{resumed}\n" in out
    assert f"dptrain {__version__}\n" in out
    assert "ranks         one process\n" in out
    assert "101 training and 37 test images 2x6x7, 5 classes\n" in out
    assert "steps         14 in all, 7 an epoch\n" in out
    assert f"last checkpoint  {tmp_path / 'run/checkpoints/step-00000014.h5'}\n" in out
    assert re.search(r"^time             [\d.]+ s, 11 steps, [\d,]+ images/s$", out, re.MULTILINE)
    assert f"metrics          {tmp_path / 'run/metrics.jsonl'}\n" in out
    assert f"configuration    {tmp_path / 'run/config.toml'}\n" in out
    right = re.search(r"^test accuracy    ([\d.]+) % \((\d+) of 37\), test loss [\d.]+$", out, re.MULTILINE)
    best = re.search(r"best checkpoint  (\S+) \(chosen on the test split: ([\d.]+) %, step (\d+)\)", out)
    assert right is not None
    assert best is not None
    assert float(right[1]) == pytest.approx(100 * int(right[2]) / 37, abs=0.005)
    state = read_checkpoint(Path(best[1])).state
    assert (Path(best[1]).name, state.step) == ("best.h5", int(best[3]))
    assert 100 * (state.progress.test_accuracy or 0) == pytest.approx(float(best[2]), abs=0.005)
