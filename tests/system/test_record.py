"""dptrain.system.record: the status record that a command sends only to the launcher."""

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
from selection import quick_first
from training_runs import flags, packed

from data_prep.pack import pack
from dptrain.system.record import OWNER, VARIABLE
from launch.attempt import StatusServer
from launch.targets.target import Outcome


def run(code: str, **variables: str) -> tuple[subprocess.CompletedProcess[bytes], list[Outcome]]:
    """Run Python code as if the launcher had started it; returns the process and the records that it sent."""
    server = StatusServer()
    server.start()
    environment = {**os.environ, VARIABLE: server.address, **variables}
    environment.pop(OWNER, None)
    done = subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, env=environment, capture_output=True, check=False)
    server.finish()
    return done, server.records


BEGIN = "import os, sys\nfrom dptrain.system.record import *\nbegin()\n"


def test_the_first_end_that_a_process_reports_becomes_its_record() -> None:
    code = "print(report_end(70, 'a\\udcff\\nb', retry=True, more={'by': 'x'}), report_end(0))"
    done, records = run(BEGIN + code)
    assert done.stdout == b"True False\n"
    assert records == [Outcome(70, "a\\udcff\\nb", reported=True, more={"by": "x"})]


@pytest.mark.parametrize("launcher", ["", "00@1@127.0.0.1"])
def test_without_a_launcher_nothing_is_reported(launcher: str) -> None:
    done, records = run(BEGIN + "print(report_end(0))", **{VARIABLE: launcher})
    assert (done.stdout, done.stderr, records) == (b"False\n", b"", [])


def test_the_next_address_is_used_if_one_does_not_answer() -> None:
    code = (
        BEGIN
        + f"""
from dptrain.system import record
token, port, _ = os.environ["{VARIABLE}"].split("@")
record._launcher = token + "@" + port + "@127.0.0.77:x,127.0.0.1"
print(report_end(0))
"""
    )
    done, records = run(code)
    assert (done.stdout, records) == (b"True\n", [Outcome(0, final=True, reported=True)])


@pytest.mark.parametrize("how", ["subprocess", "fork"])
def test_a_program_that_the_run_starts_does_not_report_for_it(how: str) -> None:
    inner = f"import subprocess; subprocess.run([sys.executable, '-c', {BEGIN + 'report_end(0)'!r}])"
    if how == "fork":
        inner = "child = os.fork()\nif child == 0:\n    report_end(0)\n    os._exit(0)\nos.waitpid(child, 0)"
    assert run(BEGIN + inner)[1] == []
    assert run(BEGIN + inner + "\nreport_end(1)")[1] == [Outcome(1, final=True, reported=True)]


def test_a_long_reason_is_cut() -> None:
    assert run(BEGIN + "report_end(1, '\\u20ac' * 9999)")[1] == [Outcome(1, "\u20ac" * 300, final=True, reported=True)]


@quick_first(
    ("arguments", "expected"),
    [
        (["--version"], [0]),
        (["inspect", "--help"], [0]),
        (["tran"], [2]),
        (["inspect", "no/such/run"], [1]),
        (["train", "no/such/data"], [1]),
        (["prep", "info", "no/such/data"], [1]),
        (["launch", "-n", "0"], [2]),
    ],
    quick=3,
)
def test_every_command_reports_its_end(arguments: list[str], expected: list[int]) -> None:
    done, records = run(f"import sys; from dptrain.commands.main import main; sys.exit(main({arguments!r}))")
    assert [record.status for record in records] == expected == [done.returncode], done.stderr


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
        # The first rank that leaves makes mpirun send SIGTERM to the other, which must have begun to leave.
        pytest.param("openmpi", "_exit", None, marks=pytest.mark.alone),
        ("openmpi", "exit", 1),
        ("mpich", "close", 0),
    ],
)
def test_the_record_of_real_ranks_that_print_megabytes_arrives(
    mpi: str, ends: str, status: int | None, tmp_path: Path
) -> None:
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
    if status is None:
        assert done.returncode != 0
        assert b"launch: the job ended with status" in done.stderr
    else:
        assert done.returncode == status, done.stderr[-1000:]


@pytest.mark.mpi
@pytest.mark.once
def test_eval_and_inspect_report_through_real_ranks(tmp_path: Path) -> None:
    data = packed(tmp_path / "data")
    assert run_launch("-n", "2", "--", "train", *flags(data, tmp_path / "run", epochs=1)).returncode == 0
    done = run_launch("-n", "2", "--", "eval", str(tmp_path / "run"), str(data), "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["samples"] > 0
    done = run_launch("-n", "2", "--", "inspect", str(tmp_path / "run"), "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["step"] > 0
