"""bench scaling: the training step on more and more cores of this machine, as ranks and as one process.

Strong scaling keeps the global batch, weak scaling the batch of each core. Every run is a new process (or mpirun). The
settings alternate, so that a drift of the machine's speed affects all of them.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from dptrain.errors import DptrainError


class Setting(NamedTuple):
    """One row of the table; it uses ranks times threads cores."""

    scaling: str
    ranks: int
    threads: int
    batch_size: int


def settings(cores: Sequence[int], batch_size: int, batch_size_per_core: int) -> list[Setting]:
    """Strong and weak scaling over these numbers of cores, as ranks of one thread and as one process with workers."""
    return [
        Setting(scaling, ranks, threads, batch_size if scaling == "strong" else batch_size_per_core * count)
        for scaling in ("strong", "weak")
        for count in cores
        for ranks, threads in ([(count, 1), (1, count)] if count > 1 else [(1, 1)])
    ]


def powers_of_two(most: int) -> list[int]:
    """1, 2, 4, ... and `most` itself."""
    return sorted({1 << exponent for exponent in range(most.bit_length())} | {most})


def measure_scaling(
    rows: Sequence[Setting], arguments: Sequence[str], runs: int, report: Callable[[str], None]
) -> list[dict[str, Any]]:
    """`bench step` for every setting, `runs` times in turn: median rate and its spread, efficiency, time split."""
    results: dict[Setting, list[dict[str, Any]]] = {row: [] for row in rows}
    for run in range(runs):
        for number, row in enumerate(rows):
            report(f"run {run + 1} of {runs}, setting {number + 1} of {len(rows)}")
            results[row].append(run_step(row, arguments))
    rates = {row: [one["images_per_second"] for one in results[row]] for row in rows}
    single = {row.scaling: statistics.median(rates[row]) for row in rows if row.ranks * row.threads == 1}
    table = []
    for row in rows:
        rate = statistics.median(rates[row])
        ranks = [seconds for result in results[row] for seconds in result["seconds"]]
        totals = {part: statistics.fmean(seconds[part] for seconds in ranks) for part in ranks[0]}
        table.append(
            {
                **row._asdict(),
                "images_per_second": rate,
                "least": min(rates[row]),
                "most": max(rates[row]),
                "efficiency": rate / (row.ranks * row.threads * single[row.scaling]),
                "shares": {part: seconds / sum(totals.values()) for part, seconds in totals.items()},
                "slowest_ranks": [result["slowest_rank"] for result in results[row]],
            }
        )
    return table


def run_step(row: Setting, arguments: Sequence[str]) -> dict[str, Any]:
    """The figures of one `bench step`; DptrainError with its message if it fails."""
    bench = ["bench", "step", "--json", *arguments]
    bench += ["--threads", str(row.threads), "--batch-size", str(row.batch_size)]
    launcher = ["launch", "-n", str(row.ranks), "--"] if row.ranks > 1 else []
    done = subprocess.run(
        [sys.executable, "-m", "dptrain", *launcher, *bench], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        lines = done.stderr.splitlines() or [f"ended with status {done.returncode}"]
        reason = next((line.partition("error: ")[2] for line in lines if "error: " in line), lines[-1])
        raise DptrainError(f"bench step on {row.ranks} x {row.threads} cores: {reason}")
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures
