"""From a configuration and a communicator to the data, the network and the workers of a rank."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dptrain.arrays.memory import Workspace
from dptrain.checkpoint.format import Origin
from dptrain.config.files import to_toml
from dptrain.config.train import ScheduleConfig, TrainConfig
from dptrain.data.batches import Normalisation, ShardBatches
from dptrain.data.loading import NOTHING_LOADED, LocalShards, load_shards, split_problems, tally
from dptrain.data.manifest import Manifest, read_manifest
from dptrain.data.transforms import check_views, make_transforms
from dptrain.errors import DataError, UsageError
from dptrain.nn.loss import CROSS_ENTROPY, CrossEntropy
from dptrain.nn.network import Network
from dptrain.optim import optimizer_class
from dptrain.optim.schedule import Schedule, check_options, make_schedule, steps_of
from dptrain.parallel.communicator import Communicator, known_to_all, together
from dptrain.parallel.placement import Placement
from dptrain.parallel.pool import ShardPool, ShardWork, fair_threads, make_pool
from dptrain.parallel.reduce import reducer_class
from dptrain.parallel.reduce.reducer import Lengths
from dptrain.system.cache import DEFAULT_KIB, second_level_cache
from dptrain.system.cgroups import check_memory
from dptrain.system.text import shown
from dptrain.training.agreement import agree_on, machine_notes, numeric_environment
from dptrain.training.architecture import Architecture, build_network, find_architecture
from dptrain.training.evaluate import EvaluationWork
from dptrain.training.finetune import frozen_tensors
from dptrain.training.loss import make_loss, samples_by_class
from dptrain.training.microbatches import check_microbatches, count_steps
from dptrain.training.model_checks import agree_on_model, try_model
from dptrain.training.step import NO_REQUESTS, GradientWork, TrainingStep
from dptrain.training.update import Update, make_update

# Float32 vectors of the parameters' length that a rank has in addition to one gradient a shard: the parameters, their
# copy for the workers, the summed gradient, the optimizer's scratch. Training adds the optimizer's slots and averages.
VECTORS = 4


@dataclass(frozen=True, eq=False, repr=False)
class Task:
    """A rank's samples, and the network."""

    communicator: Communicator
    manifest: Manifest
    placement: Placement
    shards: LocalShards
    architecture: Architecture
    network: Network
    threads: int
    environment: dict[str, str]


@dataclass(frozen=True, eq=False, repr=False)
class Engine(Task):
    """Makes steps and evaluations."""

    take_step: TrainingStep
    evaluation: EvaluationWork
    validation: EvaluationWork | None
    pool: ShardPool


@dataclass(frozen=True, eq=False, repr=False)
class Session(Engine):
    """What a rank trains with. `notes` are lines for the user."""

    origin: Origin
    schedule: Schedule
    last_step: int
    notes: list[str]


def set_up(
    config: TrainConfig,
    communicator: Communicator,
    loaded: LocalShards = NOTHING_LOADED,
    architecture: Architecture | None = None,
    l2_kib: int = 0,
) -> Session:
    """Everything that training needs; every rank fails with a DptrainError or none does.

    Shards in `loaded` are not read again, nor is the model file if its architecture is given. For `l2_kib` see
    `open_task`.
    """
    check = functools.partial(_check_training, config)
    task = open_task(config, communicator, check, loaded=loaded, architecture=architecture, l2_kib=l2_kib)
    manifest, network = task.manifest, task.network
    steps_per_epoch = count_steps(manifest, config.batch_size)
    total_steps = config.epochs * steps_per_epoch
    last_step = min(total_steps, config.max_steps or total_steps)
    batches = make_batches(config, manifest, task.shards)
    communicator.activity.enter("checking the model's layers")
    samples = samples_by_class(task.shards.train.values(), len(manifest.classes), communicator)
    with together(communicator):
        loss = make_loss(config, manifest.classes, samples)
        schedule = plan_schedule(config, steps_per_epoch)
        network.freeze(frozen_tensors(config.freeze, network))
        update = make_update(config, network, steps_per_epoch)
        reached = min(steps_per_epoch, last_step)
        check_microbatches(network.layers, manifest, config.batch_size, config.accumulate, reached)
        ends = ((min(batches), 0), (max(batches), min(1, steps_per_epoch - 1)))
        microbatches = (batches[shard].batch(0, step, Workspace()) for shard, step in ends)
        output = try_model(task.architecture, network, microbatches, config.seed)
    agree_on_model(task.architecture.source, output, task.environment, communicator)
    origin = _origin(config, task, steps_per_epoch, output)
    notes = machine_notes(task.environment, communicator)  # the last collective: no pool is left open if it fails
    if config.batch_size > (images := sum(entry.samples for entry in manifest.splits["train"])):
        notes.append(f"--batch-size {config.batch_size} is more than the {images} images of the training split")
    if config.warmup_steps >= last_step:
        notes.append(f"the warm-up never ends: --warmup-steps {config.warmup_steps} in a run of {last_step} steps")
    engine = assemble(config, task, batches, update, loss)
    return Session(**vars(engine), origin=origin, schedule=schedule, last_step=last_step, notes=notes)


def _check_training(config: TrainConfig, manifest: Manifest) -> None:
    """UsageError for a configuration that does not fit the data set."""
    count_steps(manifest, config.batch_size)
    make_transforms(config, manifest.image_shape, manifest.mean)  # for its checks
    check_views(config.tta, manifest.image_shape)
    if config.early_stop and "validation" not in manifest.splits:
        raise UsageError(
            "--early-stop needs a validation split, because the test split must not decide when a run ends; pack "
            "the data set with --validation-fraction 0.1"
        )


def _origin(config: TrainConfig, task: Task, steps_per_epoch: int, output: str) -> Origin:
    """What a checkpoint states about its run; `output` is the hash of what a user's model computes."""
    manifest, network, source = task.manifest, task.network, task.architecture.source
    return Origin(
        config=to_toml(config),
        architecture=tuple(network.description()),
        input_shape=manifest.image_shape,
        classes=manifest.classes,
        data_name=manifest.name,
        manifest_sha256=manifest.sha256,
        steps_per_epoch=steps_per_epoch,
        environment=task.environment,
        mean=manifest.mean,
        std=manifest.std,
        model_files=source.hashes() if source else {},
        model_output_sha256=output,
        spec=network.spec(),
        tuning=network.tuning(),
        fit=manifest.preparation.fit if manifest.preparation else "crop",
    )


def plan_schedule(config: ScheduleConfig, steps_per_epoch: int) -> Schedule:
    """The learning rate of each step of a run; UsageError for options that the schedule does not take."""
    total_steps = config.epochs * steps_per_epoch
    options = dict(config.schedule_options)
    try:
        check_options(config.schedule, options)
    except ValueError as error:
        raise UsageError(f"--schedule-options: {shown(error, 300)}") from error
    if "milestones" in options:
        options["milestones"] = [steps_of(epochs, steps_per_epoch) for epochs in options["milestones"]]
    return make_schedule(
        config.schedule,
        config.lr,
        total_steps,
        warmup_steps=config.warmup(total_steps),
        every=max(1, steps_of(config.step_epochs, steps_per_epoch)),
        factor=config.step_factor,
        **options,
    )


def open_task(
    config: TrainConfig,
    communicator: Communicator,
    check: Callable[[Manifest], None],
    splits: Sequence[str] | None = None,
    loaded: LocalShards = NOTHING_LOADED,
    architecture: Architecture | None = None,
    l2_kib: int = 0,
) -> Task:
    """Open the data set, build the network, load the rank's shards of some splits (default: all that there are).

    `check` may refuse the manifest.

    The network computes for the cache size that rank 0 chooses; `l2_kib` is that of a checkpoint, or 0.

    Every rank fails with a DptrainError or none does.
    """
    l2_kib = communicator.broadcast(choose_l2_kib(config, l2_kib))
    folder, threads = Path(config.data), config.threads or fair_threads(communicator)
    with together(communicator):
        environment = numeric_environment(config)
        manifest = read_manifest(folder)
        if (ranks := communicator.size) > manifest.shard_count:
            raise UsageError(
                f"{ranks} ranks, but {folder} has {manifest.shard_count} shards: start at most so many ranks, or pack "
                f"it again: {manifest.repack_command(folder, ranks)}"
            )
        placement = Placement(manifest.shard_count, ranks)
        check(manifest)
        splits = splits or manifest.split_names
        architecture = architecture or find_architecture(config.model)
        network = build_network(architecture, config.model_options, manifest.image_shape, len(manifest.classes))
        network.set_cache(l2_kib)
        numbers, size = placement.shards_of(communicator.rank), network.layout.size
        vectors = VECTORS
        if "train" in splits:
            slots = optimizer_class(config.optimizer).slots
            vectors += len(numbers) + len(slots) + (config.average != "none")
        check_memory(4 * size * vectors, f"{size:,} parameters and {len(numbers)} shards")
        shards = load_shards(folder, manifest, numbers, threads, splits, loaded, communicator.activity.progress)
    agreed = {"manifest_sha256": manifest.sha256, "architecture": network.description(), "algorithms": network.tuning()}
    agree_on("data set or network", agreed, communicator)
    assert splits is not None
    tallies = {split: [tally(samples, manifest) for samples in getattr(shards, split).values()] for split in splits}
    everyone = communicator.allgather(tallies)
    for split in splits:
        if problems := split_problems(manifest, split, [one for rank in everyone for one in rank[split]]):
            raise known_to_all(communicator, DataError(f"{shown(folder)}: {problems[0]}; pack the data set again"))
    return Task(communicator, manifest, placement, shards, architecture, network, threads, environment)


def choose_l2_kib(config: TrainConfig, earlier: int = 0) -> int:
    """The size of the second-level cache to compute for; `earlier` is that of a checkpoint, or 0."""
    return config.l2_kib or earlier or (DEFAULT_KIB if config.portable else second_level_cache())


def make_batches(config: TrainConfig, manifest: Manifest, shards: LocalShards) -> dict[int, ShardBatches]:
    size = config.batch_size // manifest.shard_count
    transforms = make_transforms(config, manifest.image_shape, manifest.mean)
    return {
        shard: ShardBatches(samples, shard, manifest, size=size, seed=config.seed, transforms=transforms)
        for shard, samples in shards.train.items()
    }


def assemble(
    config: TrainConfig,
    task: Task,
    batches: dict[int, ShardBatches],
    update: Update,
    loss: CrossEntropy = CROSS_ENTROPY,
) -> Engine:
    """Reduction, workers and pool. Whatever fails later must close the pool."""
    network, communicator = task.network, task.communicator
    lengths = Lengths(network.layout.size, network.buffer_layout.size, sums=4, requests=len(NO_REQUESTS))
    reducer = reducer_class(config.reduction)(task.placement, communicator, lengths)
    parts = min(config.accumulate, config.batch_size // task.manifest.shard_count)
    gradients = GradientWork(network, batches, reducer, loss, parts)
    evaluation = make_evaluation(task, task.manifest)
    has_validation = "validation" in task.manifest.splits
    validation = make_evaluation(task, task.manifest, "validation") if has_validation else None
    works: list[ShardWork[Any]] = [gradients, gradients.continuation, evaluation]
    works += [validation] if validation else []
    pool = make_pool(min(task.threads, len(batches)), works, communicator)
    take_step = TrainingStep(gradients, update, pool, communicator)
    return Engine(**vars(task), take_step=take_step, evaluation=evaluation, validation=validation, pool=pool)


def make_evaluation(task: Task, normalised_as: Manifest, split: str = "test") -> EvaluationWork:
    """The evaluation of one split of a task, with the mean and deviation of a manifest."""
    longest = max(entry.samples for entry in task.manifest.splits[split])
    normalise, recorder = Normalisation(normalised_as), task.communicator.recorder
    return EvaluationWork(task.network, getattr(task.shards, split), normalise, longest, recorder)
