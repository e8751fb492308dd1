"""`dptrain bench`: the benchmarks, with their figures as tables or JSON."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dptrain.config.flags import add_flags
from dptrain.errors import UsageError
from dptrain.system.arguments import Parser, whole
from dptrain.system.text import shown

if TYPE_CHECKING:
    from dptrain.parallel.communicator import Communicator

BENCHMARKS = {
    "step": "the training step: images/s, each layer, share of the sgemm rate",
    "reduce": "both reductions, for several lengths of the gradient",
    "data": "packing, reading and batches, each alone",
    "scaling": "the training step on more and more cores, as ranks and as one process",
}


def add_arguments(parser: Parser) -> None:
    """Add the four benchmarks and their flags; `benchmark` is the function that runs one."""
    kinds = parser.add_subparsers(title="benchmarks", required=True, metavar="BENCHMARK")
    step, reduce, data, scaling = (
        kinds.add_parser(name, help=text, description=f"Measure {text}.") for name, text in BENCHMARKS.items()
    )
    for kind, benchmark in ((step, _step), (reduce, _reduce), (data, _data), (scaling, _scaling)):
        kind.set_defaults(benchmark=benchmark)
        kind.add_argument("--json", action="store_true", help="print JSON")
        _add_numbers(kind, "--shards", 8, "shards of the data")
    for kind in (step, data, scaling):
        add_flags(kind, ["batch_size"], defaults=True)
        _add_numbers(kind, "--image", [3, 32, 32], "shape of an image", nargs=3, metavar=("C", "H", "W"))
        _add_numbers(kind, "--classes", 10, "classes")
    for kind in (step, data):
        add_flags(kind, ["threads"], defaults=True)
    for kind in (step, scaling):
        add_flags(kind, ["model", "model_options", "reduction"], defaults=True)
        _add_numbers(kind, "--steps", 60, "steps to measure")
    _add_numbers(reduce, "--lengths", [60_362, 1_000_000, 10_000_000], "numbers in a gradient", nargs="+")
    _add_numbers(reduce, "--runs", 30, "repetitions")
    _add_numbers(data, "--samples", 50_000, "images")
    _add_numbers(scaling, "--cores", None, "cores to run on (default: 1, 2, 4, ... up to all)", nargs="+")
    _add_numbers(scaling, "--batch-size-per-core", 64, "batch size per core, for weak scaling")
    _add_numbers(scaling, "--runs", 5, "runs of each setting, in turn")


def _add_numbers(parser: Parser, flag: str, default: Any, help: str, **more: Any) -> None:
    """Add a flag of one or several whole numbers of at least 1."""
    listed = " ".join(map(str, default)) if isinstance(default, list) else default
    help = help if default is None else f"{help} (default: {listed})"
    parser.add_argument(flag, type=whole(1), default=default, help=help, **{"metavar": "N", **more})


def run(parsed: argparse.Namespace, communicator: Communicator, connection: str) -> int:
    """Run the chosen benchmark; returns the exit status."""
    status: int = parsed.benchmark(parsed, communicator, connection)
    return status


def _threads(parsed: argparse.Namespace, communicator: Communicator) -> int:
    from dptrain.parallel.threads import fair_threads

    return parsed.threads or fair_threads(communicator)


def _step(parsed: argparse.Namespace, communicator: Communicator, connection: str) -> int:
    from dptrain.bench.step import measure_step
    from dptrain.bench.workload import make_workload
    from dptrain.parallel.communicator import together
    from dptrain.training.agreement import numeric_environment

    count = _threads(parsed, communicator)
    with together(communicator):
        environment = numeric_environment(parsed.reduction)
        workload = make_workload(
            communicator,
            model=parsed.model,
            model_options=parsed.model_options,
            shape=tuple(parsed.image),
            classes=parsed.classes,
            shards=parsed.shards,
            batch_size=parsed.batch_size,
            threads=count,
            reduction=parsed.reduction,
        )
    figures = measure_step(workload, communicator, batch_size=parsed.batch_size, steps=parsed.steps)
    figures["environment"] = environment
    if communicator.rank != 0:
        return 0
    if parsed.json:
        print(json.dumps(figures))
        return 0
    print(f"{connection}, {_plural(workload.pool.size, 'shard')} at a time; {_environment_line(environment)}")
    milliseconds = figures["milliseconds_per_step"]
    print(
        f"batch {parsed.batch_size}: {figures['images_per_second']:,.0f} images/s; {milliseconds['median']:.1f} ms a "
        f"step ({milliseconds['least']:.1f} to {milliseconds['most']:.1f} in {parsed.steps} steps)"
    )
    print(
        f"{figures['megaflop_per_image']:.1f} MFLOP an image: {figures['gflops_per_core']:.0f} GFLOP/s a core, "
        f"{100 * figures['share_of_sgemm']:.0f} % of the sgemm rate ({figures['sgemm_gflops']:.0f} GFLOP/s)"
    )
    _table(
        "one shard on one thread, us an image",
        ("layer", "forward", "backward", "computed as"),
        [
            (row["layer"], f"{row['forward']:.1f}", f"{row['backward']:.1f}", row["computes"])
            for row in figures["layers"]
        ],
    )
    _table(
        f"seconds of {parsed.steps} steps; slowest: rank {figures['slowest_rank']}",
        ("rank", *figures["seconds"][0], "peak memory"),
        [
            (str(rank), *(f"{value:.3f}" for value in seconds.values()), f"{memory:.0f} MiB")
            for rank, (seconds, memory) in enumerate(zip(figures["seconds"], figures["peak_memory_mib"], strict=True))
        ],
    )
    return 0


def _reduce(parsed: argparse.Namespace, communicator: Communicator, connection: str) -> int:
    from dptrain.bench.reduce import measure_reductions
    from dptrain.bench.workload import check_shards
    from dptrain.parallel.communicator import together

    with together(communicator):
        check_shards(communicator, parsed.shards, batch_size=parsed.shards)
    rows = measure_reductions(communicator, lengths=parsed.lengths, shards=parsed.shards, runs=parsed.runs)
    if communicator.rank != 0:
        return 0
    if parsed.json:
        print(json.dumps(rows))
        return 0
    _table(
        f"{connection}, {_plural(parsed.shards, 'shard')}; us, median of {parsed.runs} on the slowest rank",
        ("gradient", "MiB", "reduction", "local sums", "exchange"),
        [
            (
                f"{row['length']:,}",
                f"{row['mebibytes']:.2f}",
                row["reduction"],
                f"{row['local_sums_us']:,.0f}",
                f"{row['exchange_us']:,.0f}",
            )
            for row in rows
        ],
    )
    return 0


def _data(parsed: argparse.Namespace, communicator: Communicator, connection: str) -> int:
    from dptrain.bench.data import measure_batches, measure_files
    from dptrain.bench.workload import check_shards
    from dptrain.parallel.communicator import together

    with together(communicator):
        check_shards(communicator, parsed.shards, parsed.batch_size)
    count = _threads(parsed, communicator)
    shape = tuple(parsed.image)
    rates = measure_batches(
        communicator, shape=shape, classes=parsed.classes, shards=parsed.shards, batch_size=parsed.batch_size,
        threads=count, samples=parsed.samples,
    )  # fmt: skip
    if communicator.rank != 0:
        return 0
    files = measure_files(shape, parsed.classes, shards=parsed.shards, threads=count, samples=parsed.samples)
    if parsed.json:
        print(json.dumps({**files, "batches": rates, "ranks": communicator.size, "threads": count}))
        return 0
    rows = [(f"{name}, rank 0 alone", f"{rate:,.0f}") for name, rate in files.items()]
    rows += [(f"batches, augmentation {augment}", f"{rate:,.0f}") for augment, rate in rates.items()]
    _table(
        f"{connection}, {_plural(count, 'thread')} each; {parsed.samples:,} images of {'x'.join(map(str, shape))}",
        ("what", "images/s"),
        rows,
    )
    return 0


def _scaling(parsed: argparse.Namespace, communicator: Communicator, connection: str) -> int:
    from dptrain.bench.scaling import measure_scaling, settings
    from dptrain.parallel.communicator import together

    with together(communicator):
        if communicator.size > 1:
            raise UsageError("bench scaling starts mpirun by itself: start it without mpirun")
    available = len(os.sched_getaffinity(0))
    cores = sorted({1, *parsed.cores}) if parsed.cores else powers_of_two(available)
    step_arguments = ["--shards", str(parsed.shards), "--classes", str(parsed.classes), "--steps", str(parsed.steps)]
    step_arguments += ["--image", *map(str, parsed.image), "--model", parsed.model, "--reduction", parsed.reduction]
    if parsed.model_options:
        options = ", ".join(f"{name} = {json.dumps(value)}" for name, value in parsed.model_options.items())
        step_arguments += ["--model-options", options]
    tell = (lambda line: print(line, file=sys.stderr)) if sys.stderr.isatty() else (lambda line: None)
    rows = measure_scaling(
        settings(cores, parsed.batch_size, parsed.batch_size_per_core), step_arguments, parsed.runs, tell
    )
    if parsed.json:
        print(json.dumps(rows))
        return 0
    _table(
        f"{available} cores; images/s: median (spread) of {_plural(parsed.runs, 'run')} in turn; shares of the time",
        ("scaling", "ranks", "threads", "batch", "images/s", "efficiency", "compute", "data", "waiting", "reduction",
         "slowest rank"),
        [
            (
                row["scaling"],
                str(row["ranks"]),
                str(row["threads"]),
                str(row["batch_size"]),
                f"{row['images_per_second']:,.0f} ({row['least']:,.0f} to {row['most']:,.0f})",
                f"{row['efficiency']:.2f}",
                *(f"{100 * share:.1f} %" for share in row["shares"].values()),
                " ".join(map(str, row["slowest_ranks"])),
            )
            for row in rows
        ],
    )  # fmt: skip
    return 0


def powers_of_two(most: int) -> list[int]:
    """1, 2, 4, ... and `most` itself."""
    return sorted({1 << exponent for exponent in range(most.bit_length()) if 1 << exponent <= most} | {most})


def _plural(count: int, what: str) -> str:
    return f"{count} {what}" + "s" * (count != 1)


def _environment_line(environment: dict[str, str]) -> str:
    return f"NumPy {environment['numpy']}, {environment['blas']} ({environment['blas_core']}), {environment['cpu']}"


def _table(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Aligned columns, text to the left and figures to the right; as wide as they are, whatever the terminal."""
    rows = [[shown(cell) for cell in row] for row in rows]  # names of layers may come from a user's file
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    right = [all(row[column][:1].isdigit() for row in rows) for column in range(len(headings))]
    print(f"\n{title}")
    for row in (headings, *rows):
        cells = (
            cell.rjust(width) if is_figure else cell.ljust(width)
            for cell, width, is_figure in zip(row, widths, right, strict=True)
        )
        print("  " + "  ".join(cells).rstrip())
