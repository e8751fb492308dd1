"""dptrain.doctor.isolated: what a crash, a hang or a library that prints does to the checks in another process."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from dptrain.doctor.finding import FAILURE, OK
from dptrain.doctor.isolated import EndedEarlyError, answers_of, run_isolated

PROGRAM = """
import os, sys, time
from dptrain.doctor.finding import Check, ok

def checks():
    return [Check("one", lambda: ok("well"), ""), Check("two", os.abort, "")]

def answers(what):
    os.write(1, b"a library prints on standard output")
    yield [what]
    if what == "raise":
        raise ValueError("a mistake")
    if what == "exit":
        os._exit(3)
    if what == "hang":
        time.sleep(60)
"""


@pytest.fixture(autouse=True)
def _program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "doctor_program.py").write_text(PROGRAM)
    monkeypatch.syspath_prepend(str(tmp_path))


def test_a_crash_is_a_failure_after_the_findings_before_it() -> None:
    first, second = run_isolated("both", "doctor_program:checks", "install it again")
    assert (first.check, first.result) == ("one", OK)
    assert (second.check, second.result, second.remedy) == ("both", FAILURE, "install it again")
    assert second.found.startswith("the process of this check was ended by SIGABRT")
    assert second.found.endswith("after the check of one")


def test_what_a_library_prints_does_not_disturb_the_answers() -> None:
    assert answers_of("doctor_program:answers", "well") == [["well"]]


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("raise", "status 1: a library prints on standard output"),
        ("exit", "status 3"),
        pytest.param("hang", "not end within 2 s", marks=pytest.mark.slow),
    ],
)
def test_answers_before_the_end_are_kept(what: str, words: str) -> None:
    with pytest.raises(EndedEarlyError, match=words) as caught:
        answers_of("doctor_program:answers", what, timeout=2)
    assert caught.value.answers == [[what]]
    assert "Traceback" not in str(caught.value)


def test_a_process_that_cannot_be_started_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    (found,) = run_isolated("NumPy", "doctor_program:checks", "repair")
    assert found.found == "no process can be started for this check: Resource temporarily unavailable"
