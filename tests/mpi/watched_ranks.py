"""Ranks under a Watch with a limit of 1 s, of which one stalls. Each rank writes a file pid-RANK.

watched_ranks.py                steps 0, 1: the rank of that number is stopped for a while, loading data;
                                step 2: rank 1 sleeps as long, loading data;
                                step 3: rank 0 evaluates for more than a limit, with progress
watched_ranks.py RANK           this rank is stopped for good; the job must end 0.5 s after the report

Lines "stalls TIME STEP" state when a rank stops or sleeps, "reported TIME LINE" what the watch reports.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from dptrain.parallel.mpi import connect
from dptrain.parallel.watch import Watch

LIMIT = 1.0
WHILE = 1.7  # seconds


def out(kind: str, text: str) -> None:
    os.write(1, f"{kind} {time.time()} {text}\n".encode())


def stop() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def stop_for_a_while() -> None:
    subprocess.Popen(["sh", "-c", f"sleep {WHILE}; kill -CONT {os.getpid()}"])
    stop()


def sleep_for_a_while() -> None:
    time.sleep(WHILE)


def stall(watch: Watch, step: int, disturb: Callable[[], None]) -> None:
    watch.activity.enter("loading data", step)
    time.sleep(LIMIT / 3)  # so that this phase is sent
    out("stalls", str(step))
    disturb()


def evaluate(watch: Watch) -> None:
    watch.activity.enter("evaluating")
    for _ in range(8):
        time.sleep(LIMIT / 5)
        watch.activity.progress()


def main() -> None:
    communicator, _ = connect()
    rank = communicator.rank
    Path(f"pid-{rank}").write_text(str(os.getpid()))
    abort = 0.5 if len(sys.argv) > 1 else 0
    watch = Watch(communicator, limit=LIMIT, abort=abort, report=lambda line: out("reported", line))
    disturbances = [(0, stop_for_a_while), (1, stop_for_a_while), (1, sleep_for_a_while)]
    if len(sys.argv) > 1:
        disturbances = [(int(sys.argv[1]), stop)]
    for step, (disturbed, disturb) in enumerate(disturbances):
        if rank == disturbed:
            stall(watch, step, disturb)
        watch.activity.enter("computing", step)
        communicator.barrier()
    if rank == 0:
        evaluate(watch)
    communicator.barrier()
    watch.close()


if __name__ == "__main__":
    main()
