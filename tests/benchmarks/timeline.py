"""What --timeline costs: one run in which recording is on for 10 steps and off for 10, in turn.

    python tests/benchmarks/timeline.py data/cifar10 [--threads 2] [--steps 620]

Prints the median of the ratios of neighbouring stretches: the median step with recording over that without. The first
three steps of a stretch are not counted.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import dptrain

STRETCH, SKIPPED, WARM_UP = 10, 3, 20  # steps


class Switch(dptrain.Callback):
    """Turns recording on and off, and measures the steps."""

    def __init__(self) -> None:
        self.medians: list[tuple[bool, float]] = []  # of each stretch: whether it was recorded, seconds of a step
        self._seconds: list[float] = []
        self._before = 0.0

    def on_step(self, training: dptrain.Training, step: dptrain.StepFinished) -> None:
        now, number = time.perf_counter(), (step.step - 1) % STRETCH
        recorder = training._run.timeline.recorder
        if step.step > WARM_UP and number >= SKIPPED:
            self._seconds.append(now - self._before)
            if number == STRETCH - 1:
                self.medians.append((recorder.recording, statistics.median(self._seconds)))
                self._seconds = []
                recorder.recording = not recorder.recording
        self._before = time.perf_counter()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=620)
    options = parser.parse_args()
    switch = Switch()
    with tempfile.TemporaryDirectory() as folder:
        settings = {"threads": options.threads, "max_steps": options.steps, "timeline": 1000, "report": False}
        dptrain.train(
            options.data, epochs=100, callbacks=[switch], output="none", run_dir=Path(folder) / "run", **settings
        )
    pairs = zip(switch.medians, switch.medians[1:], strict=False)
    ratios = [one / other if recorded else other / one for (recorded, one), (_, other) in pairs]
    print(f"{len(ratios)} pairs, median ratio {statistics.median(ratios):.4f}")


if __name__ == "__main__":
    main()
