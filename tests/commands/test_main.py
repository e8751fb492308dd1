"""dptrain.commands.main: programs can read the results of a command; people can read its errors."""

from __future__ import annotations

import json
import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from command_runs import Done, assert_nothing_half_written, assert_one_error, dptrain_here, train, train_here
from mpi_runs import dptrain, mpirun, own_mpi
from training_runs import LAST_STEP, TEST, flags, packed

from dptrain import __version__
from dptrain.commands import COMMANDS
from dptrain.commands.main import main
from dptrain.commands.parser import build_parser
from dptrain.config.files import read_toml
from dptrain.config.train import TrainConfig
from dptrain.errors import UsageError
from dptrain.system.keys import flag
from launch.__main__ import make_parser


def test_flags_win_over_the_file_and_the_merged_configuration_is_saved(data: Path, tmp_path: Path) -> None:
    (tmp_path / "settings.toml").write_text("lr = 1\nmomentum = 0.5\nbatch-size = 20\nnesterov = true\n")
    more = ["--config", "settings.toml", "--no-nesterov", "--max-steps", "1"]
    done = train_here(data, tmp_path / "run", *more)
    assert done.returncode == 0, done.stderr
    saved = TrainConfig(**read_toml(tmp_path / "run" / "config.toml"))
    assert (saved.lr, saved.momentum, saved.batch_size, saved.nesterov) == (1.0, 0.5, 16, False)


FAILS_IN_TRAINING = """
from dptrain.nn.layers.flatten import Flatten
from dptrain.nn.layers.linear import Linear
from dptrain.parallel.mpi import launched_rank

class Bad(Linear):
    def forward(self, x, call):
        if launched_rank() == RANK and call.parameters["bias"].any():  # not in the first step
            raise ZeroDivisionError("a mistake in this very layer")
        return super().forward(x, call)

def build(input_shape, classes):
    return [Flatten(), Bad(classes)]
"""


def assert_traceback(done: Done, rank: int) -> None:
    assert done.returncode == 70
    where = f"dptrain: error: rank {rank} on {socket.gethostname()} failed: "
    assert f"{where}ZeroDivisionError: a mistake in this very layer\n" in done.stderr
    assert "Traceback (most recent call last)" in done.stderr
    assert "in forward" in done.stderr
    assert "ZeroDivisionError: a mistake in this very layer" in done.stderr
    assert done.stderr.count("dptrain: error:") == 1


def test_an_unforeseen_exception_shows_rank_host_and_traceback(data: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text(FAILS_IN_TRAINING.replace("RANK", "0"))
    assert_traceback(train(data, tmp_path / "run", model="bad.py:build", model_options={}), 0)
    assert_nothing_half_written(tmp_path / "run")


@pytest.mark.mpi
def test_an_exception_on_one_rank_ends_the_others(data: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text(FAILS_IN_TRAINING.replace("RANK", "1"))
    words = flags(data, tmp_path / "run", model="bad.py:build", model_options={})
    assert_traceback(dptrain("train", *words, cwd=tmp_path, mpi=own_mpi(), ranks=2, timeout=60), 1)


# Results


def test_train_inspect_and_eval_agree_in_json(data: Path, tmp_path: Path) -> None:
    done = train_here(data, tmp_path / "run", "--json")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    folder = Path(summary["run_dir"])
    inspected = json.loads(dptrain_here("inspect", folder, "--json", cwd=tmp_path).stdout)
    evaluated = json.loads(dptrain_here("eval", folder, data, "--json", cwd=tmp_path).stdout)
    assert inspected["params_sha256"] == summary["params_sha256"]
    assert inspected["step"] == summary["step"] == LAST_STEP
    assert inspected["epochs_completed"] == 2
    assert inspected["samples_seen"] == 2 * 101
    assert evaluated["loss"] == summary["test_loss"]
    assert evaluated["accuracy"] == inspected["test_accuracy"] == summary["test_accuracy"]
    assert evaluated["correct"] == round(summary["test_accuracy"] * TEST)
    assert (evaluated["samples"], list(evaluated["class_accuracy"])) == (TEST, inspected["classes"])
    assert inspected["parameter_count"] == 3 * 2 * 9 + 3 + 5 * 27 + 5
    assert inspected["parameters"]["conv1.weight"] == [3, 2, 3, 3]
    assert inspected["config"]["batch_size"] == 16
    assert f"params_sha256    {summary['params_sha256']}" in done.stdout


def test_inspect_and_eval_print_the_same_figures_for_people(data: Path, trained: Path, tmp_path: Path) -> None:
    figures = json.loads(dptrain_here("eval", trained, data, "--json", cwd=tmp_path).stdout)
    out = dptrain_here("eval", trained, data, cwd=tmp_path).stdout.splitlines()
    assert out[0] == (
        f"test loss {figures['loss']:.4f}, accuracy {100 * figures['accuracy']:.2f} % ({figures['correct']} of {TEST})"
    )
    assert [line.split() for line in out[1:]] == [
        [name, f"{100 * accuracy:.2f}", "%"] for name, accuracy in figures["class_accuracy"].items()
    ]
    facts = json.loads(dptrain_here("inspect", trained, "--json", cwd=tmp_path).stdout)
    shown = dptrain_here("inspect", trained, cwd=tmp_path).stdout
    assert f"params_sha256: {facts['params_sha256']}" in shown
    assert all(layer in shown for layer in facts["layers"])


def test_a_class_without_test_samples_has_no_accuracy(data: Path, trained: Path, tmp_path: Path) -> None:
    few = packed(tmp_path / "few", test=4)
    figures = json.loads(dptrain_here("eval", trained, few, "--json", cwd=tmp_path).stdout)
    empty = [name for name, accuracy in figures["class_accuracy"].items() if accuracy is None]
    assert empty
    out = dptrain_here("eval", trained, few, cwd=tmp_path).stdout
    assert out.count("no samples") == len(empty)


def test_a_reader_that_closes_the_pipe_ends_the_command_silently(trained: Path, tmp_path: Path) -> None:
    """`dptrain inspect RUN | head -1`"""
    command = f"{sys.executable} -u -m dptrain inspect {trained} | head -1"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True, check=False)
    assert done.stdout.startswith("step: ")
    assert done.stderr == ""
    assert done.returncode in (0, 141)  # 0 when everything fitted into the pipe


@pytest.mark.parametrize(("threads", "expected"), [("-1", "at least 0"), ("x", "a whole number")])
def test_eval_checks_its_flags_as_train_does(threads: str, expected: str, tmp_path: Path) -> None:
    done = dptrain_here("eval", "run", "data", "--threads", threads, cwd=tmp_path)
    assert_one_error(done, "--threads is", f"expected {expected}", status=2)


@pytest.mark.mpi
def test_a_model_file_that_exits_on_one_rank_ends_both_ranks(data: Path, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "import sys\nfrom dptrain.nn import Flatten, Linear\n"
        "from dptrain.parallel.mpi import launched_rank\n"
        "def build(input_shape, classes):\n    launched_rank() and sys.exit(3)\n"
        "    return [Flatten(), Linear(classes)]\n"
    )
    words = flags(data, tmp_path / "run", model=tmp_path / "net.py:build", model_options={})
    done = dptrain("train", *words, cwd=tmp_path, mpi=own_mpi(), ranks=2, timeout=60)
    assert done.returncode == 1
    assert done.stderr.count("dptrain: error:") == 1
    assert f"rank 1 on {socket.gethostname()}: --model" in done.stderr


UNLIKE_RANKS = """
import sys
from dptrain.commands import COMMANDS
from dptrain.commands.main import main
from dptrain.parallel.mpi import launched_rank
if launched_rank() == 0 and "FULL" == "MODE":
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 30, 1 << 30))
    sys.stderr = open("/dev/full", "w", buffering=1)
sys.exit(main(["train", *sys.argv[1:], *(["--lrr", "1"] if launched_rank() == RANK else [])]))
"""


@pytest.mark.mpi
@pytest.mark.parametrize("rank", [0, 1])
def test_a_wrong_flag_of_one_rank_ends_both_ranks(rank: int, data: Path, tmp_path: Path) -> None:
    """As in `mpirun -n 1 dptrain ... : -n 1 dptrain ...`."""
    program = tmp_path / "unlike.py"
    program.write_text(UNLIKE_RANKS.replace("RANK", str(rank)))
    done = mpirun(own_mpi(), 2, program, *flags(data, tmp_path / "run"), cwd=tmp_path, timeout=60)
    assert done.returncode == 2
    assert done.stderr.count("dptrain: error:") == 1
    assert f"rank {rank} on {socket.gethostname()}: unknown argument '--lrr'" in done.stderr


EXITS_IN_TRAINING = FAILS_IN_TRAINING.replace(
    'raise ZeroDivisionError("a mistake in this very layer")', "raise SystemExit(0)"
)


@pytest.mark.mpi
def test_a_layer_that_exits_on_one_rank_ends_the_others(data: Path, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(EXITS_IN_TRAINING.replace("RANK", "1"))
    words = flags(data, tmp_path / "run", model=tmp_path / "net.py:build", model_options={})
    done = dptrain("train", *words, cwd=tmp_path, mpi=own_mpi(), ranks=2, timeout=60)
    assert done.returncode != 0
    assert f"rank 1 on {socket.gethostname()} failed" in done.stderr


@pytest.mark.mpi
def test_a_rank_that_cannot_write_its_error_ends_the_others(data: Path, tmp_path: Path) -> None:
    """One log file per rank on a full disk: metrics and the error cannot be written."""
    program = tmp_path / "unlike.py"
    program.write_text(UNLIKE_RANKS.replace("MODE", "FULL").replace("RANK", "-1"))
    (tmp_path / "run").mkdir()
    with (tmp_path / "run" / "metrics.jsonl").open("w") as file:
        file.truncate(1 << 30)  # writing to this file always fails
    done = mpirun(own_mpi(), 2, program, *flags(data, tmp_path / "run"), cwd=tmp_path, timeout=60)
    assert done.returncode != 0


@pytest.mark.slow
def test_runs_started_at_the_same_time_get_separate_folders(data: Path, tmp_path: Path) -> None:
    words = flags(data, Path("x"))
    at = words.index("--run-dir")
    command = [sys.executable, "-m", "dptrain", "train", *words[:at], *words[at + 2 :], "--json"]
    jobs = [subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    folders = {json.loads(job.communicate(timeout=60)[0].splitlines()[-1])["run_dir"] for job in jobs}
    assert len(folders) == 3
    for folder in folders:
        assert (tmp_path / folder / "checkpoints" / f"step-{LAST_STEP:08d}.h5").is_file()


def test_the_installed_command_is_the_same_program(tmp_path: Path) -> None:
    installed = Path(sys.executable).with_name("dptrain")
    for command in ([str(installed)], [sys.executable, "-m", "dptrain"]):
        done = subprocess.run([*command, "--version"], capture_output=True, text=True, cwd=tmp_path, check=True)
        assert done.stdout == f"dptrain {__version__}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"usage: dptrain {command} ")
    assert err == ""


@pytest.mark.parametrize("command", [[], *([command] for command in COMMANDS if command != "prep")])
def test_a_help_is_as_wide_as_the_terminal(
    command: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main([*command, "--help"]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


def test_the_short_help_of_train_fits_the_screen(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["train", "-h"]) == 0
    short = capsys.readouterr().out
    assert len(short.splitlines()) < 24
    assert max(map(len, short.splitlines())) <= 80
    assert main(["train", "--help"]) == 0
    known = set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
    assert set(re.findall(r"--[a-z-]+", short)) <= known


@pytest.mark.parametrize("command", sorted(COMMANDS.keys() - {"prep"}))
def test_the_examples_of_a_help_are_valid_command_lines(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    lines = capsys.readouterr().out.split("examples:\n")[1].splitlines()
    assert len(lines) >= 2
    for line in lines if command != "completion" else []:  # those of completion are lines of other programs
        words = shlex.split(re.split("    | [<>] ", line.strip())[0])  # a text or a file may follow
        name = next(word for word in words if word in COMMANDS)
        after = words[words.index(name) + 1 :]
        if name == "launch":
            make_parser().parse_args(after[: after.index("--")])
            name, *after = after[after.index("--") + 1 :]
        if name == "doctor":
            assert after == []
        else:
            build_parser(name).parse_args([name, *after])


def test_data_prep_is_another_name_of_prep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data-prep", "shapes", str(tmp_path / "set"), "--train", "40", "--test", "20", "--shards", "2"]) == 0
    assert main(["prep", "info", str(tmp_path / "set"), "--json"]) == 0
    facts = capsys.readouterr().out
    assert json.loads(facts[facts.index("\n{") :])["samples"] == {"train": 40, "test": 20}


def test_help_has_every_flag_and_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for name, value in vars(TrainConfig()).items():
        assert name == "data" or flag(name) in text
        if value:
            assert f"default: {'on' if value is True else value})" in text


def test_numpy_is_imported_after_blas_is_limited_to_one_thread() -> None:
    program = "import sys, dptrain.commands.main; sys.exit(bool({'numpy', 'mpi4py'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_an_abbreviated_flag_is_an_error_with_the_full_flag() -> None:
    with pytest.raises(UsageError, match="did you mean '--checkpoint-every'"):
        build_parser("train").parse_args(["train", "set", "--checkpoint", "3"])


def test_an_option_before_a_command_with_its_own_command_line_is_handled(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version", "launch"]) == 0
    assert capsys.readouterr().out == f"dptrain {__version__}\n"
    assert main(["--unknown", "prep"]) == 2
    assert "unknown argument '--unknown'" in capsys.readouterr().err
