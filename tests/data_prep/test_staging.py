"""data_prep.staging: where a data set may be written, and what a killed process leaves there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from data_sets import folder_bytes, image_data, run_data_prep
from picture_files import write_pictures

from data_prep import staging
from data_prep.__main__ import main
from data_prep.pack import pack
from dptrain.data.manifest import REQUIRED, read_manifest
from dptrain.data.shard import read_shard
from dptrain.errors import DataError, UsageError
from dptrain.system.paths import typed_path

SMALL = ("--train", "40", "--test", "20", "--shards", "2")
OLD, NEW = image_data(), image_data(seed=1)


def assert_whole(out: Path) -> str:
    """Every shard of the data set can be read, and there are no other files. Returns the SHA-256 of the data set."""
    manifest = read_manifest(out)
    for split in REQUIRED:
        for shard in range(manifest.shard_count):
            read_shard(out, manifest, split, shard)
    assert len(list(out.iterdir())) == 1 + 2 * manifest.shard_count
    return manifest.sha256


@pytest.fixture
def identities(tmp_path: Path) -> tuple[str, str]:
    """The manifests' SHA-256 of the old data set, in 3 shards, and of the new one, in 2."""
    return pack(tmp_path / "old", OLD, shards=3).sha256, pack(tmp_path / "new", NEW, shards=2).sha256


def pack_and_die(out: Path, calls: int, *, force: bool) -> bool:
    """Pack in a forked process that is killed at its `calls`-th change of the folder; False if it makes fewer."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            left = calls

            def dying(function: Callable[..., Any]) -> Callable[..., Any]:
                def call(*arguments: Any, **options: Any) -> Any:
                    nonlocal left
                    left -= 1
                    if left == 0:
                        os._exit(9)
                    return function(*arguments, **options)

                return call

            for name in ("rename", "unlink", "mkdir", "rmdir", "open"):
                setattr(Path, name, dying(getattr(Path, name)))
            os.replace = dying(os.replace)
            pack(out, NEW, shards=2, force=force)
            status = 0
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, 9)
    return status == 9


@pytest.mark.slow
@pytest.mark.parametrize("old_set", [False, True])
def test_a_process_killed_at_any_time_leaves_the_old_set_or_a_new_one_for_the_next_run(
    old_set: bool, tmp_path: Path, identities: tuple[str, str]
) -> None:
    before, after = identities
    out, deaths, finished = tmp_path / "set", 0, 0
    while True:
        shutil.rmtree(out, ignore_errors=True)
        if old_set:
            pack(out, OLD, shards=3)
        if not pack_and_die(out, deaths + 1, force=old_set):
            break
        deaths += 1
        complete = (out / "manifest.json").exists()
        assert not complete or read_manifest(out).sha256 in (before, after)
        if not complete and (out / ".partial" / "manifest.json").exists():
            finished += 1
            with pytest.raises(DataError, match="is a data set already"):
                pack(out, OLD, shards=3)
        else:
            assert complete or not old_set
            pack(out, NEW, shards=2, force=complete)
        assert assert_whole(out) == after
    assert deaths > 15  # every shard, every rename
    assert finished > 3


def test_an_old_set_that_cannot_be_removed_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "set"
    pack(out, OLD, shards=2)
    before = folder_bytes(out)
    unlink = Path.unlink

    def refuse(self: Path, missing_ok: bool = False) -> None:
        if self == out / "manifest.json":
            raise PermissionError(1, "Operation not permitted", str(self))
        unlink(self, missing_ok)

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(DataError, match="not permitted"):
        pack(out, NEW, shards=2, force=True)
    assert folder_bytes(out) == before


def test_a_failed_installation_is_finished_by_the_next_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "set"
    pack(out, OLD, shards=2)
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if self.name == "train-001-of-003.h5":
            raise OSError(5, "Input/output error", str(self))
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", refuse)
        with pytest.raises(DataError, match=r"train-001-of-003\.h5: cannot be written"):
            pack(out, NEW, shards=3, force=True)
    with pytest.raises(DataError, match="is a data set already"):
        pack(out, OLD, shards=2)
    assert assert_whole(out) == pack(tmp_path / "new", NEW, shards=3).sha256


@pytest.mark.parametrize("what", ["file", "link", "folder of another's"])
def test_something_else_named_like_the_staging_folder_is_not_changed(what: str, tmp_path: Path) -> None:
    out = tmp_path / "set"
    out.mkdir()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "train-000-of-001.h5").write_text("mine")
    if what == "file":
        (out / ".partial").write_text("mine")
    elif what == "link":
        (out / ".partial").symlink_to(tmp_path / "mine")
    else:
        (tmp_path / "mine" / "thesis.tex").write_text("mine")
        (tmp_path / "mine").rename(out / ".partial")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(DataError, match=r"\.partial: packing needs this name"):
        pack(out, NEW)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_named_like_a_shard_does_not_belong_to_a_data_set(tmp_path: Path) -> None:
    out = tmp_path / "set"
    pack(out, OLD, shards=2)
    (out / "train-000-of-009.h5").mkdir()
    before = sorted(out.iterdir())
    with pytest.raises(DataError, match=r"holds train-000-of-009\.h5"):
        pack(out, NEW, shards=2, force=True)
    assert sorted(out.iterdir()) == before


def test_the_working_directory_can_be_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found in the field: OUT was renamed, which fails for the working directory and for a mounted volume."""
    monkeypatch.chdir(tmp_path)
    pack(Path(), NEW, shards=2)
    assert_whole(tmp_path)
    pack(Path(), OLD, shards=2, force=True)
    assert_whole(tmp_path)


def test_a_new_volume_and_hidden_files_count_as_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "lost+found").mkdir()
    (tmp_path / ".gitkeep").touch()
    pack(tmp_path, NEW, shards=2)
    read_manifest(tmp_path)
    assert (tmp_path / ".gitkeep").exists()


MOUNTS = """
set -e
mount -t tmpfs none "$1" && mkdir "$1/volume" && mount -t tmpfs none "$1/volume" && mount -o remount,ro "$1"
shift
"$@"
"""


def can_mount() -> bool:
    done = subprocess.run(["unshare", "-m", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True, check=False)
    return done.returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(not can_mount(), reason="needs root and a kernel that lets it mount")
def test_a_mounted_volume_whose_parent_is_read_only_can_be_the_folder(tmp_path: Path) -> None:
    """Found in the field: a volume mounted into a container was refused after all the work."""
    volume = tmp_path / "volume"
    python = sys.executable
    words = f"{python} -m data_prep shapes {{0}} --train 40 --test 20 --shards 2 && {python} -m data_prep verify {{0}}"
    command = f"{words.format(volume)} && {words.format(volume).replace('--shards', '--force --shards')}"
    done = subprocess.run(
        ["unshare", "-m", "bash", "-c", MOUNTS, "mounts", tmp_path, "bash", "-c", command],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("no problems found") == 2


def test_packing_needs_no_access_to_the_folder_above(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Like the mounts above, but without root: no rename of OUT, and no new file beside it."""
    out = tmp_path / "set"
    out.mkdir()
    rename, mkdir = Path.rename, Path.mkdir

    def within(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: Path, *arguments: Any, **options: Any) -> Any:
            for path in (self, *(argument for argument in arguments if isinstance(argument, Path))):
                if out not in path.parents and not (function is mkdir and path == out):
                    raise OSError(30, "Read-only file system", str(path))
            return function(self, *arguments, **options)

        return call

    monkeypatch.setattr(Path, "rename", within(rename))
    monkeypatch.setattr(Path, "mkdir", within(mkdir))
    for force in (False, True):
        pack(out, NEW, shards=2, force=force)
        assert_whole(out)


def test_a_folder_that_cannot_be_written_is_reported_before_packing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, _mode: path != tmp_path)
    with pytest.raises(DataError, match=rf"{tmp_path}: is not a folder that can be written; choose another"):
        staging.check_target(tmp_path / "set", force=False)


def test_a_folder_in_the_one_that_is_packed_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Found in the field: the next run took the data set for a class without pictures, and said to remove it."""
    folder = write_pictures(tmp_path / "pets", ["cats/1.png", "cats/2.png", "dogs/1.png", "dogs/2.png"])
    (tmp_path / "link").symlink_to(folder)
    for out in (folder / "out", tmp_path / "link" / "deep" / "out"):
        assert main([str(folder), str(out), "--shards", "1"]) == 1
        assert f"is in the folder that is packed; choose a folder outside {folder}\n" in capsys.readouterr().err
        assert not out.parent.joinpath("out").exists()
    assert main([str(folder), str(tmp_path / "pets-packed"), "--shards", "1"]) == 0


def test_a_name_that_is_too_long_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be written: File name too long"):
        pack(tmp_path / ("x" * 300), NEW)


@pytest.mark.slow
def test_tildes_in_typed_paths_are_expanded_and_invalid_paths_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert typed_path("~/data") == f"{tmp_path}/data"
    assert typed_path("~root").startswith("/")
    assert typed_path("a/~/b") == "a/~/b"
    for text, words in (("", "empty path"), (" ", "empty path"), ("a\0b", "NUL"), ("~nobody-here/x", "no user")):
        with pytest.raises(UsageError, match=words):
            typed_path(text)
    assert run_data_prep("shapes", "~/set", *SMALL, HOME=str(tmp_path)).returncode == 0
    assert (tmp_path / "set" / "manifest.json").exists()
    empty = run_data_prep("shapes", "", *SMALL)
    assert (empty.returncode, empty.stderr.count("\n")) == (2, 1)
    assert "OUT" in empty.stderr
