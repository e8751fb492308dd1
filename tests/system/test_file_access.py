"""dptrain.system.files: files that are not regular or too large, and invalid JSON, are errors at once."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import pytest

from dptrain.system import files

AT_ONCE = 2.0  # seconds; opening a pipe without a writer would never return


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """A folder with one entry of each kind other than a regular file."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    (tmp_path / "endless").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(tmp_path / "socket"))
    return tmp_path


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("pipe", "not a regular file"),
        ("folder", "not a regular file"),
        ("endless", "not a regular file"),
        ("socket", "No such device or address"),
        ("dangling", "No such file"),
    ],
)
def test_only_regular_files_are_read(name: str, words: str, odd: Path) -> None:
    started = time.monotonic()
    with pytest.raises(OSError) as caught:  # noqa: PT011 - its text is checked below
        files.read_bytes(odd / name)
    assert words in str(caught.value.strerror)
    assert time.monotonic() - started < AT_ONCE


@pytest.mark.parametrize("name", ["pipe", "folder", "endless", "socket", "dangling"])
def test_only_regular_files_are_written_and_no_link_is_followed(name: str, odd: Path) -> None:
    started = time.monotonic()
    with pytest.raises(OSError):  # noqa: PT011 - the system has several
        files.append_text(odd / name)
    assert time.monotonic() - started < AT_ONCE
    assert not (odd / "nothing").exists()


def test_a_link_to_a_regular_file_is_read_but_not_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to("file")
    assert files.read_text(tmp_path / "link") == "mine"
    with pytest.raises(OSError, match="symbolic links"):
        files.append_text(tmp_path / "link")
    with files.append_text(tmp_path / "file") as file:
        file.write(" still")
    assert (tmp_path / "link").read_text() == "mine still"


def test_a_file_that_is_too_large_is_refused_by_its_size(tmp_path: Path) -> None:
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(1 << 43)  # 8 TiB that use no disk space
    for most in (None, 1000):
        with pytest.raises(OSError, match="8,796,093,022,208 bytes, expected at most"):
            files.read_bytes(path, most)
    path.write_bytes(b"x" * 1000)
    assert len(files.read_bytes(path, 1000)) == 1000


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"a":' * 100_000,
        "1" * 5000,
        "{",
        "",
        '"' + "x" * 100_000 + "\x01",
        b"\xff" * 1000,
    ],
)
def test_invalid_json_is_a_value_error_of_bounded_length(text: str | bytes) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the text is from the library; its length is checked
        files.parse_json(text)
    assert type(caught.value) is ValueError
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("text", ['{"a": 1, "b": 2, "a": 1}', '[{"c": {"\\u0061": 1, "a": 2}}]'])
def test_a_key_that_occurs_twice_is_an_error(text: str) -> None:
    """Programs disagree on which of the values counts."""
    with pytest.raises(ValueError, match="the key 'a' occurs twice"):
        files.parse_json(text)


def test_a_repeated_key_is_found_at_once_in_a_large_object() -> None:
    text = "{" + ",".join(f'"{number}": 0' for number in range(50_000)) + ', "z": 1, "z": 2}'
    started = time.process_time()
    with pytest.raises(ValueError, match="the key 'z' occurs twice"):
        files.parse_json(text)
    assert time.process_time() - started < AT_ONCE


def test_usual_json_is_read() -> None:
    text = '{"a": [1, -2.5, null, true, "\\u00e9"], "b": 18446744073709551615}'
    assert files.parse_json(text) == {"a": [1, -2.5, None, True, "é"], "b": 2**64 - 1}


@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    [
        "a = " + "[" * 100_000,
        "a = " + "1" * 5000,
        "a = '" + "x" * 100_000,
        "[" + "a." * 5_000 + "b]\n" + "x" * 3000,
        "a = 1\na = 2",
    ],
)
def test_invalid_toml_is_a_value_error_of_bounded_length(text: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the text is from the library; its length is checked
        files.parse_toml(text)
    assert len(str(caught.value)) <= 300


def test_usual_toml_is_read() -> None:
    assert files.parse_toml("lr = 0.5\n[a]\nb = [1, 2]\n") == {"lr": 0.5, "a": {"b": [1, 2]}}


def test_text_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_bytes(b"\xef\xbb\xbflr = 1\n")
    assert files.read_text(tmp_path / "a.toml") == "lr = 1\n"
    (tmp_path / "a.toml").write_bytes(b"lr = \xff\n")
    with pytest.raises(ValueError, match="not text in UTF-8: invalid start byte at byte 5"):
        files.read_text(tmp_path / "a.toml")
