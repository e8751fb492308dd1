"""bench scaling: the training step on more and more cores of this machine, as ranks and as one process.

Strong scaling keeps the global batch, weak scaling the batch of each core. Every run is a new process (or mpirun); the
settings take turns, so that a drift of the machine's speed affects all of them.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from dptrain.errors import DptrainError


@dataclass(frozen=True)
class Setting:
    """One row of the table; `cores` is ranks times threads."""

    scaling: str
    ranks: int
    threads: int
    batch_size: int

    @property
    def cores(self) -> int:
        return self.ranks * self.threads


def settings(cores: Sequence[int], batch_size: int, batch_size_per_core: int) -> list[Setting]:
    """Strong and weak scaling over these numbers of cores, as ranks of one thread and as one process with workers."""
    rows = []
    for scaling in ("strong", "weak"):
        for count in cores:
            batch = batch_size if scaling == "strong" else batch_size_per_core * count
            rows.append(Setting(scaling, count, 1, batch))
            if count > 1:
                rows.append(Setting(scaling, 1, count, batch))
    return rows


def powers_of_two(most: int) -> list[int]:
    """1, 2, 4, ... and `most` itself."""
    return sorted({1 << exponent for exponent in range(most.bit_length())} | {most})


def measure_scaling(
    rows: Sequence[Setting], arguments: Sequence[str], runs: int, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """`bench step` for every setting, `runs` times in turn: median rate and its spread, efficiency, time split."""
    results: dict[Setting, list[dict[str, Any]]] = {row: [] for row in rows}
    for run in range(runs):
        for number, row in enumerate(rows):
            say(f"run {run + 1} of {runs}, setting {number + 1} of {len(rows)}")
            results[row].append(run_step(row, arguments))
    single = {row.scaling: _rate(results[row]) for row in rows if row.cores == 1}
    return [_figures(row, results[row], single[row.scaling]) for row in rows]


def run_step(row: Setting, arguments: Sequence[str]) -> dict[str, Any]:
    """The figures of one `bench step`; DptrainError with its message if it fails."""
    bench = ["bench", "step", "--json", *arguments]
    bench += ["--threads", str(row.threads), "--batch-size", str(row.batch_size)]
    launcher = ["-m", "launch", "-n", str(row.ranks), "--"] if row.ranks > 1 else ["-m", "dptrain"]
    done = subprocess.run([sys.executable, *launcher, *bench], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = done.stderr.splitlines() or [f"it ended with status {done.returncode}"]
        reason = next((line.partition("error: ")[2] for line in lines if "error: " in line), lines[-1])
        raise DptrainError(f"bench step on {row.ranks} x {row.threads} cores: {reason}")
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def _rate(results: Sequence[dict[str, Any]]) -> float:
    return float(statistics.median(result["images_per_second"] for result in results))


def _figures(row: Setting, results: Sequence[dict[str, Any]], single: float) -> dict[str, Any]:
    rates = [result["images_per_second"] for result in results]
    totals = {
        name: statistics.fmean(rank[name] for result in results for rank in result["seconds"])
        for name in ("compute", "data", "waiting", "reduction")
    }
    return {
        **vars(row),
        "images_per_second": _rate(results),
        "least": min(rates),
        "most": max(rates),
        "efficiency": _rate(results) / (row.cores * single),
        "shares": {name: seconds / sum(totals.values()) for name, seconds in totals.items()},
        "slowest_ranks": [result["slowest_rank"] for result in results],
    }
