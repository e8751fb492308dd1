"""dptrain.report.page.history: the lines of metrics.jsonl that can be used, and the time of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dptrain.errors import DataError
from dptrain.report.page.history import history_of, number, read_history


def line(event: str, step: int, seconds: float = 1.0, **more: Any) -> bytes:
    kinds = {"compute": seconds, "data": 0.0, "waiting": 0.0, "reduction": 0.0}
    return json.dumps({"event": event, "step": step, "seconds": kinds, **more}).encode()


def test_a_repeated_step_or_epoch_counts_once_and_its_time_twice() -> None:
    history = history_of(
        [
            line("start", 0),
            line("step", 1, loss=2.0),
            line("step", 2, loss=1.0),  # the run is killed after it: 2 seconds without an epoch
            line("start", 0),
            line("step", 1, loss=2.0),
            line("step", 2, loss=1.5),
            line("epoch", 2, 2.5, epoch=1, evaluation_seconds=0.5),
            line("step", 3, 4.0, loss=0.5),
        ]
    )
    assert [(one["step"], one["loss"]) for one in history.steps] == [(1, 2.0), (2, 1.5), (3, 0.5)]
    assert len(history.epochs) == 1
    assert len(history.starts) == 2
    assert history.seconds == 2 + 2.5 + 0.5 + 4


def test_steps_of_an_epoch_are_known_from_a_whole_one() -> None:
    assert (
        history_of([line("epoch", 7, epoch=1), line("epoch", 14, epoch=2), line("epoch", 17, epoch=3)]).steps_per_epoch
        == 7
    )
    assert history_of([line("step", 7)]).steps_per_epoch == 0


@pytest.mark.parametrize(
    "junk",
    [b"", b"{", b"[]", b"3", b"\xff\xfe", b"null", b'{"event": "epoch"}', b"[" * 3000]
    + [b'{"event": "epoch", "step": %s, "epoch": 1}' % value for value in (b"-1", b"true", b'"7"', b"1e9", b"9" * 400)]
    + [b'{"event": "epoch", "step": 3, "epoch": %s}' % value for value in (b"0", b"4", b"null", b"[]", b"1.5")],
)
def test_a_line_that_cannot_be_used_is_left_out(junk: bytes) -> None:
    history = history_of([junk, line("step", 1, loss=0.5)])
    assert history.epochs == []
    assert len(history.steps) == 1


def test_only_finite_numbers_are_numbers() -> None:
    values = {
        "nan": float("nan"),
        "inf": float("inf"),
        "text": "1",
        "flag": True,
        "large": 10**400,
        "one": 1,
        "half": 0.5,
    }
    assert {name: value for name in values if (value := number(values, name)) is not None} == {"one": 1.0, "half": 0.5}
    assert number(None, "one") is None


def test_time_by_rank_is_that_of_rank_0_in_older_runs() -> None:
    ranks = [{"compute": 1.0}, {"compute": 2.0, "waiting": 0.5}]
    history = history_of(
        [line("epoch", 7, epoch=1, rank_seconds=ranks), line("epoch", 14, epoch=2, rank_seconds=ranks)]
    )
    assert [one["compute"] for one in history.rank_seconds()] == [2.0, 4.0]
    assert history.rank_seconds()[1]["waiting"] == 1.0
    assert history_of([line("epoch", 7, 3.0, epoch=1)]).rank_seconds()[0]["compute"] == 3.0


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"metrics\.jsonl: cannot be read"):
        read_history(tmp_path / "metrics.jsonl")
