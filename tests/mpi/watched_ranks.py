"""Ranks under a Watch with a limit of 1 s, of which one does not move. Each rank leaves a file pid-RANK.

watched_ranks.py                steps 0, 1, 2: the rank of that number is stopped for a while, loading data;
                                step 3: rank 1 sleeps as long, loading data;
                                step 4: rank 0 evaluates for more than a limit, with progress
watched_ranks.py RANK           this rank is stopped for good; the job is to end 0.5 s after it was told

Lines "trouble TIME STEP" tell when one stops or sleeps, "said TIME LINE" what the watch says.
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


def trouble(watch: Watch, step: int, disturb: Callable[[], None]) -> None:
    watch.activity.enter("loading data", step)
    time.sleep(LIMIT / 3)  # so that this phase is heard of
    out("trouble", str(step))
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
    watch = Watch(communicator, limit=LIMIT, abort=0.5 if len(sys.argv) > 1 else 0, say=lambda line: out("said", line))
    disturbances = [(0, stop_for_a_while), (1, stop_for_a_while), (2, stop_for_a_while), (1, sleep_for_a_while)]
    if len(sys.argv) > 1:
        disturbances = [(int(sys.argv[1]), stop)]
    for step, (disturbed, disturb) in enumerate(disturbances):
        if rank == disturbed:
            trouble(watch, step, disturb)
        watch.activity.enter("going on", step)
        communicator.barrier()
    if rank == 0:
        evaluate(watch)
    communicator.barrier()
    watch.close()


if __name__ == "__main__":
    main()
