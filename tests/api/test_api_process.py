"""dptrain.api.process: the texts of errors, and who prints them."""

from __future__ import annotations

from pathlib import Path

import pytest
from mpi_runs import mpirun, own_mpi

from dptrain.api.process import as_arguments


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("--batch-size 16 is not a multiple", "batch_size=16 is not a multiple"),
        ("--l2-kib='many': expected a number", "l2_kib='many': expected a number"),
        ("--model FILE.py:build, or another --run-dir", "model=FILE.py:build, or another run_dir"),
        ("replace it with --force, or", "replace it with force, or"),
        ("start with dptrain launch --elastic or mpirun --with-ft ulfm; --threads 2", None),
        ("see dptrain train --help", None),
    ],
)
def test_flags_in_errors_become_arguments_and_commands_stay(text: str, expected: str | None) -> None:
    assert as_arguments(text) == (expected or text.replace("--threads 2", "threads=2"))


@pytest.mark.mpi
def test_an_error_that_all_ranks_have_is_printed_by_rank_0_alone(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import sys\nfrom dptrain import DptrainError, train\n"
        "try:\n    train('data', epochs='three')\n"
        "except DptrainError:\n    sys.excepthook(ValueError, ValueError('of the program'), None)\n    raise\n"
    )
    done = mpirun(own_mpi(), 2, program, cwd=tmp_path, timeout=60)
    assert done.returncode == 1
    assert done.stderr.count("UsageError: epochs is 'three', expected a whole number") == 1
    assert done.stderr.count("Traceback") == 1
    assert "PeerError" not in done.stderr
    assert done.stderr.count("ValueError: of the program") == 2  # other errors are printed by each rank
