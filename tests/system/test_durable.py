"""dptrain.system.durable: a file is written completely or not at all if any call fails."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from checkpoints import LAYOUTS, ORIGIN, state_of
from failing_files import FailingOS

from dptrain.checkpoint.format import checkpoint_bytes, read_checkpoint
from dptrain.system import durable
from dptrain.system.durable import write_durably


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """The earlier checkpoint, alone in its folder."""
    path = tmp_path / "step-00000009.h5"
    write_durably(path, checkpoint_bytes(state_of(), ORIGIN, LAYOUTS))
    return path


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.EDQUOT], ids=os.strerror)
@pytest.mark.parametrize("piece", [1 << 24, 1000], ids=["in one piece", "in many pieces"])
def test_a_failure_of_any_call_keeps_the_earlier_file_and_leaves_no_temporary_file(
    error: int, piece: int, good: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each open, write, fsync, close and rename fails in turn, until no call is left."""
    before, content = good.read_bytes(), checkpoint_bytes(state_of(seed=5), ORIGIN, LAYOUTS)
    monkeypatch.setattr(durable, "PIECE", piece)
    later = good.with_name("step-00000010.h5")
    for failing in range(1, 1000):
        files = FailingOS(failing, error)
        with monkeypatch.context() as patch:
            patch.setattr(durable, "os", files)
            raised = errno_of(lambda: write_durably(later, content))
        if not files.has_failed:
            assert raised is None
            break
        assert raised == error
        renamed = "replace" in files.made[: failing - 1]  # the sync of the folder failed: both files are complete
        assert {path.name for path in good.parent.iterdir()} == ({good.name, later.name} if renamed else {good.name})
        assert good.read_bytes() == before
        assert not renamed or later.read_bytes() == content
        later.unlink(missing_ok=True)
    print(f"{failing - 1} calls made to fail with {errno.errorcode[error]}: {' '.join(files.made)}")
    writes = files.made.count("write")
    assert writes == -(-len(content) // piece)
    assert files.made == ["open", *["write"] * writes, "fsync", "close", "replace", "open", "fsync", "close"]
    assert read_checkpoint(good).state.step == 9


def errno_of(write: Callable[[], None]) -> int | None:
    """The errno of the error that is raised, None without an error."""
    try:
        write()
    except OSError as caught:
        return caught.errno
    return None


def test_contents_that_read_back_differently_are_an_error(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.read_bytes
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", lambda path: real(path)[:-1] + b"?")
        with pytest.raises(OSError, match="differs from the content written"):
            write_durably(good, checkpoint_bytes(state_of(seed=5), ORIGIN, LAYOUTS))
    assert [entry.name for entry in good.parent.iterdir()] == [good.name]
    assert read_checkpoint(good).state.step == 9


def test_file_and_folder_are_synced_around_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    real_fsync, real_replace = os.fsync, os.replace

    def fsync(descriptor: int) -> None:
        done.append("sync " + os.readlink(f"/proc/self/fd/{descriptor}"))  # noqa: PTH115
        real_fsync(descriptor)

    def replace(path: Path, target: Path) -> None:
        done.append(f"rename {path}")
        real_replace(path, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    write_durably(tmp_path / "x.h5", b"content")
    temporary = done[1].removeprefix("rename ")
    assert done == [f"sync {temporary}", f"rename {temporary}", f"sync {tmp_path}"]


def test_a_full_disk_leaves_the_earlier_checkpoint(good: Path) -> None:
    """RLIMIT_FSIZE: the operating system refuses further writes."""
    program = (
        "import resource, sys; from pathlib import Path\n"
        "from dptrain.system.durable import write_durably\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        f"write_durably(Path({str(good)!r}), bytes(5000))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "File too large" in done.stderr
    assert [entry.name for entry in good.parent.iterdir()] == [good.name]
    assert read_checkpoint(good).state.step == 9
