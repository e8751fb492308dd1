"""`dptrain bench`: the benchmarks, with their figures as tables or JSON."""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import TYPE_CHECKING, Any

from dptrain.config.files import add_flags, inline_table
from dptrain.config.train import TrainConfig
from dptrain.errors import UsageError
from dptrain.system.arguments import Parser, whole
from dptrain.system.blas import request_portable_kernels
from dptrain.system.streams import write_to_stderr
from dptrain.system.text import shown

if TYPE_CHECKING:
    from dptrain.parallel.communicator import Communicator

STEP_KEYS = ("batch_size", "threads", "l2_kib", "model", "model_options", "reduction", "portable")
TITLES = {  # of tables
    "layers": "us an image of one shard on one thread",
    "seconds": "seconds of each rank",
    "reduce": "medians on the slowest rank",
    "scaling": "medians of runs in turn; shares of the time",
}
BENCHMARKS = {
    "step": "the training step: images/s, each layer, share of the sgemm rate",
    "reduce": "both reductions, for several lengths of the gradient",
    "data": "packing, reading and batches, each alone",
    "scaling": "the training step on more and more cores, as ranks and as one process",
    "unconnected": "the training step of ranks against that of ranks that train alone",
}


EXAMPLES = """
examples:
  dptrain bench step    the default network
  dptrain bench scaling --cores 1 2
  mpirun -n 2 dptrain bench reduce
"""


def add_arguments(parser: Parser) -> None:
    """Add the benchmarks and their flags; `benchmark` is the function that runs one."""
    kinds = parser.add_subparsers(title="benchmarks", required=True, metavar="BENCHMARK")
    step, reduce, data, scaling, unconnected = (kinds.add_parser(name, help=text) for name, text in BENCHMARKS.items())
    benchmarks = (_step, _reduce, _data, _scaling, _unconnected)
    for kind, benchmark in zip((step, reduce, data, scaling, unconnected), benchmarks, strict=True):
        kind.set_defaults(benchmark=benchmark)
        kind.add_argument("--json", action="store_true", help="print JSON")
        _add_numbers(kind, "--shards", 8, "shards of the data")
    for kind in (step, data, scaling, unconnected):
        add_flags(kind, ["batch_size"], defaults=True)
        _add_numbers(kind, "--image", [3, 32, 32], "shape of an image", nargs=3, metavar=("C", "H", "W"))
        _add_numbers(kind, "--classes", 10, "classes")
    for kind in (step, data, unconnected):
        add_flags(kind, ["threads"], defaults=True)
    for kind in (step, scaling, unconnected):
        add_flags(kind, ["model", "model_options", "reduction", "l2_kib", "portable"], defaults=True)
        _add_numbers(kind, "--steps", 10 if kind is unconnected else 60, "steps to measure")
    _add_numbers(reduce, "--lengths", [60_362, 1_000_000, 10_000_000], "numbers in a gradient", nargs="+")
    _add_numbers(reduce, "--runs", 30, "repetitions")
    _add_numbers(data, "--samples", 50_000, "images")
    _add_numbers(unconnected, "--runs", 60, "stretches of steps of each kind, in turn")
    _add_numbers(scaling, "--cores", None, "cores to run on", nargs="+")
    _add_numbers(scaling, "--batch-size-per-core", 64, "batch size per core, for weak scaling")
    _add_numbers(scaling, "--runs", 5, "runs of each setting, in turn")


def _add_numbers(parser: Parser, flag: str, default: Any, help: str, **more: Any) -> None:
    """Add a flag of one or several whole numbers of at least 1."""
    listed = " ".join(map(str, default)) if isinstance(default, list) else default
    options = {"metavar": "N", "help": f"{help} (default: {listed or '1 2 4 ... all'})", **more}
    parser.add_argument(flag, type=whole(), default=default, **options)


def prepare(parsed: argparse.Namespace) -> None:
    """Choose the kernels before NumPy is imported."""
    if getattr(parsed, "portable", False):
        request_portable_kernels()


def run(parsed: argparse.Namespace, communicator: Communicator, connection: str) -> int:
    """Run the chosen benchmark; returns the exit status."""
    figures = parsed.benchmark(parsed, communicator)
    if communicator.rank == 0 and parsed.json:
        print(json.dumps(figures))
    elif communicator.rank == 0:
        print(connection)
        if isinstance(figures, list):
            figures = {"reduce" if parsed.benchmark is _reduce else "scaling": figures}
        for name, value in figures.items():
            _print_figures(TITLES.get(name, name.replace("_", " ")), value)
    return 0


def _step(parsed: argparse.Namespace, communicator: Communicator) -> dict[str, Any]:
    from dptrain.bench.step import measure_step
    from dptrain.bench.workload import make_workload

    config = TrainConfig(**{name: getattr(parsed, name) for name in STEP_KEYS})
    workload = make_workload(config, communicator, tuple(parsed.image), parsed.classes, parsed.shards)
    return measure_step(*workload, batch_size=parsed.batch_size, steps=parsed.steps)


def _reduce(parsed: argparse.Namespace, communicator: Communicator) -> list[dict[str, Any]]:
    from dptrain.bench.reduce import measure_reductions
    from dptrain.bench.workload import check_shards
    from dptrain.parallel.communicator import together

    with together(communicator):
        check_shards(communicator, parsed.shards, batch_size=parsed.shards)
    return measure_reductions(communicator, lengths=parsed.lengths, shards=parsed.shards, runs=parsed.runs)


def _data(parsed: argparse.Namespace, communicator: Communicator) -> dict[str, Any]:
    from dptrain.bench.data import measure_batches, measure_files
    from dptrain.bench.workload import check_shards
    from dptrain.parallel.communicator import together
    from dptrain.parallel.pool import fair_threads

    with together(communicator):
        check_shards(communicator, parsed.shards, parsed.batch_size)
    threads, shape = parsed.threads or fair_threads(communicator), tuple(parsed.image)
    sizes = {"shards": parsed.shards, "threads": threads, "samples": parsed.samples}
    rates = measure_batches(communicator, shape, parsed.classes, batch_size=parsed.batch_size, **sizes)
    files = measure_files(shape, parsed.classes, **sizes) if communicator.rank == 0 else {}
    return {**files, "batches": rates, "ranks": communicator.size, "threads": threads, "unit": "images/s"}


def _unconnected(parsed: argparse.Namespace, communicator: Communicator) -> dict[str, Any]:
    from dptrain.bench.unconnected import measure_unconnected

    config = TrainConfig(**{name: getattr(parsed, name) for name in STEP_KEYS})
    sizes = {"shards": parsed.shards, "steps": parsed.steps, "runs": parsed.runs}
    return measure_unconnected(config, communicator, tuple(parsed.image), parsed.classes, **sizes)


def _scaling(parsed: argparse.Namespace, communicator: Communicator) -> list[dict[str, Any]]:
    from dptrain.bench.scaling import measure_scaling, powers_of_two, settings
    from dptrain.parallel.communicator import together

    with together(communicator):
        if communicator.size > 1:
            raise UsageError("bench scaling starts mpirun by itself: start it without mpirun")
    cores = sorted({1, *parsed.cores}) if parsed.cores else powers_of_two(len(os.sched_getaffinity(0)))
    words = ["--image", *map(str, parsed.image)]
    for name in ("shards", "classes", "steps", "model", "reduction", "l2_kib"):
        words += [f"--{name.replace('_', '-')}", str(getattr(parsed, name))]
    words += ["--portable"] if parsed.portable else []
    if parsed.model_options:
        words += ["--model-options", inline_table(parsed.model_options)]
    report = write_to_stderr if sys.stderr.isatty() else (lambda line: None)
    return measure_scaling(settings(cores, parsed.batch_size, parsed.batch_size_per_core), words, parsed.runs, report)


def _print_figures(name: str, value: Any) -> None:
    """Print figures on one line, or a table: text to the left and figures to the right."""
    if not isinstance(value, list) or not isinstance(value[0], dict):
        print(f"{name}: {_cell(value)}")
        return
    rows = []
    for row in value:
        columns = {key: one for key, one in row.items() if key != "shares"}
        rows.append(columns | row.get("shares", {}))  # a column for each share
    cells = [[key.replace("_", " ") for key in rows[0]], *([_cell(one) for one in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    right = [not isinstance(one, str) for one in rows[0].values()]
    print(f"\n{name}")
    for row in cells:
        aligned = zip(row, widths, right, strict=True)
        words = [one.rjust(width) if figure else one.ljust(width) for one, width, figure in aligned]
        print(f"  {'  '.join(words)}".rstrip())


def _cell(value: Any) -> str:
    """A value for people: a figure with three digits, or all before the point; names may come from a user's file."""
    if isinstance(value, list):
        return " ".join(map(_cell, value))
    if isinstance(value, dict):
        return ", ".join(f"{shown(key)} {_cell(one)}" for key, one in value.items())
    if isinstance(value, float):
        return f"{value:,.0f}" if value >= 100 else f"{round(value, 4):.3g}"
    return shown(f"{value:,}" if isinstance(value, int) else value)
