import os
from pathlib import Path

import pytest

from dptrain.system.cache import DEFAULT_KIB, second_level_cache


def describe(folder: Path, **facts: str) -> None:
    folder.mkdir(parents=True)
    for name, text in facts.items():
        (folder / name).write_text(f"{text}\n")


def test_the_size_of_the_second_level_cache_is_read_from_the_kernel(tmp_path: Path) -> None:
    describe(tmp_path / "index0", level="1", type="Data", size="32K")
    describe(tmp_path / "index2", level="2", type="Unified", size="1024K")
    describe(tmp_path / "index3", level="3", type="Unified", size="32768K")
    assert second_level_cache(tmp_path) == 1024


@pytest.mark.parametrize("size", ["0K", "4M", "many", "9999999K"])
def test_a_size_that_cannot_be_right_is_replaced(tmp_path: Path, size: str, monkeypatch: pytest.MonkeyPatch) -> None:
    describe(tmp_path / "index2", level="2", type="Unified", size=size)
    monkeypatch.setattr(os, "sysconf", lambda name: 0)
    assert second_level_cache(tmp_path) == DEFAULT_KIB


def test_without_the_kernels_description_the_c_library_knows_the_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sysconf", {191: 256 << 10}.__getitem__)
    assert second_level_cache(tmp_path) == 256


def test_an_unknown_size_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(name: int) -> int:
        raise ValueError(name)

    monkeypatch.setattr(os, "sysconf", unknown)
    assert second_level_cache(tmp_path) == DEFAULT_KIB
