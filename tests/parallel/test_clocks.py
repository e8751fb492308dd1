"""dptrain.parallel.clocks: the offsets of clocks that a test has set."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace

import pytest
from thread_ranks import on_ranks

from dptrain.parallel import clocks
from dptrain.parallel.clocks import Offset, clock_offsets
from dptrain.parallel.communicator import Communicator

SET = [0.0, 1234.5, -77.25]  # seconds that the clock of each rank is ahead


@pytest.mark.slow
def test_offsets_of_clocks_are_found_within_the_stated_accuracy(monkeypatch: pytest.MonkeyPatch) -> None:
    ahead: dict[int, float] = {}
    clock = SimpleNamespace(perf_counter=lambda: time.perf_counter() + ahead[threading.get_ident()])
    monkeypatch.setattr(clocks, "time", clock)

    def program(communicator: Communicator) -> list[Offset]:
        ahead[threading.get_ident()] = SET[communicator.rank]
        return clock_offsets(communicator)

    first, *others = on_ranks(3, program)
    assert all(other == first for other in others)
    assert first[0] == (0.0, 0.0)
    for offset, expected in zip(first, SET, strict=True):
        assert abs(offset.seconds - expected) <= offset.accuracy < 0.01 or expected == 0.0


def test_ranks_of_one_clock_have_no_offset() -> None:
    for offsets in on_ranks(2, clock_offsets):
        assert [offset.seconds for offset in offsets] == [0.0, 0.0]
        assert 0 < offsets[1].accuracy < 0.05
