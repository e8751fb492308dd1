"""What background checkpoints cost: steps/s with one every 50 steps against none, in alternating runs.

    python tests/benchmarks/checkpoints.py data/cifar10 [--runs 7] [--every 50]

Each run is an epoch (391 steps of batch 128), as one process and on two ranks. The speed is that of the epoch in
metrics.jsonl, which leaves the evaluation at its end out; the ratio is taken run by run.
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

DPTRAIN = [sys.executable, "-m", "dptrain"]


def mpirun(ranks: int) -> list[str]:
    root = ["--allow-run-as-root"] if os.geteuid() == 0 else []
    return [str(Path(sys.executable).with_name("mpirun")), *root, "-n", str(ranks)]


def steps_per_second(command: list[str], data: Path, every: int, model_options: str) -> float:
    """Of one epoch."""
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        flags = [
            "--run-dir",
            str(run_dir),
            "--checkpoint-every",
            str(every),
            "--log-every",
            "1000",
            "--max-steps",
            "391",
        ]
        if model_options:
            flags += ["--model-options", model_options]
        subprocess.run([*command, "train", str(data), *flags], check=True, capture_output=True)
        lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
        epoch = next(line for line in lines if line["event"] == "epoch")
        return float(epoch["images_per_second"]) / 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--every", type=int, default=50)
    parser.add_argument("--model-options", default="", help="as for dptrain train, for a larger network")
    parsed = parser.parse_args()
    for name, command in (("one process", DPTRAIN), ("2 ranks", [*mpirun(2), *DPTRAIN])):
        ratios, speeds = [], []
        for run in range(parsed.runs):
            order = (0, parsed.every) if run % 2 == 0 else (parsed.every, 0)
            found = {every: steps_per_second(command, parsed.data, every, parsed.model_options) for every in order}
            ratios.append(found[parsed.every] / found[0])
            speeds.append(found[0])
        spread = f"{min(ratios):.3f} to {max(ratios):.3f}, {parsed.runs} runs"
        print(
            f"{name}: {statistics.median(speeds):.1f} steps/s without; with a checkpoint every {parsed.every} steps "
            f"{statistics.median(ratios):.3f} times as many ({spread})",
            flush=True,
        )


if __name__ == "__main__":
    main()
