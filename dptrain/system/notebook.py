"""Notebooks, where everything that a command prints is saved in a file."""

from __future__ import annotations

import os
import sys

# Set by Jupyter for its kernels, and so for what they start; by Kaggle and Colab, whose kernels are their own.
VARIABLES = ("JPY_PARENT_PID", "JPY_SESSION_NAME", "KAGGLE_KERNEL_RUN_TYPE", "COLAB_RELEASE_TAG")


def in_notebook() -> bool:
    """Whether a notebook shows what this process prints: it is a kernel, or was started by one."""
    return "ipykernel" in sys.modules or any(variable in os.environ for variable in VARIABLES)
