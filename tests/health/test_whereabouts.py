"""dptrain.health.whereabouts: a phase, a step, and when the main thread last got on."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from dptrain.health import whereabouts as whereabouts_module
from dptrain.health.whereabouts import Whereabouts
from dptrain.parallel.communicator import Communicator


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A clock that a test sets."""
    clock = SimpleNamespace(now=100.0)
    clock.monotonic = lambda: clock.now
    monkeypatch.setattr(whereabouts_module, "time", clock)
    return clock


def test_a_phase_keeps_the_step_unless_it_names_one_and_tells_the_phase_before(clock: SimpleNamespace) -> None:
    whereabouts = Whereabouts()
    assert whereabouts.where == ("starting", None)
    assert whereabouts.enter("computing", 3) == "starting"
    assert whereabouts.enter("evaluating") == "computing"
    assert whereabouts.where == ("evaluating", 3)


def test_entering_a_phase_and_progress_in_it_count_as_getting_on(clock: SimpleNamespace) -> None:
    whereabouts = Whereabouts()
    clock.now = 105.0
    assert whereabouts.moved == 100
    whereabouts.enter("evaluating")
    assert whereabouts.moved == 105
    clock.now = 109.0
    whereabouts.progress()
    assert whereabouts.moved == 109
    assert whereabouts.where == ("evaluating", None)


def test_every_communicator_has_its_own() -> None:
    one, other = Communicator(), Communicator()
    one.whereabouts.enter("computing", 1)
    assert one.whereabouts.where == ("computing", 1)
    assert other.whereabouts.where == ("starting", None)
