"""Errors meant for people: what was found, what was expected, what to do."""

from __future__ import annotations

# Exit statuses, those of sysexits.h where it has one.
FAILED = 1  # a permanent error: retrying does not help
USAGE = 2
UNAVAILABLE = 69
UNFORESEEN = 70  # an unforeseen exception, or a process that died: retrying may help
PREEMPTED = 75  # ended by a signal, with a checkpoint: start the same command again
STALLED = 76  # ended because a rank made no progress
READER_GONE = 141  # 128 + SIGPIPE: whoever read the output has closed it, as in `dptrain inspect RUN | head`


class DptrainError(Exception):
    """An error whose text is all that the user needs; shown without a traceback.

    `status` is the exit status of the command that fails with it. `agreed` says that every rank ends with
    this error or its PeerError, so that no rank needs to be stopped by force. `details` is printed behind it.
    """

    status = FAILED
    agreed = False
    details = ""


class UsageError(DptrainError):
    """A flag, key or value that cannot be used (status 2, as for any wrong command line)."""

    status = USAGE


class DataError(DptrainError):
    """An archive, manifest or shard that is missing, damaged or not what it should be."""


class DownloadError(DataError):
    """Data that cannot be fetched: the network is closed or the server does not answer (EX_UNAVAILABLE)."""

    status = UNAVAILABLE


class ModelError(DptrainError):
    """A user's model file that cannot be loaded or built, or whose layers break a rule; `details` is a traceback."""

    def __init__(self, text: str, details: str = "") -> None:
        super().__init__(text)
        self.details = f"\n{details}" if details else ""


class CheckpointError(DptrainError):
    """A checkpoint that is missing, damaged or belongs to another run."""


class BrokenCheckpointError(CheckpointError):
    """A checkpoint that differs from what was written: its hash does not match."""


class OutputError(DptrainError):
    """Standard output cannot be written, and what a command prints there is its result."""


class ReaderGoneError(OutputError):
    """Whoever read standard output has closed it; the program ends silently, as others do after SIGPIPE."""

    status = READER_GONE


class LimitError(DptrainError):
    """The operating system refuses memory, a thread, a file or a path."""


class LaterVersionError(CheckpointError):
    """A checkpoint that a later version of this program wrote: nothing is wrong with it."""


class TrainingError(DptrainError):
    """Training cannot continue: the loss is not finite, or replicas differ."""


class PreemptedError(DptrainError):
    """A signal asked the run to end, and a checkpoint is written: the same command resumes.

    A scheduler that requeues a job with this status loses nothing.
    """

    status = PREEMPTED
    by = checkpoint = run_dir = ""  # the signals and paths, where they are known


class RankLostError(DptrainError):
    """Another rank has died, and a collective of this rank failed for it (under ULFM only)."""

    status = UNFORESEEN


class HelperLostError(DptrainError):
    """A forked worker has died."""

    status = UNFORESEEN


class PeerError(DptrainError):
    """Another rank failed and reports why; this one ends silently, with the same status."""

    agreed = True

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status
