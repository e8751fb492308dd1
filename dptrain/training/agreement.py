"""Checks that all ranks have the same configuration, files and state, and notes on different machines."""

from __future__ import annotations

import hashlib
import platform
import socket
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np

import dptrain
from dptrain.checkpoint.state import Layouts, TrainingState
from dptrain.config.train import TrainConfig
from dptrain.errors import DptrainError, TrainingError
from dptrain.parallel.communicator import Communicator, known_to_all
from dptrain.system.blas import ensure_one_thread, ensure_portable_kernels
from dptrain.system.text import shown

PORTABLE = " (portable)"  # after the model of the CPU
NOT_FOUND = "a tensor that was not found again"  # failing memory may read differently the next time


def numeric_environment(config: TrainConfig) -> dict[str, str]:
    """Libraries, CPU and reduction: the results depend on them in addition to the configuration.

    In a portable run the CPU is marked as such, and the results do not depend on it; DptrainError unless OpenBLAS uses
    the kernels of a portable run.
    """
    blas, cpu = ensure_one_thread(), _cpu_model()
    if config.portable:
        ensure_portable_kernels(blas)
        cpu += PORTABLE
    return {"numpy": np.__version__, **blas, "cpu": cpu, "reduction": config.reduction}


def comparable(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment without what the bits do not depend on: the CPU of a portable run."""
    portable = environment.get("cpu", "").endswith(PORTABLE)
    return {**environment, "cpu": "any"} if portable else {**environment}


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def agree_on(
    what: str,
    values: Mapping[str, object],
    communicator: Communicator,
    advice: str = "start all ranks with the same flags and files",
) -> None:
    """DptrainError on all ranks if a value differs from rank 0's. Values that only one of the two has are ignored."""
    everyone = communicator.allgather((socket.gethostname(), dict(values)))
    first = everyone[0][1]
    for rank, (host, found) in zip(communicator.world_ranks, everyone, strict=True):
        for name, value in first.items():
            if found.get(name, value) != value:
                error = DptrainError(
                    f"rank {rank} on {host} has another {what} than rank {communicator.world_ranks[0]}: {name} is "
                    f"{found[name]!r}, not {value!r}; {advice}"
                )
                raise known_to_all(communicator, error)


def without_paths(config: TrainConfig) -> dict[str, object]:
    """The values that must be the same on all ranks. Paths may differ, as hosts have different disks."""
    resume = config.resume if config.resume in ("auto", "never") else "a path"
    given = {name: bool(getattr(config, name)) for name in ("data", "run_dir", "init_from")}
    return vars(config) | given | {"resume": resume, "model": config.model.rpartition("/")[2]}


def machine_notes(environment: dict[str, str], communicator: Communicator) -> list[str]:
    """A note if machines or libraries of the ranks differ, and one for a different Python."""
    python = f"{sys.executable} {platform.python_version()}, dptrain {dptrain.__version__}"
    gathered = communicator.allgather((socket.gethostname(), python, environment))
    everyone = [(host, other_python, comparable(other)) for host, other_python, other in gathered]
    _, first_python, first = everyone[0]
    different = sorted({key for *_, other in everyone for key in other if other[key] != first.get(key)})
    notes = []
    if different:
        notes.append(f"the ranks' machines differ ({', '.join(different)}): bits may depend on the number of ranks")
    for rank, (host, other, _) in enumerate(everyone):
        if other != first_python:
            notes.append(
                f"rank {rank} on {shown(host)} runs another Python: {shown(other)}; rank 0: {shown(first_python)}. "
                "If that is not intended, start with dptrain launch, or with mpirun -x PATH"
            )
            break
    return notes


def check_replicas(state: TrainingState, layouts: Layouts, communicator: Communicator) -> None:
    """TrainingError unless all ranks hold the same vectors to the bit.

    It names each rank that differs from the majority, and the first tensor that does.
    """
    hashes = communicator.allgather(state.digest())
    if len(set(hashes)) == 1:
        return
    common = max(set(hashes), key=hashes.count)
    agreeing = f"{hashes.count(common)} of {len(hashes)} agree"
    digests = {name: hashlib.sha256(values.tobytes()).digest() for name, values in state.tensors(layouts)}
    everyone = communicator.allgather((socket.gethostname(), digests))
    ranks = [f"rank {rank} on {host}" for rank, (host, _) in zip(communicator.world_ranks, everyone, strict=True)]
    tensors = [digests for _, digests in everyone]
    if 2 * hashes.count(common) > len(hashes):
        right = tensors[hashes.index(common)]
        found = ", ".join(
            f"{rank} differs from the others ({agreeing}) from {first_difference([right, digests])} on"
            for rank, digests, digest in zip(ranks, tensors, hashes, strict=True)
            if digest != common
        )
    else:
        found = f"{', '.join(ranks)} differ from {first_difference(tensors)} on, and no majority says which are right"
    message = (
        f"step {state.step}: {found}; suspect memory or library versions. Ranks are compared before each checkpoint, "
        "so the last one is sound: start again from it with --resume auto"
    )
    raise known_to_all(communicator, TrainingError(message))


def first_difference(replicas: list[dict[str, bytes]]) -> str:
    """The first tensor that is not the same in all of them."""
    return next((name for name in replicas[0] if len({one[name] for one in replicas}) > 1), NOT_FOUND)
