"""dptrain.errors: every error is one text and one exit status."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from dptrain.errors import (
    CheckpointError,
    DataError,
    DownloadError,
    DptrainError,
    LimitError,
    OutputError,
    PeerError,
    ReaderGoneError,
    TrainingError,
    UsageError,
)
from dptrain.system.failures import refused


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        (DptrainError, 1),
        (UsageError, 2),  # the status of argparse and getopt
        (DataError, 1),
        (DownloadError, 69),  # EX_UNAVAILABLE of sysexits.h
        (CheckpointError, 1),
        (TrainingError, 1),
        (LimitError, 1),
        (OutputError, 1),
        (ReaderGoneError, 141),  # 128 + SIGPIPE
    ],
)
def test_every_error_has_a_text_and_the_status_of_its_kind(kind: type[DptrainError], status: int) -> None:
    error = kind("shard 3 is missing")
    assert (str(error), error.status, error.agreed) == ("shard 3 is missing", status, False)


def test_a_peer_error_has_the_status_of_the_rank_that_failed_and_needs_no_abort() -> None:
    error = PeerError("rank 2: shard 3 is missing", 69)
    assert (str(error), error.status, error.agreed) == ("rank 2: shard 3 is missing", 69, True)


def test_a_missing_file_is_not_reported_as_a_missing_working_directory(tmp_path: Path) -> None:
    """h5py, for example, raises this error without the file's name."""
    error = FileNotFoundError(2, "No such file or directory")
    assert refused(error) is None
    gone = tmp_path / "gone"
    gone.mkdir()
    with contextlib.chdir(gone):
        gone.rmdir()
        assert "the working directory no longer exists" in str(refused(error))
