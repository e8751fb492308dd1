"""dptrain.health.activity: a phase, a step, and the time of the last progress."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from dptrain.health import activity as activity_module
from dptrain.health.activity import Activity
from dptrain.parallel.communicator import Communicator


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A clock that a test sets."""
    clock = SimpleNamespace(now=100.0)
    clock.monotonic = lambda: clock.now
    monkeypatch.setattr(activity_module, "time", clock)
    return clock


def test_a_phase_keeps_the_step_unless_given_one_and_returns_the_phase_before(clock: SimpleNamespace) -> None:
    assert Activity().current == ("starting", None)
    activity = Activity()
    assert activity.enter("computing", 3) == "starting"
    assert activity.enter("evaluating") == "computing"
    assert activity.current == ("evaluating", 3)


def test_entering_a_phase_and_progress_in_it_are_both_progress(clock: SimpleNamespace) -> None:
    activity = Activity()
    clock.now = 105.0
    assert activity.progressed == 100
    activity.enter("evaluating")
    assert activity.progressed == 105
    clock.now = 109.0
    activity.progress()
    assert activity.progressed == 109
    assert activity.current == ("evaluating", None)


def test_every_communicator_has_its_own_activity() -> None:
    one, other = Communicator(), Communicator()
    one.activity.enter("computing", 1)
    assert one.activity.current == ("computing", 1)
    assert other.activity.current == ("starting", None)
