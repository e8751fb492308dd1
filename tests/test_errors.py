"""dptrain.errors: every error is one text and one exit status, and a misspelt name finds its nearest."""

from __future__ import annotations

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
    did_you_mean,
)


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        (DptrainError, 1),
        (UsageError, 2),  # what argparse and getopt end with
        (DataError, 1),
        (DownloadError, 69),  # EX_UNAVAILABLE of sysexits.h
        (CheckpointError, 1),
        (TrainingError, 1),
        (LimitError, 1),
        (OutputError, 1),
        (ReaderGoneError, 141),  # 128 + SIGPIPE
    ],
)
def test_every_error_is_its_text_and_has_the_status_of_its_kind(kind: type[DptrainError], status: int) -> None:
    error = kind("shard 3 is missing")
    assert str(error) == "shard 3 is missing"
    assert error.status == status
    assert not error.agreed
    assert isinstance(error, DptrainError)


def test_missing_download_is_a_data_error() -> None:
    assert issubclass(DownloadError, DataError)


def test_peer_ends_with_the_status_of_the_rank_that_failed_and_needs_no_stopping() -> None:
    error = PeerError("rank 2: shard 3 is missing", 69)
    assert (str(error), error.status, error.agreed) == ("rank 2: shard 3 is missing", 69, True)


@pytest.mark.parametrize(
    ("word", "nearest"), [("--batchsize", "--batch-size"), ("--momentun", "--momentum"), ("--epoch", "--epochs")]
)
def test_nearest_name_is_proposed(word: str, nearest: str) -> None:
    assert did_you_mean(word, ["--batch-size", "--epochs", "--momentum", "--lr"]) == f"did you mean {nearest!r}?"


def test_all_names_are_told_in_order_when_none_is_near() -> None:
    assert did_you_mean("zzz", (name for name in ("tree", "mpi"))) == "known: mpi, tree"
