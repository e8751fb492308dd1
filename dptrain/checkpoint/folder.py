"""The folder of a run: config.toml, metrics.jsonl, model/ and checkpoints/. Only rank 0 writes to it.

`checkpoints/best.h5` is a hard link to the checkpoint with the best accuracy: on the validation split, if there is one,
else on the test split.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from dptrain.checkpoint.format import Checkpoint, read_checkpoint
from dptrain.errors import BrokenCheckpointError, CheckpointError, LaterVersionError, UsageError
from dptrain.system import files
from dptrain.system.durable import TEMPORARY, link_durably, sync_folder, write_durably
from dptrain.system.text import shown

KEPT = "model"  # subfolder with a user's model files
KEEP = 3
BEST = "best.h5"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FILES = ("config.toml", "metrics.jsonl", "timeline.json", "mlflow-run.txt", "attempts.jsonl")
WRITTEN = ("checkpoints", *FILES, "tensorboard", KEPT)  # never through links
CHECKPOINT_NAME = re.compile(r"step-(\d{8,})\.h5")


def step_of(path: Path) -> int:
    """The step in a checkpoint's name."""
    return int(path.stem.removeprefix("step-"))


class RunFolder:
    """Keeps the last three checkpoints and the `keep_best` best, and finds the one to resume from."""

    def __init__(self, path: Path, keep_best: int = 1) -> None:
        self.path = path
        self.config, self.metrics, self.checkpoints = path / "config.toml", path / "metrics.jsonl", path / "checkpoints"
        self.best_accuracy: float | None = None
        self.best_step = -1
        self._keep_best, self._accuracies = keep_best, dict[int, float]()  # by step, of the best so far
        self.held: int | None = None  # a descriptor with the lock, while this process holds the folder

    @classmethod
    def new(cls, data: str, model: str, keep_best: int = 1) -> RunFolder:
        """Make runs/<data>-<model>-<time>: a new folder, also if several runs start at the same time."""
        data_name = os.fsencode(Path(data).resolve().name).decode(errors="replace")[:80]  # any name, also not in UTF-8
        name = f"{data_name}-{model.rsplit(':', 1)[-1][:80]}-{time.strftime('%Y%m%d-%H%M%S')}"
        while True:
            path = _free(Path("runs") / name)
            with _usable(path), contextlib.suppress(FileExistsError):
                path.mkdir(parents=True)
                return cls(path, keep_best)

    def claim(self, patience: float = 0.0) -> None:
        """Make the folder and hold it until `close` or the end of the process; may be called twice.

        UsageError when it cannot be written, or when another process still holds it after `patience` seconds.
        """
        if self.held is not None:
            return
        with _usable(self.path):
            there = {path.name for path in self.path.iterdir()} if self.path.is_dir() else set()
            if there - {self.metrics.name} and self.checkpoints.name not in there:
                raise UsageError(f"--run-dir {self.path}: holds other files, but no run; choose a new folder")
            for link in filter(Path.is_symlink, (self.path / name for name in WRITTEN)):
                raise UsageError(
                    f"--run-dir {self.path}: {link.name} is a symbolic link to {shown(link.readlink(), 200)}; a run "
                    "writes only inside its folder: remove the link, or choose another folder"
                )
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            files.append_text(self.metrics).close()
            self.held = os.open(self.path, os.O_RDONLY)
            self._lock(self.held, time.monotonic() + patience)
            files.append_text(self.checkpoints / ".writable.partial").close()  # fail now, not at the first checkpoint
            for folder in (self.path, self.checkpoints):
                for leftover in folder.glob(TEMPORARY):  # of a run that was killed while writing
                    leftover.unlink()

    def _lock(self, descriptor: int, until: float) -> None:
        while True:
            try:
                return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= until:
                    self.close()
                    text = "another run writes to this folder; wait for it, or choose another"
                    raise UsageError(f"--run-dir {self.path}: {text}") from None
                time.sleep(0.01)
            except OSError:
                return None  # some network file systems cannot lock

    def close(self) -> None:
        """Release the folder for other processes."""
        if self.held is not None:
            os.close(self.held)
            self.held = None

    def write_config(self, config: str) -> None:
        """Save the configuration; UsageError when it cannot be written."""
        with _usable(self.path):
            write_durably(self.config, config.encode())

    def keep_model(self, files: Mapping[str, bytes]) -> None:
        """Keep the files of a user's model in model/, by name; UsageError when they cannot be written.

        The folder appears whole. An earlier one with other files is renamed to model-2, model-3 and so on.
        """
        kept, partial = self.path / KEPT, self.path / f"{KEPT}.partial"
        with _usable(self.path):
            shutil.rmtree(partial, ignore_errors=True)
            there = (path for path in kept.rglob("*") if path.is_file() and path.parent.name != "__pycache__")
            if {path.relative_to(kept).as_posix(): path.read_bytes() for path in there} == files:
                return
            for name, content in files.items():
                (partial / name).parent.mkdir(parents=True, exist_ok=True)
                write_durably(partial / name, content)
            for folder in (partial, *filter(Path.is_dir, partial.rglob("*"))):
                sync_folder(folder)
            if kept.exists():
                kept.rename(_free(kept))
            partial.rename(kept)
            sync_folder(self.path)

    def numbered(self) -> list[Path]:
        """Checkpoints from the oldest to the newest step."""
        with _usable(self.path):
            there = self.checkpoints.iterdir() if self.checkpoints.exists() else ()
            return sorted((path for path in there if CHECKPOINT_NAME.fullmatch(path.name)), key=step_of)

    def candidates(self) -> list[Path]:
        """What a run can be resumed from: the best, then the numbered checkpoints from oldest to newest."""
        best = self.checkpoints / BEST
        return [*([best] if best.is_file() else []), *self.numbered()]

    def newest(self, report: Callable[[str], None], *, set_aside: bool = False) -> tuple[Path, Checkpoint] | None:
        """The newest checkpoint that can be read; newer ones are skipped and reported by `report`.

        With `set_aside`, for a run that trains here, broken ones are renamed, so that the run can write them again.
        CheckpointError when there are checkpoints but none can be read: a start from scratch would hide the loss.
        LaterVersionError when a later version of this program has written the newest.
        """
        paths, broken = self.candidates(), []
        for path in reversed(paths):
            try:
                found = path, read_checkpoint(path)
            except LaterVersionError:
                raise  # a resume from an earlier checkpoint would overwrite this one
            except CheckpointError as error:
                report(f"skipped: {error}")
                if isinstance(error, BrokenCheckpointError):
                    broken.append(path)
                continue
            for other in broken if set_aside else ():
                new = _free(other.with_name(f"{other.name}.broken"))
                with _usable(self.path):
                    other.rename(new)
                report(f"renamed to {new.name}")
            return found
        if not paths:
            return None
        text = f"none of its {len(paths)} checkpoints can be read; start a new run in another --run-dir"
        raise CheckpointError(f"{self.checkpoints}: {text}")

    def checkpoint_of(self, step: int) -> Path:
        """The path of the checkpoint of a step. It need not exist."""
        return self.checkpoints / f"step-{step:08d}.h5"

    def save(self, step: int, content: bytes, accuracy: float | None) -> Path:
        """Write step-<step>.h5 durably, then remove all but the last three and the best ones.

        CheckpointError when it cannot be written.
        """
        path = self.checkpoint_of(step)
        try:
            write_durably(path, content)
            self._remember(path, step, accuracy)
        except OSError as error:
            advice = (
                f"{'Free some space' if error.errno in FULL else 'Fix that'}, then resume with --run-dir {self.path}"
            )
            raise CheckpointError(
                f"{path}: cannot be written: {error.strerror}; no earlier checkpoint was touched. {advice}"
            ) from error
        for old in self.numbered()[:-KEEP]:
            if old != path and step_of(old) not in self._accuracies:
                with contextlib.suppress(OSError):  # an extra checkpoint does no harm
                    old.unlink()
        return path

    def _remember(self, path: Path, step: int, accuracy: float | None) -> None:
        """If no checkpoint before is as accurate, make best.h5 this one: a link, or a copy on disks without links."""
        if accuracy is None:
            return
        self._accuracies[step] = accuracy
        best_first = sorted(self._accuracies, key=lambda one: (-self._accuracies[one], one))
        self._accuracies = {one: self._accuracies[one] for one in best_first[: self._keep_best]}
        if self.best_accuracy is not None and accuracy <= self.best_accuracy:
            return
        self.best_accuracy, self.best_step = accuracy, step
        best = self.checkpoints / BEST
        try:
            link_durably(path, best)
        except OSError:
            write_durably(best, path.read_bytes())

    def remember_all(self) -> None:
        """After a resume: find the best of the existing checkpoints, and make it best.h5."""
        for path in (self.checkpoints / BEST, *self.numbered()):
            try:
                state = read_checkpoint(path).state
            except CheckpointError:
                continue
            with _usable(self.path):
                self._remember(path, state.step, state.progress.selection_accuracy)

    @property
    def best(self) -> Path | None:
        """The checkpoint with the best accuracy, if any has one."""
        return None if self.best_accuracy is None else self.checkpoints / BEST


def open_checkpoint(path: Path, note: Callable[[str], None]) -> Checkpoint:
    """A checkpoint from a file, or the newest of a run folder; `note` gets lines about what is skipped.

    UsageError for a folder without checkpoints, CheckpointError for a file that cannot be read.
    """
    if not path.is_dir():
        return read_checkpoint(path)
    newest = RunFolder(path).newest(note)
    if newest is None:
        raise UsageError(f"{shown(path)}: no checkpoints/step-*.h5 in this folder; give a run folder or a file")
    return newest[1]


def _free(path: Path) -> Path:
    """A path that does not exist: this one, or with -2, -3, ... at its end."""
    number, free = 1, path
    while os.path.lexists(free):
        number += 1
        free = path.with_name(f"{path.name}-{number}")
    return free


@contextlib.contextmanager
def _usable(path: Path) -> Iterator[None]:
    """Turn an OSError into an error for people about this run folder."""
    try:
        yield
    except OSError as error:
        full = error.errno in FULL
        advice = "free some space, then start the same command again" if full else "choose another folder"
        kind = CheckpointError if full else UsageError
        raise kind(f"--run-dir {path}: cannot be used: {error.strerror}; {advice}") from error
