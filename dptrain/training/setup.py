"""From a configuration to everything the loop needs, with every check that can be made beforehand."""

from __future__ import annotations

import platform
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from dptrain.blas import ensure_one_thread
from dptrain.config import KEYS_OF_THE_PROCESS, KEYS_OF_THE_RUN, TrainConfig, flag, parse_toml
from dptrain.data.augment import check_augmentation
from dptrain.data.batches import Normalisation, ShardBatches
from dptrain.data.format import SPLITS, Manifest, read_manifest
from dptrain.data.shards import NOTHING_LOADED, LocalShards, load_shards
from dptrain.data.soundness import split_problems, tally
from dptrain.errors import CheckpointError, DataError, DptrainError, UsageError
from dptrain.nn.network import Network
from dptrain.optim import SGD
from dptrain.parallel.communicator import Communicator, known_to_all, together
from dptrain.parallel.placement import Placement
from dptrain.parallel.pool import ShardPool
from dptrain.parallel.processes import make_pool
from dptrain.parallel.reduction import REDUCTIONS
from dptrain.parallel.threads import fair_threads
from dptrain.schedule import Schedule, make_schedule
from dptrain.system.text import shown
from dptrain.training.architecture import build_network, first_difference
from dptrain.training.checkpoint import Checkpoint, Origin
from dptrain.training.evaluate import EvaluationWork
from dptrain.training.step import STATISTICS, GradientWork, TrainingStep


@dataclass(frozen=True)
class Session:
    """What a rank trains with. `notes` are lines for the user that came up on the way."""

    communicator: Communicator
    network: Network
    origin: Origin
    manifest: Manifest
    take_step: TrainingStep
    schedule: Schedule
    last_step: int
    evaluation: EvaluationWork
    pool: ShardPool
    shards: LocalShards
    notes: list[str]


def set_up(config: TrainConfig, communicator: Communicator, loaded: LocalShards = NOTHING_LOADED) -> Session:
    """Open the data, build the network, place the shards; every rank fails with a DptrainError or none does.

    Of the rank's shards, those in `loaded` are not read again.
    """
    threads = config.threads or fair_threads(communicator)
    with together(communicator):
        environment = numeric_environment(config.reduction)
        manifest = read_manifest(Path(config.data))
        placement = place(manifest, Path(config.data), communicator)
        steps_per_epoch = count_steps(manifest, config.batch_size)
        check_augmentation(config.augment, manifest.image_shape)
        network = build_network(config.model, config.model_options, manifest.image_shape, len(manifest.classes))
        own = placement.shards_of(communicator.rank)
        progress = communicator.whereabouts.progress
        shards = load_shards(Path(config.data), manifest, own, threads, loaded=loaded, progress=progress)
    agreed = {"manifest_sha256": manifest.sha256, "architecture": network.description()}
    agree_on("data set or network", agreed, communicator)
    check_splits(manifest, shards, Path(config.data), communicator)
    total_steps = config.epochs * steps_per_epoch
    microbatch = config.batch_size // manifest.shard_count
    batches = {
        shard: ShardBatches(samples, shard, manifest, size=microbatch, seed=config.seed, augment=config.augment)
        for shard, samples in shards.train.items()
    }
    optimizer = SGD(
        network.layout, momentum=config.momentum, nesterov=config.nesterov, weight_decay=config.weight_decay
    )
    reduction = REDUCTIONS[config.reduction](placement, communicator, network.layout.size + STATISTICS)
    notes = machine_notes(environment, communicator)  # the last collective: nothing is left open if it fails
    gradients = GradientWork(network, batches)
    longest = max(entry.samples for entry in manifest.splits["test"])
    evaluation = EvaluationWork(network, shards.test, Normalisation(manifest), longest)
    pool = make_pool(min(threads, len(own)), [gradients, evaluation], communicator)
    origin = Origin(
        config=config.to_toml(),
        architecture=tuple(network.description()),
        input_shape=manifest.image_shape,
        classes=manifest.classes,
        data_name=manifest.name,
        manifest_sha256=manifest.sha256,
        steps_per_epoch=steps_per_epoch,
        environment=environment,
        mean=manifest.mean,
        std=manifest.std,
    )
    return Session(
        communicator=communicator,
        network=network,
        origin=origin,
        manifest=manifest,
        take_step=TrainingStep(gradients, optimizer, pool, reduction, communicator),
        schedule=_schedule(config, steps_per_epoch),
        last_step=min(total_steps, config.max_steps or total_steps),
        evaluation=evaluation,
        pool=pool,
        shards=shards,
        notes=notes,
    )


def check_splits(
    manifest: Manifest, own: LocalShards, folder: Path, communicator: Communicator, splits: Sequence[str] = SPLITS
) -> None:
    """DataError on all ranks when the splits, over the shards of all ranks, have what `data_prep verify` refuses."""
    tallies = {split: [tally(samples, manifest) for samples in getattr(own, split).values()] for split in splits}
    everyone = communicator.allgather(tallies)
    for split in splits:
        problems = split_problems(manifest, split, [one for rank in everyone for one in rank[split]])
        if problems:
            raise known_to_all(communicator, DataError(f"{shown(folder)}: {problems[0]}; pack the data set again"))


def count_steps(manifest: Manifest, batch_size: int) -> int:
    """Steps an epoch: as many as the largest shard has microbatches, the same on every rank."""
    shards = manifest.shard_count
    if batch_size % shards:
        below = batch_size // shards * shards
        raise UsageError(
            f"--batch-size {batch_size} is not a multiple of the {shards} shards of the data set, which share it "
            f"equally; the nearest that are: {f'{below} and ' if below else ''}{below + shards}"
        )
    largest = max(entry.samples for entry in manifest.splits["train"])
    return -(-largest // (batch_size // shards))


def _schedule(config: TrainConfig, steps_per_epoch: int) -> Schedule:
    return make_schedule(
        config.schedule,
        config.lr,
        config.epochs * steps_per_epoch,
        warmup_steps=config.warmup_steps,
        every=max(1, round(config.step_epochs * steps_per_epoch)),
        factor=config.step_factor,
    )


def numeric_environment(reduction: str) -> dict[str, str]:
    """What the bits depend on beside the configuration."""
    return {"numpy": np.__version__, **ensure_one_thread(), "cpu": _cpu_model(), "reduction": reduction}


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def agree_on(what: str, own: Mapping[str, object], communicator: Communicator) -> None:
    """Hold every rank to rank 0's values; DptrainError on all ranks naming the first that differs, and where."""
    everyone = communicator.allgather((socket.gethostname(), dict(own)))
    _, first = everyone[0]
    for rank, (host, values) in enumerate(everyone):
        for name, value in first.items():
            if values[name] != value:
                error = DptrainError(
                    f"rank {rank} on {host} has another {what} than rank 0: {name} is {values[name]!r} there, "
                    f"{value!r} on rank 0; start all ranks with the same flags and files"
                )
                raise known_to_all(communicator, error)


def machine_notes(environment: dict[str, str], communicator: Communicator) -> list[str]:
    """A line for the user if the ranks compute on machines or libraries that differ."""
    everyone = communicator.allgather(environment)
    different = sorted({key for other in everyone for key in other if other[key] != everyone[0][key]})
    if different:
        return [f"the ranks' machines differ ({', '.join(different)}): bits may depend on the number of ranks"]
    return []


def place(manifest: Manifest, folder: Path, communicator: Communicator) -> Placement:
    """The placement of the data set's shards; UsageError when there are more ranks than shards."""
    shards, ranks = manifest.shard_count, communicator.size
    if ranks > shards:
        raise UsageError(
            f"{ranks} ranks, but {folder} has {shards} shards and a shard is never split: start at most {shards} "
            f"ranks, or pack it again: python -m data_prep {manifest.name} {folder} --shards {ranks} --force"
        )
    return Placement(shards, ranks)


def check_resumable(path: Path, checkpoint: Checkpoint, config: TrainConfig, origin: Origin) -> list[str]:
    """Notes on what has changed since the checkpoint; CheckpointError when it is of another run."""
    earlier = checkpoint.origin
    if earlier.manifest_sha256 != origin.manifest_sha256:
        raise CheckpointError(
            f"{path}: made with another data set ({shown(earlier.data_name, 80)}, "
            f"manifest {earlier.manifest_sha256[:12]}...; "
            f"{config.data} has {origin.manifest_sha256[:12]}...). Name that one, or start anew in another --run-dir"
        )
    before = TrainConfig(**parse_toml(earlier.config, str(path)))
    changed = {
        key.name: f"{flag(key.name)} {getattr(before, key.name)} there, {getattr(config, key.name)} here"
        for key in fields(TrainConfig)
        if getattr(before, key.name) != getattr(config, key.name) and key.name not in KEYS_OF_THE_PROCESS
    }
    breaking = [text for name, text in changed.items() if name in KEYS_OF_THE_RUN]
    if breaking:
        raise CheckpointError(
            f"{path}: of another run: {shown('; '.join(breaking), 500)}. Use its values, or another --run-dir"
        )
    if earlier.architecture != origin.architecture:
        difference = first_difference(earlier.architecture, origin.architecture)
        raise CheckpointError(
            f"{path}: of another architecture: {shown(difference, 500)}. Give the --model it was made with, or another "
            "--run-dir"
        )
    state = checkpoint.state
    if earlier.steps_per_epoch != origin.steps_per_epoch or (state.step and not state.epoch_samples):
        raise CheckpointError(
            f"{path}: step {state.step} with {state.epoch_samples} samples of its epoch and {earlier.steps_per_epoch} "
            f"steps an epoch cannot be of this run, which has {origin.steps_per_epoch}; the file was edited"
        )
    notes = [f"changed since the checkpoint: {shown(text, 500)}" for text in changed.values()]
    moved = [key for key, value in origin.environment.items() if earlier.environment.get(key) != value]
    if moved:
        notes.append(f"another {', '.join(moved)} than the checkpoint's: bits may differ from an undisturbed run's")
    return notes
