"""dptrain.system.suggestions: a misspelt name, or one that other programs use, finds the name that is meant."""

from __future__ import annotations

import pytest

from dptrain.config.train import KEYS
from dptrain.system.keys import flag
from dptrain.system.suggestions import EXPLANATIONS, SYNONYMS, did_you_mean

FLAGS = [*(flag(name) for name in KEYS if name != "data"), "--augment", "--config", "--json"]


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("--batchsize", "--batch-size"),
        ("--momentun", "--momentum"),
        ("--epoch", "--epochs"),
        ("--learning-rate", "--lr"),
        ("--learning_rate", "--lr"),
        ("--LR", "--lr"),
        ("--num-workers", "--threads"),
        ("--lr-schedule", "--schedule"),
        ("--batch", "--batch-size"),
        ("--output", "--run-dir"),
        ("--wd", "--weight-decay"),
        ("--steps", "--max-steps"),
    ],
)
def test_a_misspelt_flag_or_one_of_another_program_gets_the_right_flag(word: str, meant: str) -> None:
    assert did_you_mean(word, FLAGS) == f"did you mean {meant!r}?"


def test_an_abbreviation_gets_the_flags_that_begin_with_it() -> None:
    assert did_you_mean("--stall", FLAGS) == "did you mean '--stall-abort' or '--stall-limit'?"


def test_names_are_listed_when_none_is_similar_unless_there_are_many() -> None:
    assert did_you_mean("zzz", (name for name in ("tree", "mpi"))) == "known: mpi, tree"
    assert did_you_mean("--banana", FLAGS) == "see --help"
    assert did_you_mean("--banana", FLAGS, "see dptrain train --help") == "see dptrain train --help"


@pytest.mark.parametrize(
    ("word", "explanation"),
    [
        ("--adam", "--optimizer NAME"),
        ("--device", "computes on CPUs"),
        ("--gpu", "computes on CPUs"),
        ("--ranks", "dptrain launch -n R -- train DATA"),
        ("--data", "without a flag"),
        ("width", "--model-options"),
    ],
)
def test_a_word_without_a_flag_is_explained(word: str, explanation: str) -> None:
    assert explanation in did_you_mean(word, FLAGS, explanations=EXPLANATIONS)


def test_every_synonym_is_for_a_name_that_some_command_has() -> None:
    """A renamed flag would otherwise leave advice with a name that does not exist."""
    assert {f"--{name}" for name in SYNONYMS.keys() - {"ranks"}} <= set(FLAGS)
    words = {word for names in SYNONYMS.values() for word in names.split()}
    assert not any(f"--{word}" in FLAGS for word in {*words, *EXPLANATIONS})
