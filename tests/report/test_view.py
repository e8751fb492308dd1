"""dptrain.report.view: what a person sees on a terminal, while a run trains and other text is printed."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from terminals import Terminal
from training_runs import flags, packed

from dptrain.report.overview import fitted
from dptrain.report.pace import Pace
from dptrain.report.view import COST, WINDOW, View
from dptrain.training.events import RunFacts, StepFinished

MODEL = """
import os, time
from dptrain.nn.layers.flatten import Flatten
from dptrain.nn.layers.linear import Linear

class Slow(Flatten):
    def forward(self, x, call):
        if call.training:
            time.sleep(SECONDS)
            if PRINTS:
                print(f"text of {os.getpid()}")
                print("its second line")
        return super().forward(x, call)

def build(input_shape, classes):
    return [Slow(), Linear(classes)]
"""
BAR = "\N{BOX DRAWINGS HEAVY HORIZONTAL}"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packed(tmp_path_factory.mktemp("view") / "set")


def command(data: Path, folder: Path, seconds: float, *, prints: bool = False, **changes: object) -> list[str]:
    """A run with steps of some time: each of 4 microbatches sleeps `seconds`; `prints`: and prints two lines."""
    (folder / "slow.py").write_text(MODEL.replace("SECONDS", str(seconds)).replace("PRINTS", str(prints)))
    values: dict[str, object] = {"model": "slow.py:build", "model_options": {}, "log_every": 2, **changes}
    return [sys.executable, "-m", "dptrain", "train", *flags(data, folder / "run", **values)]


def assert_clean(terminal: Terminal) -> None:
    """After the end no part of a frame is left, and the cursor is in the first column of an empty line."""
    assert [line for line in terminal.lines if BAR in line] == []
    assert terminal.screen.display[terminal.screen.cursor.y].strip() == ""
    assert terminal.screen.cursor.x == 0


def shows_a_frame(terminal: Terminal, columns: int) -> bool:
    """Whether a complete frame with all that this width has room for is on the screen."""
    bars, text = [terminal.line("epoch"), terminal.line("step")], "\n".join(terminal.lines)
    numbers = [rf"epoch \d+/20 +{BAR}+ +\d+ % +\d+:\d\d left", rf"step \d/7 +{BAR}+ +\d+ % +(\d+:\d\d left|evaluating)"]
    return (
        all(re.fullmatch(pattern, line) for pattern, line in zip(numbers, bars, strict=True))
        and {len(line) for line in bars} == {columns}
        and re.search(r"^loss [\d.]+   accuracy [\d.]+ %.*   [\d,]+ images/s", text, re.MULTILINE) is not None
        and re.search(r"compute \d+ %   reduction \d+ %   data \d+ %   waiting \d+ %", text) is not None
        and ("   learning rate 0.0" in text) == (columns > 60)
        and ("   no checkpoint yet" in text or bool(re.search(r"   checkpoint \d+ s old", text))) == (columns > 60)
        and (terminal.line("compute") == "") == (columns == 200)  # then all figures are in one line
    )


@pytest.mark.slow
def test_the_view_uses_the_width_of_the_terminal_also_after_it_was_resized(data: Path, tmp_path: Path) -> None:
    with Terminal(command(data, tmp_path, 0.05, epochs=20), tmp_path, columns=60) as terminal:
        for columns in (60, 120, 200, 80):
            terminal.resize(columns, 30)
            terminal.wait_for(lambda columns=columns: shows_a_frame(terminal, columns))  # type: ignore[misc]
        terminal.type("\x03")
        assert terminal.finish() == 75
        assert terminal.line("dptrain: stopped by SIGINT: step-")
        assert re.search(rb"\x1b\[3\dm", terminal.written)  # in color
        assert_clean(terminal)


@pytest.mark.slow
def test_text_of_a_run_and_of_its_workers_is_printed_above_the_view(data: Path, tmp_path: Path) -> None:
    with Terminal(command(data, tmp_path, 0.02, prints=True, threads=2), tmp_path, columns=100, rows=24) as terminal:
        assert terminal.finish() == 0
        assert_clean(terminal)
        texts = [line for line in terminal.lines if re.fullmatch(r"text of \d+", line)]
        assert len(texts) >= 14 * 4
        assert len({text.split()[-1] for text in texts}) == 2  # of two processes
        assert terminal.lines.count("its second line") == len(texts)
        others = {line for line in terminal.lines if "text of" in line or "second" in line}
        assert others == {*texts, "its second line"}


@pytest.mark.slow
def test_a_stopped_run_leaves_a_clean_screen_and_continues(data: Path, tmp_path: Path) -> None:
    shell = ["bash", "--norc", "--noprofile", "-i"]
    with Terminal(shell, tmp_path, columns=100, variables={"PS1": "prompt> "}) as terminal:
        words = command(data, tmp_path, 0.1, threads=2)
        (tmp_path / "train.sh").write_text(f"exec {' '.join(repr(word) for word in words)}\n")
        terminal.type("bash train.sh\n")
        terminal.wait_for(lambda: "loss" in terminal.line("loss"))
        terminal.type("\x1a")
        terminal.wait_for(lambda: terminal.line("[1]+") != "" and terminal.lines[-1].startswith("prompt>"))
        assert [line for line in terminal.screen.display if BAR in line] == []
        terminal.type("fg\n")
        terminal.wait_for(lambda: terminal.line("epoch 2/2") != "" and BAR in terminal.line("epoch"))
        terminal.wait_for(lambda: terminal.line("params_sha256") != "")
        assert [line for line in terminal.lines if BAR in line] == []
        terminal.type("exit\n")
        terminal.finish()


@pytest.mark.slow
@pytest.mark.mpi
def test_ranks_of_the_launcher_share_its_terminal(data: Path, tmp_path: Path) -> None:
    words = command(data, tmp_path, 0.03, prints=True)[3:]
    launch = [sys.executable, "-m", "dptrain", "launch", "-n", "2", "--", *words]
    with Terminal(launch, tmp_path, columns=200, rows=24) as terminal:
        terminal.wait_for(lambda: len(terminal.line("epoch")) == 200)
        assert terminal.finish() == 0
        assert_clean(terminal)
        texts = [line for line in terminal.lines if re.fullmatch(r"text of \d+", line)]
        assert len({text.split()[-1] for text in texts}) == 2
        assert terminal.lines.count("its second line") == len(texts)
        assert terminal.line("  resume for 2 more epochs").split("dptrain ", 1)[1].startswith("launch -n 2 -- train ")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variables", "view"), [({"NO_COLOR": "1"}, True), ({"TERM": "dumb"}, False)], ids=["no color", "dumb"]
)
def test_colors_and_the_view_can_be_refused(variables: dict[str, str], view: bool, data: Path, tmp_path: Path) -> None:
    with Terminal(command(data, tmp_path, 0.0), tmp_path, variables=variables) as terminal:
        assert terminal.finish() == 0
        assert re.search(rb"\x1b\[[349]\dm", terminal.written) is None
        assert (b"\x1b" in terminal.written) == view
        assert terminal.line("epoch 2/2  ")


FACTS = RunFacts("runs/one", "data", 101, 37, (2, 6, 7), 5, 4, "convnet", 100, epochs=2, steps_per_epoch=7,
                 last_step=14, ranks=1, threads=2, connection="one process", mpi="no MPI", batch_size=16)  # fmt: skip


def test_drawing_takes_a_small_share_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine of any speed: if a frame takes longer, the next one comes later."""
    now = 0.0
    monkeypatch.setattr("dptrain.report.view.time.perf_counter", lambda: now)
    pace = Pace(FACTS, 0)
    view = View(FACTS, pace, launched=True)
    drawn = []

    def lines(width: int) -> list[str]:
        nonlocal now
        drawn.append(now)
        now += 0.01  # a slow machine
        return ["a line"]

    monkeypatch.setattr(view, "_lines", lines)
    for _ in range(10_000):
        now += 0.002
        view.step_finished(StepFinished(1, 1, 0.5, 1.0, 0.1, 100.0, {}, False))
    assert len(drawn) > 5
    assert len(drawn) * 0.01 / now <= 1.2 * COST < 0.005


def test_the_rate_is_new_with_each_step_until_a_window_is_full() -> None:
    view = View(FACTS, Pace(FACTS, 0), launched=True)

    def shown_rate(step: int, rate: float, seconds: float, *, logged: bool = False) -> str:
        times = {"compute": seconds, "reduction": 0.0, "data": 0.0, "waiting": 0.0}
        view.step_finished(StepFinished(step, 1, 0.5, 1.0, 0.1, rate, times, logged))
        return next(text for _, text in view._figures() if "images/s" in text)

    assert shown_rate(1, 100.0, 0.5) == "100 images/s"
    assert shown_rate(2, 150.0, 0.6) == "150 images/s"
    assert shown_rate(3, 160.0, WINDOW + 0.1) == "160 images/s"
    assert shown_rate(4, 170.0, WINDOW + 0.2) == "170 images/s"
    assert shown_rate(5, 180.0, WINDOW + 0.3, logged=True) == "180 images/s"
    assert shown_rate(6, 90.0, 0.1) == "180 images/s"  # since the last logged step; too short


@pytest.mark.parametrize(("width", "left"), [(60, True), (36, True), (30, False), (12, False)])
def test_a_narrow_terminal_has_no_cut_time(width: int, left: bool) -> None:
    pace = Pace(FACTS, 0)
    view = View(FACTS, pace, launched=True)
    for step in (1, 2, 3):
        pace.step_finished(step)
        view.step_finished(StepFinished(step, 1, 0.5, 1.0, 0.1, 100.0, {}, False))
    bar = str(view._bars(width)).splitlines()[0]
    assert (bar.endswith(" left"), bar.endswith(" %")) == (left, not left)
    assert len(bar) <= max(width, len("epoch 1/2     21 %"))


def test_the_least_important_texts_are_left_out_until_the_line_fits() -> None:
    cells = [(0, "aaaa"), (2, "bb"), (1, "ccc")]
    assert [fitted(cells, width, " ") for width in (11, 10, 8, 7, 4, 3)] == [
        "aaaa bb ccc",
        "aaaa ccc",
        "aaaa ccc",
        "aaaa",
        "aaaa",
        "",
    ]
