"""dptrain.doctor.machine: cores and memory by files like those of Linux, and a wrong clock."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from dptrain.doctor.finding import OK, WARNING
from dptrain.doctor.machine import check_clock, check_cores, check_memory


def tree(root: Path, **files: str) -> Path:
    """A root folder whose process is in the group `job`."""
    contents = {"proc/self/cgroup": "0::/job\n", **{f"sys/fs/cgroup/job/{name}": text for name, text in files.items()}}
    for name, text in contents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("quota", "result", "words"),
    [
        ("max 100000", OK, ""),
        ("100000000 100000", OK, ""),  # 1,000 cores
        ("200000 100000", OK, "quota is 2 cores"),
        ("150000 100000", WARNING, "quota is 1.5 cores"),
        ("50000 100000", WARNING, "quota is 0.5 cores"),
    ],
)
def test_a_cpu_quota_is_reported(
    quota: str, result: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    found = check_cores(tree(tmp_path, **{"cpu.max": quota}))
    assert found.result == result
    assert found.found.startswith("4 of 8 logical CPUs may be used")
    assert ("quota" in found.found) == bool(words)
    assert words in found.found
    if result == WARNING:
        assert ("at most 1 ranks or threads" if "1.5" in words else "at least one whole core") in found.remedy


def test_too_little_memory_is_a_warning(tmp_path: Path) -> None:
    tree(tmp_path, **{"memory.max": "max"})
    (tmp_path / "proc/meminfo").write_text("MemTotal: 8388608 kB\nMemAvailable: 4194304 kB\n")
    assert (check_memory(tmp_path).result, check_memory(tmp_path).found) == (OK, "8 GiB")
    (tmp_path / "proc/meminfo").write_text("MemTotal: 8388608 kB\nMemAvailable: 524288 kB\n")
    assert (check_memory(tmp_path).result, check_memory(tmp_path).found[:17]) == (WARNING, "0.5 GiB available")
    (tmp_path / "proc/meminfo").write_text("MemTotal: 8388608 kB\nMemAvailable: 4194304 kB\n")
    limited = check_memory(tree(tmp_path, **{"memory.max": str(256 << 20)}))
    assert (limited.result, limited.found[:17]) == (WARNING, "0.2 GiB available")


def test_without_proc_the_memory_is_not_known(tmp_path: Path) -> None:
    assert check_memory(tmp_path).result == WARNING


def test_a_clock_before_the_installation_is_a_warning() -> None:
    assert check_clock().result == OK
    found = check_clock(time.time() - 40 * 365 * 86_400)
    assert found.result == WARNING
    assert "but dptrain was installed on" in found.found
    assert "timedatectl" in found.remedy
