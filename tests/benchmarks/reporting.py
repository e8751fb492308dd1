"""What everything that a run can report costs: short runs in turn, with everything and with --quiet --no-report.

    python tests/benchmarks/reporting.py data/cifar10 [--pairs 7] [--steps 390]

With everything: a live view on a pseudo-terminal, a line of metrics.jsonl every 10 steps, a checkpoint every 100,
TensorBoard if tensorboardX is installed, and report.html. Prints the median of the ratios of neighbouring runs:
images/s of the steps with everything over those of a quiet run.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import pty
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

QUIET = ["--quiet", "--no-report"]
EVERYTHING = ["--log-every", "10", "--checkpoint-every", "100"]
if importlib.util.find_spec("tensorboardX"):
    EVERYTHING += ["--report-to", "tensorboard"]


def rate(data: Path, steps: int, flags: list[str]) -> float:
    """Images/s of the steps of one run on a pseudo-terminal."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        words = ["train", str(data), "--max-steps", str(steps), "--run-dir", str(run), *flags]
        ours, theirs = pty.openpty()
        with subprocess.Popen([sys.executable, "-m", "dptrain", *words], stdout=theirs, stderr=theirs) as job:
            os.close(theirs)
            try:
                while os.read(ours, 1 << 16):  # a terminal that nobody reads would stop the run
                    pass
            except OSError:  # the run has ended
                pass
        os.close(ours)
        if job.returncode:
            raise SystemExit(f"dptrain {' '.join(words)} ended with status {job.returncode}")
        lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
        found: float = statistics.median(line["images_per_second"] for line in lines if line["event"] == "epoch")
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--steps", type=int, default=390)
    options = parser.parse_args()
    rates = [rate(options.data, options.steps, flags) for _ in range(options.pairs) for flags in (EVERYTHING, QUIET)]
    everything, quiet = rates[::2], rates[1::2]
    ratios = [one / other for one, other in zip(everything, quiet, strict=True)]  # of a run and the quiet one after it
    ratios += [one / other for one, other in zip(everything[1:], quiet, strict=False)]  # and the quiet one before it
    print(f"with everything {statistics.median(everything):,.0f} images/s, quiet {statistics.median(quiet):,.0f}")
    print(f"{len(ratios)} pairs, median ratio {statistics.median(ratios):.4f} ({min(ratios):.3f} to {max(ratios):.3f})")


if __name__ == "__main__":
    main()
