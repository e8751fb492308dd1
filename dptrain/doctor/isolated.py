"""Checks in a process of their own: a library that crashes or hangs must not end the doctor.

    run_isolated("NumPy", "dptrain.doctor.numeric:checks", remedy="...")     # the findings of a list of checks
    answers_of("dptrain.doctor.ranks:connect", value, timeout=60)            # what a generator yields

This module is also the program of that process: it gets a value as JSON on standard input, and writes a line of JSON
on standard output for each answer. So the answers before a crash are not lost.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from dptrain.doctor.finding import LONGEST, Finding, described, failure
from dptrain.system.text import shown

TIMEOUT = 60.0  # seconds


class EndedEarlyError(Exception):
    """The process has crashed, or did not end in time; `answers` are those that it gave before."""

    def __init__(self, text: str, answers: list[Any]) -> None:
        super().__init__(text)
        self.answers = answers


def run_isolated(name: str, checks: str, remedy: str, timeout: float = TIMEOUT) -> list[Finding]:
    """The findings of `checks`, "MODULE:FUNCTION" whose function returns a list of Check.

    If the process ends early, a failure with this name and remedy follows those that it has found before.
    """
    try:
        answers, more = answers_of(f"{__name__}:_findings", checks, timeout), []
    except EndedEarlyError as error:
        answers = error.answers
        after = f", after the check of {answers[-1]['check']}" if answers else ""
        more = [replace(failure(f"{error}{after}", remedy), check=name)]
    return [Finding(**answer) for answer in answers] + more


def _findings(checks: str) -> Iterator[dict[str, Any]]:
    for check in resolve_name(checks)():
        yield check.run().to_json()


def answers_of(function: str, value: Any, timeout: float = TIMEOUT) -> list[Any]:
    """What the generator `function` ("MODULE:FUNCTION") yields for a value, in a process; EndedEarlyError.

    The process inherits all file descriptors: MPICH's mpirun gives its ranks one to connect by.
    """
    package = str(Path(__file__).resolve().parents[2])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*filter(None, sys.path), package])}
    try:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", __name__, function],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            close_fds=False,
        )
    except OSError as error:
        raise EndedEarlyError(f"no process can be started for this check: {error.strerror}", []) from error
    late = ""
    with process:
        try:
            out, err = process.communicate(json.dumps(value).encode(), timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            late = f"did not end within {timeout:g} s"
        except BaseException:
            process.kill()
            raise
    answers = [json.loads(line) for line in out.splitlines(keepends=True) if line.endswith(b"\n")]
    if late or process.returncode:
        printed = " ".join(err.decode(errors="replace").split())
        last_words = f": {shown(printed, LONGEST)}" if printed else ""
        raise EndedEarlyError(f"the process of this check {late or _end(process.returncode)}{last_words}", answers)
    return answers


def _end(returncode: int) -> str:
    if returncode >= 0:
        return f"ended with status {returncode}"
    try:
        return f"was ended by {signal.Signals(-returncode).name}"
    except ValueError:
        return f"was ended by signal {-returncode}"


def _main(function: str) -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print
    try:
        for answer in resolve_name(function)(json.load(sys.stdin)):
            answers.write(json.dumps(answer) + "\n")
            answers.flush()
    except Exception as error:
        sys.exit(described(error))


if __name__ == "__main__":
    _main(sys.argv[1])
