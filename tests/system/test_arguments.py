"""dptrain.system.arguments: every program reports a wrong command line in the same way."""

from __future__ import annotations

import argparse

import pytest

from dptrain.errors import UsageError
from dptrain.system.arguments import Parser, argument, path_argument, whole
from dptrain.system.paths import typed_path


def parser() -> Parser:
    made = Parser("program")
    made.add_argument("--count", type=whole(1))
    made.add_argument("--seed", type=whole(0))
    made.add_argument("--folder", type=path_argument)
    made.add_argument("--name", type=argument(typed_path))
    made.add_argument("--kind", choices=["tree", "mpi"])
    commands = made.add_subparsers(metavar="COMMAND")
    commands.add_parser("pack").add_argument("--shards")
    commands.add_parser("check").explanations = {"gpu": "this program computes on CPUs"}
    return made


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--cont=3"], "unknown argument '--cont'; did you mean '--count'?"),
        (["--coun=3"], "unknown argument '--coun'; did you mean '--count'?"),
        (["pack", "--shard", "3"], "unknown argument '--shard'; did you mean '--shards'?"),
        (["pack", "word"], "unknown argument 'word'; quote it if it belongs to a flag"),
        (["check", "--gpu"], "unknown argument '--gpu'; this program computes on CPUs"),
        (["pak"], "unknown command 'pak'; did you mean 'pack'?"),
        (["--kind", "trees"], "--kind is 'trees'; did you mean 'tree'?"),
        (["--count", "0"], "argument --count: found '0', expected a whole number of at least 1; see program --help"),
        (["--count", "2.5"], "argument --count: found '2.5', expected a whole number of at least 1"),
        (["--seed", "-1"], "argument --seed: found '-1', expected a whole number of at least 0"),
        (["--seed", str(2**63)], "argument --seed: found '9223372036854775808', expected at most 9223372036854775807"),
        (["--seed", "9" * 5000], "argument --seed: found '9999"),
        (["--folder", ""], "argument --folder: found an empty path"),
        (["--name", "a\0b"], r"argument --name: a\x00b: a path cannot contain the character NUL"),
        (["pack", "--shards"], "argument --shards: expected one argument; see program pack --help"),
    ],
)
def test_a_wrong_word_is_a_usage_error_with_advice(words: list[str], expected: str) -> None:
    with pytest.raises(UsageError) as caught:
        parser().parse_args(words)
    assert str(caught.value).startswith(expected)
    assert len(str(caught.value)) < 300


def test_correct_arguments_are_parsed() -> None:
    found = parser().parse_args(["--count", "3", "--seed", "0", "--kind", "mpi", "pack", "--shards", "8"])
    assert found == argparse.Namespace(count=3, seed=0, folder=None, name=None, kind="mpi", shards="8")
