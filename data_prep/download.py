"""Archives: given by the user, in the cache, or downloaded into it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from dptrain.errors import DataError, DownloadError
from dptrain.system.paths import typed_path

CONNECT_AND_READ_SECONDS = (8.0, 30.0)


def find_archive(given: Path | None, variable: str, url: str, sha256: str) -> Path:
    """The archive to read: `given`, else that of the environment variable, else the cached one, else downloaded.

    A file in the cache is used without a check and never replaced: the user may have put it there. A download gets its
    name after its SHA-256 is checked. DownloadError if the server cannot be reached, DataError for another failure.
    """
    if given is not None:
        return given
    if os.environ.get(variable):
        return Path(typed_path(os.environ[variable]))
    import pooch  # takes 0.3 s

    cached = Path(pooch.os_cache("dptrain")) / url.rpartition("/")[2]
    if not cached.exists():
        _download(url, sha256, cached, variable)
    return cached


def _download(url: str, sha256: str, target: Path, variable: str) -> None:
    """Download `url` to `target`, which exists only if its SHA-256 is right."""
    import pooch
    import requests

    pooch.get_logger().setLevel("ERROR")
    try:
        pooch.retrieve(
            url,
            known_hash=f"sha256:{sha256}",
            fname=target.name,
            path=target.parent,
            downloader=pooch.HTTPDownloader(
                progressbar=_Bar() if sys.stderr.isatty() else False, timeout=CONNECT_AND_READ_SECONDS
            ),
        )
    except Exception as error:  # requests, urllib3, pooch and the disk have many exceptions
        unreachable = isinstance(error, requests.RequestException)  # not: a wrong hash, a full disk
        raise (DownloadError if unreachable else DataError)(
            f"{url} cannot be downloaded to {target.parent}: {_reason(error)}; download it in another way and pass "
            f"--archive FILE, or set {variable}"
        ) from error


class _Bar:
    """A progress bar, with the methods that pooch calls."""

    def __init__(self) -> None:
        from rich.console import Console  # takes 0.1 s
        from rich.progress import Progress

        self.total = 0  # pooch sets it
        self._progress = Progress(console=Console(stderr=True), transient=True)
        self._task = self._progress.add_task("downloading")
        self._progress.start()

    def update(self, units: int) -> None:
        """Advance by a number of bytes."""
        self._progress.update(self._task, total=self.total, advance=units)

    def reset(self) -> None:
        """Called at the end, before an update by the total."""
        self._progress.reset(self._task)

    def close(self) -> None:
        """Remove the bar."""
        self._progress.stop()


def _reason(error: BaseException) -> str:
    """The innermost cause in a few words; requests wraps it three times."""
    while error.__context__ is not None:
        error = error.__context__
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]
