"""From a configuration to everything the loop needs, with every check that can be made beforehand."""

from __future__ import annotations

import platform
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np

import dptrain
from dptrain.checkpoint.format import Checkpoint, Origin
from dptrain.config.files import parse_toml, to_toml
from dptrain.config.keys import Scope, flag
from dptrain.config.train import KEYS, OptimizerConfig, ScheduleConfig, TrainConfig
from dptrain.data.batches import Normalisation, ShardBatches
from dptrain.data.loading import NOTHING_LOADED, LocalShards, load_shards, split_problems, tally
from dptrain.data.manifest import SPLITS, Manifest, read_manifest
from dptrain.data.transforms import check_crop, make_transforms
from dptrain.errors import CheckpointError, DataError, DptrainError, UsageError
from dptrain.nn.network import Network
from dptrain.optim import optimizer_class, options_of
from dptrain.optim.optimizer import Optimizer
from dptrain.optim.schedule import Schedule, make_schedule
from dptrain.parallel.communicator import Communicator, known_to_all, together
from dptrain.parallel.placement import Placement
from dptrain.parallel.pool import ShardPool
from dptrain.parallel.processes import make_pool
from dptrain.parallel.threads import fair_threads
from dptrain.system.blas import ensure_one_thread
from dptrain.system.limits import check_memory
from dptrain.system.suggestions import did_you_mean
from dptrain.system.text import shown
from dptrain.training.architecture import Architecture, build_network, find_architecture
from dptrain.training.evaluate import EvaluationWork
from dptrain.training.model_source import ModelSource
from dptrain.training.own_model import (
    UNSEEDED,
    agree_on_model,
    changed_code,
    check_training,
    computes_otherwise,
    kept_model,
)
from dptrain.training.step import GradientWork, TrainingStep, make_reducer

# Float32 vectors of the parameters' length that a rank has beside one gradient a shard: the parameters, their copy for
# the workers, momentum, the summed gradient, the optimizer's scratch.
VECTORS = 5


@dataclass(frozen=True)
class Session:
    """What a rank trains with. `notes` are lines for the user that came up on the way."""

    communicator: Communicator
    architecture: Architecture
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


def set_up(
    config: TrainConfig,
    communicator: Communicator,
    loaded: LocalShards = NOTHING_LOADED,
    architecture: Architecture | None = None,
) -> Session:
    """Open the data, build the network, place the shards; every rank fails with a DptrainError or none does.

    Of the rank's shards, those in `loaded` are not read again, nor is the model file if its architecture is given.
    """
    threads = config.threads or fair_threads(communicator)
    with together(communicator):
        environment = numeric_environment(config.reduction)
        manifest = read_manifest(Path(config.data))
        placement = place(manifest, Path(config.data), communicator)
        steps_per_epoch = count_steps(manifest, config.batch_size)
        check_crop(config.crop, manifest.image_shape)
        architecture = architecture or find_architecture(config.model)
        network = build_network(architecture, config.model_options, manifest.image_shape, len(manifest.classes))
        own = placement.shards_of(communicator.rank)
        check_memory(
            4 * network.layout.size * (len(own) + VECTORS), f"{network.layout.size:,} parameters and {len(own)} shards"
        )
        optimizer = make_optimizer(config, network)
        progress = communicator.whereabouts.progress
        shards = load_shards(Path(config.data), manifest, own, threads, loaded=loaded, progress=progress)
    agreed = {"manifest_sha256": manifest.sha256, "architecture": network.description()}
    agree_on("data set or network", agreed, communicator)
    check_splits(manifest, shards, Path(config.data), communicator)
    total_steps = config.epochs * steps_per_epoch
    microbatch = config.batch_size // manifest.shard_count
    transforms = make_transforms(config.crop, config.flip)
    batches = {
        shard: ShardBatches(samples, shard, manifest, size=microbatch, seed=config.seed, transforms=transforms)
        for shard, samples in shards.train.items()
    }
    communicator.whereabouts.enter("trying the model's layers")
    with together(communicator):
        output = check_training(architecture, network, batches, steps_per_epoch, config.seed)
    agree_on_model(architecture.source, output, environment, communicator)
    notes = machine_notes(environment, communicator)
    notes += python_notes(communicator)  # the last collective: nothing is left open if it fails
    last_step = min(total_steps, config.max_steps or total_steps)
    if config.warmup_steps >= last_step:
        notes.append(
            f"note   --warmup-steps {config.warmup_steps} is as long as the run, {last_step} steps, or longer: the "
            f"learning rate only rises; without the flag, the warm-up takes {TrainConfig().warmup(total_steps)} steps"
        )
    reducer = make_reducer(config.reduction, network, placement, communicator)
    gradients = GradientWork(network, batches, reducer)
    longest = max(entry.samples for entry in manifest.splits["test"])
    evaluation = EvaluationWork(network, shards.test, Normalisation(manifest), longest)
    pool = make_pool(min(threads, len(own)), [gradients, evaluation], communicator)
    origin = Origin(
        config=to_toml(config),
        architecture=tuple(network.description()),
        input_shape=manifest.image_shape,
        classes=manifest.classes,
        data_name=manifest.name,
        manifest_sha256=manifest.sha256,
        steps_per_epoch=steps_per_epoch,
        environment=environment,
        mean=manifest.mean,
        std=manifest.std,
        model_files=architecture.source.hashes() if architecture.source else {},
        model_output_sha256=output,
        spec=network.spec(),
        tuning=network.tuning(),
    )
    return Session(
        communicator=communicator,
        architecture=architecture,
        network=network,
        origin=origin,
        manifest=manifest,
        take_step=TrainingStep(gradients, optimizer, pool, communicator),
        schedule=_schedule(config, steps_per_epoch),
        last_step=last_step,
        evaluation=evaluation,
        pool=pool,
        shards=shards,
        notes=notes + (architecture.source.shadowed() if architecture.source else []),
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


def _schedule(config: ScheduleConfig, steps_per_epoch: int) -> Schedule:
    total_steps = config.epochs * steps_per_epoch
    return make_schedule(
        config.schedule,
        config.lr,
        total_steps,
        warmup_steps=config.warmup(total_steps),
        every=max(1, round(config.step_epochs * steps_per_epoch)),
        factor=config.step_factor,
    )


def make_optimizer(config: OptimizerConfig, network: Network) -> Optimizer:
    """The optimizer of a run; UsageError for options, or groups of parameters, that do not exist."""
    known = options_of(config.optimizer)
    flags = {one.name: getattr(config, one.name) for one in fields(OptimizerConfig) if one.name in known}
    for name in config.optimizer_options:
        if name not in known or name in flags:
            own = sorted(known - flags.keys())
            hint = f"use {flag(name)}" if name in flags else did_you_mean(name, own) if own else "it has none"
            raise UsageError(f"--optimizer-options: {config.optimizer} has no option {shown(repr(name), 60)}; {hint}")
    groups = {name: network.tensors[name].group for name in network.layout.shapes}
    for group in config.group_lr:
        if group not in groups.values():
            hint = did_you_mean(group, set(groups.values()))
            raise UsageError(f"--group-lr: the network has no group {shown(repr(group), 60)}; {hint}")
    factors = {name: config.group_lr.get(group, 1.0) for name, group in groups.items()}
    try:
        return optimizer_class(config.optimizer)(
            network.decays(),
            network.layout.expand(factors) if config.group_lr else None,
            **flags,
            **config.optimizer_options,
        )
    except (TypeError, ValueError) as error:
        raise UsageError(f"--optimizer-options {shown(config.optimizer_options, 200)}: {error}") from error


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


def without_paths(config: TrainConfig) -> dict[str, object]:
    """The values that all ranks must share. Of paths, only whether they are given, as hosts have disks of their own."""
    resume = config.resume if config.resume in ("auto", "never") else "a path"
    given = {"data": bool(config.data), "run_dir": bool(config.run_dir)}
    return vars(config) | given | {"resume": resume, "model": config.model.rpartition("/")[2]}


def machine_notes(environment: dict[str, str], communicator: Communicator) -> list[str]:
    """A line for the user if the ranks compute on machines or libraries that differ."""
    everyone = communicator.allgather(environment)
    different = sorted({key for other in everyone for key in other if other[key] != everyone[0][key]})
    if different:
        return [f"the ranks' machines differ ({', '.join(different)}): bits may depend on the number of ranks"]
    return []


def python_notes(communicator: Communicator) -> list[str]:
    """A line for the user if a rank runs another Python or dptrain than rank 0."""
    own = f"{sys.executable} {platform.python_version()}, dptrain {dptrain.__version__}"
    everyone = communicator.allgather((socket.gethostname(), own))
    for rank, (host, other) in enumerate(everyone):
        if other != everyone[0][1]:
            return [
                f"rank {rank} on {shown(host)} runs another Python: {shown(other)}; rank 0: {shown(everyone[0][1])}. "
                "If that is not intended, start with dptrain launch, or with mpirun -x PATH"
            ]
    return []


def place(manifest: Manifest, folder: Path, communicator: Communicator) -> Placement:
    """The placement of the data set's shards; UsageError when there are more ranks than shards."""
    shards, ranks = manifest.shard_count, communicator.size
    if ranks > shards:
        raise UsageError(
            f"{ranks} ranks, but {folder} has {shards} shards and a shard is never split: start at most {shards} "
            f"ranks, or pack it again: {manifest.repack_command(folder, ranks)}"
        )
    return Placement(shards, ranks)


def check_resumable(
    path: Path, checkpoint: Checkpoint, config: TrainConfig, origin: Origin, source: ModelSource | None = None
) -> list[str]:
    """Notes on what has changed since the checkpoint; CheckpointError when it is of another run."""
    earlier = checkpoint.origin
    if earlier.manifest_sha256 != origin.manifest_sha256:
        raise CheckpointError(
            f"{path}: made with another data set ({shown(earlier.data_name, 80)}, "
            f"manifest {earlier.manifest_sha256[:12]}...; "
            f"{config.data} has {origin.manifest_sha256[:12]}...). Name that one, or start anew in another --run-dir"
        )
    before, now = (
        replace(one, warmup_steps=one.warmup(one.epochs * steps))
        for one, steps in (
            (TrainConfig(**parse_toml(earlier.config, str(path))), earlier.steps_per_epoch),
            (config, origin.steps_per_epoch),
        )
    )
    changed = {
        name: f"{flag(name)} {shown(getattr(before, name))} there, {shown(getattr(now, name))} here"
        for name, key in KEYS.items()
        if getattr(before, name) != getattr(now, name) and key.metadata["scope"] in (Scope.RUN, Scope.BITS)
    }
    breaking = [text for name, text in changed.items() if KEYS[name].metadata["scope"] is Scope.RUN]
    if breaking:
        raise CheckpointError(
            f"{path}: of another run: {shown('; '.join(breaking), 500)}. Use its values, or another --run-dir"
        )
    own_models = ":" in before.model and source is not None
    notes = (
        _check_code(path, earlier, before.model, config, source) if own_models else []
    )  # it may be why layers differ
    if difference := earlier.difference(origin):
        raise CheckpointError(
            f"{path}: of another architecture: {shown(difference, 500)}. Give the --model it was made with, or another "
            "--run-dir"
        )
    if not own_models:
        notes = _check_code(path, earlier, before.model, config, source)
    if not notes and before.model_options == config.model_options and not config.allow_changed_model:
        _check_output(path, earlier, origin)
    if "model" in changed and source is not None and not notes and _function(before.model) == _function(config.model):
        del changed["model"]  # the same code in another place
    state = checkpoint.state
    if earlier.steps_per_epoch != origin.steps_per_epoch or (state.step and not state.progress.epoch_samples):
        raise CheckpointError(
            f"{shown(path)}: step {state.step} with {state.progress.epoch_samples} samples of its epoch and "
            f"{earlier.steps_per_epoch} steps an epoch cannot be of this run, which has {origin.steps_per_epoch}; the "
            "file was edited"
        )
    notes += [f"changed since the checkpoint: {shown(text, 500)}" for text in changed.values()]
    moved = [key for key, value in origin.environment.items() if earlier.environment.get(key) != value]
    moved += [f"algorithm of {layer}" for layer, one in origin.tuning.items() if earlier.tuning.get(layer) != one]
    if moved:
        notes.append(f"another {', '.join(moved)} than the checkpoint's: bits may differ from an undisturbed run's")
    return notes


def _check_code(path: Path, earlier: Origin, model: str, config: TrainConfig, source: ModelSource | None) -> list[str]:
    """A note if the code may not be that of the checkpoint's `model`; CheckpointError if that is not allowed."""
    changed = changed_code(earlier, model, source)
    if changed is None:
        return [f"{path.name} does not hold the hash of its model file, so a change of it is not noticed"]
    if not changed:
        return []
    files = ", ".join(changed)
    if config.allow_changed_model:
        return [f"changed since the checkpoint: the code of the model ({files})"]
    kept = kept_model(path, model, earlier.model_files)
    advice = f"train with the code that was kept, --model {kept}" if kept else "restore it"
    raise CheckpointError(
        f"{path}: trained with other code of the model: {files}. Either {advice}, or accept the change with "
        "--allow-changed-model, or start anew in another --run-dir"
    )


def _check_output(path: Path, earlier: Origin, origin: Origin) -> None:
    if computes_otherwise(earlier, origin.model_output_sha256, origin.environment):
        raise CheckpointError(
            f"{path}: the model has the same files but computes something else now: {UNSEEDED} Accept it with "
            "--allow-changed-model, or start anew in another --run-dir"
        )


def _function(model: str) -> str:
    return model.rpartition(":")[2]
