"""Seconds from typing the command to the first step, and the largest rank's peak memory.

    python tests/benchmarks/start_up.py data/cifar10 [--ranks 1 2] [--runs 5]

One rank is `dptrain train` without MPI, more are `mpirun -n R dptrain train`. The clock stops when the line of
step 1 is in metrics.jsonl; memory is the resident peak of the largest process, evaluation included.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

STEPS = 20


def start_up(data: Path, ranks: int) -> float:
    """Start one job, wait for its end, and return the seconds until its first step was logged."""
    python = Path(sys.executable)
    root = ["--allow-run-as-root"] if os.geteuid() == 0 and b"Open MPI" in version(python) else []
    mpirun = [str(python.with_name("mpirun")), *root, "-n", str(ranks)] if ranks > 1 else []
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        flags = ["--run-dir", str(run), "--log-every", "1", "--max-steps", str(STEPS)]
        started = time.perf_counter()
        command = [*mpirun, str(python), "-m", "dptrain", "train", str(data), *flags]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as job:
            while not first_step_logged(run / "metrics.jsonl"):
                if job.poll() is not None:
                    raise SystemExit(f"the job ended with status {job.returncode} before its first step")
                time.sleep(0.005)
            return time.perf_counter() - started


def first_step_logged(metrics: Path) -> bool:
    """Whether the line of step 1 has been written."""
    return metrics.exists() and '"event": "step"' in metrics.read_text()


def version(python: Path) -> bytes:
    """The version text of the mpirun next to a Python; empty if there is none."""
    mpirun = python.with_name("mpirun")
    return subprocess.run([mpirun, "--version"], capture_output=True).stdout if mpirun.exists() else b""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    for ranks in sorted(options.ranks, reverse=True):  # fewer ranks hold more data: the peak below only grows
        seconds = [start_up(options.data, ranks) for _ in range(options.runs)]
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        median, low, high = statistics.median(seconds), min(seconds), max(seconds)
        print(
            f"{ranks} rank(s): first step after {median:.2f} s ({low:.2f} to {high:.2f}), peak {peak:,.0f} MiB a rank"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
