"""Checks of a user's model: its layers keep the rules, all ranks have the same code, and it is a checkpoint's code."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from dptrain.arrays.memory import Array
from dptrain.checkpoint.folder import KEPT
from dptrain.checkpoint.format import Origin
from dptrain.errors import ModelError
from dptrain.nn.hidden_state import Microbatch, check_layers, output_sha256
from dptrain.nn.network import Network
from dptrain.parallel.communicator import Communicator
from dptrain.system.text import shown
from dptrain.system.tracebacks import user_traceback
from dptrain.training.agreement import agree_on, comparable
from dptrain.training.architecture import Architecture
from dptrain.training.model_source import ModelSource, describe_error

UNSEEDED = "does it use random numbers without a seed, the process id, or other packages or data files?"


def try_model(
    architecture: Architecture,
    network: Network,
    microbatches: Iterable[Microbatch],
    seed: int,
    vectors: dict[str, Array] | None = None,
) -> str:
    """ModelError unless a user's layers keep the rules in two microbatches; returns `output_sha256`.

    With `vectors` only the prediction from them is tried, without them a step from the initial parameters. A network of
    the zoo is not tried, and returns "".
    """
    source = architecture.source
    if not architecture.is_users:
        return ""
    try:
        initial = network.initial(seed)
    except Exception as error:  # of a user's initialisation
        what = f"--model {architecture.model}: its initial parameters: {describe_error(error, source)}"
        raise ModelError(what, user_traceback(error)) from error
    first, second = microbatches
    modules = tuple if source is None else source.loaded
    check_layers(network, vectors or initial, first, second, modules, train=vectors is None)
    return output_sha256(network, initial)


def agree_on_model(
    source: ModelSource | None, output: str, environment: dict[str, str], communicator: Communicator
) -> None:
    """DptrainError on all ranks if they have other files, or other outputs (`output_sha256`) on equal machines."""
    if output:
        machine = " ".join(comparable(environment).values())
        advice = f"copy the model's files to all hosts; if only the output differs: {UNSEEDED}"
        hashes = source.hashes() if source else {}
        agree_on("model", {**hashes, f"its output with {machine}": output}, communicator, advice)


def changed_files(earlier: Origin, model: str, source: ModelSource | None) -> list[str] | None:
    """Files that differ between a checkpoint's `model` and the present one; None if an old checkpoint has no hashes."""
    if ":" not in model:
        return [] if source is None else sorted(source.files)
    if not earlier.model_files:
        return None
    if source is None:
        return sorted(earlier.model_files)
    return source.changed_files(earlier.model_files, Path(model.rpartition(":")[0]).name)


def model_change(
    path: Path, earlier: Origin, model: str, source: ModelSource | None, output: str, environment: dict[str, str]
) -> str:
    """How the present model differs from the checkpoint's `model`, for a message; "" if it does not."""
    if files := changed_files(earlier, model, source):
        kept = kept_model(path, model, earlier.model_files)
        advice = f"; its code was kept: --model {shown(kept, 300)}" if kept else ""
        return f"{shown(path)} was trained with other code of the model: {shown(', '.join(files), 300)}{advice}"
    same = comparable(earlier.environment) == comparable(environment)
    if same and output and output != earlier.model_output_sha256:
        if source is None:
            return f"the function {model} computes something else than when {shown(path)} was written"
        return f"the model has the same files as that of {shown(path)} but computes something else: {UNSEEDED}"
    return ""


def kept_model(checkpoint: Path, model: str, files: Mapping[str, str]) -> str:
    """FILE.py:FUNCTION of the copy in the checkpoint's run folder whose `files` have these SHA-256; "" without one.

    After changes that were allowed there are several, `model` and `model-2`, `model-3`, ...
    """
    file, _, function = model.rpartition(":")
    run = checkpoint if checkpoint.is_dir() else checkpoint.parent.parent
    for folder in sorted(run.glob(f"{KEPT}*")) if file else ():
        kept = folder / Path(file).name
        if kept.is_file() and not ModelSource(kept).changed_files(files, kept.name):
            return f"{kept}:{function}"
    return ""
