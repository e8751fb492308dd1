"""Fixtures for every test."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def cifar10_archive() -> Path:
    """A real cifar-10-binary.tar.gz; its sibling cifar-10-python.tar.gz lies beside it."""
    named = os.environ.get("DPTRAIN_CIFAR10_ARCHIVE")
    path = Path(named) if named else Path.home() / ".cache" / "dptrain" / "cifar-10-binary.tar.gz"
    path = path.with_name("cifar-10-binary.tar.gz")
    if not path.exists():
        message = f"no CIFAR-10 archive at {path}; name one with DPTRAIN_CIFAR10_ARCHIVE"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return path
