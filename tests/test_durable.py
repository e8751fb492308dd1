"""dptrain.training.durable: a file is written whole or not at all, whatever fails on the way."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
from test_checkpoint import LAYOUT, ORIGIN, state_of

from dptrain.training.checkpoint import checkpoint_bytes, read_checkpoint
from dptrain.training.durable import write_durably


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """The earlier checkpoint, alone in its folder."""
    path = tmp_path / "step-00000009.h5"
    write_durably(path, checkpoint_bytes(state_of(), ORIGIN, LAYOUT))
    return path


def fail(*arguments: Any, **options: Any) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def break_write(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fills up: half of what is written arrives."""
    real = Path.open

    def opened(path: Path, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        file = real(path, mode, *arguments, **options)
        if mode != "wb":
            return file
        full = MagicMock(wraps=file)
        full.__enter__.return_value = full
        full.__exit__.side_effect = lambda *problem: file.close()
        full.write.side_effect = lambda content: (file.write(content[: len(content) // 2]), fail())
        return full

    monkeypatch.setattr(Path, "open", opened)


def break_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", fail)


def break_read_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_bytes", fail)


def change_read_back(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: real(path)[:-1] + b"?")


def break_rename(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("replace", "rename"):
        monkeypatch.setattr(Path, name, fail)
        monkeypatch.setattr(os, name, fail)


FAILURES = {
    "write": (break_write, "No space left"),
    "fsync": (break_fsync, "No space left"),
    "reading back": (break_read_back, "No space left"),
    "what is read back": (change_read_back, "not what was written"),
    "rename": (break_rename, "No space left"),
}


@pytest.mark.parametrize("failing", FAILURES)
def test_when_writing_fails_the_earlier_file_stays_and_nothing_else(
    failing: str, good: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = good.read_bytes()
    content = checkpoint_bytes(state_of(seed=5), ORIGIN, LAYOUT)
    break_it, words = FAILURES[failing]
    for path in (good, good.with_name("step-00000010.h5")):
        with monkeypatch.context() as patch:
            break_it(patch)
            with pytest.raises(OSError, match=words):
                write_durably(path, content)
        assert [entry.name for entry in good.parent.iterdir()] == [good.name]
        assert good.read_bytes() == before
    assert read_checkpoint(good).state.step == 9


def test_a_folder_that_cannot_be_synced_is_an_error_and_both_files_are_whole(
    good: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, later = os.fsync, good.with_name("step-00000010.h5")

    def fsync(descriptor: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):  # noqa: PTH112
            fail()
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(OSError, match="No space left"):
            write_durably(later, checkpoint_bytes(state_of(seed=5), ORIGIN, LAYOUT))
    assert {path.name for path in good.parent.iterdir()} == {good.name, later.name}
    for path in (good, later):
        read_checkpoint(path)


def test_file_and_folder_are_synced_around_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    real_fsync, real_replace = os.fsync, Path.replace

    def fsync(descriptor: int) -> None:
        done.append("sync " + os.readlink(f"/proc/self/fd/{descriptor}"))  # noqa: PTH115
        real_fsync(descriptor)

    def replace(path: Path, target: Path) -> Path:
        done.append(f"rename {path}")
        return real_replace(path, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", replace)
    write_durably(tmp_path / "x.h5", b"content")
    temporary = done[1].removeprefix("rename ")
    assert done == [f"sync {temporary}", f"rename {temporary}", f"sync {tmp_path}"]


def test_a_disk_that_really_is_full_leaves_the_earlier_checkpoint(good: Path) -> None:
    """RLIMIT_FSIZE: the operating system itself refuses to write on."""
    program = (
        "import resource, sys; from pathlib import Path\n"
        "from dptrain.training.durable import write_durably\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        f"write_durably(Path({str(good)!r}), bytes(5000))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "File too large" in done.stderr
    assert [entry.name for entry in good.parent.iterdir()] == [good.name]
    assert read_checkpoint(good).state.step == 9
