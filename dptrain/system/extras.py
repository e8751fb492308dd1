"""Packages that only an extra of dptrain installs."""

from __future__ import annotations

import importlib
from typing import Any

from dptrain.errors import UsageError


def from_extra(module: str, what: str) -> Any:
    """A module of the package that the extra of the same name installs; UsageError if it is missing.

    `what` needs it, in the words of the error.
    """
    package = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UsageError(
            f"{what} needs the package {package}, which cannot be loaded ({error}); install it with: "
            f"pip install 'dptrain[{package}]'"
        ) from error
