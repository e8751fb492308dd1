"""dptrain.health.interruption: a first signal requests the end of the run, a second one ends the process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from dptrain.health import interruption as interruption_module
from dptrain.health.interruption import AskedToEndError, SignalInterruption
from dptrain.system.signals import ENDING


class Handled:
    """An interruption of this process that records the statuses it would end with."""

    def __init__(self) -> None:
        self.ended_with: list[int] = []
        self.interruption = SignalInterruption(end=self.ended_with.append)


@pytest.fixture
def handled() -> Iterator[Handled]:
    handled = Handled()
    yield handled
    handled.interruption.close()


def wait_for(holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def kill_and_sleep(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)
    time.sleep(5)


@pytest.mark.parametrize("number", ENDING)
def test_while_deferring_a_signal_is_only_recorded(number: signal.Signals, handled: Handled) -> None:
    handled.interruption.begin_deferring()
    assert handled.interruption.signal_name is None
    os.kill(os.getpid(), number)
    wait_for(lambda: handled.interruption.signal_name == number.name)
    assert handled.ended_with == []


@pytest.mark.parametrize("number", ENDING)
def test_before_deferring_a_signal_is_an_exception(number: signal.Signals, handled: Handled) -> None:
    with pytest.raises(AskedToEndError, match=number.name):
        kill_and_sleep(number)


def test_an_exception_that_the_users_code_has_caught_is_raised_again(handled: Handled) -> None:
    with pytest.raises(AskedToEndError):
        kill_and_sleep(signal.SIGTERM)
    wait_for(lambda: handled.interruption.signal_name is not None)
    with pytest.raises(AskedToEndError, match="SIGTERM"):
        handled.interruption.begin_deferring()


def test_the_same_request_may_arrive_twice_but_a_later_signal_ends(
    handled: Handled, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As from `timeout`, which signals its child and then its whole group."""
    handled.interruption.begin_deferring()
    os.kill(os.getpid(), signal.SIGTERM)
    wait_for(lambda: handled.interruption.signal_name is not None)
    monkeypatch.setattr(interruption_module, "SAME_REQUEST", 60)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.1)
    assert handled.ended_with == []
    monkeypatch.setattr(interruption_module, "SAME_REQUEST", 0)
    os.kill(os.getpid(), signal.SIGINT)
    wait_for(lambda: handled.ended_with)
    assert handled.ended_with == [128 + signal.SIGINT]


@pytest.mark.slow
def test_a_second_signal_ends_even_a_process_that_does_not_return_to_python() -> None:
    """For example, one that waits inside MPI for a stopped rank; here it waits for a lock of the C library."""
    program = """
import ctypes, os, signal, sys
from dptrain.health import interruption
from dptrain.health.interruption import SignalInterruption
interruption.SAME_REQUEST = 0.2
SignalInterruption(os._exit).begin_deferring()
libc = ctypes.CDLL(None)
mutex = ctypes.create_string_buffer(64)
libc.pthread_mutex_lock(mutex)
print("ready", flush=True)
libc.pthread_mutex_lock(mutex)  # it holds the lock: waits without end, and no signal interrupts it
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGUSR1)
        time.sleep(0.4)
        assert process.poll() is None
        process.send_signal(signal.SIGUSR1)
        assert process.wait(timeout=10) == 128 + signal.SIGUSR1


def test_closing_restores_the_handlers() -> None:
    before = [signal.getsignal(number) for number in ENDING]
    SignalInterruption(os._exit).close()
    assert [signal.getsignal(number) for number in ENDING] == before
    assert signal.set_wakeup_fd(-1) == -1
