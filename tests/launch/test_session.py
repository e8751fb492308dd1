"""launch.session: a folder for mpirun's session, and what launchers that were killed have left."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from launch_runs import LOOP, OPEN_MPI, first_output, start_launch, wait_until

from launch.session import LOCK, PREFIX, SESSION_BASE, session_folder


def folders(base: Path) -> list[Path]:
    return sorted(base.glob(f"{PREFIX}*"))


def test_the_folder_is_there_within_the_block_only(tmp_path: Path) -> None:
    with session_folder({SESSION_BASE: str(tmp_path)}) as (folder, _):
        assert folders(tmp_path) == [folder]
        (folder / "ompi.1").mkdir()
    assert folders(tmp_path) == []


def test_what_a_killed_launcher_has_left_is_removed_when_its_mpirun_is_gone(
    fake_mpirun: Callable[..., str], tmp_path: Path
) -> None:
    """Found in the field: session folders stayed in TMPDIR."""
    mpirun = fake_mpirun(OPEN_MPI, f"trap '' TERM; echo $$; {LOOP}")
    process = start_launch("-n", "1", "--mpirun", mpirun, "--", "train", "x", **{SESSION_BASE: str(tmp_path)})
    orphan = int(first_output(process))
    process.kill()
    process.communicate(timeout=30)
    left = folders(tmp_path)
    assert len(left) == 1
    with session_folder({SESSION_BASE: str(tmp_path)}) as (folder, _):
        assert folders(tmp_path) == sorted([*left, folder])  # its mpirun still runs
    os.kill(orphan, signal.SIGKILL)

    def is_removed() -> bool:  # mpirun's own children may live a moment longer
        with session_folder({SESSION_BASE: str(tmp_path)}):
            return not left[0].exists()

    wait_until(is_removed)


def test_other_folders_stay(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / LOCK).touch()
    base = tmp_path / "base"
    foreign, fifo, unlocked = (base / f"{PREFIX}{name}" for name in ("of another program", "fifo", "link"))
    foreign.mkdir(parents=True)
    fifo.mkdir()
    os.mkfifo(fifo / LOCK)
    unlocked.symlink_to(outside)
    file = base / f"{PREFIX}file"
    file.touch()
    with session_folder({SESSION_BASE: str(base)}) as (mine, _), session_folder({SESSION_BASE: str(base)}):
        assert mine.exists()
    assert set(base.iterdir()) >= {foreign, unlocked, file}
    assert (outside / LOCK).exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to another user")
def test_a_folder_of_another_user_stays(tmp_path: Path) -> None:
    other = tmp_path / f"{PREFIX}other"
    other.mkdir()
    (other / LOCK).touch()
    shutil.chown(other, 12345)
    with session_folder({SESSION_BASE: str(tmp_path)}):
        assert other.exists()
