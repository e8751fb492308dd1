"""Finding the CIFAR-10 archive: named, in the environment, in the cache, or downloaded into it."""

from __future__ import annotations

import os
import socket
import sys
import threading
import urllib.request
from pathlib import Path
from typing import Any

from dptrain.errors import DataError, DownloadError
from dptrain.system.paths import typed_path

from .cifar10 import PUBLISHED_SHA256

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
SHA256 = next(digest for digest, name in PUBLISHED_SHA256.items() if URL.endswith(name))
ARCHIVE_VARIABLE = "DPTRAIN_CIFAR10_ARCHIVE"
RESOLVE_SECONDS = 6.0
CONNECT_AND_READ_SECONDS = (8.0, 30.0)


def find_archive(named: Path | None = None) -> Path:
    """Path of the archive to read: `named`, else $DPTRAIN_CIFAR10_ARCHIVE, else the cache's, else downloaded.

    A file in the cache is used as it is, never replaced, whether or not it is the published one: whoever put
    it there wanted it, and the reader tells. Downloads are checked by SHA-256 before they get their name.
    Raises DownloadError when there is none and the network is closed, DataError when a download fails otherwise.
    """
    if named is not None:
        return named
    if os.environ.get(ARCHIVE_VARIABLE):
        return Path(typed_path(os.environ[ARCHIVE_VARIABLE]))
    import pooch  # costs start-up time that the other commands need not pay

    cached = Path(pooch.os_cache("dptrain")) / URL.rpartition("/")[2]
    if not cached.exists():
        _download(URL, SHA256, cached)
    return cached


def _download(url: str, sha256: str, target: Path) -> None:
    """Fetch `url` to `target`; there is a file at `target` only if its SHA-256 is right."""
    import pooch
    import requests

    bar = _Bar() if sys.stderr.isatty() else None
    pooch.get_logger().setLevel("ERROR")
    try:
        _check_name_resolves(url)
        pooch.retrieve(
            url,
            known_hash=f"sha256:{sha256}",
            fname=target.name,
            path=target.parent,
            downloader=pooch.HTTPDownloader(progressbar=bar or False, timeout=CONNECT_AND_READ_SECONDS),
        )
    except Exception as error:  # requests, urllib3, pooch and the disk each have their own kinds
        # A wrong checksum or a full disk is no closed network: quickstart.sh goes on without CIFAR-10 only for that.
        unreachable = isinstance(error, requests.RequestException | socket.gaierror | TimeoutError)
        raise (DownloadError if unreachable else DataError)(
            f"CIFAR-10 cannot be downloaded from {url} to {target.parent}: {_reason(error)}; get the archive "
            f"another way and name it with --archive FILE or {ARCHIVE_VARIABLE}"
        ) from error
    finally:
        if bar:
            bar.close()


def _check_name_resolves(url: str) -> None:
    """Raise OSError soon when the server's name is unknown: the resolver itself may take half a minute.

    Behind a proxy the proxy resolves names, so nothing is checked.
    """
    if urllib.request.getproxies():
        return
    host = url.split("/")[2].partition(":")[0]
    outcome: list[OSError | None] = []

    def resolve() -> None:
        try:
            socket.getaddrinfo(host, None)
            outcome.append(None)
        except OSError as error:
            outcome.append(error)

    thread = threading.Thread(target=resolve, daemon=True)
    thread.start()
    thread.join(RESOLVE_SECONDS)
    if not outcome:
        raise TimeoutError(f"no answer from the name server in {RESOLVE_SECONDS:.0f} s")
    if outcome[0] is not None:
        raise outcome[0]


def _reason(error: BaseException) -> str:
    """The innermost cause of an error in a few words; requests' own text wraps it three times."""
    while True:
        cause = (
            getattr(error, "reason", None)
            or error.__cause__
            or next((argument for argument in error.args if isinstance(argument, BaseException)), None)
        )
        if not isinstance(cause, BaseException):
            break
        error = cause
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return f"{type(error).__name__}: {' '.join(text.split())}"[:200]


class _Bar:
    """A rich progress bar under the few names of tqdm that pooch uses; it appears with the first bytes."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("downloading"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
        self._progress = Progress(*columns, console=Console(stderr=True), transient=True)
        self._task: Any = None
        self.total = 0

    def update(self, size: int) -> None:
        if self._task is None:
            self._progress.start()
            self._task = self._progress.add_task("", total=self.total)
        self._progress.advance(self._task, size)

    def reset(self) -> None:
        """pooch resets the bar to show it full at the end."""
        if self._task is not None:
            self._progress.reset(self._task, total=self.total)

    def close(self) -> None:
        self._progress.stop()
