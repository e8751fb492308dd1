"""dptrain.checkpoint.folder: which checkpoint is best.h5, and when a run resumes from it."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from run_folders import best_of, content, save, steps

from dptrain.checkpoint.folder import RunFolder
from dptrain.checkpoint.format import read_checkpoint


def test_the_earlier_of_two_equally_accurate_checkpoints_is_the_best(folder: RunFolder) -> None:
    for step in (1, 2, 3, 4, 5, 6):
        save(folder, step, 0.5)
    assert steps(folder) == [1, 4, 5, 6]


def test_checkpoints_without_accuracy_never_replace_the_best(folder: RunFolder) -> None:
    save(folder, 1, 0.0)
    for step in range(2, 12):
        save(folder, step)
    assert steps(folder) == [1, 9, 10, 11]


def test_the_best_checkpoint_is_still_kept_after_a_resume(folder: RunFolder) -> None:
    for step, accuracy in ((1, 0.2), (2, 0.9), (3, 0.3), (4, None)):
        save(folder, step, accuracy)
    again = RunFolder(folder.path)
    again.remember_all()
    assert best_of(again) == (2, 0.9)
    for step in (5, 6, 7, 8):
        save(again, step, 0.5)
    assert steps(again) == [2, 6, 7, 8]


def test_several_best_checkpoints_are_kept_also_after_a_resume(folder: RunFolder) -> None:
    folder = RunFolder(folder.path, keep_best=3)
    for step, accuracy in ((1, 0.5), (2, 0.9), (3, 0.3), (4, 0.5), (5, 0.5), (6, None)):
        save(folder, step, accuracy)
    again = RunFolder(folder.path, keep_best=3)
    again.remember_all()
    for step in (7, 8, 9, 10):
        save(again, step, 0.6 if step == 7 else 0.1)
    assert steps(again) == [1, 2, 7, 8, 9, 10]
    assert best_of(again) == (2, 0.9)


def test_a_broken_best_checkpoint_is_ignored(folder: RunFolder) -> None:
    save(folder, 1, 0.9).write_bytes(b"broken")  # best.h5 is the same file
    save(folder, 2, 0.4)
    again = RunFolder(folder.path)
    again.remember_all()
    assert best_of(again) == (2, 0.4)


def test_the_best_has_a_separate_name_and_is_not_a_numbered_checkpoint(folder: RunFolder) -> None:
    best = folder.checkpoints / "best.h5"
    save(folder, 1)
    assert not best.exists()
    for step, accuracy, expected in ((2, 0.3, 2), (3, 0.8, 3), (4, 0.5, 3), (5, 0.8, 3), (6, 0.9, 6)):
        save(folder, step, accuracy)
        assert read_checkpoint(best).state.step == expected
    assert best not in folder.numbered()
    found = folder.newest(pytest.fail)
    assert found is not None
    assert found[0].name == "step-00000006.h5"
    assert not list(folder.checkpoints.glob(".*"))


def test_a_folder_with_only_the_best_is_resumed_from_it(folder: RunFolder) -> None:
    """Such a folder counted as empty: a new run started in it without a message."""
    save(folder, 3, 0.8).unlink()
    found = folder.newest(lambda line: None)
    assert found is not None
    assert (found[0].name, found[1].state.step) == ("best.h5", 3)


def test_a_run_resumes_from_the_best_if_all_numbered_checkpoints_are_broken(folder: RunFolder) -> None:
    save(folder, 3, 0.8).unlink()
    folder.checkpoint_of(4).write_bytes(b"torn")
    found = folder.newest(lambda line: None, set_aside=True)
    assert found is not None
    assert found[1].state.step == 3
    assert steps(folder) == []


def test_the_best_stays_after_its_numbered_checkpoint_is_removed(folder: RunFolder) -> None:
    for step, accuracy in ((1, 0.9), (2, 0.3)):
        save(folder, step, accuracy)
    folder.checkpoint_of(1).unlink()
    again = RunFolder(folder.path)
    again.remember_all()
    assert best_of(again) == (1, 0.9)
    save(again, 3, 0.5)
    assert best_of(again) == (1, 0.9)


def test_a_run_killed_before_it_wrote_the_best_writes_it_after_a_resume(folder: RunFolder) -> None:
    save(folder, 1, 0.2)
    folder.checkpoint_of(2).write_bytes(content(2, 0.9))
    again = RunFolder(folder.path)
    again.remember_all()
    assert best_of(again) == (2, 0.9)


def test_without_hard_links_the_best_is_a_copy(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    path = save(folder, 1, 0.5)
    assert best_of(folder) == (1, 0.5)
    assert not path.samefile(folder.checkpoints / "best.h5")
    assert not list(folder.checkpoints.glob(".*"))


def test_a_link_in_the_place_of_the_best_is_replaced_not_followed(folder: RunFolder, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    (folder.checkpoints / "best.h5").symlink_to(tmp_path / "mine")
    save(folder, 1, 0.5)
    assert best_of(folder) == (1, 0.5)
    assert (tmp_path / "mine").read_text() == "mine"
