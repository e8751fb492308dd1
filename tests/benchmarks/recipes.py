"""Accuracy, time and speed of a recipe over several seeds: one row of a table in Markdown.

    python tests/benchmarks/recipes.py DATA --recipe NAME [--seeds 5] [--ranks 1] [--out FOLDER] [flags of train]

A run is `dptrain train` with all cores, or `dptrain launch -n R -- train` with more ranks. Wall time is that of the
whole command, with start-up, evaluations and checkpoints; images/s is the median over epochs, of training alone. Each
finished run is one line of FOLDER/runs.jsonl, and the same command makes only the runs that are missing there.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


def one_run(words: list[str], ranks: int, folder: Path) -> dict[str, Any]:
    """Train in a new folder; the figures of the run."""
    python = [sys.executable, "-m", "dptrain"]
    start = [*python, "launch", "-n", str(ranks), "--"] if ranks > 1 else python
    started = time.perf_counter()
    command = [*start, "train", *words, "--run-dir", str(folder), "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    seconds = time.perf_counter() - started
    if done.returncode != 0:
        raise SystemExit(f"{shlex.join(command)} ended with status {done.returncode}")
    end = json.loads(done.stdout.splitlines()[-1])
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    epochs = [line for line in lines if line["event"] == "epoch"]
    start_line = next(line for line in lines if line["event"] == "start")
    return {
        "test_accuracy": end["test_accuracy"],
        "tta": end["tta"],
        "tta_accuracy": end["tta_accuracy"],
        "params_sha256": end["params_sha256"],
        "seconds": round(seconds, 1),
        "images_per_second": statistics.median(line["images_per_second"] for line in epochs),
        "epochs": len(epochs),
        "threads": start_line["threads"],
        "accuracy_by_epoch": [line["test_accuracy"] for line in epochs],
    }


def spread(shares: list[float]) -> str:
    """The mean in percent, its standard deviation over seeds, and the range."""
    percents = [100 * share for share in shares]
    if len(percents) == 1:
        return f"{percents[0]:.2f} % (one seed)"
    deviation = statistics.stdev(percents)
    return f"{statistics.mean(percents):.2f} % (sd {deviation:.2f}, {min(percents):.2f} to {max(percents):.2f})"


def cpu() -> str:
    """The name of the processor, and how many cores this process may use."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else 'unknown CPU'}, {len(os.sched_getaffinity(0))} cores"


def row(recipe: str, runs: list[dict[str, Any]], ranks: int, more: list[str]) -> str:
    """The row of the table."""
    first = runs[0]
    augmented = [run["tta_accuracy"] for run in runs if run["tta_accuracy"] is not None]
    minutes = [run["seconds"] / 60 for run in runs]
    cells = [
        f"`--recipe {recipe}{''.join(f' {word}' for word in more)}`",
        str(first["epochs"]),
        f"{ranks} x {first['threads']}",
        spread([run["test_accuracy"] for run in runs]),
        f"{spread(augmented)}, {first['tta']}" if augmented else "",
        f"{statistics.mean(minutes):.1f} min ({min(minutes):.1f} to {max(minutes):.1f})",
        f"{statistics.median(run['images_per_second'] for run in runs):,.0f}",
        cpu(),
    ]
    return "| " + " | ".join(cells) + " |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--recipe", required=True)
    parser.add_argument("--seeds", type=int, default=5, help="seeds 0, 1, ... (default: 5)")
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--out", type=Path, help="folder of the runs (default: runs/benchmark-RECIPE)")
    options, more = parser.parse_known_args()
    out = options.out or Path("runs") / f"benchmark-{options.recipe}"
    out.mkdir(parents=True, exist_ok=True)
    log = out / "runs.jsonl"
    key = {"recipe": options.recipe, "ranks": options.ranks, "flags": more}
    known = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    runs = []
    for seed in range(options.seeds):
        found = next((one for one in known if one["seed"] == seed and {name: one[name] for name in key} == key), None)
        if found is None:
            words = [str(options.data), "--recipe", options.recipe, "--seed", str(seed), *more]
            folder = out / f"seed-{seed}-{time.strftime('%Y%m%d-%H%M%S')}"
            found = {**key, "seed": seed, "cpu": cpu(), **one_run(words, options.ranks, folder)}
            with log.open("a") as file:
                print(json.dumps(found), file=file)
        runs.append(found)
    print("| run | epochs | ranks x threads | accuracy | with test-time augmentation | time | images/s | CPU |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    print(row(options.recipe, runs, options.ranks, more))
    return 0


if __name__ == "__main__":
    sys.exit(main())
