"""dptrain.system.shared_context: the first thread enters, the last one leaves."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from dptrain.system.shared_context import SharedContext


def test_a_context_lasts_from_the_first_thread_to_the_last() -> None:
    seen: list[str] = []

    @contextmanager
    def context() -> Iterator[None]:
        seen.append("entered")
        yield
        seen.append("left")

    shared, leave = SharedContext(context), threading.Event()

    def hold() -> None:
        with shared, shared:
            leave.wait()

    threads = [threading.Thread(target=hold) for _ in range(3)]
    for thread in threads:
        thread.start()
    with shared:
        pass
    leave.set()
    for thread in threads:
        thread.join()
    assert seen == ["entered", "left"]
    with shared:
        assert seen == ["entered", "left", "entered"]
    assert seen[3:] == ["left"]


def test_a_context_that_cannot_be_entered_is_not_held() -> None:
    failures = [True, False]

    @contextmanager
    def context() -> Iterator[None]:
        if failures.pop(0):
            raise OSError("the first time")
        yield

    shared = SharedContext(context)
    with pytest.raises(OSError, match="the first time"), shared:
        pass
    with shared:
        assert failures == []
