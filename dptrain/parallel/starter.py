"""Which program has started this process, by its environment, and what to do if its ranks cannot reach each other."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from enum import Enum


class Starter(Enum):
    """A program that starts ranks; the value is what it is called in messages."""

    OPEN_MPI = "mpirun of Open MPI"
    MPICH = "mpirun of MPICH"
    SRUN = "srun without --mpi"
    SRUN_PMIX = "srun --mpi=pmix"
    SRUN_PMI2 = "srun --mpi=pmi2"
    PMIX = "a launcher that speaks PMIx"
    PMI = "a launcher that speaks PMI"


def starter(environment: Mapping[str, str]) -> Starter | None:
    """The innermost of the programs that have set variables here; None without one.

    mpirun may run inside srun, so that the variables of srun are there as well.
    """
    namespace = environment.get("PMIX_NAMESPACE", "")
    in_step = "SLURM_STEP_ID" in environment
    if "OMPI_COMM_WORLD_SIZE" in environment or namespace.startswith("prterun"):
        return Starter.OPEN_MPI
    if "MPI_LOCALNRANKS" in environment:
        return Starter.MPICH
    if namespace.startswith("slurm") or ("PMIX_RANK" in environment and in_step):
        return Starter.SRUN_PMIX
    if "PMIX_RANK" in environment:
        return Starter.PMIX
    if "PMI_RANK" in environment or "PMI_SIZE" in environment:
        return Starter.SRUN_PMI2 if in_step else Starter.PMI
    return Starter.SRUN if in_step or "SLURM_STEP_NUM_TASKS" in environment else None


def is_left_over(environment: Mapping[str, str]) -> bool:
    """Whether PMI's variables are there without the connection that they describe, for a single rank.

    A shell that was itself started as a rank hands them down to all that it starts.
    """
    descriptor = environment.get("PMI_FD", "")
    if starter(environment) not in (Starter.SRUN_PMI2, Starter.PMI, Starter.MPICH) or not descriptor.isdecimal():
        return False
    if environment.get("PMI_SIZE", "1") != "1":
        return False
    try:
        os.fstat(int(descriptor))
    except (OSError, OverflowError):
        return True
    return False


def remedy(found: Starter | None, library: str, environment: Mapping[str, str]) -> str:
    """What to do if ranks cannot reach each other through the MPI `library`; "" if that is not known."""
    mpich = "MPICH" in library
    protocol = "pmi2" if mpich else "pmix"
    by_srun = f"{'MPICH' if mpich else 'Open MPI'} needs srun --mpi={protocol}"
    if not library:
        by_srun = "use srun --mpi=pmix for Open MPI, or srun --mpi=pmi2 for MPICH"
    listed = "`srun --mpi=list` shows what this Slurm has"
    launcher = "sbatch launch/slurm.sh and dptrain launch work without it"
    if found is Starter.SRUN or (found is Starter.SRUN_PMI2 and not mpich) or (found is Starter.SRUN_PMIX and mpich):
        return f"{by_srun}; {listed}; {launcher}"
    if found in (Starter.SRUN_PMIX, Starter.SRUN_PMI2):
        return f"its {protocol} does not fit this MPI library; {launcher}"
    if found in (Starter.OPEN_MPI, Starter.MPICH):
        return f"use the mpirun beside {sys.executable}, or dptrain launch, which finds it"
    named = [name for name in ("PMI_RANK", "PMI_SIZE", "PMIX_RANK") if name in environment]
    return f"start the ranks with dptrain launch, or unset {', '.join(named)} if no launcher has started this process"
