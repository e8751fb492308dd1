"""dptrain.api.process: the texts of errors."""

from __future__ import annotations

import pytest

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
