"""A training step of a network in eager PyTorch: prints images per second and peak memory as JSON.

    python pytorch.py --batch 64 [--network convnet|airbench|resnet20] [--widths 32 64] [--threads 1]
                      [--layout contiguous|channels_last] [--processes 2] [--steps 60]

With several processes, DistributedDataParallel over gloo; --batch stays the global one.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import time
from typing import Any

import torch
from torch import nn

WARM_UP = 10  # steps, at most a third of those that are measured


def convnet(widths: list[int]) -> nn.Module:
    layers: list[nn.Module] = []
    channels, size = 3, 32
    for width in widths:
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        channels, size = width, size // 2
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * size * size, 10))


def airbench(widths: list[int]) -> nn.Module:
    """The network of airbench94_muon (Jordan 2024), with random whitening filters and unscaled logits."""

    def norm(channels: int) -> nn.Module:
        layer = nn.BatchNorm2d(channels, eps=1e-12, momentum=0.4)
        layer.weight.requires_grad = False
        return layer

    whitening = nn.Conv2d(3, 24, 2)
    whitening.weight.requires_grad = False
    layers: list[nn.Module] = [whitening, nn.GELU("tanh")]
    channels = 24
    for width in widths:
        layers += [
            nn.Conv2d(channels, width, 3, padding="same", bias=False),
            nn.MaxPool2d(2),
            norm(width),
            nn.GELU("tanh"),
        ]
        layers += [nn.Conv2d(width, width, 3, padding="same", bias=False), norm(width), nn.GELU("tanh")]
        channels = width
    return nn.Sequential(*layers, nn.MaxPool2d(3), nn.Flatten(), nn.Linear(channels, 10, bias=False))


class Block(nn.Module):  # type: ignore[misc]  # PyTorch is not installed where types are checked
    """Two convolutions of ResNet-20, with a shortcut without parameters (He et al. 2015, option A)."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.added, self.stride = width - channels, stride
        self.body = nn.Sequential(
            nn.Conv2d(channels, width, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = x
        if self.added:
            sides = (self.added // 2, self.added - self.added // 2)
            shortcut = nn.functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, *sides))
        return nn.functional.relu(self.body(x) + shortcut)


def resnet20(widths: list[int]) -> nn.Module:
    (width,) = widths
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    for stage in range(3):
        for block in range(3):
            halves = stage > 0 and block == 0
            layers.append(Block(width // 2 if halves else width, width, 2 if halves else 1))
        width *= 2
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width // 2, 10))


NETWORKS = {"convnet": convnet, "airbench": airbench, "resnet20": resnet20}


def train(rank: int, options: argparse.Namespace) -> None:
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    layout = torch.channels_last if options.layout == "channels_last" else torch.contiguous_format
    network: Any = NETWORKS[options.network](options.widths).to(memory_format=layout)
    if options.processes > 1:
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(options.port))
        os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[rank]})
        torch.distributed.init_process_group("gloo", rank=rank, world_size=options.processes)
        network = nn.parallel.DistributedDataParallel(network)
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.001, momentum=0.9, nesterov=True, weight_decay=5e-4)
    local_batch = options.batch // options.processes
    images = torch.randn(local_batch, 3, 32, 32).to(memory_format=layout)
    labels = torch.randint(0, 10, (local_batch,))
    seconds = []
    warm_up = min(WARM_UP, options.steps // 3)
    for _ in range(warm_up + options.steps):
        started = time.perf_counter()
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(images), labels).backward()
        optimizer.step()
        seconds.append(time.perf_counter() - started)
    if rank == 0:
        rate = options.batch / statistics.median(seconds[warm_up:])
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(
            json.dumps({"images_per_second": rate, "peak_memory_mib": memory, "version": torch.__version__}), flush=True
        )
    if options.processes > 1:
        torch.distributed.barrier()
        os._exit(0)  # in a normal exit, gloo's threads sometimes abort the process


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--network", choices=NETWORKS, default="convnet")
    parser.add_argument("--steps", type=int, default=60, help="that are measured")
    parser.add_argument("--widths", type=int, nargs="+", default=[32, 64])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--layout", choices=("contiguous", "channels_last"), default="contiguous")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--port", type=int, default=29511, help="of the processes' meeting point on this machine")
    options = parser.parse_args()
    if options.processes == 1:
        train(0, options)
    else:
        torch.multiprocessing.spawn(train, args=(options,), nprocs=options.processes)


if __name__ == "__main__":
    main()
