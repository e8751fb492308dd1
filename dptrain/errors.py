"""Errors meant for people: what was found, what was expected, what to do. And the exit statuses."""

from __future__ import annotations

# Exit statuses, those of sysexits.h where it has one.
FAILED = 1  # a permanent error: retrying does not help
USAGE = 2  # a wrong command line or configuration
UNAVAILABLE = 69
UNFORESEEN = 70  # an unforeseen exception, or a process that died: retrying may help
PREEMPTED = 75  # stopped by a signal, with a checkpoint: start the same command again
STALLED = 76  # ended because a rank made no progress
READER_GONE = 141  # 128 + SIGPIPE: the reader of the output has closed it, as in `dptrain inspect RUN | head`


class DptrainError(Exception):
    """An error whose text is all that the user needs; it is shown without a traceback.

    `status` is the exit status of the command. `agreed`: every rank ends with this error or its PeerError, so no rank
    must be aborted. `details` is printed below the text.
    """

    status = FAILED
    agreed = False
    details = ""


class UsageError(DptrainError):
    """A flag, key or value that cannot be used."""

    status = USAGE


class DataError(DptrainError):
    """An archive, manifest or shard that is missing, damaged or of an unexpected format."""


class DownloadError(DataError):
    """A download that failed."""

    status = UNAVAILABLE


class ModelError(DptrainError):
    """A user's model that cannot be built, or whose layers break a rule; `details` is a traceback."""

    def __init__(self, text: str, details: str = "") -> None:
        super().__init__(text)
        self.details = f"\n{details}" if details else ""


class CheckpointError(DptrainError):
    """A checkpoint that is missing, damaged or belongs to another run."""


class BrokenCheckpointError(CheckpointError):
    """A checkpoint that differs from what was written: its hash does not match."""


class LaterVersionError(CheckpointError):
    """A checkpoint that a later version of this program wrote; it is not damaged."""


class OutputError(DptrainError):
    """Standard output cannot be written, and the result of the command is lost."""


class ReaderGoneError(OutputError):
    """The reader of standard output has closed it; the program ends silently, as others do after SIGPIPE."""

    status = READER_GONE


class LimitError(DptrainError):
    """The operating system refuses memory, a thread, a file or a path."""


class TrainingError(DptrainError):
    """Training cannot continue: the loss is not finite, or replicas differ."""


class PreemptedError(DptrainError):
    """A signal stopped the run after a checkpoint: the same command resumes. A scheduler may requeue the job."""

    status = PREEMPTED
    by = checkpoint = run_dir = ""  # the signals and paths, where they are known


class RankLostError(DptrainError):
    """Another rank has died, so a collective of this rank failed (with ULFM only)."""

    status = UNFORESEEN


class WorkerLostError(DptrainError):
    """A forked worker has died."""

    status = UNFORESEEN


class PeerError(DptrainError):
    """Another rank failed and reports the reason; this rank ends silently with the same status."""

    agreed = True

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status
