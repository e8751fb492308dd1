"""A data set folder that appears whole or not at all.

The set is built in `OUT/.partial`, so only OUT itself must be writable: it may be a mounted volume, or the working
directory. When every byte is on the disk, a `manifest.json` in there says so, and the set is installed:

    1. the old manifest is removed, if there is one, and then the old shards
    2. the new shards are renamed into OUT
    3. the new manifest is renamed into OUT, last

A process that is killed before step 1 leaves OUT as it was, beside an `OUT/.partial`. One that is killed later leaves
a folder without a manifest, which no reader takes for a data set, and a complete new set: the next run finishes the
installation. Nothing but data set files is ever deleted.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dptrain.data.manifest import FORMAT, MANIFEST, SPLITS
from dptrain.errors import DataError
from dptrain.system.paths import dangling
from dptrain.system.text import shown

from .signals import signals_held

SHARD_PATTERN = re.compile(rf"(?:{'|'.join(SPLITS)})-\d{{3,}}-of-\d{{3,}}\.h5")
PARTIAL = ".partial"
UNFINISHED_MANIFEST = "manifest.partial"
PROBE = ".dptrain-probe-"  # a file that has no name on most file systems, so that none is left by a process killed here
NOT_OURS = ("lost+found",)  # in the top folder of a volume; hidden files are not ours either
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def check_target(out: Path, *, force: bool) -> None:
    """Raise DataError unless a data set can be put at `out`. To be called before the work that packing takes.

    Fine are a path where nothing is, an empty folder, one that an interrupted run has left unfinished and, with
    `force`, a data set that may be replaced; the folder must be writable. A set that an interrupted run has left
    complete is installed.
    """
    with _readable_errors(out):
        if why := dangling(out.absolute()):
            raise DataError(f"{shown(out)}: {why}; name another folder or remove the link")
        out = out.resolve()
        nearest = next(path for path in (out, *out.parents) if path.exists())
        if not nearest.is_dir():
            raise DataError(f"{shown(nearest)}: is not a folder; name a new or empty folder for the data set")
        if nearest == out:
            recovered = False
            if (out / PARTIAL).exists():
                lock = _lock(out)
                try:
                    recovered = _recover(out)
                finally:
                    os.close(lock)
            _check_contents(out, force=force, recovered=recovered)
        tempfile.TemporaryFile(prefix=PROBE, dir=nearest).close()


@contextmanager
def staged(out: Path, *, force: bool) -> Iterator[Staging]:
    """Give a Staging, in whose folder a data set is built; without a call of its `install`, nothing is left.

    An existing data set is replaced (with `force`) only by `install`. On any exception before, signals turned into
    exceptions included, `out` is as it was. Raises DataError when `out` is taken, another process packs into it or
    the disk refuses a write.
    """
    check_target(out, force=force)
    with _readable_errors(out):
        out = out.resolve()
        made = [path for path in (out, *out.parents) if not path.exists()]
        out.mkdir(parents=True, exist_ok=True)
        lock = _lock(out)
        try:
            recovered = _recover(out)
            _check_contents(out, force=force, recovered=recovered)
            staging = Staging(out)
            staging.folder.mkdir(exist_ok=True)
            try:
                yield staging
            finally:
                if not (staging.folder / MANIFEST).exists():  # a complete set, half of it installed, is not removed
                    _remove(staging.folder)
        finally:
            with suppress(OSError):  # a folder that is not empty stays
                for path in made:
                    path.rmdir()
            os.close(lock)


class Staging:
    """A data set that is being built in `folder`."""

    def __init__(self, out: Path) -> None:
        self.out, self.folder = out, out / PARTIAL

    def install(self, manifest: str) -> None:
        """Make the shards in `folder` the data set at `out`, with this text as its manifest; an old set is removed."""
        _synchronise(*sorted(self.folder.iterdir()))
        unfinished = self.folder / UNFINISHED_MANIFEST
        unfinished.write_text(manifest, encoding="utf-8")
        _synchronise(unfinished, self.folder)
        with signals_held():
            unfinished.rename(self.folder / MANIFEST)
            _synchronise(self.folder)
            try:
                (self.out / MANIFEST).unlink(missing_ok=True)
            except OSError:
                (self.folder / MANIFEST).unlink()  # the old data set stays, and so the new one is not wanted
                raise
            _install(self.out)


def _install(out: Path) -> None:
    """Steps 1 to 3 for a complete set in `out/.partial`, from wherever they were interrupted."""
    partial = out / PARTIAL
    _synchronise(out)
    new = _shards_of(partial / MANIFEST)
    _remove_shards(out, but=new)
    for name in new:
        if (partial / name).exists():
            (partial / name).rename(out / name)
    _synchronise(out)
    (partial / MANIFEST).rename(out / MANIFEST)
    _synchronise(out)
    _remove(partial)


def _recover(out: Path) -> bool:
    """Finish or remove what an interrupted run has left in `out`; True where a data set was completed."""
    partial = out / PARTIAL
    if not _is_partial(partial):
        return False
    new = [] if (out / MANIFEST).exists() else _shards_of(partial / MANIFEST)
    complete = bool(new) and all((partial / name).exists() or (out / name).exists() for name in new)
    if complete:
        with signals_held():
            _install(out)
    elif new:  # some of its files were lost; those that are left belong to no data set
        _remove_shards(out)
    _remove(partial)
    return complete


def _shards_of(manifest: Path) -> list[str]:
    """The file names of all shards that a manifest states; none where it is missing or not a manifest."""
    try:
        splits = json.loads(manifest.read_text(encoding="utf-8"))["splits"]
        names = [str(entry["file"]) for split in SPLITS for entry in splits[split]]
    except (OSError, ValueError, RecursionError, KeyError, TypeError):
        return []
    return [name for name in names if SHARD_PATTERN.fullmatch(name)]


def _is_partial(partial: Path) -> bool:
    """Whether this is a folder of a data set in the making; DataError when something else has its name."""
    if not partial.exists() and not partial.is_symlink():
        return False
    if partial.is_symlink() or not partial.is_dir():
        raise DataError(f"{shown(partial)}: needed as a folder to build the data set in; move it away")
    foreign = _foreign(partial, (*NOT_OURS, MANIFEST, UNFINISHED_MANIFEST))
    if foreign:
        raise DataError(f"{shown(partial)}: needed to build the data set, but holds {_some(foreign)}; move it away")
    return True


def _remove(partial: Path) -> None:
    """Remove the data set files of a `.partial` folder, its manifest first, and the folder."""
    with suppress(OSError):
        for name in (MANIFEST, UNFINISHED_MANIFEST):
            (partial / name).unlink(missing_ok=True)
        _remove_shards(partial)
        partial.rmdir()


def _remove_shards(folder: Path, but: Collection[str] = ()) -> None:
    """Remove the shards in a folder whose names are not in `but`."""
    for entry in list(folder.iterdir()):
        if SHARD_PATTERN.fullmatch(entry.name) and entry.name not in but:
            entry.unlink()


def _check_contents(out: Path, *, force: bool, recovered: bool = False) -> None:
    """DataError unless a data set may be put into this folder."""
    unfinished = _is_partial(out / PARTIAL)
    foreign = _foreign(out, (*NOT_OURS, MANIFEST))
    shards = [entry.name for entry in out.iterdir() if SHARD_PATTERN.fullmatch(entry.name)]
    there = (out / MANIFEST).exists()
    if not foreign and not there and (not shards or (unfinished and (out / PARTIAL / MANIFEST).exists())):
        return
    if foreign or not _has_manifest(out, beside_shards=bool(shards)):
        what = f"holds {_some(foreign)}" if foreign else f"has no valid {MANIFEST}"
        raise DataError(
            f"{shown(out)}: exists and is not a data set ({what}); it is left as it is, also with --force: name a new "
            "or empty folder"
        )
    if recovered:
        raise DataError(
            f"{shown(out)}: the data set of an interrupted run was complete and is installed now; to pack another one "
            "there, add --force"
        )
    if not force:
        raise DataError(f"{shown(out)}: a data set is there already; replace it with --force, or name another folder")


def _foreign(folder: Path, known: tuple[str, ...]) -> list[str]:
    """Names in the folder that neither belong to a data set nor are hidden, sorted."""
    return sorted(
        entry.name
        for entry in folder.iterdir()
        if not (
            entry.name in known
            or entry.name.startswith(".")
            or (SHARD_PATTERN.fullmatch(entry.name) and (entry.is_symlink() or not entry.is_dir()))
        )
    )


def _has_manifest(folder: Path, *, beside_shards: bool) -> bool:
    """Whether the manifest is dptrain's, of any version; beside shards a damaged one counts too."""
    try:
        contents = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return False
    except (OSError, ValueError, RecursionError):
        return beside_shards
    return isinstance(contents, dict) and contents.get("format") == FORMAT


def _some(names: list[str]) -> str:
    """Up to three names for a message."""
    return ", ".join(map(shown, names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _lock(out: Path) -> int:
    """Hold the folder against a second process for as long as this one lives; gives the descriptor to close."""
    descriptor = os.open(out, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if out.exists() and os.path.samestat(os.fstat(descriptor), out.stat()):
            return descriptor
    except BlockingIOError:
        pass
    except OSError:
        return descriptor  # Some network file systems lock no folders: nothing keeps two runs apart there.
    os.close(descriptor)  # another process holds it, or has just removed it
    raise DataError(f"{shown(out)}: another process is packing into this folder; wait for it or name another folder")


def _synchronise(*paths: Path) -> None:
    """Bring files, or the names in folders, to the disk."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def _readable_errors(out: Path) -> Iterator[None]:
    """An OSError of the block as a DataError that names the file."""
    try:
        yield
    except OSError as error:
        hint = "free some space" if error.errno in FULL else "is it writable? Name a folder that is"
        where = out if error.filename is None or PROBE in str(error.filename) else error.filename
        raise DataError(f"{shown(where)}: cannot be written: {error.strerror or error}; {hint}") from error
