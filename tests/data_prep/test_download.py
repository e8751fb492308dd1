"""data_prep.download: an archive is given, cached or downloaded; without a network there is one line soon."""

from __future__ import annotations

import http.server
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from data_sets import binary_members, write_archive

from data_prep import __main__ as program
from data_prep.download import find_archive
from data_prep.sources import cifar10
from dptrain.errors import DataError
from dptrain.system.files import file_sha256

VARIABLE = "DPTRAIN_TEST_ARCHIVE"


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_arguments: object) -> None:
        """Nothing."""


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """URL of an archive on a web server; the cache is an empty folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.delenv(cifar10.VARIABLE, raising=False)
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "www").mkdir()
    write_archive(tmp_path / "www" / "cifar-10-binary.tar.gz", binary_members())

    def handler(*arguments: Any) -> QuietHandler:
        return QuietHandler(*arguments, directory=str(tmp_path / "www"))

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as instance:
        thread = threading.Thread(target=instance.serve_forever, args=[0.01])  # seconds until it notices the shutdown
        thread.start()
        url = f"http://127.0.0.1:{instance.server_port}/cifar-10-binary.tar.gz"
        yield url
        instance.shutdown()
        thread.join()


def test_archive_is_downloaded_once_into_the_cache(server: str, tmp_path: Path) -> None:
    served = tmp_path / "www" / "cifar-10-binary.tar.gz"
    sha256 = file_sha256(served)
    found = find_archive(None, VARIABLE, server, sha256)
    assert found == tmp_path / "cache" / "dptrain" / "cifar-10-binary.tar.gz"
    assert found.read_bytes() == served.read_bytes()
    served.unlink()
    assert find_archive(None, VARIABLE, server, sha256) == found


def test_download_with_another_hash_is_refused_and_not_kept(server: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="hash") as raised:
        find_archive(None, VARIABLE, server, "0" * 64)
    assert raised.value.status == 1  # not 69: the server was reached
    assert list((tmp_path / "cache" / "dptrain").iterdir()) == []


def test_answer_other_than_200_is_reported(server: str) -> None:
    with pytest.raises(DataError, match="404"):
        find_archive(None, VARIABLE, server + ".missing", "0" * 64)


def test_cached_file_of_another_hash_is_used_and_not_changed(server: str, tmp_path: Path) -> None:
    cached = tmp_path / "cache" / "dptrain" / "cifar-10-binary.tar.gz"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"from the user")
    assert find_archive(None, VARIABLE, server, "0" * 64) == cached
    assert cached.read_bytes() == b"from the user"


def test_given_archive_comes_before_the_environment_and_that_before_the_cache(
    server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "/from/environment")
    assert find_archive(Path("/given"), VARIABLE, server, "0" * 64) == Path("/given")
    assert find_archive(None, VARIABLE, server, "0" * 64) == Path("/from/environment")


@pytest.mark.parametrize("optional", [False, True])
@pytest.mark.parametrize(
    ("url", "words"), [("https://127.0.0.1:9/x.tar.gz", "refused"), ("https://nowhere.invalid/x.tar.gz", "")]
)
def test_without_a_network_a_short_one_line_error_comes_soon(
    url: str, words: str, optional: bool, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Found in the field: quickstart printed an error and then trained on the shapes. --optional makes it a note."""
    monkeypatch.setattr(cifar10, "URL", url)
    started = time.monotonic()
    command = ["cifar10", str(tmp_path / "set"), *(["--optional"] if optional else [])]
    assert program.main(command) == 69  # quickstart.sh relies on it
    assert time.monotonic() - started < 15
    error = capsys.readouterr().err
    assert error.startswith(f"data_prep: {'note' if optional else 'error'}: {url} cannot be downloaded to")
    assert error.count("\n") == 1
    assert len(error) < 500
    for word in ("--archive FILE", cifar10.VARIABLE, words):
        assert word in error
    assert not (tmp_path / "set").exists()
