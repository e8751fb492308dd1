"""dptrain.system.record: the final record that a command writes for the launcher, and for nobody else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from data_sets import image_data
from launch_runs import CHECKOUT, run_launch
from mpi_runs import python_of
from training_runs import flags, packed

from data_prep.pack import pack
from dptrain.system.record import LONGEST_LINE, OWNER, VARIABLE, WORD
from launch.records import Record, parse_record

TOKEN = "00ff"


def run(code: str, **variables: str) -> subprocess.CompletedProcess[bytes]:
    """Python code in a process that the launcher seems to have started."""
    environment = {**os.environ, VARIABLE: TOKEN, **variables}
    environment.pop(OWNER, None)
    return subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, env=environment, capture_output=True, check=False)


def records(err: bytes) -> list[Record | None]:
    mark = f"{WORD} {TOKEN} ".encode()
    return [parse_record(line.removeprefix(mark)) for line in err.splitlines() if line.startswith(mark)]


BEGIN = "import os, sys\nfrom dptrain.system.record import *\nbegin()\n"


def test_the_first_end_that_a_process_reports_is_its_record() -> None:
    done = run(BEGIN + "print(report_end(70, 'a\\udcff\\nb', retry=True, more={'by': 'x'}), report_end(0))")
    assert done.stdout == b"True False\n"
    assert records(done.stderr) == [Record(70, "a\udcff\nb", True, {"by": "x"})]


@pytest.mark.parametrize("closing", ["sys.stderr.close()", "os.close(2); os.open(os.devnull, os.O_WRONLY)"])
def test_standard_error_that_user_code_has_closed_is_no_obstacle(closing: str) -> None:
    assert records(run(BEGIN + closing + "; report_end(0)").stderr) == [Record(0)]


def test_without_a_launcher_nothing_is_written() -> None:
    done = run(BEGIN + "print(report_end(0))", **{VARIABLE: ""})
    assert (done.stdout, done.stderr) == (b"False\n", b"")


@pytest.mark.parametrize("how", ["subprocess", "fork"])
def test_a_program_that_the_run_starts_does_not_report_for_it(how: str) -> None:
    inner = f"import subprocess; subprocess.run([sys.executable, '-c', {BEGIN + 'report_end(0)'!r}])"
    if how == "fork":
        inner = "child = os.fork()\nif child == 0:\n    report_end(0)\n    os._exit(0)\nos.waitpid(child, 0)"
    assert records(run(BEGIN + inner).stderr) == []
    assert records(run(BEGIN + inner + "\nreport_end(1)").stderr) == [Record(1)]


def test_a_record_fits_a_pipe_whatever_it_tells() -> None:
    done = run(BEGIN + "report_end(1, '\\u20ac' * 9999, more={'run_dir': 'x' * 9999})")
    assert len(done.stderr) <= LONGEST_LINE
    assert records(done.stderr) == [Record(1, "\u20ac" * 300)]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--version"], [0]),
        (["inspect", "--help"], [0]),
        (["tran"], [2]),
        (["inspect", "no/such/run"], [1]),
        (["train", "no/such/data"], [1]),
        (["data-prep", "info", "no/such/data"], [1]),
        (["launch", "-n", "0"], [2]),
    ],
)
def test_every_command_reports_its_end(arguments: list[str], expected: list[int]) -> None:
    done = run(f"import sys; from dptrain.commands.main import main; sys.exit(main({arguments!r}))")
    found = records(done.stderr)
    assert [record.status for record in found if record] == expected == [done.returncode], done.stderr


SPAM = """
import os, sys
from dptrain.nn.zoo import linear

def build(shape, classes):
    os.write(1, b"x" * 3_000_000 + b"\\n")
    os.write(2, (b"y" * 99 + b"\\n") * 30_000 + b"no newline")
    rank = os.environ.get("OMPI_COMM_WORLD_RANK") or os.environ.get("PMI_RANK")
    if os.environ["SPAM_ENDS"] == "exit" and rank == "1":
        sys.exit(3)
    if os.environ["SPAM_ENDS"] == "_exit":
        os._exit(0)
    if os.environ["SPAM_ENDS"] == "close":
        sys.stderr.close()
        os.close(2)
    return linear(shape, classes)
"""


@pytest.mark.mpi
@pytest.mark.once
@pytest.mark.parametrize(
    ("mpi", "ends", "status"),
    [
        ("openmpi", "close", 0),
        ("openmpi", "_exit", None),
        ("openmpi", "exit", 1),
        ("mpich", "close", 0),
    ],
)
def test_real_ranks_that_print_megabytes_are_believed(mpi: str, ends: str, status: int | None, tmp_path: Path) -> None:
    pack(tmp_path / "data", image_data(train=32, test=8, shape=(1, 4, 4)), shards=4)
    (tmp_path / "spam.py").write_text(SPAM)
    trainer = flags(tmp_path / "data", tmp_path / "run", model=f"{tmp_path / 'spam.py'}:build", epochs=1)
    done = subprocess.run(
        [python_of(mpi), "-m", "launch", "-n", "2", "--", "train", *trainer],
        cwd=CHECKOUT,
        env={**os.environ, "SPAM_ENDS": ends},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.count(b"x") >= (6_000_000 if status == 0 else 0)
    assert WORD.encode() not in done.stderr
    if status is None:
        assert done.returncode != 0
        assert b"launch: the job ended with status" in done.stderr
    else:
        assert done.returncode == status, done.stderr[-1000:]


@pytest.mark.mpi
def test_eval_and_inspect_report_through_real_ranks(tmp_path: Path) -> None:
    data = packed(tmp_path / "data")
    assert run_launch("-n", "2", "--", "train", *flags(data, tmp_path / "run", epochs=1)).returncode == 0
    done = run_launch("-n", "2", "--", "eval", str(tmp_path / "run"), str(data), "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["samples"] > 0
    done = run_launch("-n", "2", "--", "inspect", str(tmp_path / "run"), "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["step"] > 0
