"""dptrain.checkpoint.folder: which checkpoints are kept, and from which one a run resumes."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest
from run_folders import best_of, content, save, steps

from dptrain.checkpoint.folder import RunFolder
from dptrain.errors import CheckpointError, UsageError


def test_the_last_three_and_the_best_are_kept(folder: RunFolder) -> None:
    kept = []
    for step, accuracy in enumerate([0.3, 0.8, 0.5, 0.5, 0.6, 0.9, 0.1, 0.2, 0.3, 0.4], start=1):
        save(folder, step, accuracy)
        kept.append(steps(folder))
    assert kept[2:] == [
        [1, 2, 3],
        [2, 3, 4],
        [2, 3, 4, 5],
        [4, 5, 6],
        [5, 6, 7],
        [6, 7, 8],
        [6, 7, 8, 9],
        [6, 8, 9, 10],
    ]
    assert best_of(folder) == (6, 0.9)


def test_the_newest_checkpoint_has_the_highest_step(folder: RunFolder) -> None:
    for step in (99_999_999, 100_000_000, 5):
        (folder.checkpoints / f"step-{step:08d}.h5").write_bytes(content(step))
    lines: list[str] = []
    found = folder.newest(lines.append)
    assert found is not None
    assert (found[0].name, found[1].state.step, lines) == ("step-100000000.h5", 100_000_000, [])


def test_a_broken_newest_checkpoint_is_skipped_and_reported(folder: RunFolder) -> None:
    for step in (1, 2, 3):
        save(folder, step)
    for step in (2, 3):
        path = folder.checkpoints / f"step-{step:08d}.h5"
        path.write_bytes(path.read_bytes()[:-1])
    lines: list[str] = []
    found = folder.newest(lines.append)
    assert found is not None
    assert found[1].state.step == 1
    assert len(lines) == 2
    assert "step-00000003.h5" in lines[0]
    assert "step-00000002.h5" in lines[1]


def test_training_renames_broken_checkpoints_to_unused_names(folder: RunFolder) -> None:
    for _ in range(2):  # the second time there is a file of that name
        for step in (1, 2, 3):
            save(folder, step)
        newest = folder.checkpoint_of(3)
        newest.write_bytes(newest.read_bytes()[:-1])
        lines: list[str] = []
        found = folder.newest(lines.append, set_aside=True)
        assert found is not None
        assert found[1].state.step == 2
        assert lines[0].startswith(f"skipped: {newest}")
        aside = folder.checkpoints / lines[1].removeprefix("renamed to ")
        assert aside.read_bytes() == content(3)[:-1]
        assert steps(folder) == [1, 2]
    assert {path.name for path in folder.checkpoints.iterdir()} - {"step-00000001.h5", "step-00000002.h5"} == {
        "step-00000003.h5.broken",
        "step-00000003.h5.broken-2",
    }


def test_a_run_does_not_start_over_when_all_checkpoints_are_broken(folder: RunFolder) -> None:
    for step in (1, 2):
        save(folder, step).write_bytes(b"")
    lines: list[str] = []
    with pytest.raises(CheckpointError, match="none of its 2 checkpoints can be read"):
        folder.newest(lines.append, set_aside=True)
    assert len(lines) == 2
    assert steps(folder) == [1, 2]  # otherwise the next start would find an empty folder and start over


def test_a_folder_without_checkpoints_has_no_newest(folder: RunFolder, tmp_path: Path) -> None:
    for one in (folder, RunFolder(tmp_path / "not there")):
        assert one.newest(pytest.fail) is None
        assert one.best is None


def test_other_files_beside_the_checkpoints_are_not_read_or_removed(folder: RunFolder) -> None:
    names = ["notes.txt", "step-1.h5", "step-00000099.h5.bak", ".step-00000099.h5.partial", "my-step-00000099.h5"]
    for name in names:
        (folder.checkpoints / name).write_text("mine")
    for step in range(1, 8):
        save(folder, step)
    assert steps(folder) == [5, 6, 7]
    assert all((folder.checkpoints / name).read_text() == "mine" for name in names)


def test_a_checkpoint_just_written_is_kept_even_if_others_have_higher_steps(folder: RunFolder) -> None:
    """For example, a run that was restarted from an earlier step with --resume PATH."""
    for step in (10, 20, 30):
        save(folder, step)
    assert save(folder, 5).exists()


def test_preparing_writes_the_configuration_and_empty_metrics(folder: RunFolder) -> None:
    assert (folder.path / "config.toml").read_text() == "lr = 0.1\n"
    assert folder.metrics.read_text() == ""
    folder.metrics.write_text("a line\n")
    folder.claim()
    folder.write_config("lr = 0.2\n")
    assert folder.metrics.read_text() == "a line\n"
    assert sorted(path.name for path in folder.path.iterdir()) == ["checkpoints", "config.toml", "metrics.jsonl"]


@pytest.mark.parametrize("name", ["metrics.jsonl", "config.toml", "checkpoints", "attempts.jsonl", "model"])
@pytest.mark.parametrize("dangling", [False, True])
def test_links_in_a_run_folder_are_not_followed(name: str, dangling: bool, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    if not dangling:
        elsewhere.mkdir()
        (elsewhere / ".mine.partial").write_text("mine")
    run = tmp_path / "run"
    run.mkdir()
    (run / "checkpoints").mkdir()
    if name == "checkpoints":
        (run / "checkpoints").rmdir()
    (run / name).symlink_to(elsewhere)
    with pytest.raises(UsageError, match=f"{name} is a symbolic link to .*elsewhere; a run writes only inside"):
        RunFolder(run).claim()
    assert [path.name for path in elsewhere.iterdir()] == [".mine.partial"] if not dangling else not elsewhere.exists()


def test_links_in_place_of_temporary_files_are_not_followed(folder: RunFolder, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    (folder.checkpoints / ".step-00000001.h5.partial").symlink_to(tmp_path / "mine")
    assert save(folder, 1).read_bytes() == content(1)
    folder.close()
    (folder.checkpoints / ".writable.partial").symlink_to(tmp_path / "mine")
    with pytest.raises(UsageError, match="symbolic links"):
        folder.claim()
    assert (tmp_path / "mine").read_text() == "mine"


def test_a_run_folder_may_be_a_link_itself(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "run").symlink_to("real")
    folder = RunFolder(tmp_path / "run")
    folder.claim()
    save(folder, 1)
    folder.close()
    assert (tmp_path / "real" / "checkpoints" / "step-00000001.h5").is_file()


@pytest.mark.parametrize("set_aside", [False, True])
def test_a_checkpoint_of_a_later_version_is_not_skipped_or_renamed(set_aside: bool, folder: RunFolder) -> None:
    """Resuming from the checkpoint before it would overwrite it."""
    save(folder, 1)
    path = save(folder, 2)
    path.write_bytes(path.read_bytes().replace(b"checkpoint v2", b"checkpoint v3", 1))
    with pytest.raises(CheckpointError, match=r"step-00000002\.h5: checkpoint format version 3"):
        folder.newest(pytest.fail, set_aside=set_aside)
    assert steps(folder) == [1, 2]


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_checkpoints_that_are_not_regular_files_are_skipped_and_not_changed(kind: str, folder: RunFolder) -> None:
    save(folder, 1)
    path = folder.checkpoint_of(2)
    {"pipe": os.mkfifo, "device": lambda path: path.symlink_to("/dev/zero"), "folder": Path.mkdir}[kind](path)
    lines: list[str] = []
    found = folder.newest(lines.append, set_aside=True)
    assert found is not None
    assert found[1].state.step == 1
    assert [line[:7] for line in lines] == ["skipped"]
    assert "not a regular file" in lines[0]
    assert os.path.lexists(path)


def test_a_folder_with_other_files_is_not_treated_as_a_run(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("# mine\n")
    with pytest.raises(UsageError, match="holds other files"):
        RunFolder(tmp_path).claim()
    assert [path.name for path in tmp_path.iterdir()] == ["config.toml"]


def test_a_full_disk_is_not_a_usage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("dptrain.checkpoint.folder.files.append_text", full)
    with pytest.raises(CheckpointError, match=r"No space left on device; free some space.*same command") as caught:
        RunFolder(tmp_path / "run").claim()
    assert caught.value.status == 1


def test_files_left_by_a_killed_writer_are_removed(folder: RunFolder) -> None:
    folder.close()
    (folder.checkpoints / ".step-00000004.h5.partial").write_bytes(b"half")
    (folder.path / ".config.toml.partial").write_bytes(b"half")
    folder.claim()
    assert list(folder.checkpoints.iterdir()) == []
    assert not (folder.path / ".config.toml.partial").exists()


def test_a_folder_is_claimed_when_its_holder_ends_in_time(folder: RunFolder) -> None:
    """A rank that dies releases the folder shortly after the others have detected its death."""
    other = RunFolder(folder.path)
    threading.Timer(0.2, folder.close).start()
    other.claim(patience=20)
    other.close()


def test_a_claimed_folder_is_refused_to_others_until_it_is_closed(folder: RunFolder) -> None:
    """The lock belongs to the open file, so a second RunFolder stands for a second process."""
    other = RunFolder(folder.path)
    with pytest.raises(UsageError, match="another run writes to this folder"):
        other.claim()
    folder.close()
    other.claim()
    other.close()


def test_a_new_folder_is_named_after_data_and_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert RunFolder.new("sets/cifar10", "nets/mine.py:build").path.match("runs/cifar10-build-2*")


def test_runs_started_in_the_same_second_get_separate_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("dptrain.checkpoint.folder.time.strftime", lambda form: "20260101-000000")
    paths = [RunFolder.new("cifar10", "convnet").path for _ in range(3)]
    assert len(set(paths)) == 3
    assert all(path.is_dir() for path in paths)


def claim_and_write(folder: RunFolder) -> None:
    folder.claim()
    folder.write_config("")


@pytest.mark.parametrize("below", ["", "checkpoints", "config.toml", "metrics.jsonl"])
def test_a_folder_that_cannot_be_written_is_reported(below: str, tmp_path: Path) -> None:
    """A file where a folder should be, or a folder where a file should be: refused to root, too."""
    path = tmp_path / "run"
    if below in ("", "checkpoints"):
        (path / below).parent.mkdir(exist_ok=True)
        (path / below).write_text("a file")
    else:
        (path / below).mkdir(parents=True)
    folder = RunFolder(path)
    with pytest.raises(
        UsageError, match=r"(cannot be used|holds other files).*choose (another|a new) folder"
    ) as caught:
        claim_and_write(folder)
    folder.close()
    assert f"--run-dir {path}" in str(caught.value)
