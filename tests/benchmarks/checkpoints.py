"""The cost of background checkpoints: steps/s with one every 50 steps against none.

    python tests/benchmarks/checkpoints.py data/cifar10 [--steps 3900] [--every 50]

One run, as one process and on two ranks, writes a checkpoint after every second stretch of 50 steps: each stretch in
which one is written is compared with the one before, in which none is. Within two seconds the machine's speed drifts
less than between runs. Stretches that touch the end of an epoch, where another checkpoint is written, are left out.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

DPTRAIN = [sys.executable, "-m", "dptrain"]


def mpirun(ranks: int) -> list[str]:
    root = ["--allow-run-as-root"] if os.geteuid() == 0 else []
    return [str(Path(sys.executable).with_name("mpirun")), *root, "-n", str(ranks)]


def step_lines(command: list[str], data: Path, every: int, steps: int) -> list[dict[str, Any]]:
    """metrics.jsonl of a run that writes a checkpoint every 2 * `every` steps, a line every `every`."""
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        flags = ["--run-dir", str(run_dir), "--max-steps", str(steps), "--log-every", str(every)]
        flags += ["--checkpoint-every", str(2 * every)]
        subprocess.run([*command, "train", str(data), *flags], check=True, capture_output=True)
        lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == "step"]


def ratios(lines: list[dict[str, Any]], every: int) -> list[float]:
    """Speed of each stretch with a checkpoint over that of the one before, all three lines of one epoch."""
    found = []
    for before, without, written in zip(lines, lines[1:], lines[2:], strict=False):
        begins = before["step"] % (2 * every) == every  # the stretch of `written` begins with a checkpoint
        if begins and before["epoch"] == written["epoch"]:
            found.append(written["images_per_second"] / without["images_per_second"])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--steps", type=int, default=3900)
    parser.add_argument("--every", type=int, default=50)
    options = parser.parse_args()
    for name, command in (("one process", DPTRAIN), ("2 ranks", [*mpirun(2), *DPTRAIN])):
        found = ratios(step_lines(command, options.data, options.every, options.steps), options.every)
        low, middle, high = statistics.quantiles(found, n=4)
        spread = f"{len(found)} pairs, middle half {low:.3f} to {high:.3f}"
        print(
            f"{name}: {middle:.3f} times the steps/s with a checkpoint every {options.every} steps ({spread})",
            flush=True,
        )


if __name__ == "__main__":
    main()
