"""The final records of a job (see `dptrain.system.record`), taken out of what its ranks write."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from dptrain.system.record import LONGEST_LINE, WORD


@dataclass(frozen=True)
class Record:
    """The end of a command: its exit status, the reason in one line, and whether retrying may help.

    `more` holds what else is known, by name: `by` (signals), `checkpoint` and `run_dir` (paths).
    """

    status: int
    reason: str = ""
    retry: bool = False
    more: dict[str, str] = field(default_factory=dict)


def parse_record(content: bytes) -> Record | None:
    """The record that JSON holds, None for anything else."""
    try:
        found: dict[str, Any] = json.loads(content)
        status, reason, retry = found.pop("status"), found.pop("reason"), found.pop("retry")
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        return None
    if type(status) is not int or not 0 <= status <= 255 or type(reason) is not str or type(retry) is not bool:
        return None
    return Record(status, reason, retry, {name: value for name, value in found.items() if isinstance(value, str)})


def believed(records: Sequence[Record]) -> Record | None:
    """The record that counts, of several ranks: a failure before a success, one with a reason before one without."""
    return min(records, key=lambda record: (record.status == 0, not record.reason), default=None)


class RecordFilter:
    """Takes a stream in chunks, cut anywhere, and gives it back without the records of this token."""

    def __init__(self, token: str) -> None:
        self.records: list[Record] = []
        self._mark = f"{WORD} {token} ".encode()
        self._held = b""  # may be the beginning of a record

    def take(self, chunk: bytes) -> bytes:
        """What to pass on after these bytes."""
        text, passed = self._held + chunk, b""
        while (found := text.find(self._mark)) >= 0:
            passed, text = passed + text[:found], text[found:]
            end = text.find(b"\n", 0, LONGEST_LINE)
            if end < 0 and len(text) < LONGEST_LINE:
                self._held = text
                return passed
            record = parse_record(text[len(self._mark) : end]) if end > 0 else None
            if record is None:  # torn by the output of another rank
                end = len(self._mark) - 1
                passed += text[: end + 1]
            else:
                self.records.append(record)
            text = text[end + 1 :]
        lengths = range(min(len(text), len(self._mark) - 1), 0, -1)
        length = next((length for length in lengths if self._mark.startswith(text[-length:])), 0)
        self._held = text[len(text) - length :]
        return passed + text[: len(text) - length]

    def release(self, *, end: bool = False) -> bytes:
        """What was held back; to be called when nothing follows for a while, and at the end."""
        if len(self._held) > len(WORD) and not end:  # the rest of a record has yet to arrive
            return b""
        held, self._held = self._held, b""
        return held
