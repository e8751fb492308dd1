"""Environments with packages that are too large for that of the other tests."""

from __future__ import annotations

import os
import subprocess
import venv
from pathlib import Path


def python_with(package: str, folder: Path, *requirements: str) -> Path:
    """The Python of a new environment with these requirements, or the one that DPTRAIN_TEST_<package>_PYTHON names."""
    if named := os.environ.get(f"DPTRAIN_TEST_{package.upper()}_PYTHON"):
        return Path(named)
    venv.create(folder, with_pip=True)
    subprocess.run([folder / "bin/python", "-m", "pip", "install", "-q", *requirements], check=True)
    return folder / "bin" / "python"
