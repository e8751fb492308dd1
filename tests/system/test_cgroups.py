"""dptrain.system.cgroups: limits of CPU time and memory, read from trees of files like those of Linux."""

from __future__ import annotations

from pathlib import Path

import pytest

from dptrain.errors import LimitError
from dptrain.system.cgroups import check_memory, cpu_limits, memory_limit, process_room


def tree(root: Path, groups: str, files: dict[str, str]) -> Path:
    """A root folder with /proc/self/cgroup and files below /sys/fs/cgroup."""
    contents = {f"sys/fs/cgroup/{name}": text for name, text in files.items()}
    contents["proc/self/cgroup"] = groups
    for name, text in contents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def quotas(root: Path) -> list[float]:
    return sorted(cpu_limits(root).values())


@pytest.mark.parametrize(
    ("text", "expected"),
    [("150000 100000\n", [1.5]), ("max 100000\n", []), ("", []), ("50000 0\n", []), ("a b c\n", [])],
)
def test_a_quota_of_cgroup_version_2_is_found(text: str, expected: list[float], tmp_path: Path) -> None:
    assert quotas(tree(tmp_path, "0::/job\n", {"job/cpu.max": text})) == expected


def test_the_quotas_of_all_parent_groups_apply_too(tmp_path: Path) -> None:
    files = {"cpu.max": "800000 100000", "job/cpu.max": "200000 100000", "job/step/cpu.max": "max 100000"}
    assert quotas(tree(tmp_path, "0::/job/step\n", files)) == [2, 8]


@pytest.mark.parametrize(("quota", "expected"), [("250000", [2.5]), ("-1", [])])
def test_a_quota_of_cgroup_version_1_is_found(quota: str, expected: list[float], tmp_path: Path) -> None:
    folder = "cpu/slurm/job"
    files = {f"{folder}/cpu.cfs_quota_us": quota, f"{folder}/cpu.cfs_period_us": "100000"}
    assert quotas(tree(tmp_path, "3:memory:/\n2:cpu,cpuacct:/slurm/job\n", files)) == expected


def test_a_container_sees_its_own_group_as_the_topmost(tmp_path: Path) -> None:
    """/proc/self/cgroup has the path on the host, which is not there; the container's group is what is mounted."""
    files = {"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"}
    assert quotas(tree(tmp_path, "2:cpu,cpuacct:/docker/17\n", files)) == [1]


def test_without_groups_there_are_no_limits(tmp_path: Path) -> None:
    assert cpu_limits(tmp_path) == {}
    assert memory_limit(tmp_path) is None


def test_the_available_memory_is_the_smaller_of_machine_and_group(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "meminfo").write_text("MemTotal: 4096 kB\nMemFree: 7 kB\nSwapTotal: 1024 kB\n")
    assert memory_limit(tmp_path) == 5 << 20
    files = {"memory/memory.limit_in_bytes": "9223372036854771712", "memory/job/memory.limit_in_bytes": "1000"}
    assert memory_limit(tree(tmp_path, "3:memory:/job\n", files)) == 1000
    assert memory_limit(tree(tmp_path, "0::/job\n", {"job/memory.max": "800"})) == 800
    assert memory_limit(tree(tmp_path, "0::/job\n", {"job/memory.max": "max"})) == 5 << 20


def test_a_request_for_more_memory_than_available_is_refused_before_use() -> None:
    """Found in the field: a network too large for memory is killed by the system minutes later, without a message."""
    check_memory(1 << 20, "a few parameters")
    with pytest.raises(LimitError, match=r"many parameters need at least 1,024.0 GiB of memory, found [\d,.]+ GiB"):
        check_memory(1 << 40, "many parameters")


@pytest.mark.parametrize(
    ("files", "room"),
    [
        ({"job/pids.max": "100\n", "job/pids.current": "90\n"}, 10),
        ({"job/pids.max": "max\n", "job/pids.current": "90\n"}, None),
        ({"pids.max": "95", "pids.current": "92", "job/pids.max": "100", "job/pids.current": "90"}, 3),
    ],
)
def test_the_room_for_processes_is_that_of_the_fullest_group(
    files: dict[str, str], room: int | None, tmp_path: Path
) -> None:
    assert process_room(tree(tmp_path, "0::/job\n", files)) == room
