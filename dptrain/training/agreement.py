"""Checks that all ranks have the same configuration and files, and notes on different machines."""

from __future__ import annotations

import platform
import socket
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np

import dptrain
from dptrain.config.train import TrainConfig
from dptrain.errors import DptrainError
from dptrain.parallel.communicator import Communicator, known_to_all
from dptrain.system.blas import ensure_one_thread
from dptrain.system.text import shown


def numeric_environment(reduction: str) -> dict[str, str]:
    """Libraries, CPU and reduction: the results depend on them in addition to the configuration."""
    return {"numpy": np.__version__, **ensure_one_thread(), "cpu": _cpu_model(), "reduction": reduction}


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
    given = {"data": bool(config.data), "run_dir": bool(config.run_dir)}
    return vars(config) | given | {"resume": resume, "model": config.model.rpartition("/")[2]}


def machine_notes(environment: dict[str, str], communicator: Communicator) -> list[str]:
    """A note if machines or libraries of the ranks differ, and one for a different Python."""
    python = f"{sys.executable} {platform.python_version()}, dptrain {dptrain.__version__}"
    everyone = communicator.allgather((socket.gethostname(), python, environment))
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
