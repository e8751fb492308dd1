"""data_prep.pictures.containers: a folder, a zip and a tar archive have the same files; hostile ones are refused."""

from __future__ import annotations

import io
import os
import stat
import tarfile
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from selection import examples, quick_first

from data_prep.pictures import containers
from data_prep.pictures.containers import opened, stem
from dptrain.errors import DataError

FILES = {"a b/1.png": b"one", "a b/sub/2\n.png": b"two" * 999, "c/🐕.png": b"", "readme": b"text"}
FOLDERS = ["a b", "a b/sub", "c", "empty"]
TARS = {".tar": "w", ".tar.gz": "w:gz", ".tgz": "w:gz", ".tar.bz2": "w:bz2", ".tar.xz": "w:xz"}


def write_folder(path: Path) -> Path:
    for name in FOLDERS:
        (path / name).mkdir(parents=True)
    for name, content in FILES.items():
        (path / name).write_bytes(content)
    (path / ".hidden").mkdir()
    (path / ".hidden" / "3.png").write_bytes(b"")
    return path


def write_zip(path: Path, folder: Path, compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for file in sorted(folder.rglob("*"), reverse=True):
            archive.write(file, file.relative_to(folder))
        archive.writestr("__MACOSX/._1.png", b"")
    return path


def held(path: Path) -> tuple[dict[str, bytes], list[str]]:
    """Names and contents of the files, and names of the folders."""
    with opened(path) as container:
        numbers = list(range(len(container.files)))[::-1]
        contents = dict(container.contents(numbers))
        found = {
            name: Path(content).read_bytes() if isinstance(content := contents[number], str) else content
            for number, name in enumerate(container.files)
        }
        assert list(found) == sorted(found)
        return found, container.folders


def refused(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        held(path)
    assert str(caught.value).startswith(f"{path}: ")
    return str(caught.value)


@pytest.mark.parametrize("suffix", ["", ".zip", *TARS])
def test_each_has_the_same_files_and_folders(suffix: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "set")
    path = folder.with_name(f"set{suffix}")
    if suffix == ".zip":
        write_zip(path, folder)
    elif suffix:
        with tarfile.open(path, TARS[suffix]) as archive:  # type: ignore[call-overload]
            archive.add(folder, ".")
    assert held(path) == (FILES, FOLDERS)
    assert stem(path) == "set"


def test_names_that_are_not_utf_8_are_kept(tmp_path: Path) -> None:
    name = os.fsdecode(b"\xff\xfe.png")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / name).write_bytes(b"one")
    with tarfile.open(tmp_path / "set.tar", "w") as archive:
        archive.add(tmp_path / "set" / name, name)
    for path in (tmp_path / "set", tmp_path / "set.tar"):
        assert held(path) == ({name: b"one"}, [])


def test_links_in_a_folder_are_followed_once(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "set")
    (folder / "c" / "up").symlink_to(folder)
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "4.png").write_bytes(b"four")
    (folder / "again").symlink_to(tmp_path / "elsewhere")
    (folder / "also").symlink_to(folder / "c")  # before its own name in the order of names
    (folder / "linked").unlink()
    files, folders = held(folder)
    assert files == FILES | {"again/4.png": b"four"}
    assert folders == sorted([*FOLDERS, "again"])


def test_folders_that_link_to_each_other_are_listed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Found in the field: 9 folders, each with links to the 8 others, gave 8! paths for each folder."""
    names = [str(number) for number in range(9)]
    for name in names:
        (tmp_path / "set" / name).mkdir(parents=True)
        (tmp_path / "set" / name / "one.png").write_bytes(b"one")
        for other in set(names) - {name}:
            (tmp_path / "set" / name / f"to {other}").symlink_to(tmp_path / "set" / other)
    calls: list[str] = []
    walk = os.scandir

    def counted(path: str) -> Any:
        calls.append(path)
        return walk(path)

    monkeypatch.setattr(os, "scandir", counted)
    with opened(tmp_path / "set") as container:
        assert (container.files, container.folders) == ([f"{name}/one.png" for name in names], names)
    assert len(calls) == 1 + 9 + 9 * 8
    words = "note: links to folders that are read already are left out (72), such as 0/to 1\n"
    assert capsys.readouterr().err.endswith(words)


def member(name: str, kind: bytes = tarfile.REGTYPE, content: bytes = b"", link: str = "") -> Callable[[Path], None]:
    def write(path: Path) -> None:
        entry = tarfile.TarInfo(name)
        entry.type, entry.size, entry.linkname = kind, len(content), link
        with tarfile.open(path.with_suffix(".tar"), "w") as archive:
            archive.addfile(entry, io.BytesIO(content))

    return write


def zipped(name: str, mode: int = stat.S_IFREG) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        entry = zipfile.ZipInfo("x")
        entry.filename = entry.orig_filename = name
        entry.external_attr = mode << 16
        with zipfile.ZipFile(path.with_suffix(".zip"), "w") as archive:
            archive.writestr(entry, b"../outside")

    return write


HOSTILE = {
    "absolute": (member("/etc/1.png"), "is a name outside the archive's folder"),
    "parent": (member("cats/../../1.png"), "is a name outside the archive's folder"),
    "backslashes": (member("cats\\..\\..\\1.png"), "is a name outside the archive's folder"),
    "drive": (member("C:1.png"), "is a name outside the archive's folder"),
    "symbolic link": (member("cats/1.png", tarfile.SYMTYPE, link="/etc/passwd"), "is a link or a device"),
    "hard link": (member("cats/1.png", tarfile.LNKTYPE, link="../1.png"), "is a link or a device"),
    "character device": (member("cats/1.png", tarfile.CHRTYPE), "is a link or a device"),
    "block device": (member("cats/1.png", tarfile.BLKTYPE), "is a link or a device"),
    "named pipe": (member("cats/1.png", tarfile.FIFOTYPE), "is a link or a device"),
    "zip: absolute": (zipped("/etc/1.png"), "is a name outside the archive's folder"),
    "zip: parent": (zipped("../1.png"), "is a name outside the archive's folder"),
    "zip: NUL": (zipped("a\0b.png"), "is a name outside the archive's folder"),
    "zip: symbolic link": (zipped("cats/1.png", stat.S_IFLNK), "is a link or a device"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_member_that_is_no_file_below_the_folder_is_refused(kind: str, tmp_path: Path) -> None:
    write, why = HOSTILE[kind]
    write(tmp_path / "set")
    (path,) = tmp_path.iterdir()
    assert why in refused(path)
    assert "the archive is refused, and nothing of it is used" in refused(path)
    assert list(tmp_path.iterdir()) == [path]


def test_a_name_that_occurs_twice_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "set.tar", "w") as archive:
        for name in ("./a/1.png", "a//1.png"):
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    assert "occurs twice" in refused(tmp_path / "set.tar")


def test_a_damaged_or_cut_tar_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "set.tar"
    with tarfile.open(path, "w") as archive:
        for name in ("a/1.png", "b/2.png", "c/3.png"):
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    whole = path.read_bytes()
    for damaged in (whole[:1024], whole[:512] + b"x" * 512 + whole[1024:], whole[:1100]):
        path.write_bytes(damaged)
        assert "not a complete archive, damaged or truncated" in refused(path)


def test_a_compressed_tar_archive_is_read_to_its_checksum(tmp_path: Path) -> None:
    path = tmp_path / "set.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("a/1.png"), io.BytesIO())
    path.write_bytes(path.read_bytes()[:-8] + bytes(8))
    assert "not a complete archive, damaged or truncated" in refused(path)


def test_a_zip_archive_that_states_smaller_sizes_than_it_has_is_refused(tmp_path: Path) -> None:
    for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        path = write_zip(tmp_path / "set.zip", write_folder(tmp_path / f"set-{method}"), method)
        assert "is compressed by another method than deflate: make the archive again" in refused(path)


def test_a_long_header_of_a_tar_archive_is_refused(tmp_path: Path) -> None:
    """Python before 3.11.10 takes an hour for 1 MiB."""
    member("a" * 9000)(tmp_path / "set")
    assert "a header of 9,0" in refused(tmp_path / "set.tar")
    member("a" * 4000)(tmp_path / "set")
    assert [len(name) for name in held(tmp_path / "set.tar")[0]] == [4000]


def test_an_encrypted_zip_archive_is_refused_and_is_not_called_damaged(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "set.zip", write_folder(tmp_path / "set"))
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\1\2") + 8] |= 1  # the flag of the first member in the directory of the archive
    path.write_bytes(content)
    assert "is encrypted: make the archive again without a password" in refused(path)
    assert "damaged" not in refused(path)


@quick_first("suffix", [".zip", ".tar.gz", ".tar.xz"])
def test_an_archive_that_unpacks_to_far_more_than_its_size_is_refused(suffix: str, tmp_path: Path) -> None:
    zeros = tmp_path / "1.png"
    zeros.write_bytes(bytes(30 << 20))
    path = tmp_path / f"set{suffix}"
    if suffix == ".zip":
        write_zip(path, tmp_path)
    else:
        with tarfile.open(path, TARS[suffix]) as archive:  # type: ignore[call-overload]
            archive.add(zeros, "cats/1.png")
    assert "unpacks to more than 100 times its size" in refused(path)


@pytest.mark.parametrize("suffix", [".zip", ".tar"])
def test_a_file_larger_than_any_picture_is_refused(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(containers, "LARGEST_FILE", 999)
    (folder := tmp_path / "set").mkdir()
    (folder / "1.png").write_bytes(bytes(1000))
    path = tmp_path / f"set{suffix}"
    if suffix == ".zip":
        write_zip(path, folder)
    else:
        with tarfile.open(path, "w") as archive:
            archive.add(folder / "1.png", "1.png")
    assert "1.png has 1,000 bytes, expected at most 999 for one picture" in refused(path)


@quick_first("suffix", [".zip", ".tar", ".tar.gz", ".tar.xz"])
@given(cut=st.integers(0, 10_000), changes=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=4))
@examples(40)
def test_any_altered_archive_is_read_or_refused(
    suffix: str, cut: int, changes: list[tuple[int, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    path = folder / f"set{suffix}"
    if suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in FILES.items():
                archive.writestr(name, content)
    else:
        with tarfile.open(path, TARS[suffix]) as tar:  # type: ignore[call-overload]
            for name, content in FILES.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    whole = bytearray(path.read_bytes())
    for place, value in changes:
        whole[place % len(whole)] = value
    path.write_bytes(whole[: len(whole) - cut % len(whole)] if not changes else whole)
    with suppress(DataError):
        held(path)
