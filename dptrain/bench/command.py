"""The command `dptrain bench`: its flags, and its figures as tables or JSON. Imports NumPy only when it runs."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dptrain.config.files import parse_table
from dptrain.config.train import REDUCTIONS
from dptrain.errors import UsageError
from dptrain.system.text import shown

if TYPE_CHECKING:
    from dptrain.parallel.communicator import Communicator

BENCHMARKS = ("step", "reduce", "data", "scaling")


def number(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}, expected a whole number of at least 1")
    return int(text)


def threads(text: str) -> int:
    """A whole number; 0 stands for all cores."""
    return 0 if text == "0" else number(text)


def add_bench(commands: Any) -> None:
    """Add `bench` and its four benchmarks to the parser's commands."""
    bench = commands.add_parser("bench", help="measure how fast this machine trains, and where the time goes")
    bench.set_defaults(parser=bench)
    kinds = bench.add_subparsers(title="benchmarks", required=True, metavar=" | ".join(BENCHMARKS))
    step = kinds.add_parser("step", help="the training step: images/s, each layer, share of the sgemm rate")
    reduce = kinds.add_parser("reduce", help="both reductions, over lengths of the gradient")
    data = kinds.add_parser("data", help="packing, reading and batches, each alone")
    scaling = kinds.add_parser("scaling", help="the training step on more and more cores, as ranks and as one process")
    for kind, run in ((step, _step), (reduce, _reduce), (data, _data), (scaling, _scaling)):
        kind.set_defaults(command=run, parser=kind)
        kind.add_argument("--json", action="store_true", help="print JSON")
        kind.add_argument("--shards", type=number, default=8, metavar="N", help="shards of the data (default: 8)")
    for kind in (step, data, scaling):
        kind.add_argument("--batch-size", type=number, default=128, metavar="N", help="global batch (default: 128)")
        image = {"type": number, "nargs": 3, "metavar": ("C", "H", "W"), "default": [3, 32, 32]}
        kind.add_argument("--image", help="shape of an image (default: 3 32 32)", **image)
        kind.add_argument("--classes", type=number, default=10, metavar="K", help="classes (default: 10)")
    for kind in (step, data):
        kind.add_argument(
            "--threads", type=threads, default=0, metavar="N", help="shards computed side by side (0: all cores)"
        )
    for kind in (step, scaling):
        kind.add_argument("--model", default="convnet", metavar="TEXT", help="architecture, as of dptrain train")
        kind.add_argument("--model-options", type=parse_table, default={}, metavar="TOML", help="its arguments")
        kind.add_argument("--steps", type=number, default=60, metavar="N", help="steps to measure (default: 60)")
        kind.add_argument("--reduction", choices=REDUCTIONS, default="tree", help="as of dptrain train")
    lengths = [60_362, 1_000_000, 10_000_000]
    reduce.add_argument(
        "--lengths", type=number, nargs="+", default=lengths, metavar="N",
        help=f"numbers in a gradient (default: {' '.join(map(str, lengths))})",
    )  # fmt: skip
    reduce.add_argument("--runs", type=number, default=30, metavar="N", help="repetitions (default: 30)")
    data.add_argument("--samples", type=number, default=50_000, metavar="N", help="images (default: 50000)")
    scaling.add_argument(
        "--cores", type=number, nargs="+", default=None, metavar="N",
        help="cores to run on (default: 1, 2, 4, ... up to all)",
    )  # fmt: skip
    scaling.add_argument(
        "--batch-size-per-core", type=number, default=64, metavar="N", help="of weak scaling (default: 64)"
    )
    scaling.add_argument("--runs", type=number, default=5, metavar="N", help="of each setting, in turn (default: 5)")


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
