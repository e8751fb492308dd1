"""Fixtures for every test."""

from __future__ import annotations

import shlex
import signal
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from data_sets import find_archive
from hypothesis import settings

from dptrain.system.signals import ENDING, prepare_signals
from launch.cleanup import SESSION_BASE

settings.register_profile("quick", max_examples=20)  # a fifth of the default; also for selection.examples


@pytest.fixture(scope="session")
def cifar10_archive() -> Path:
    """The binary archive; cifar-10-python.tar.gz is in the same folder."""
    archive = find_archive()
    if archive is None:
        pytest.skip("no CIFAR-10 archive in ~/.cache/dptrain; name one with DPTRAIN_CIFAR10_ARCHIVE")
    return archive


@pytest.fixture(scope="session", autouse=True)
def _own_mpirun_sessions(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Separates the mpirun of these tests from sessions that killed ones have left in /tmp."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(SESSION_BASE, str(tmp_path_factory.mktemp("mpirun")))
        yield


@pytest.fixture(scope="session", autouse=True)
def _output_in_whole_lines() -> Iterator[None]:
    """Without a buffer, print() writes a line and its end apart, and mpirun mixes the lines of ranks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PYTHONUNBUFFERED", raising=False)
        yield


@pytest.fixture(scope="session", autouse=True)
def _signals_with_their_defaults() -> None:
    """A background shell ignores SIGINT, `nohup` SIGHUP, and the programs that tests start would inherit it."""
    for number in ENDING:
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    prepare_signals()


@pytest.fixture
def fake_mpirun(tmp_path: Path) -> Callable[..., str]:
    """Makes an mpirun that answers --version and otherwise runs a line of shell."""

    def make(version: str, job: str = "exit 0", status: int = 0) -> str:
        path = tmp_path / "mpirun"
        path.write_text(
            f'#!/bin/bash\nif [ "$1" = --version ]; then echo {shlex.quote(version)}; exit {status}; fi\n{job}\n'
        )
        path.chmod(0o755)
        return str(path)

    return make


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests marked `long` or `hosts` run only when selected: -m long, -m hosts."""
    wanted = config.option.markexpr
    left_out = [
        item
        for item in items
        if any(item.get_closest_marker(name) and name not in wanted for name in ("long", "hosts"))
    ]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


FIGURES = pytest.StashKey[dict[str, list[float]]]()


@pytest.fixture
def tally(request: pytest.FixtureRequest) -> Callable[[str, float], None]:
    """Records a figure under a name; count and median of each name are printed after all tests."""
    figures = request.config.stash.setdefault(FIGURES, {})
    return lambda name, figure: figures.setdefault(name, []).append(figure)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for name, found in terminalreporter.config.stash.get(FIGURES, {}).items():
        middle, most = statistics.median(found), max(found)
        terminalreporter.write_line(f"{len(found):4} {name}: median {middle:.2f}, largest {most:.2f}")
