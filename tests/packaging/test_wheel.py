"""A wheel of this checkout in a new folder: every way to start, also next to folders and files of the same names."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from launch_runs import CHECKOUT

from dptrain import __version__

SOURCES = ("dptrain", "data_prep", "launch", "pyproject.toml", "README.md", "LICENSE")
BROKEN = "raise SystemExit('the wrong module was imported')\n"
TRAINED = ("--run-dir", "run", "--batch-size", "8", "--max-steps", "2", "--model", "linear")

Done = subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that a wheel was installed into; it is built from a copy, since building leaves files behind."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in SOURCES:
        if (CHECKOUT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(CHECKOUT / name, source / name, symlinks=True, ignore=ignored)
        else:
            shutil.copy(CHECKOUT / name, source)
    quiet = ("--quiet", "--no-deps", "--no-index", "--disable-pip-version-check")
    pip = [sys.executable, "-m", "pip"]
    subprocess.run([*pip, "wheel", *quiet, "--no-build-isolation", "-w", folder, source], check=True)
    (wheel,) = folder.glob("*.whl")
    subprocess.run([*pip, "install", *quiet, "--no-compile", "--target", folder / "installed", wheel], check=True)
    return folder / "installed"


class Installation:
    """Runs programs of an installation in a folder."""

    def __init__(self, installed: Path, folder: Path) -> None:
        self.installed, self.folder = installed, folder

    def dptrain(self, *words: str) -> Done:
        return self._run(str(self.installed / "bin" / "dptrain"), *words)

    def module(self, name: str, *words: str) -> Done:
        return self._run(sys.executable, "-m", name, *words)

    def _run(self, *command: str) -> Done:
        return subprocess.run(
            command,
            cwd=self.folder,
            env=os.environ | {"PYTHONPATH": str(self.installed)},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )


def assert_right(done: Done, *words: str) -> None:
    assert done.returncode == 0, done.stdout + done.stderr
    for word in words:
        assert word in done.stdout


@pytest.mark.slow
def test_dptrain_is_the_only_top_level_package_and_is_complete(installed: Path) -> None:
    """Found in the field: the wheel had the top-level packages `launch` and `data_prep`, as ROS 2 and users do."""
    assert {path.name for path in installed.iterdir()} == {"bin", "dptrain", f"dptrain-{__version__}.dist-info"}
    for package in ("dptrain", "data_prep", "launch"):
        parts = installed / ("dptrain" if package == "dptrain" else f"dptrain/{package}")
        for source in (CHECKOUT / package).rglob("*.py"):
            if "__pycache__" not in source.parts:
                assert (parts / source.relative_to(CHECKOUT / package)).is_file()
    assert (installed / "dptrain" / "py.typed").is_file()
    assert {path.name for path in (CHECKOUT / "dptrain" / "recipes").glob("*.toml")} == {
        path.name for path in (installed / "dptrain" / "recipes").glob("*.toml")
    }
    for name in ("page.html", "run.html", "compare.html", "page.css", "page.js"):
        assert (installed / "dptrain" / "report" / "page" / name).is_file()
    assert {path.name for path in (CHECKOUT / "launch").glob("*.sh")} == {
        path.name for path in (installed / "dptrain" / "launch").glob("*.sh")
    }


@pytest.mark.mpi
@pytest.mark.once
def test_every_command_works_in_a_folder_with_things_of_the_same_names(installed: Path, tmp_path: Path) -> None:
    """Found in the field: a folder named dptrain, such as a clone, broke every `python -m` start."""
    (tmp_path / "dptrain").mkdir()
    (tmp_path / "data_prep.py").write_text(BROKEN)
    (tmp_path / "launch").mkdir()
    (tmp_path / "launch" / "__init__.py").write_text(BROKEN)
    run = Installation(installed, tmp_path)
    assert_right(run.dptrain("prep", "shapes", "set", "--train", "40", "--test", "20", "--shards", "2"), "shapes")
    assert_right(run.module("dptrain.data_prep", "info", "set"), "40 training and 20 test images")
    launched = run.dptrain("launch", "-n", "2", "--", "train", "set", *TRAINED)
    assert_right(launched, "2 ranks", "run/checkpoints/best.h5 (chosen on the test split: ")
    assert_right(run.dptrain("eval", "run", "set"), "accuracy")
    assert_right(run.module("dptrain", "inspect", "run"), "step: 2")
    assert_right(run.module("dptrain.launch", "-n", "2", "--", "inspect", "run"), "step: 2")
    assert run.dptrain("--version").stdout == f"dptrain {__version__}\n"


@pytest.mark.mpi
@pytest.mark.once
def test_the_script_starts_ranks_of_the_installed_package(installed: Path, tmp_path: Path) -> None:
    """Also where the working directory holds a whole package of that name."""
    (tmp_path / "dptrain").mkdir()
    (tmp_path / "dptrain" / "__init__.py").write_text(BROKEN)
    run = Installation(installed, tmp_path)
    assert_right(run.dptrain("prep", "shapes", "set", "--train", "40", "--test", "20", "--shards", "2"))
    assert_right(run.dptrain("launch", "-n", "2", "--", "train", "set", *TRAINED), "2 ranks")


@pytest.mark.mpi
@pytest.mark.once
def test_a_checkout_that_is_not_installed_starts_its_ranks_from_the_working_directory(
    installed: Path, tmp_path: Path
) -> None:
    for name in ("dptrain", "data_prep", "launch"):
        (tmp_path / name).symlink_to(CHECKOUT / name)
    program = (
        f"import sys; from pathlib import Path; checkout = Path({str(CHECKOUT)!r})\n"
        "sys.path = ['', *(entry for entry in sys.path if entry and Path(entry).resolve() != checkout)]\n"
        "from launch.supervise import safe_path; print(safe_path())"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_the_version_is_stated_once() -> None:
    assert __version__ not in (CHECKOUT / "pyproject.toml").read_text()
