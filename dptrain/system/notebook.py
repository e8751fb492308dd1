"""Notebooks save everything that a command prints in a file."""

from __future__ import annotations

import os
import sys

# Set by Jupyter, Kaggle and Colab for their kernels, and inherited by processes that a kernel starts.
VARIABLES = ("JPY_PARENT_PID", "JPY_SESSION_NAME", "KAGGLE_KERNEL_RUN_TYPE", "COLAB_RELEASE_TAG")


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook, or was started by one."""
    return "ipykernel" in sys.modules or any(variable in os.environ for variable in VARIABLES)
