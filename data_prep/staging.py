"""A data set folder that appears whole or not at all.

The set is built in a sibling folder `OUT.partial` and renamed into place when every byte is on the disk.
A process killed on the way leaves at most that sibling (and, killed between two renames, the replaced set
as `OUT.replaced`); the next run removes both. Nothing but data set files is ever deleted.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dptrain.data.format import FORMAT, MANIFEST, SPLITS
from dptrain.errors import DataError

SHARD_PATTERN = re.compile(rf"(?:{'|'.join(SPLITS)})-\d{{3,}}-of-\d{{3,}}\.h5")


def check_target(out: Path, *, force: bool) -> None:
    """Raise DataError unless a data set may be put at `out`.

    Fine are a path where nothing is, an empty folder and, with `force`, a data set that may be replaced.
    """
    out = out.resolve()
    try:
        nearest = next(path for path in (out, *out.parents) if path.exists())
        if not nearest.is_dir():
            raise DataError(f"{nearest}: is not a folder; name a new or empty folder for the data set")
        if nearest != out:
            return
        names = sorted(entry.name for entry in out.iterdir())
        if not names:
            return
        foreign = _foreign(names)
        if foreign or not _has_manifest(out, names):
            what = f"holds {_some(foreign)}" if foreign else f"has no valid {MANIFEST}"
            raise DataError(
                f"{out}: exists and is not a data set ({what}); it is left as it is, also with --force: name a new "
                "or empty folder"
            )
    except OSError as error:
        raise DataError(f"{error.filename or out}: {error.strerror}; name a folder that can be written") from error
    if not force:
        raise DataError(f"{out}: a data set is there already; replace it with --force, or name another folder")


@contextmanager
def staged(out: Path, *, force: bool) -> Iterator[Path]:
    """Give an empty folder to build a data set in; move it to `out` at the end of the block.

    An existing data set is replaced (with `force`) only then. On any exception, signals turned into
    exceptions included, the folder is removed and `out` is as it was. Raises DataError when `out` is taken,
    another process packs into it or the disk refuses a write.
    """
    check_target(out, force=force)
    out = out.resolve()
    partial = out.with_name(out.name + ".partial")
    replaced = out.with_name(out.name + ".replaced")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial.mkdir(exist_ok=True)
        lock = _lock(partial)
        try:
            _empty(partial)  # refuses foreign files, which the removal below would not spare
            try:
                yield partial
                _synchronise(partial)
                _install(partial, out, replaced)
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)
                raise
        finally:
            os.close(lock)
    except OSError as error:
        hint = "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else "is it writable?"
        raise DataError(f"{error.filename or out}: cannot be written: {error.strerror or error}; {hint}") from error


def _foreign(names: list[str]) -> list[str]:
    """The names that no data set folder contains."""
    return [name for name in names if name != MANIFEST and not SHARD_PATTERN.fullmatch(name)]


def _has_manifest(folder: Path, names: list[str]) -> bool:
    """Whether the manifest is dptrain's, of any version; beside shards a damaged one counts too."""
    if MANIFEST not in names:
        return False
    try:
        contents = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return len(names) > 1
    return isinstance(contents, dict) and contents.get("format") == FORMAT


def _some(names: list[str]) -> str:
    """Up to three names for a message."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _lock(partial: Path) -> int:
    """Hold the folder against a second process for as long as this one lives; gives the descriptor to close."""
    descriptor = os.open(partial, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise DataError(
            f"{partial}: another process is packing this data set; wait for it or name another folder"
        ) from None
    except OSError:
        pass  # Some network file systems lock no folders: then two runs at once are the user's own affair.
    return descriptor


def _empty(folder: Path) -> None:
    """Remove what an interrupted run left; refuse when anything else is in there."""
    foreign = _foreign([entry.name for entry in folder.iterdir()])
    if foreign:
        raise DataError(f"{folder}: needed to build the data set, but holds {_some(sorted(foreign))}; move it away")
    for entry in folder.iterdir():
        entry.unlink()


def _synchronise(folder: Path) -> None:
    """Bring every file of the folder and its names to the disk, so that a rename cannot overtake the contents."""
    for path in (*sorted(folder.iterdir()), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _install(partial: Path, out: Path, replaced: Path) -> None:
    """Rename the finished folder to `out`, an old data set there aside first, then delete the old one."""
    if replaced.exists():  # left by a run that was killed right here
        _empty(replaced)
        replaced.rmdir()
    if out.exists() and any(out.iterdir()):
        out.rename(replaced)
    try:
        partial.rename(out)
    except BaseException:
        if replaced.exists():
            replaced.rename(out)
        raise
    with suppress(OSError):
        parent = os.open(out.parent, os.O_RDONLY)
        os.fsync(parent)
        os.close(parent)
    shutil.rmtree(replaced, ignore_errors=True)
