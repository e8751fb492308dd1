"""mpirun's notices of a job's end, which are withheld: the launcher reports the end in one line.

They are shown where nothing else explains the end, and with --verbose.
"""

from __future__ import annotations

import re

LONGEST = 8192  # bytes of a notice
# Open MPI's mpirun and MPI_Abort write between two rules; these words tell a notice of an end from other text.
RULE = re.compile(rb"\0?-{60,}\s*")
OPEN_MPI = re.compile(
    rb"MPI_ABORT was invoked on rank|noticed that process rank|has exited due to process rank|"
    rb"one or more processes exited with non-zero status|A process has executed an operation|"
    rb"Primary job\s+terminated normally"
)
MPICH_RULE = re.compile(rb"={60,}\s*")
MPICH_FIRST = b"=   BAD TERMINATION"
MPICH_LAST = b"Please see the FAQ page for debugging suggestions"
LINE = re.compile(rb"\0?(\[[^\]\s]+:\d+\] PMIX ERROR: |\[(mpiexec|proxy:[^\]@]*)@[^\]]*\] |Abort\(\d+\) on node \d+ )")
FIRST_BYTES = b"-=[A\0"  # of a line that may begin a notice


class NoticeFilter:
    """Takes a stream in chunks, cut anywhere, and gives it back without notices, which are in `withheld`."""

    def __init__(self) -> None:
        self.withheld = b""
        self._block: list[bytes] = []  # whole lines that may become a notice
        self._line = b""  # the beginning of a line that may
        self._within = False  # the beginning of this line has been passed on

    def take(self, chunk: bytes) -> bytes:
        """What to pass on after these bytes."""
        *lines, rest = (self._line + chunk).split(b"\n")
        passed = b"".join(self._take_line(line + b"\n") for line in lines)
        if self._within or (rest and rest[0] not in FIRST_BYTES and not any(map(bytes.strip, self._block))):
            passed, rest = passed + b"".join(self._block) + rest, b""
            self._block, self._within = [], True
        self._line = rest
        return passed

    def release(self) -> bytes:
        """What was held back; to be called at the end, and when nothing follows for a while."""
        held = b"".join(self._block) + self._line
        self._within = self._within or bool(self._line)
        self._block, self._line = [], b""
        return held

    def _take_line(self, line: bytes) -> bytes:
        if self._within:
            self._within = False
            return line
        if self._block:
            return self._continue_block(line)
        if LINE.match(line):
            self.withheld += line
            return b""
        if line.strip() and not RULE.fullmatch(line) and not MPICH_RULE.fullmatch(line):
            return line
        self._block = [line]
        return b""

    def _continue_block(self, line: bytes) -> bytes:
        before, self._block = self._block, [*self._block, line]
        whole = b"".join(self._block)
        lines = self._block[0 if before[0].strip() else 1 :]  # an empty line may come before a notice
        if not _may_be_notice(lines) or len(whole) > LONGEST:
            self._block = []
            return b"".join(before) + self._take_line(line)
        if len(lines) == 1 or not (RULE.fullmatch(line) or line.startswith(MPICH_LAST)):
            return b""
        self._block = []
        if RULE.fullmatch(line) and not OPEN_MPI.search(whole):
            return whole
        self.withheld += whole
        return b""


def _may_be_notice(lines: list[bytes]) -> bool:
    """Whether these whole lines may be the beginning of a notice, or all of it."""
    if RULE.fullmatch(lines[0]):
        return True
    return bool(MPICH_RULE.fullmatch(lines[0])) and (len(lines) == 1 or lines[1].startswith(MPICH_FIRST))
