"""A data set folder that appears complete or not at all.

The data set is built in `OUT/.partial`, as only OUT itself must be writable: it may be a mounted volume or the working
directory. Its manifest is written there last, when all shards are on the disk. To install the set, the old manifest
and then the old shards are removed, the new shards are renamed into OUT, and then the new manifest.

A process that is killed before the old manifest is removed leaves the old data set. Later, it leaves a folder without
a manifest, which no reader accepts, and the next run finishes the installation. Only files of data sets are deleted.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dptrain.data.manifest import FORMAT, MANIFEST, SPLITS
from dptrain.errors import DataError
from dptrain.system.durable import sync_folder, write_durably
from dptrain.system.signals import delayed_signals
from dptrain.system.text import shown

SHARD_PATTERN = re.compile(rf"(?:{'|'.join(SPLITS)})-\d{{3,}}-of-\d{{3,}}\.h5")
PARTIAL = ".partial"
IGNORED = "lost+found"  # in the top folder of a volume


def check_target(out: Path, *, force: bool, source: Path | None = None) -> None:
    """DataError unless a data set can be written to `out`. Call it before the work of packing.

    `out` may be new, empty, the remains of an interrupted run or, with `force`, a data set to replace. It must be
    writable, and not in the folder `source` that is packed: the next run would read the data set as a part of it.
    """
    out = out.resolve()
    if source is not None and source.resolve() in out.parents:
        raise DataError(
            f"{shown(out)}: is in the folder that is packed; choose a folder outside {shown(source.resolve())}"
        )
    nearest = next(path for path in (out, *out.parents) if path.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise DataError(f"{shown(nearest)}: is not a folder that can be written; choose another folder")
    if nearest == out:
        _check_contents(out, force=force)


@contextmanager
def staged(out: Path, *, force: bool) -> Iterator[Path]:
    """A folder to write shards to. They become the data set at `out` if the block calls `install`.

    Without it, `out` is as before. DataError when `out` cannot be used, when another process packs into it, or when a
    write fails; the next call finishes an installation that failed.
    """
    try:
        check_target(out, force=force)
        out = out.resolve()
        made = [path for path in (out, *out.parents) if not path.exists()]
        out.mkdir(parents=True, exist_ok=True)
        lock = _lock(out)
        try:
            _finish_or_remove(out)
            _check_contents(out, force=force)  # again: an interrupted installation may just have been finished
            (out / PARTIAL).mkdir()
            try:
                yield out / PARTIAL
            finally:
                if not (out / PARTIAL / MANIFEST).exists():  # else the next call finishes the installation
                    _finish_or_remove(out)
        finally:
            with suppress(OSError):  # a folder that is not empty stays
                for path in made:
                    path.rmdir()
            os.close(lock)
    except OSError as error:
        where, why = shown(error.filename or out), error.strerror or error
        raise DataError(f"{where}: cannot be written: {why}; free some space or choose another folder") from error


def install(staging: Path, manifest: str) -> None:
    """Make the shards in the folder of `staged` the data set, with this text as its manifest."""
    out = staging.parent
    for path in sorted(staging.iterdir()):
        with path.open("rb") as file:
            os.fsync(file.fileno())
    with delayed_signals():
        write_durably(staging / MANIFEST, manifest.encode())
        try:
            (out / MANIFEST).unlink(missing_ok=True)
        except OSError:
            (staging / MANIFEST).unlink()  # the old data set stays
            raise
        _finish(out)


def _finish(out: Path) -> None:
    """Install the complete set in `.partial`, from the point where a killed process stopped."""
    partial = out / PARTIAL
    sync_folder(out)
    splits = json.loads((partial / MANIFEST).read_text(encoding="utf-8"))["splits"]
    new = [entry["file"] for entries in splits.values() for entry in entries]
    _remove_shards(out, keep=new)
    for name in new:
        if (partial / name).exists():
            (partial / name).rename(out / name)
    sync_folder(out)
    (partial / MANIFEST).rename(out / MANIFEST)
    sync_folder(out)
    partial.rmdir()


def _finish_or_remove(out: Path) -> None:
    """Finish the installation of a killed process, or remove its incomplete data set."""
    partial = out / PARTIAL
    if (partial / MANIFEST).exists() and not (out / MANIFEST).exists():
        with delayed_signals():
            _finish(out)
    elif partial.exists():
        with suppress(OSError):
            for name in (MANIFEST, f".{MANIFEST}.partial"):  # the second is left by a killed `write_durably`
                (partial / name).unlink(missing_ok=True)
            _remove_shards(partial)
            partial.rmdir()


def _remove_shards(folder: Path, keep: Collection[str] = ()) -> None:
    for entry in list(folder.iterdir()):
        if SHARD_PATTERN.fullmatch(entry.name) and entry.name not in keep:
            entry.unlink()


def _check_contents(out: Path, *, force: bool) -> None:
    """DataError unless a data set may be written to this folder."""
    partial = out / PARTIAL
    if partial.is_symlink() or (partial.exists() and (not partial.is_dir() or _foreign(partial))):
        raise DataError(f"{shown(partial)}: packing needs this name; rename or remove it")
    foreign = _foreign(out)
    if foreign or not _is_data_set_or_empty(out):
        what = f"holds {shown(', '.join(foreign), 200)}" if foreign else f"no valid {MANIFEST}"
        raise DataError(
            f"{shown(out)}: exists and is not a data set ({what}); it is "
            "not changed, not even with --force: name a new or empty folder"
        )
    if (out / MANIFEST).exists() and not force:
        raise DataError(f"{shown(out)}: is a data set already; replace it with --force, or choose another folder")


def _foreign(folder: Path) -> list[str]:
    """Names in the folder that neither belong to a data set nor are hidden, sorted."""
    return sorted(
        entry.name
        for entry in folder.iterdir()
        if entry.name not in (IGNORED, MANIFEST)
        and not entry.name.startswith(".")
        and (entry.is_dir() or not SHARD_PATTERN.fullmatch(entry.name))
    )


def _is_data_set_or_empty(folder: Path) -> bool:
    """Whether the manifest is from dptrain, or damaged but beside shards, or missing because packing was killed."""
    shards = any(SHARD_PATTERN.fullmatch(entry.name) for entry in folder.iterdir())
    try:
        contents = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return not shards or (folder / PARTIAL).exists()
    except (OSError, ValueError, RecursionError):
        return shards
    return isinstance(contents, dict) and contents.get("format") == FORMAT


def _lock(out: Path) -> int:
    """Lock the folder until this process ends or the returned descriptor is closed; DataError if another holds it."""
    descriptor = os.open(out, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if out.exists() and os.path.samestat(os.fstat(descriptor), out.stat()):
            return descriptor
    except BlockingIOError:
        pass
    except OSError:
        return descriptor  # some network file systems cannot lock folders
    os.close(descriptor)  # another process holds it, or has just removed it
    raise DataError(f"{shown(out)}: another process is packing into this folder; wait for it or choose another folder")
