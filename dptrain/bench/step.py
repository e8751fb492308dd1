"""bench step: images/s of the training step, microseconds of each layer, and the share of the sgemm rate."""

from __future__ import annotations

import multiprocessing
import resource
import statistics
import time
import timeit
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from dptrain.arrays.memory import Workspace
from dptrain.bench.workload import STEPS_PER_EPOCH
from dptrain.checkpoint.state import TrainingState
from dptrain.nn.layer import Layer
from dptrain.nn.network import Network
from dptrain.nn.timing import TimedRunner
from dptrain.training.session import Engine
from dptrain.training.step import Seconds

WARM_UP = 10  # steps
LEARNING_RATE = 0.001
MATRIX = 2048  # rows and columns of the matrix products that measure the sgemm rate
MATRIX_RUNS = 5
LAYER_RUNS = 30


def measure_step(engine: Engine, state: TrainingState, *, batch_size: int, steps: int) -> dict[str, Any]:
    """All figures of `bench step`, on every rank."""
    communicator, threads = engine.communicator, engine.pool.size
    take_steps(engine, state, WARM_UP)
    communicator.barrier()
    seconds, durations = take_steps(engine, state, steps)
    seconds_by_rank = communicator.allgather(asdict(seconds))
    memory_by_rank = communicator.allgather(peak_memory())
    sgemm = min(communicator.allgather(sgemm_rate()))
    median = statistics.median(durations)
    flops = training_flops(engine.network)
    per_core = 1e3 * batch_size / median * flops / (communicator.size * threads)
    return {
        "images_per_second": 1e3 * batch_size / median,
        "milliseconds_per_step": {"median": median, "least": min(durations), "most": max(durations)},
        "batch_size": batch_size,
        "ranks": communicator.size,
        "threads": threads,
        "steps": steps,
        "seconds": seconds_by_rank,
        "slowest_rank": max(range(communicator.size), key=lambda rank: seconds_by_rank[rank]["compute"]),
        "peak_memory_mib": memory_by_rank,
        "megaflop_per_image": flops / 1e6,
        "gflops_per_core": per_core / 1e9,
        "sgemm_gflops": sgemm / 1e9,
        "share_of_sgemm": per_core / sgemm,
        "layers": layer_times(engine, state),
        "environment": engine.environment,
    }


def take_steps(engine: Engine, state: TrainingState, count: int) -> tuple[Seconds, list[float]]:
    """Take steps; returns the seconds of their parts, and the milliseconds of each step."""
    seconds, durations = Seconds(), []
    for _ in range(count):
        epoch, step = divmod(state.step, STEPS_PER_EPOCH)
        started = time.perf_counter()
        seconds += engine.take_step(state, epoch, step, LEARNING_RATE).seconds
        durations.append(1e3 * (time.perf_counter() - started))
    return seconds, durations


def peak_memory() -> float:
    """Peak resident MiB, summed over this process and its workers; shared pages count once per process."""
    this = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    statuses = (Path(f"/proc/{worker.pid}/status") for worker in multiprocessing.active_children())
    lines = (line for status in statuses for line in status.read_text(encoding="utf-8").splitlines())
    return (this + sum(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))) / 1024


def sgemm_rate() -> float:
    """Floating-point operations a second of the fastest of some large float32 matrix products, on one thread."""
    a, b, out = np.random.default_rng(0).random((3, MATRIX, MATRIX), dtype=np.float32)
    return 2 * MATRIX**3 / min(timeit.repeat(lambda: np.matmul(a, b, out=out), number=1, repeat=MATRIX_RUNS))


def training_flops(network: Network) -> int:
    """Floating-point operations per training image by the definition of the layers, independent of the algorithm.

    A layer with weights has three products of the same size: forward, gradient of the weight, which a fixed weight does
    not need, and gradient of the input, which the first layer does not need.
    """
    forward = [layer.forward_flops() for layer in network.layers]
    trained = [any(one.trained and len(one.shape) > 1 for one in layer.tensors()) for layer in network.layers]
    return sum((2 + trains) * flops for trains, flops in zip(trained, forward, strict=True)) - forward[0]


def layer_times(engine: Engine, state: TrainingState) -> list[dict[str, Any]]:
    """Microseconds per image of each stage, forward and backward, for one shard on one thread."""
    network = engine.network
    seconds: defaultdict[tuple[str, str], list[float]] = defaultdict(list)  # of each call, by stage and way

    def keep(layer: Layer, way: str, started: float, ended: float) -> None:
        seconds[layer.name, way].append(ended - started)

    timer = TimedRunner(keep)
    batches = next(iter(engine.take_step.work.batches.values()))
    workspace, gradient = Workspace(), np.empty_like(state.parameters)
    images, labels = batches.batch(0, 0, workspace)
    prepared = network.prepare(state.parameters, state.vectors["buffers"], Workspace())
    for _ in range(LAYER_RUNS):
        network.loss_and_grad(prepared, images, labels, gradient, workspace, draws=batches.draws(0, 0), runner=timer)

    def per_image(calls: list[float]) -> float:
        """The median over runs. A run may call a stage several times, for blocks of the microbatch."""
        return 1e6 * float(np.median(np.sum(np.reshape(calls, (LAYER_RUNS, -1)), axis=1))) / len(labels)

    tuning = network.tuning()
    return [
        {
            "layer": stage.name,
            "computes": repr(stage),
            "algorithm": str(tuning.get(stage.name, {}).get("algorithm", "")),
            **{way: per_image(seconds[stage.name, way]) for way in ("forward", "backward")},
        }
        for stage in network.stages
    ]
