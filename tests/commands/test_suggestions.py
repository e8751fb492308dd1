"""dptrain.errors: every error is one text and one exit status, and a misspelt name finds its nearest."""

from __future__ import annotations

import pytest

from dptrain.config.keys import flag
from dptrain.config.train import KEYS
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
from dptrain.system.suggestions import EXPLANATIONS, SYNONYMS, did_you_mean


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


FLAGS = [flag(name) for name in KEYS]


def test_a_few_names_are_all_given_when_none_is_near_and_many_are_not() -> None:
    """In the field: `--optimizer` gave a list of all flags, and `--device` a flag that has nothing to do with it."""
    assert did_you_mean("zzz", (name for name in ("tree", "mpi"))) == "known: mpi, tree"
    assert did_you_mean("--banana", FLAGS) == "see --help"
    assert did_you_mean("--banana", FLAGS, "see dptrain train --help") == "see dptrain train --help"


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("--learning-rate", "--lr"),
        ("--learning_rate", "--lr"),
        ("--LR", "--lr"),
        ("--workers", "--threads"),
        ("--num-workers", "--threads"),
        ("--num-epochs", "--epochs"),
        ("--lr-schedule", "--schedule"),
        ("--batch", "--batch-size"),
        ("--bs", "--batch-size"),
        ("--checkpoint-dir", "--run-dir"),
        ("--output", "--run-dir"),
        ("--wd", "--weight-decay"),
        ("--steps", "--max-steps"),
    ],
)
def test_a_word_of_other_programs_gets_the_flag_of_this_one(word: str, meant: str) -> None:
    assert did_you_mean(word, FLAGS) == f"did you mean {meant!r}?"


@pytest.mark.parametrize(
    ("word", "explanation"),
    [
        ("--adam", "--optimizer NAME"),
        ("--device", "computes on CPUs only"),
        ("--gpu", "computes on CPUs only"),
        ("--ranks", "dptrain launch -n R -- train DATA"),
        ("--data", "named without a flag"),
        ("width", "--model-options"),
    ],
)
def test_a_word_that_no_flag_stands_for_is_explained(word: str, explanation: str) -> None:
    assert explanation in did_you_mean(word, FLAGS, explanations=EXPLANATIONS)


def test_what_begins_like_flags_proposes_these() -> None:
    assert did_you_mean("--stall", FLAGS) == "did you mean '--stall-abort' or '--stall-limit'?"


def test_every_synonym_stands_for_a_name_that_some_command_has() -> None:
    """A renamed flag would otherwise leave advice that names nothing."""
    train = {*FLAGS, "--augment", "--config", "--json"}
    elsewhere = {"shards", "force", "archive", "limit", "train", "test", "ranks", "max-restarts", "min-ranks"}
    proposed = {name for names in SYNONYMS.values() for name in names}
    assert {f"--{name}" for name in proposed - elsewhere} <= train
    assert not any(f"--{word}" in train for word in {*SYNONYMS, *EXPLANATIONS} - {"train", "test"})
