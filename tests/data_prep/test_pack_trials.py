"""Packing that is killed at any time, or fills its disk, leaves nothing that `verify` accepts; the next run completes.

pytest -m long tests/data_prep/test_pack_trials.py
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from data_sets import folder_bytes, run_data_prep
from picture_files import write_pictures

from data_prep.__main__ import main

KILLS, SIZES = 20, 20  # of each source
COUNT = 1500  # pictures
FLAGS = ("--size", "32", "32", "--processes", "2", "--shards", "4")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enough pictures for a second of packing."""
    names = [f"{label}/{number}.png" for label in ("cats", "dogs") for number in range(COUNT // 2)]
    return write_pictures(tmp_path_factory.mktemp("pictures"), names)


def processes_of(folder: Path) -> list[int]:
    """Processes whose command line names a folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes().split(b"\0")
        except OSError:  # it has ended
            continue
        if os.fsencode(folder) in words:
            found.append(int(entry.parent.name))
    return found


def whole(out: Path) -> bool:
    """Whether `verify` finds a complete data set, and only its files are in the folder."""
    return main(["verify", str(out)]) == 0 and not (out / ".partial").exists()


def words_of(source: str, folder: Path, tmp_path: Path) -> list[str]:
    """The command line of a source, after the folder of the data set, for about a second of packing."""
    if source == "images":
        return ["--from", str(folder), *FLAGS]
    if source == "npz":
        path = tmp_path / "digits.npz"
        images = np.random.default_rng(0).integers(0, 256, (20_000, 32, 32, 3), dtype=np.uint8)
        np.savez(path, images=images, labels=np.arange(20_000) % 10)
        return ["--from", str(path), "--shards", "16"]
    return ["--train", "3000", "--test", "1000", "--shards", "16"]


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("source", ["images", "npz", "shapes"])
def test_packing_killed_at_any_time(source: str, folder: Path, tmp_path: Path) -> None:
    """What is left is no data set, or the whole one; the same command, without --force, gives the whole one."""
    started, words = time.monotonic(), words_of(source, folder, tmp_path)
    assert run_data_prep(source, tmp_path / "whole", *words).returncode == 0
    seconds, draw, killed = time.monotonic() - started, random.Random(0), 0
    right = folder_bytes(tmp_path / "whole")
    for trial in range(KILLS):
        out = tmp_path / f"set-{trial}"
        command = [sys.executable, "-m", "data_prep", source, str(out), *words]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(draw.uniform(0, seconds))
        process.send_signal(signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
        deadline = time.monotonic() + 5
        while processes_of(out) and time.monotonic() < deadline:  # the decoding processes end with their parent
            time.sleep(0.01)
        assert processes_of(out) == []
        if complete := whole(out):
            assert folder_bytes(out) == right
        again = run_data_prep(source, out, *words)
        if complete or again.returncode:  # an installation that was interrupted is finished, and then it is there
            assert (again.returncode, "is a data set already" in again.stderr) == (1, True), again.stderr
        assert whole(out)
        assert folder_bytes(out) == right
        shutil.rmtree(out)
    assert killed > KILLS / 2


IN_A_SMALL_DISK = """
set -eu
mount -t tmpfs -o size="$1"k tmpfs "$2"
shift; disk=$1; shift
status=0
"$@" 2> "$disk.errors" || status=$?
echo "first $status"
status=0
"$PYTHON" -m data_prep verify "$disk/set" > /dev/null 2>&1 || status=$?
echo "verify $status"
ls -A "$disk/set" 2> /dev/null | wc -l
mount -o remount,size=200m "$disk"
"$@" --force > /dev/null
"$PYTHON" -m data_prep verify "$disk/set" > /dev/null
echo complete
"""


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_disk_that_is_full_at_any_time(folder: Path, tmp_path: Path) -> None:
    """A file system of limited size, in a namespace of its own."""
    needed = 2 * COUNT * (3 * 32 * 32 + 16) // 1024 + 200  # KiB: the decoded pictures, and the shards
    disk = tmp_path / "disk"
    disk.mkdir()
    failed = 0
    for trial in range(SIZES):
        size = 40 + trial * needed // SIZES
        program = [sys.executable, "-m", "data_prep", "images", str(disk / "set"), "--from", str(folder), *FLAGS]
        done = subprocess.run(
            ["unshare", "-rm", "sh", "-c", IN_A_SMALL_DISK, "sh", str(size), str(disk), *program],
            env={**os.environ, "PYTHON": sys.executable},
            capture_output=True,
            text=True,
            check=False,
        )
        lines = done.stdout.splitlines()
        assert lines[-1:] == ["complete"], (size, done.stdout, done.stderr)
        if "first 1" in lines:
            failed += 1
            assert "verify 1" in lines
            errors = Path(f"{disk}.errors").read_text().splitlines()
            assert [line for line in errors if "error" in line] == errors[-1:]
            assert "No space left on device" in errors[-1]
        else:
            assert {"first 0", "verify 0"} <= set(lines)
    assert failed > SIZES / 2
