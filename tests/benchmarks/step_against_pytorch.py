"""Images per second of one training step of convnet: dptrain against PyTorch, one thread each.

    python tests/benchmarks/step_against_pytorch.py [--batch 64 128] [--runs 5]

Needs the extra "torch". Each run is a process of its own; the two take turns, so that a drift of the
machine's speed meets both. Both do the whole step: forward, backward, SGD with Nesterov momentum and weight
decay. dptrain also gathers, casts and normalises its microbatches from 8 shards of uint8 images and adds up
their gradients; PyTorch (eager, contiguous, its defaults) gets one ready float32 batch.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

SHARDS, STEPS, WARM_UP = 8, 60, 10


def rate(make_step: Callable[[], None], batch: int) -> float:
    """Images per second at the median of STEPS steps."""
    seconds = []
    for _ in range(WARM_UP + STEPS):
        started = time.perf_counter()
        make_step()
        seconds.append(time.perf_counter() - started)
    return batch / statistics.median(seconds[WARM_UP:])


def dptrain_rate(batch: int) -> float:
    """The very step that `dptrain train --threads 1` makes, on random images."""
    from dptrain.blas import ensure_one_thread, request_one_thread

    request_one_thread()
    import numpy as np

    from dptrain.data.batches import ShardBatches
    from dptrain.data.format import Manifest, Samples, ShardEntry, Source
    from dptrain.nn.network import Network
    from dptrain.nn.zoo import convnet
    from dptrain.optim import SGD
    from dptrain.parallel.communicator import Communicator
    from dptrain.parallel.placement import Placement
    from dptrain.parallel.reduction import TreeReduction
    from dptrain.parallel.threads import ShardPool
    from dptrain.training.state import initial_state
    from dptrain.training.step import STATISTICS, TrainingStep

    ensure_one_thread()
    shape = (3, 32, 32)
    samples = batch // SHARDS * (WARM_UP + STEPS)
    entries = tuple(ShardEntry("", 0, samples, "") for _ in range(SHARDS))
    source = Source("random", None, None, None)
    names = tuple("0123456789")
    manifest = Manifest("random", names, shape, (0.5,) * 3, (0.25,) * 3, 0, source, {"train": entries, "test": entries})
    generator = np.random.default_rng(0)
    network = Network(convnet(shape, 10), shape)
    batches = {}
    for shard in range(SHARDS):
        images = generator.integers(0, 256, (samples, *shape), dtype=np.uint8)
        random_samples = Samples(images, generator.integers(0, 10, samples), np.arange(samples))
        size = batch // SHARDS
        batches[shard] = ShardBatches(random_samples, shard, manifest, size=size, seed=0, augment="none")
    alone = Communicator()
    reduction = TreeReduction(Placement(SHARDS, 1), alone, network.layout.size + STATISTICS)
    optimizer = SGD(network.layout, momentum=0.9, nesterov=True, weight_decay=5e-4)
    take_step = TrainingStep(network, optimizer, batches, ShardPool(1), reduction, alone)
    state = initial_state(network, 0)
    return rate(lambda: take_step(state, 0, state.step, 0.01) and None, batch)


def pytorch_rate(batch: int) -> float:
    """The same network and optimizer in eager PyTorch."""
    try:
        import torch
        from torch import nn
    except ImportError:
        raise SystemExit("PyTorch is not installed here: launch/test.sh does it, or pip install torch") from None

    torch.set_num_threads(1)
    network = nn.Sequential(
        *(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(4096, 10)),
    )
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4)
    images, labels = torch.randn(batch, 3, 32, 32), torch.randint(0, 10, (batch,))

    def make_step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(images), labels).backward()
        optimizer.step()

    return rate(make_step, batch)


RATES = {"dptrain": dptrain_rate, "pytorch": pytorch_rate}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--only", choices=RATES, help="measure one of the two once, in this process")
    options = parser.parse_args()
    if options.only:
        print(RATES[options.only](options.batch[0]))
        return 0
    print(
        f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, {options.runs} runs in turn"
    )
    for batch in options.batch:
        rates: dict[str, list[float]] = {name: [] for name in RATES}
        for _ in range(options.runs):
            for name, measured in rates.items():
                command = [sys.executable, __file__, "--only", name, "--batch", str(batch)]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
                if done.returncode != 0:
                    return done.returncode  # it has said why
                measured.append(float(done.stdout))
        for name, measured in rates.items():
            low, high = min(measured), max(measured)
            print(
                f"batch {batch}  {name}  median {statistics.median(measured):,.0f} images/s ({low:,.0f} to {high:,.0f})"
            )
        ratios = [ours / theirs for ours, theirs in zip(rates["dptrain"], rates["pytorch"], strict=True)]
        print(f"batch {batch}  ratio  median {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
