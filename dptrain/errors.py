"""Errors meant for people: what was found, what was expected, what to do."""

from __future__ import annotations

import contextlib
import difflib
import sys
from collections.abc import Iterable, Mapping

from dptrain.synonyms import SYNONYMS

# Exit statuses, those of sysexits.h where it has one.
FAILED = 1  # a permanent error: retrying does not help
USAGE = 2
UNAVAILABLE = 69
UNFORESEEN = 70  # an unforeseen exception, or a process that died: retrying may help
PREEMPTED = 75  # ended by a signal, with a checkpoint: start the same command again
STALLED = 76  # ended because a rank made no progress
READER_GONE = 141  # 128 + SIGPIPE: whoever read the output has closed it, as in `dptrain inspect RUN | head`

NEAR = 0.7  # difflib's ratio from which a name is proposed
FEW = 7  # names that are listed where none is near
NOTHING_EXPLAINED: Mapping[str, str] = {}


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


def write_to_stderr(line: str) -> None:
    """Write a line to standard error in one piece, as other ranks and mpirun write there too.

    A line that cannot be written (a full disk, a closed pipe, no standard error) is lost.
    """
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()


def did_you_mean(
    word: str, known: Iterable[str], otherwise: str = "see --help", explanations: Mapping[str, str] = NOTHING_EXPLAINED
) -> str:
    """A sentence that helps whoever typed `word`, which is none of the `known` names.

    It proposes the name of which the word is a synonym, or the nearest ones; where there is none, it is the word's
    explanation, if it has one, or all names if they are few, or `otherwise`. Leading dashes, case and the difference
    between - and _ do not count.
    """
    names = {_plain(name): name for name in sorted(known)}
    typed = _plain(word)
    near = [name for name in SYNONYMS.get(typed, ()) if name in names][:1]
    if not near and typed in explanations:
        return explanations[typed]
    if not near and len(typed) >= 3:
        near = [name for name in names if name.startswith(typed)][:2]
    near = near or difflib.get_close_matches(typed, names, n=1, cutoff=NEAR)
    if near:
        return f"did you mean {' or '.join(repr(names[name]) for name in near)}?"
    return f"known: {', '.join(names.values())}" if len(names) <= FEW else otherwise


def _plain(name: str) -> str:
    return name.lstrip("-").replace("_", "-").lower()
