"""What a run holds a user's own model to: rules of its layers, one code on all ranks, the code of the checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from dptrain.arrays.memory import Array, Workspace
from dptrain.checkpoint.folder import KEPT
from dptrain.checkpoint.format import Origin
from dptrain.data.batches import Normalisation, ShardBatches
from dptrain.data.source import Source
from dptrain.errors import ModelError
from dptrain.nn.hidden_state import check_layers, output_sha256
from dptrain.nn.network import Network
from dptrain.parallel.communicator import Communicator, known_to_all
from dptrain.system.tracebacks import user_traceback
from dptrain.training.architecture import Architecture
from dptrain.training.model_source import ModelSource, failed


def check_training(
    architecture: Architecture, network: Network, batches: Mapping[int, ShardBatches], steps_per_epoch: int, seed: int
) -> str:
    """ModelError unless a user's layers keep the rules in two of this rank's microbatches: of other shards if it can.

    Returns `output_sha256`; "" for networks of the zoo, which are not computed.
    """
    if architecture.source is None:
        return ""
    vectors = _initial(architecture, network, seed)
    shards = sorted(batches)
    first = batches[shards[0]].batch(0, 0, Workspace())
    second = batches[shards[-1]].batch(0, min(1, steps_per_epoch - 1), Workspace())
    check_layers(network, vectors, first, second, architecture.source.loaded)
    return output_sha256(network, vectors)


def check_prediction(
    architecture: Architecture,
    network: Network,
    vectors: Mapping[str, Array],
    shards: Mapping[int, Source],
    normalise: Normalisation,
    seed: int,
) -> str:
    """The same for an evaluation, which only needs the logits: in the first block of the first and the last shard."""
    if architecture.source is None:
        return ""
    ends = [shards[shard] for shard in (min(shards), max(shards))]
    block = slice(network.block)
    first, second = ((normalise(own.rows(block), Workspace()), own.labels[block]) for own in ends)
    check_layers(network, vectors, first, second, architecture.source.loaded, train=False)
    return output_sha256(network, _initial(architecture, network, seed))


def _initial(architecture: Architecture, network: Network, seed: int) -> dict[str, Array]:
    try:
        return network.initial(seed)
    except Exception as error:  # of a user's initialisation
        assert architecture.source is not None
        raise ModelError(
            f"--model {architecture.model}: its initial parameters: {failed(error, architecture.source)}",
            user_traceback(error),
        ) from error


def agree_on_model(
    source: ModelSource | None, output: str, environment: dict[str, str], communicator: Communicator
) -> None:
    """ModelError on all ranks when files of a model differ between ranks, or what it computes on machines that do not.

    `output` is its `output_sha256`. A file that only some ranks import may be anything.
    """
    if source is None:
        return
    everyone = communicator.allgather((source.hashes(), output, environment))
    files, expected, machine = everyone[0]
    for rank, (hashes, found, other) in zip(communicator.world_ranks, everyone, strict=True):
        different = [name for name, digest in hashes.items() if files.get(name, digest) != digest]
        if different:
            error = ModelError(
                f"rank {rank} has loaded another {different[0]} than rank {communicator.world_ranks[0]}: copy the "
                "model's files to all hosts, and do not edit them while a job starts"
            )
            raise known_to_all(communicator, error)
        if found != expected and other == machine:
            error = ModelError(
                f"rank {rank} computes another output than rank {communicator.world_ranks[0]} from the same images and "
                f"parameters, by the same files: {UNSEEDED}"
            )
            raise known_to_all(communicator, error)


UNSEEDED = (
    "does the model draw without a seed while it is imported or built, depend on the process, or use packages or data "
    "files that differ?"
)


def changed_code(earlier: Origin, model: str, source: ModelSource | None) -> list[str] | None:
    """Files that differ between a checkpoint's `model` and the present one; None when an old checkpoint has no hash."""
    if ":" not in model:
        return [] if source is None else sorted(source.files)
    if not earlier.model_files:
        return None
    if source is None:
        return sorted(earlier.model_files)
    return source.changed_files(earlier.model_files, Path(model.rpartition(":")[0]).name)


def computes_otherwise(earlier: Origin, output: str, environment: dict[str, str]) -> bool:
    """Whether a user's model computes something else than when the checkpoint was written, on a like machine."""
    known = bool(output and earlier.model_output_sha256)
    return known and earlier.environment == environment and earlier.model_output_sha256 != output


def warning(checkpoint: Path, model: str, files: Mapping[str, str], changed: list[str] | None, otherwise: bool) -> str:
    """What to warn of before an evaluation is shown; "" when the code is that of the checkpoint.

    `changed` and `otherwise` are as `changed_code` and `computes_otherwise` return them.
    """
    if changed is None:
        return f"{checkpoint} does not hold the hash of its model file, so a change of it is not noticed"
    if not changed:
        return f"the model computes something else than when {checkpoint} was written: {UNSEEDED}" * otherwise
    kept = kept_model(checkpoint, model, files)
    return (
        f"not the code that {checkpoint} was trained with: {', '.join(changed)}. The figures are not those of the "
        f"trained network{f'; for those use the code that was kept: --model {kept}' if kept else ''}"
    )


def kept_model(checkpoint: Path, model: str, files: Mapping[str, str]) -> str:
    """FILE.py:FUNCTION of the copy in the checkpoint's run folder whose `files` have these SHA-256; "" without one.

    After changes that were allowed there are several, `model` and `model.1`, `model.2`, ...
    """
    file, _, function = model.rpartition(":")
    run = checkpoint if checkpoint.is_dir() else checkpoint.parent.parent
    main = Path(file).name
    earlier = sorted(run.glob(f"{KEPT}.[0-9]*"), key=lambda folder: (len(folder.name), folder.name))
    for folder in (run / KEPT, *earlier) if file else ():
        kept = folder / main
        if kept.is_file() and not ModelSource(kept).changed_files(files, main):
            return f"{kept}:{function}"
    return ""
