"""The lines of metrics.jsonl, as far as they can be used: a run may have been killed, or still be running."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dptrain.errors import DataError
from dptrain.system import files
from dptrain.system.text import shown

LONGEST = 512 * files.MIB
LARGEST = 1e300  # of a number; NaN is not below it
KINDS = ("compute", "data", "waiting", "reduction")  # of seconds

Line = dict[str, Any]


@dataclass
class History:
    """Lines by event, in the order of the file. Of a repeated step or epoch only the last line is kept.

    `seconds` is the time spent in steps and evaluations, repeated ones included.
    """

    starts: list[Line] = field(default_factory=list)
    recoveries: list[Line] = field(default_factory=list)
    steps: list[Line] = field(default_factory=list)
    epochs: list[Line] = field(default_factory=list)
    metrics: list[Line] = field(default_factory=list)
    tta: Line | None = None
    seconds: float = 0.0

    @property
    def last_start(self) -> Line:
        """The line of the last start; empty if there is none."""
        return self.starts[-1] if self.starts else {}

    @property
    def versions(self) -> Line:
        """The versions of the software at the last start, by name."""
        versions = self.last_start.get("versions")
        return versions if isinstance(versions, dict) else {}

    @property
    def last(self) -> Line:
        """The line of the last evaluation; empty if there is none."""
        return self.epochs[-1] if self.epochs else {}

    @property
    def metrics_by_name(self) -> dict[str, list[Line]]:
        """The lines of each metric that a program has logged."""
        found: dict[str, list[Line]] = defaultdict(list)
        for line in self.metrics:
            found[line["name"]].append(line)
        return found

    @property
    def steps_per_epoch(self) -> int:
        """0 if no epoch is finished. The last epoch of a run may be shorter than the others."""
        return max((line["step"] // line["epoch"] for line in self.epochs), default=0)

    def rank_seconds(self) -> list[dict[str, float]]:
        """By rank, the seconds of all epochs by kind; older runs have only those of rank 0."""
        totals: list[dict[str, float]] = []
        for line in self.epochs:
            ranks = line.get("rank_seconds", [line.get("seconds")])
            for rank, seconds in enumerate(ranks if isinstance(ranks, list) else []):
                if rank == len(totals):
                    totals.append(dict.fromkeys(KINDS, 0.0))
                for kind in KINDS:
                    totals[rank][kind] += number(seconds, kind) or 0.0
        return totals


def number(line: object, name: str) -> float | None:
    """A finite number of a line; None if it has none of this name."""
    value: Any = line.get(name) if isinstance(line, Mapping) else None
    return float(value) if type(value) in (int, float) and abs(value) < LARGEST else None


def read_history(path: Path) -> History:
    """The history in a metrics.jsonl; lines that are cut short or unknown are left out. DataError without the file."""
    try:
        content = files.read_bytes(path, LONGEST)
    except OSError as error:
        raise DataError(f"{shown(path)}: cannot be read: {error.strerror}; give the folder of a run") from error
    return history_of(content.split(b"\n"))


def history_of(texts: Iterable[bytes]) -> History:
    """The history of lines of JSON."""
    history = History()
    steps: dict[int, Line] = {}
    epochs: dict[int, Line] = {}
    metrics: dict[tuple[int, str], Line] = {}
    unfinished = 0.0  # seconds of steps since the last evaluation
    for text in texts:
        try:
            line = files.parse_json(text)
        except ValueError:
            continue
        event, step = (line.get("event"), line.get("step")) if isinstance(line, dict) else (None, None)
        if type(step) is not int or not 0 <= step < 2**63:
            continue
        if event in ("start", "recovery"):
            (history.starts if event == "start" else history.recoveries).append(line)
            history.seconds += unfinished
            unfinished = 0.0
        elif event == "step" and step > 0:
            steps[step] = line
            unfinished += _seconds(line)
        elif event == "epoch" and type(line.get("epoch")) is int and 0 < line["epoch"] <= step:
            epochs[step] = line
            history.seconds += _seconds(line) + (number(line, "evaluation_seconds") or 0.0)
            unfinished = 0.0
        elif event == "metric" and isinstance(line.get("name"), str):
            metrics[step, line["name"]] = line
        elif event == "tta":
            history.tta = line
    history.seconds += unfinished
    history.steps, history.epochs = ([of[step] for step in sorted(of)] for of in (steps, epochs))
    history.metrics = [metrics[key] for key in sorted(metrics)]
    return history


def _seconds(line: Line) -> float:
    return sum(number(line.get("seconds"), kind) or 0.0 for kind in KINDS)
