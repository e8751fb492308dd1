"""dptrain.doctor.software: versions of Python and of the packages."""

from __future__ import annotations

import tomllib
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from dptrain.doctor import software
from dptrain.doctor.finding import FAILURE, OK
from dptrain.doctor.software import OLDEST, check_packages, check_python, installed_version, is_older

CHECKOUT = Path(__file__).resolve().parents[2]


def test_the_oldest_versions_are_those_of_pyproject() -> None:
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    assert [f"{name}>={oldest}" for name, oldest in OLDEST.items()] == project["dependencies"]
    assert project["requires-python"] == ">=" + ".".join(map(str, software.OLDEST_PYTHON))


@pytest.mark.parametrize(
    ("found", "oldest", "older"),
    [
        ("1.26.4", "2.0", True),
        ("2.0.0", "2.0", False),
        ("2.10", "2.9", False),
        ("2.0rc1", "2.0", False),
        ("2", "2.1", True),
    ],
)
def test_versions_are_compared_by_their_numbers(found: str, oldest: str, older: bool) -> None:
    assert is_older(found, oldest) == older


def test_an_old_python_fails() -> None:
    assert check_python().result == OK
    found = check_python((3, 10, 4))
    assert (found.result, found.found.split(",")[0]) == (FAILURE, "3.10.4")
    assert "3.11" in found.remedy


def test_a_missing_and_an_old_package_fail_with_the_command_that_installs_them(monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_packages().result == OK
    versions = dict.fromkeys(OLDEST, "99") | {"rich": "", "h5py": "3.10.0", "pooch": "unknown"}
    monkeypatch.setattr(software, "installed_version", versions.__getitem__)
    found = check_packages()
    assert (found.result, found.found) == (FAILURE, "h5py 3.10.0, rich is missing")
    assert found.remedy.endswith("-m pip install 'h5py>=3.11' 'rich>=13.7'")


def test_a_module_without_metadata_has_an_unknown_version(monkeypatch: pytest.MonkeyPatch) -> None:
    def not_found(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(software, "version", not_found)
    assert installed_version("tomli-w") == "unknown"
    assert installed_version("no-such-package") == ""
