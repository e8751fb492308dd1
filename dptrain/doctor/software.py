"""Python, and the packages that dptrain needs."""

from __future__ import annotations

import importlib.util
import platform
import re
import sys
from importlib.metadata import PackageNotFoundError, version

import dptrain
from dptrain.doctor.finding import Check, Finding, failure, ok

OLDEST_PYTHON = (3, 11)
# The oldest version of each package: those of pyproject.toml. The first three have checks of their own too.
OLDEST = {
    "numpy": "2.0",
    "h5py": "3.11",
    "mpi4py": "4.0",
    "threadpoolctl": "3.5",
    "rich": "13.7",
    "shtab": "1.7",
    "pooch": "1.8.1",
    "tomli-w": "1.0",
    "pillow": "10.1",
}


def checks() -> list[Check]:
    return [
        Check("Python", check_python, "use Python 3.11 or later"),
        Check("packages", check_packages, "install dptrain again: pip install --force-reinstall dptrain"),
    ]


def check_python(found: tuple[int, ...] = sys.version_info[:3]) -> Finding:
    """The version of Python."""
    text = f"{'.'.join(map(str, found))}, {sys.executable}, dptrain {dptrain.__version__}"
    if found < OLDEST_PYTHON:
        return failure(text, "dptrain needs Python 3.11 or later: make a new environment with it")
    return ok(text, python=platform.python_version(), executable=sys.executable, dptrain=dptrain.__version__)


def check_packages() -> Finding:
    """Which packages are missing or too old; by their metadata, so none is imported."""
    found = {name: installed_version(name) for name in OLDEST}
    wrong = [
        f"{name} {have or 'is missing'}"
        for name, have in found.items()
        if have != "unknown" and is_older(have, OLDEST[name])
    ]
    if wrong:
        wanted = " ".join(f"'{name}>={OLDEST[name]}'" for name in OLDEST if any(w.split()[0] == name for w in wrong))
        return failure(", ".join(wrong), f"{sys.executable} -m pip install {wanted}", packages=found)
    return ok(", ".join(f"{name} {have}" for name, have in found.items()), packages=found)


def installed_version(name: str) -> str:
    """The version of a package; "" if it is not installed, "unknown" if only its module is there."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown" if importlib.util.find_spec(name.replace("-", "_")) else ""


def is_older(found: str, than: str) -> bool:
    """Whether a version comes before another, by the numbers at its beginning: "1.26.4" before "2.0"."""
    return _numbers(found) < _numbers(than)


def _numbers(version: str) -> list[int]:
    beginning = re.match(r"[\d.]*", version)
    assert beginning is not None
    numbers = [int(part) for part in beginning[0].split(".") if part]
    while numbers and numbers[-1] == 0:  # 2.0 is 2
        numbers.pop()
    return numbers
