"""Archives: given by the user, in the cache, or downloaded into it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from dptrain.errors import DataError, DownloadError
from dptrain.system.paths import typed_path

from . import report

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
    if sys.stderr.isatty():
        report(f"downloading {url} to {target}")
    try:
        pooch.retrieve(
            url,
            known_hash=f"sha256:{sha256}",
            fname=target.name,
            path=target.parent,
            downloader=pooch.HTTPDownloader(timeout=CONNECT_AND_READ_SECONDS),
        )
    except Exception as error:  # requests, urllib3, pooch and the disk have many exceptions
        unreachable = isinstance(error, requests.RequestException)  # not: a wrong hash, a full disk
        raise (DownloadError if unreachable else DataError)(
            f"{url} cannot be downloaded to {target.parent}: {_reason(error)}; download it in another way and pass "
            f"--archive FILE, or set {variable}"
        ) from error


def _reason(error: BaseException) -> str:
    """The innermost cause in a few words; requests wraps it three times."""
    while error.__context__ is not None:
        error = error.__context__
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]
