"""bench step: images/s of the training step, microseconds of each layer, and the share of the sgemm rate."""

from __future__ import annotations

import multiprocessing
import resource
import statistics
import time
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from dptrain.arrays.memory import Array, Workspace
from dptrain.bench.workload import Workload
from dptrain.nn.layer import Layer, Pass, Runner
from dptrain.nn.network import Network
from dptrain.training.step import Seconds

WARM_UP = 10  # steps
MATRIX = 2048  # rows and columns of the matrix products that measure the sgemm rate
MATRIX_RUNS = 5
LAYER_RUNS = 30


def measure_step(workload: Workload, *, batch_size: int, steps: int) -> dict[str, Any]:
    """All figures of `bench step`, on every rank."""
    communicator, threads, network = workload.engine.communicator, workload.engine.pool.size, workload.engine.network
    for _ in range(WARM_UP):
        workload.step()
    communicator.barrier()
    durations, seconds = [], Seconds()
    for _ in range(steps):
        started = time.perf_counter()
        seconds += workload.step().seconds
        durations.append(time.perf_counter() - started)
    by_rank = communicator.allgather((asdict(seconds), peak_memory()))
    communicator.barrier()
    sgemm = min(communicator.allgather(sgemm_rate()))
    rate, flops = batch_size / statistics.median(durations), training_flops(network)
    per_core = rate * flops / (communicator.size * threads)
    milliseconds = {"median": statistics.median(durations), "least": min(durations), "most": max(durations)}
    return {
        "images_per_second": rate,
        "milliseconds_per_step": {name: 1e3 * duration for name, duration in milliseconds.items()},
        "batch_size": batch_size,
        "ranks": communicator.size,
        "threads": threads,
        "steps": steps,
        "seconds": [figures for figures, _ in by_rank],
        "slowest_rank": max(range(communicator.size), key=lambda rank: by_rank[rank][0]["compute"]),
        "peak_memory_mib": [memory for _, memory in by_rank],
        "megaflop_per_image": flops / 1e6,
        "gflops_per_core": per_core / 1e9,
        "sgemm_gflops": sgemm / 1e9,
        "share_of_sgemm": per_core / sgemm,
        "layers": layer_times(workload),
        "environment": workload.engine.environment,
    }


def peak_memory() -> float:
    """Peak resident MiB, summed over this process and its workers; shared pages count once per process."""
    this = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    statuses = (Path(f"/proc/{worker.pid}/status") for worker in multiprocessing.active_children())
    lines = (line for status in statuses for line in status.read_text(encoding="utf-8").splitlines())
    return (this + sum(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))) / 1024


def sgemm_rate() -> float:
    """Floating-point operations a second of the fastest of some large float32 matrix products, on one thread."""
    generator = np.random.default_rng(0)
    a, b = (generator.random((MATRIX, MATRIX), dtype=np.float32) for _ in range(2))
    out = np.empty_like(a)
    durations = []
    for _ in range(MATRIX_RUNS):
        started = time.perf_counter()
        np.matmul(a, b, out=out)
        durations.append(time.perf_counter() - started)
    return 2 * MATRIX**3 / min(durations)


def training_flops(network: Network) -> int:
    """Floating-point operations per training image by the definition of the layers, independent of the algorithm.

    A layer with weights has three products of the same size: forward, gradient of the weight, and gradient of the
    input, which the first layer does not need.
    """
    forward = [layer.forward_flops() for layer in network.layers]
    return sum(3 * flops for flops in forward) - forward[0]


class StageTimer(Runner):
    """Keeps the seconds of each call of a stage, by the stage's name and "forward" or "backward"."""

    def __init__(self) -> None:
        self.seconds: defaultdict[tuple[str, str], list[float]] = defaultdict(list)

    def forward(self, layer: Layer, x: Array, call: Pass) -> tuple[Array, Any]:
        started = time.perf_counter()
        result = super().forward(layer, x, call)
        self.seconds[layer.name, "forward"].append(time.perf_counter() - started)
        return result

    def backward(self, layer: Layer, dy: Array, saved: Any, call: Pass) -> Array | None:
        started = time.perf_counter()
        dx = super().backward(layer, dy, saved, call)
        self.seconds[layer.name, "backward"].append(time.perf_counter() - started)
        return dx


def layer_times(workload: Workload) -> list[dict[str, Any]]:
    """Microseconds per image of each stage, forward and backward, for one shard on one thread."""
    work, network, timer = workload.engine.take_step.work, workload.engine.network, StageTimer()
    batches = next(iter(work.batches.values()))
    workspace, gradient = Workspace(), np.empty_like(workload.state.parameters)
    images, labels = batches.batch(0, 0, workspace)
    prepared = network.prepare(workload.state.parameters, workload.state.vectors["buffers"], Workspace())
    for _ in range(LAYER_RUNS):
        network.loss_and_grad(prepared, images, labels, gradient, workspace, draws=batches.draws(0, 0), runner=timer)

    def per_image(seconds: list[float]) -> float:
        """The median over runs. A run may call a stage several times, for blocks of the microbatch."""
        return 1e6 * float(np.median(np.sum(np.reshape(seconds, (LAYER_RUNS, -1)), axis=1))) / len(labels)

    tuning = network.tuning()
    return [
        {
            "layer": stage.name,
            "computes": repr(stage),
            "algorithm": str(tuning.get(stage.name, {}).get("algorithm", "")),
            **{way: per_image(timer.seconds[stage.name, way]) for way in ("forward", "backward")},
        }
        for stage in network.stages
    ]
