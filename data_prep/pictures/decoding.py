"""Decodes pictures on several processes, and stores their pixels on the disk."""

from __future__ import annotations

import multiprocessing
import sys
import warnings
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path

from dptrain.errors import DataError
from dptrain.system.signals import end_with_parent, leave_signals_to_parent
from dptrain.system.text import shown

from ..spool import Spool
from .containers import Contents
from .decode import Form, decode_file, quiet_pillow

AT_ONCE = 32  # pictures that a process decodes before it answers
MOST_BYTES = 1 << 20  # of the files of a group, unless a single one is larger
WAITING = 3  # groups of pictures a process, read and not yet decoded

Group = list[tuple[int, bytes | str]]  # numbers and contents, or paths
Outcome = tuple[int, tuple[int, int] | str]  # a number, and the size of the picture in its file, or why it is broken


@dataclass
class Decoded:
    """The pixels of all pictures by number, the sizes (height, width) in the files, and why some are broken."""

    spool: Spool
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    broken: dict[int, str] = field(default_factory=dict)


def decode_all(contents: Contents, numbers: Sequence[int], form: Form, out: Path, processes: int) -> Decoded:
    """Decode the pictures of these numbers.

    They are stored on the disk of the data set `out`. Broken pictures are reported in the result. LimitError if they
    cannot be stored; DataError when a process ends, for example without memory.
    """
    spool = Spool(out, form.image_shape)
    spool.allocate(max(numbers) + 1)
    decoded = Decoded(spool)
    groups = _grouped(contents(numbers))
    for number, outcome in _progress(_outcomes(groups, spool, form, processes), len(numbers)):
        if isinstance(outcome, str):
            decoded.broken[number] = outcome
        else:
            decoded.sizes[outcome] += 1
    return decoded


def _grouped(contents: Iterable[tuple[int, bytes | str]]) -> Iterator[Group]:
    group: Group = []
    size = 0
    for number, content in contents:
        group.append((number, content))
        size += len(content) if isinstance(content, bytes) else 0
        if len(group) == AT_ONCE or size >= MOST_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def _outcomes(groups: Iterator[Group], spool: Spool, form: Form, processes: int) -> Iterator[Outcome]:
    if processes == 1:
        for group in groups:
            with quiet_pillow:
                outcomes = _decode_group(group, spool, form)
            yield from outcomes
        return
    context = multiprocessing.get_context("fork")  # the spool's file has no name: only a forked process can have it
    others = set(multiprocessing.active_children())
    with ProcessPoolExecutor(processes, context, _begin, (spool, form)) as pool:
        waiting: deque[tuple[Group, Future[list[Outcome]]]] = deque()
        try:
            for group in groups:
                waiting.append((group, pool.submit(_decode_in_worker, group)))
                if len(waiting) >= WAITING * processes:
                    yield from _result(*waiting.popleft())
            while waiting:
                yield from _result(*waiting.popleft())
        except BrokenProcessPool:  # when a group is submitted
            raise DataError(_killed(waiting[0][0])) from None
        except BaseException:  # after a signal too: the pool would wait for the groups that are being decoded
            for worker in {*multiprocessing.active_children()} - others:
                worker.kill()
            raise


def _result(group: Group, future: Future[list[Outcome]]) -> list[Outcome]:
    try:
        return future.result()
    except BrokenProcessPool:
        raise DataError(_killed(group)) from None


def _killed(group: Group) -> str:
    paths = [content for _, content in group if isinstance(content, str)]
    where = f" at a picture from {shown(paths[0], 300)} on" if paths else ""
    return f"a process that decodes pictures was killed{where}; if there was too little memory, use fewer --processes"


def _decode_group(group: Group, spool: Spool, form: Form) -> list[Outcome]:
    outcomes: list[Outcome] = []
    for number, content in group:
        try:
            pixels, size = decode_file(content, form)
        except DataError as error:
            outcomes.append((number, str(error)))
            continue
        except MemoryError:
            raise DataError("out of memory for decoding pictures; use fewer --processes") from None
        spool[number] = pixels
        outcomes.append((number, size))
    return outcomes


_worker: tuple[Spool, Form] | None = None  # what a forked process works with


def _begin(spool: Spool, form: Form) -> None:
    global _worker
    leave_signals_to_parent()
    end_with_parent()
    warnings.simplefilter("ignore")
    _worker = spool, form


def _decode_in_worker(group: Group) -> list[Outcome]:
    assert _worker is not None
    return _decode_group(group, *_worker)


def _progress(outcomes: Iterator[Outcome], count: int) -> Iterator[Outcome]:
    """The same outcomes, with a bar on a terminal."""
    if not sys.stderr.isatty():
        yield from outcomes
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("decoding pictures"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    # Without a thread that draws: processes are forked meanwhile.
    with Progress(*columns, console=Console(stderr=True), auto_refresh=False, transient=True) as progress:
        task = progress.add_task("", total=count)
        for done, outcome in enumerate(outcomes, 1):
            yield outcome
            if done % AT_ONCE == 0 or done == count:
                progress.update(task, completed=done, refresh=True)
