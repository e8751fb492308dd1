"""The folder of a run: config.toml, metrics.jsonl and checkpoints/. Only rank 0 writes to it.

Beside the numbered checkpoints, `checkpoints/best.h5` is a second name of the one with the best test accuracy.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from dptrain.checkpoint.format import Checkpoint, read_checkpoint
from dptrain.errors import BrokenCheckpointError, CheckpointError, DptrainError, LaterVersionError, UsageError
from dptrain.system import files
from dptrain.system.durable import TEMPORARY, link_durably, sync_folder, write_durably
from dptrain.system.text import shown

KEPT = "model"  # the folder, in a run folder, of a user's model files
KEEP = 3
BEST = "best.h5"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
OWN = ("checkpoints", "config.toml", "metrics.jsonl", "attempts.jsonl")  # what a run writes, never through links
CHECKPOINT_NAME = re.compile(r"step-(\d{8,})\.h5")


def step_of(path: Path) -> int:
    """The step in a checkpoint's name."""
    return int(path.stem.removeprefix("step-"))


class RunFolder:
    """Keeps the last three checkpoints and the best, and finds the one to go on from."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.best_accuracy: float | None = None
        self.best_step = -1
        self._held: int | None = None

    @classmethod
    def new(cls, data: str, model: str) -> RunFolder:
        """Make runs/<data>-<model>-<time>: a folder that was not there, however many runs begin at once."""
        data_name = os.fsencode(Path(data).resolve().name).decode(errors="replace")[:80]  # any name, also not in UTF-8
        name = f"{data_name}-{model.rsplit(':', 1)[-1][:80]}-{time.strftime('%Y%m%d-%H%M%S')}"
        for number in itertools.count(1):
            path = Path("runs") / (name if number == 1 else f"{name}-{number}")
            try:
                path.mkdir(parents=True)
            except FileExistsError:
                continue
            except OSError as error:
                raise _unusable(path, error) from error
            return cls(path)
        raise AssertionError("counting does not end")

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def held(self) -> bool:
        """Has this object claimed the folder, and not closed it?"""
        return self._held is not None

    def claim(self, patience: float = 0.0) -> None:
        """Make the folder and hold it until `close` or the process's end; claiming twice is fine.

        UsageError when it cannot be written, or another process trains in it and does not end within `patience`
        seconds.
        """
        if self._held is not None:
            return
        try:
            there = {path.name for path in self.path.iterdir()} if self.path.is_dir() else set()
            if there - {self.metrics.name} and self.checkpoints.name not in there:
                raise UsageError(
                    f"--run-dir {self.path}: holds other things and no checkpoints/ of a run; choose a new folder"
                )
            self._refuse_links()
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            files.append_text(self.metrics).close()
            self._held = os.open(self.path, os.O_RDONLY)
            self._lock(self._held, time.monotonic() + patience)
            files.append_text(self.checkpoints / ".writable.partial").close()  # rather now than at the first checkpoint
            for folder in (self.path, self.checkpoints):
                for leftover in folder.glob(TEMPORARY):  # of a run that was killed while writing
                    leftover.unlink()
        except OSError as error:
            raise _unusable(self.path, error) from error

    def _refuse_links(self) -> None:
        """UsageError when something in the folder is a symbolic link that writing would follow out of it."""
        for path in (self.path / name for name in OWN):
            if path.is_symlink():
                raise UsageError(
                    f"--run-dir {self.path}: {path.name} is a symbolic link to {shown(path.readlink(), 200)}; a run "
                    "writes only inside its folder: remove the link, or choose another folder"
                )

    def _lock(self, descriptor: int, until: float) -> None:
        while True:
            try:
                return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= until:
                    self.close()
                    raise UsageError(
                        f"--run-dir {self.path}: another process trains in this folder; wait for it, or choose another"
                    ) from None
                time.sleep(0.01)
            except OSError:
                return None  # some network file systems cannot lock

    def close(self) -> None:
        """Let others train in the folder."""
        if self._held is not None:
            os.close(self._held)
            self._held = None

    @property
    def has_config(self) -> bool:
        """Whether the folder holds the configuration of a run."""
        return (self.path / "config.toml").exists()

    def write_config(self, config: str) -> None:
        """Save the configuration; UsageError when it cannot be written."""
        try:
            write_durably(self.path / "config.toml", config.encode())
        except OSError as error:
            raise _unusable(self.path, error) from error

    def keep_model(self, files: Mapping[str, bytes]) -> None:
        """Keep the files of a user's model in model/, by name; UsageError when they cannot be written.

        The folder appears whole. Other files that are there get the name model.1, model.2 and so on.
        """
        kept, partial = self.path / KEPT, self.path / f"{KEPT}.partial"
        try:
            shutil.rmtree(partial, ignore_errors=True)
            if kept.is_symlink():
                raise UsageError(f"--run-dir {self.path}: {KEPT} is a symbolic link, expected a folder; remove it")
            if _files_in(kept) == files:
                return
            for name, content in files.items():
                (partial / name).parent.mkdir(parents=True, exist_ok=True)
                write_durably(partial / name, content)
            for folder in (partial, *filter(Path.is_dir, partial.rglob("*"))):
                sync_folder(folder)
            if kept.exists():
                kept.rename(next(path for n in itertools.count(1) if not (path := self.path / f"{KEPT}.{n}").exists()))
            partial.rename(kept)
            sync_folder(self.path)
        except OSError as error:
            raise _unusable(self.path, error) from error

    def numbered(self) -> list[Path]:
        """Checkpoints from the oldest to the newest step."""
        try:
            there = list(self.checkpoints.iterdir())
        except FileNotFoundError:
            return []
        except OSError as error:
            raise _unusable(self.path, error) from error
        return sorted((path for path in there if CHECKPOINT_NAME.fullmatch(path.name)), key=step_of)

    def candidates(self) -> list[Path]:
        """What a run can be resumed from: the best, then the numbered checkpoints from oldest to newest."""
        best = self.checkpoints / BEST
        return [*([best] if best.is_file() else []), *self.numbered()]

    def newest(self, say: Callable[[str], None], *, set_aside: bool = False) -> tuple[Path, Checkpoint] | None:
        """The newest checkpoint that proves itself; a broken one is passed over with a line that says so.

        With `set_aside`, for whoever trains here, those of them that are torn or altered get another name, so that the
        run can write them anew. CheckpointError when there are checkpoints but none can be read: starting from scratch
        would hide the loss. LaterVersionError when a later version of this program has written the newest.
        """
        paths, broken = self.candidates(), []
        for path in reversed(paths):
            try:
                found = path, read_checkpoint(path)
            except LaterVersionError:
                raise  # a resume from an earlier one would write over this one
            except CheckpointError as error:
                say(f"passed over: {error}")
                if isinstance(error, BrokenCheckpointError):
                    broken.append(path)
                continue
            if set_aside:
                for other in broken:
                    say(f"set aside as {_set_aside(other).name}")
            return found
        if paths:
            raise CheckpointError(
                f"{self.checkpoints}: none of its {len(paths)} checkpoints can be read; "
                "start a new run in another --run-dir"
            )
        return None

    def checkpoint_of(self, step: int) -> Path:
        """Where the checkpoint of a step is, or would be."""
        return self.checkpoints / f"step-{step:08d}.h5"

    def save(self, step: int, content: bytes, test_accuracy: float | None) -> Path:
        """Write step-<step>.h5 durably, then remove what is neither among the last three nor the best.

        CheckpointError when it cannot be written.
        """
        path = self.checkpoint_of(step)
        try:
            write_durably(path, content)
            if self._remember(step, test_accuracy):
                self._name_best(path, content)
        except OSError as error:
            raise CheckpointError(
                f"{path}: cannot be written: {error.strerror}; no earlier checkpoint was touched. "
                f"{'Free some space' if error.errno in FULL else 'Fix that'}, then "
                f"resume with the same command and --run-dir {self.path}"
            ) from error
        for old in self.numbered()[:-KEEP]:
            if old != path and step_of(old) != self.best_step:
                with contextlib.suppress(OSError):  # one checkpoint too many does no harm
                    old.unlink()
        return path

    def _remember(self, step: int, test_accuracy: float | None) -> bool:
        """Take the checkpoint for the best if no earlier one has its accuracy; was it taken?"""
        if test_accuracy is None or (self.best_accuracy is not None and test_accuracy <= self.best_accuracy):
            return False
        self.best_accuracy, self.best_step = test_accuracy, step
        return True

    def _name_best(self, path: Path, content: bytes) -> None:
        """Let best.h5 be this checkpoint, a copy where the file system has no second names; OSError when it fails."""
        try:
            link_durably(path, self.checkpoints / BEST)
        except OSError:
            write_durably(self.checkpoints / BEST, content)

    def remember_all(self) -> None:
        """After a resume: learn from the checkpoints that are there which is the best, and let best.h5 be that one."""
        best: Path | None = None
        for path in (self.checkpoints / BEST, *self.numbered()):
            try:
                state = read_checkpoint(path).state
            except CheckpointError:
                continue
            if self._remember(state.step, state.progress.test_accuracy):
                best = path
        if best is None or best.name == BEST:
            return
        try:
            self._name_best(best, best.read_bytes())
        except OSError as error:
            raise _unusable(self.path, error) from error

    @property
    def best(self) -> Path | None:
        """The checkpoint with the best test accuracy, if any has one."""
        return None if self.best_accuracy is None else self.checkpoints / BEST


def _files_in(folder: Path) -> dict[str, bytes]:
    """Contents by name relative to the folder, without what Python leaves there."""
    paths = (path for path in folder.rglob("*") if path.is_file() and path.parent.name != "__pycache__")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def _set_aside(path: Path) -> Path:
    """Rename a broken checkpoint to a name that no other file has; its new path."""
    for number in itertools.count(1):
        aside = path.with_name(f"{path.name}.broken" + ("" if number == 1 else f"-{number}"))
        if not os.path.lexists(aside):
            try:
                return path.rename(aside)
            except OSError as error:
                raise _unusable(path.parent.parent, error) from error
    raise AssertionError("counting does not end")


def _unusable(path: Path, error: OSError) -> DptrainError:
    if error.errno in FULL:
        return CheckpointError(
            f"--run-dir {path}: {error.strerror}; free some space, then start the same command again"
        )
    return UsageError(f"--run-dir {path}: cannot be used: {error.strerror}; choose another folder")
