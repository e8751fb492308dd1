"""What the launcher of this process (mpirun, srun) says about it, before MPI is loaded."""

from __future__ import annotations

import os
from collections.abc import Sequence

# Variables that mpirun, srun and other launchers set for each process; the first one that is set is valid.
RANK_VARIABLES = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK")
SIZE_VARIABLES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS")


def launched_size() -> int | None:
    """How many ranks an MPI launcher started: None outside one, 0 if unknown. Does not import MPI, which takes 1 s."""
    if not any(variable in os.environ for variable in (*RANK_VARIABLES, *SIZE_VARIABLES[:2])):
        return None
    return first_number(SIZE_VARIABLES)


def launched_rank() -> int:
    """This process's rank according to its launcher; 0 outside one."""
    return first_number(RANK_VARIABLES)


def first_number(variables: Sequence[str]) -> int:
    """The number in the first of these environment variables that has one, else 0."""
    found = (os.environ[variable] for variable in variables if variable in os.environ)
    return next((int(text) for text in found if text.isdecimal()), 0)
