"""Trains the network of a dptrain configuration in PyTorch, with the same data, batches and initial parameters.

    python tests/benchmarks/pytorch_run.py OUT DATA [any flag of dptrain train]

Writes a line of JSON for each epoch to OUT/epochs.jsonl: mean loss of its steps, test accuracy, seconds. Order and
augmentation of the samples, the schedule, SGD's flags and the groups of parameters are those of the configuration;
other optimizers and losses are refused. Batch norm takes its
moments from the whole batch, as users of PyTorch would; with --by-shard from the microbatch of each shard, as dptrain
does. --disturb changes one initial parameter by a rounding error, to show how far two runs of PyTorch differ. The same
command continues a run that was stopped. It needs the extra "torch".
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))  # for the helpers of the tests

import torch
from torch.nn import functional
from torch_networks import TorchNetwork

from dptrain.arrays.memory import Array, Workspace
from dptrain.commands.train import add_arguments, configuration
from dptrain.config.train import TrainConfig
from dptrain.errors import UsageError
from dptrain.optim.sgd import SGD
from dptrain.parallel.communicator import Communicator
from dptrain.system.arguments import Parser
from dptrain.system.keys import flag
from dptrain.training.initial import first_state
from dptrain.training.session import Session, set_up

EVALUATED = 500  # test images at a time


class Run:
    """The training run: steps and evaluations with the batches of dptrain's session."""

    def __init__(self, session: Session, seed: int, by_shard: bool, disturb: bool) -> None:
        self.session, self.by_shard, self.workspace = session, by_shard, Workspace()
        network, optimizer = session.network, session.take_step.update.optimizer
        assert isinstance(optimizer, SGD)  # main has checked the configuration
        vectors = first_state(session, session.take_step.layouts, seed).vectors
        if disturb:
            vectors["parameters"][0] = np.nextafter(vectors["parameters"][0], np.float32(9))
        self.network = TorchNetwork(network, vectors)
        groups: dict[Any, dict[str, Any]] = {}  # of tensors with the same learning rate and weight decay
        for one in optimizer.parameters:
            new = {"params": [], "weight_decay": one.decay * optimizer.weight_decay, "parameter": one}
            group = groups.setdefault((one.decay, one.rate, one.schedule), new)
            group["params"] += [self.network.tensors[one.name]] if one.name in self.network.trained else []
        self.optimizer = torch.optim.SGD(
            [group for group in groups.values() if group["params"]],
            lr=1.0,
            momentum=optimizer.momentum,
            nesterov=optimizer.nesterov,
        )

    def step(self, number: int) -> tuple[float, int]:
        """The summed loss and the samples of a step."""
        epoch, step = divmod(number, self.session.origin.steps_per_epoch)
        parts = [self._batch(batches.batch(epoch, step, self.workspace)) for batches in self._batches]
        parts = [part for part in parts if len(part[1])]
        if not self.by_shard:
            parts = [tuple(torch.cat(part) for part in zip(*parts, strict=True))]
        samples = sum(len(labels) for _, labels in parts)
        self.optimizer.zero_grad()
        total = 0.0
        for images, labels in parts:
            images = images.contiguous(memory_format=torch.channels_last)
            loss = functional.cross_entropy(self.network(images, True), labels, reduction="sum")
            (loss / samples).backward()
            total += loss.item()
        for group in self.optimizer.param_groups:
            group["lr"] = group["parameter"].rate_at(self.session.schedule(number), number)
        self.optimizer.step()
        with torch.no_grad():
            self.network.move_running_averages()
        return total, samples

    @property
    def _batches(self) -> list[Any]:
        return list(self.session.take_step.work.batches.values())

    def _batch(self, batch: tuple[Array, Array]) -> tuple[Any, Any]:
        return torch.from_numpy(batch[0].transpose(2, 3, 0, 1).copy()), torch.from_numpy(batch[1].astype(np.int64))

    def accuracy(self) -> float:
        """On the test split."""
        with torch.no_grad():
            return self._accuracy()

    def _accuracy(self) -> float:
        correct = samples = 0
        work = self.session.evaluation
        for shard in work.shards.values():
            for start in range(0, len(shard.labels), EVALUATED):
                rows = slice(start, start + EVALUATED)
                images, labels = self._batch((work.normalise(shard.images[rows], self.workspace), shard.labels[rows]))
                correct += int((self.network(images, False).argmax(dim=1) == labels).sum())
                samples += len(labels)
        return correct / samples


def configuration_of(words: list[str]) -> TrainConfig:
    """UsageError for what is computed by dptrain alone."""
    parser = Parser(add_help=False)
    add_arguments(parser)
    config = configuration(parser.parse_args(words))
    alone = ("clip_norm", "average", "label_smoothing", "class_weights", "optimizer_options")
    for key in alone:
        if getattr(config, key) != getattr(TrainConfig(), key):
            raise UsageError(f"{flag(key)} is not known here; this program trains with SGD and plain cross-entropy")
    if config.optimizer != "sgd":
        raise UsageError(f"--optimizer {config.optimizer} is not known here; this program trains with SGD")
    return config


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--by-shard", action="store_true")
    parser.add_argument("--disturb", action="store_true")
    parser.add_argument("--cores", type=int, default=2)
    options, words = parser.parse_known_args()
    config = configuration_of(words)
    session = set_up(config, Communicator())
    torch.set_num_threads(options.cores)
    torch.manual_seed(0)
    run = Run(session, config.seed, options.by_shard, options.disturb)
    options.out.mkdir(parents=True, exist_ok=True)
    saved, lines = options.out / "state.pt", options.out / "epochs.jsonl"
    number = 0
    if saved.exists():
        number, tensors, state = torch.load(saved)
        with torch.no_grad():
            for name, tensor in tensors.items():
                run.network.tensors[name].copy_(tensor)
        run.optimizer.load_state_dict(state)
    loss = samples = 0.0
    started = time.perf_counter()
    while number < session.last_step:
        of_step = run.step(number)
        number, loss, samples = number + 1, loss + of_step[0], samples + of_step[1]
        if number % session.origin.steps_per_epoch == 0 or number == session.last_step:
            seconds = time.perf_counter() - started
            epoch = -(-number // session.origin.steps_per_epoch)
            line = {"epoch": epoch, "loss": loss / samples, "test_accuracy": run.accuracy(), "seconds": seconds}
            with lines.open("a") as file:
                print(json.dumps(line), file=file)
            print(json.dumps(line), flush=True)
            torch.save(
                (number, {name: one.detach() for name, one in run.network.tensors.items()}, run.optimizer.state_dict()),
                saved,
            )
            loss = samples = 0.0
            started = time.perf_counter()
    return 0


if __name__ == "__main__":
    sys.exit(main())
