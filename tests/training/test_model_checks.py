"""dptrain.training.model_checks: a run keeps the code of its model, can be reproduced from it, and detects changes."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from command_runs import train
from mpi_runs import dptrain, mpirun, own_mpi
from training_runs import configuration, flags, packed, run

from dptrain.checkpoint.folder import RunFolder
from dptrain.checkpoint.format import checkpoint_bytes, read_checkpoint
from dptrain.commands.main import main
from dptrain.config.files import read_toml
from dptrain.config.train import TrainConfig
from dptrain.errors import CheckpointError

NET = """
import numpy as np
from dptrain.nn import Flatten, Linear
from squash import Squash

def build(input_shape, classes, width=4):
    return [Flatten(), Linear(width), Squash(), Linear(classes)]
"""
SQUASH = """
import numpy as np
from dptrain.nn import Layer

class Squash(Layer):
    kind = "squash"
    def forward(self, x, call):
        y = np.tanh(x)
        return y, y
    def backward(self, dy, y, call):
        return dy * (1 - y * y)
"""
RECTIFY = SQUASH.replace("np.tanh(x)", "np.maximum(x, 0)").replace("1 - y * y", "y > 0")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packed(tmp_path_factory.mktemp("data") / "set")


@pytest.fixture
def model(tmp_path: Path) -> str:
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "net.py").write_text(NET)
    (folder / "squash.py").write_text(SQUASH)
    return f"{folder / 'net.py'}:build"


@pytest.fixture
def begun(model: str, data: Path, tmp_path: Path) -> TrainConfig:
    """The configuration of a run that has made 3 steps."""
    config = configuration(data, tmp_path / "run", model=model, model_options={}, max_steps=3)
    run(config)
    return replace(config, max_steps=5)


def kept(tmp_path: Path) -> dict[str, str]:
    folder = tmp_path / "run" / "model"
    return {path.name: path.read_text() for path in folder.rglob("*")}


def test_the_files_are_in_the_run_folder_and_their_hashes_in_the_checkpoint(begun: TrainConfig, tmp_path: Path) -> None:
    assert kept(tmp_path) == {"net.py": NET, "squash.py": SQUASH}
    origin = read_checkpoint(tmp_path / "run" / "checkpoints" / "step-00000003.h5").origin
    assert list(origin.model_files) == ["net.py", "squash.py"]
    assert all(len(digest) == 64 for digest in origin.model_files.values())


def test_a_resume_with_changed_code_is_an_error_that_lists_the_files(begun: TrainConfig, tmp_path: Path) -> None:
    """Found in the field: tanh became ReLU in a user's layer, and the resume continued as if nothing had happened."""
    (tmp_path / "code" / "squash.py").write_text(RECTIFY)
    with pytest.raises(CheckpointError) as caught:
        run(begun)
    assert (
        f"was trained with other code of the model: squash.py; its code was kept: --model {tmp_path}/run/model/net.py"
        in str(caught.value)
    )
    assert "--allow-changed-model" in str(caught.value)
    assert kept(tmp_path)["squash.py"] == SQUASH
    run(replace(begun, model=f"{tmp_path / 'run' / 'model' / 'net.py'}:build"))  # as advised


@pytest.mark.slow
def test_changed_code_is_reported_if_the_layers_differ_too(begun: TrainConfig, data: Path, tmp_path: Path) -> None:
    """Found in the field: the error was about --model, which was correct."""
    net = tmp_path / "code" / "net.py"
    net.write_text(NET.replace("width=4", "width=5"))
    with pytest.raises(CheckpointError, match=r"trained with other code of the model: net\.py"):
        run(begun)
    done = dptrain("eval", "run", data, "--model", f"{net}:build", cwd=tmp_path)
    assert "(run was trained with other code of the model: net.py; its code was kept: --model run/model" in done.stderr


def test_a_resume_with_the_same_code_in_another_folder_has_no_note(begun: TrainConfig, tmp_path: Path) -> None:
    summary, memory = run(begun)
    assert (summary["step"], memory.lines) == (5, [])
    (tmp_path / "code").rename(tmp_path / "moved")
    _, memory = run(replace(begun, max_steps=7, model=f"{tmp_path / 'moved' / 'net.py'}:build"))
    assert memory.lines == []


def test_changed_code_is_allowed_by_a_flag_and_both_versions_are_kept(begun: TrainConfig, tmp_path: Path) -> None:
    (tmp_path / "code" / "squash.py").write_text(RECTIFY)
    _, memory = run(replace(begun, allow_changed_model=True))
    (line,) = memory.lines
    assert "step-00000003.h5 was trained with other code of the model: squash.py; its code was kept: --model" in line
    assert kept(tmp_path)["squash.py"] == RECTIFY
    assert (tmp_path / "run" / "model-2" / "squash.py").read_text() == SQUASH
    assert not read_toml(tmp_path / "run" / "config.toml").get("allow_changed_model", False)
    _, memory = run(replace(begun, max_steps=7))  # the newest checkpoint is of the new code
    assert memory.lines == []


def test_the_advice_names_the_copy_of_the_code_of_the_checkpoint(
    begun: TrainConfig, data: Path, tmp_path: Path
) -> None:
    """Found in the field: the advice named the copy of the new code, which had just been refused."""
    (tmp_path / "code" / "squash.py").write_text(RECTIFY)
    run(replace(begun, allow_changed_model=True))
    old = tmp_path / "run" / "checkpoints" / "step-00000003.h5"
    with pytest.raises(CheckpointError) as caught:
        run(replace(begun, run_dir=str(tmp_path / "other"), resume=str(old)))
    advised = f"{tmp_path / 'run' / 'model-2' / 'net.py'}:build"
    assert f"--model {advised}" in str(caught.value)
    run(replace(begun, run_dir=str(tmp_path / "other"), resume=str(old), model=advised))


def test_code_in_place_of_a_named_architecture_counts_as_changed(data: Path, tmp_path: Path) -> None:
    net = tmp_path / "net.py"
    net.write_text("from dptrain.nn.zoo import linear as build\n")
    config = configuration(data, tmp_path / "run", model="linear", model_options={}, max_steps=3)
    run(config)
    with pytest.raises(CheckpointError, match=r"other code of the model: net\.py"):
        run(replace(config, model=f"{net}:build", max_steps=5))


def test_a_checkpoint_of_version_1_without_hashes_is_resumed(begun: TrainConfig, tmp_path: Path) -> None:
    path = tmp_path / "run" / "checkpoints" / "step-00000003.h5"
    there = read_checkpoint(path)
    path.write_bytes(checkpoint_bytes(there.state, replace(there.origin, model_files={}), there.layouts))
    _, memory = run(begun)
    assert memory.lines == []


@pytest.mark.slow
def test_a_run_is_reproduced_from_its_folder_alone(begun: TrainConfig, data: Path, tmp_path: Path) -> None:
    """With the saved configuration, in another folder, after the model file was deleted."""
    summary, _ = run(begun)
    shutil.rmtree(tmp_path / "code")
    shutil.move(tmp_path / "run", tmp_path / "copy")
    (tmp_path / "new").mkdir()
    config = tmp_path / "copy" / "config.toml"
    assert read_toml(config)["model"] == "model/net.py:build"
    done = dptrain("train", data, "--config", "../copy/config.toml", "--run-dir", "run", "--json", cwd=tmp_path / "new")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["params_sha256"] == summary["params_sha256"]
    assert (tmp_path / "new" / "run" / "model" / "squash.py").read_text() == SQUASH
    done = dptrain("eval", "copy", data, "--model", "copy/model/net.py:build", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_eval_warns_about_changed_code(
    begun: TrainConfig, data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Found in the field: a different accuracy without a message."""
    words = ["eval", str(tmp_path / "run"), str(data), "--model", begun.model, "--threads", "1", "--json"]
    assert main(words) == 0
    same = capfd.readouterr()
    assert same.err == ""
    assert json.loads(same.out)["changed_model_files"] == []
    (tmp_path / "code" / "squash.py").write_text(RECTIFY)
    assert main(words) == 0
    other = capfd.readouterr()
    assert json.loads(other.out)["changed_model_files"] == ["squash.py"]
    assert other.err.startswith(f"dptrain: WARNING: {tmp_path / 'run'} was trained with other code of the model: ")
    kept_file = tmp_path / "run" / "model" / "net.py"
    assert f"squash.py; its code was kept: --model {kept_file}:build. These figures are not those of" in other.err
    assert main(words[:-1]) == 0
    assert "dptrain: WARNING: " in capfd.readouterr().err


def test_eval_runs_code_of_the_run_folder_only_with_model(model: str, data: Path, tmp_path: Path) -> None:
    trace = tmp_path / "executed"
    net = tmp_path / "code" / "net.py"
    net.write_text(f"import pathlib\npathlib.Path({str(trace)!r}).touch()\n{NET}")
    run(configuration(data, tmp_path / "run", model=model, model_options={}, max_steps=1))
    trace.unlink()
    done = dptrain("eval", "run", data, cwd=tmp_path)
    assert done.returncode == 2
    assert "pass --model run/model/net.py:build" in done.stderr
    assert not trace.exists()


def test_code_that_changes_during_the_run_is_not_read_again(data: Path, model: str, tmp_path: Path) -> None:
    """The saved code is the executed code."""
    net = tmp_path / "code" / "net.py"
    net.write_text(NET + "\nimport pathlib\npathlib.Path(__file__).write_text('raise SystemError')\n")
    before = net.read_text()
    run(configuration(data, tmp_path / "run", model=model, model_options={}, max_steps=3))
    assert kept(tmp_path)["net.py"] == before


def test_a_kill_while_the_code_is_written_leaves_no_partial_copy(
    begun: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder(tmp_path / "new")
    folder.claim()
    rename = Path.rename

    def killed(path: Path, target: Path) -> Path:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        folder.keep_model({"net.py": b"1", "package/part.py": b"2"})
    assert not (folder.path / "model").exists()
    monkeypatch.setattr(Path, "rename", rename)
    folder.keep_model({"net.py": b"3"})
    assert {path.name for path in folder.path.iterdir()} == {"checkpoints", "metrics.jsonl", "model"}
    folder.close()


@pytest.mark.mpi
@pytest.mark.once
def test_ranks_with_different_code_end_with_one_error(data: Path, model: str, tmp_path: Path) -> None:
    """As on hosts without a common file system; the layers have the same lines."""
    shutil.copytree(tmp_path / "code", tmp_path / "other")
    (tmp_path / "other" / "squash.py").write_text(RECTIFY)
    program = tmp_path / "unlike.py"
    program.write_text(
        "import os, sys\nfrom dptrain.commands.main import main\n"
        "from dptrain.parallel.mpi import launched_rank\n"
        "os.chdir('other' if launched_rank() else 'code')\nsys.exit(main(['train', *sys.argv[1:]]))\n"
    )
    words = flags(data, tmp_path / "run", model="net.py:build", model_options={})
    done = mpirun(own_mpi(), 2, program, *words, cwd=tmp_path, timeout=60)
    assert done.returncode == 1
    assert done.stderr.count("dptrain: error:") == 1
    assert "has another model than rank 0: squash.py is" in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_neighbour_that_breaks_a_rule_is_reported_from_the_command_line(
    data: Path, model: str, tmp_path: Path
) -> None:
    (tmp_path / "code" / "squash.py").write_text(SQUASH.replace("np.tanh(x)", "np.tanh(x) * np.random.random()"))
    done = train(data, tmp_path / "run", model=model, model_options={})
    assert done.returncode == 1
    assert "layer squash1 (Squash) uses a global random generator" in done.stderr


UNSEEDED = """
MASK = np.random.random(4).astype(np.float32)

class Masked(Linear):
    def forward(self, x, call):
        y, saved = super().forward(x, call)
        return y * MASK, saved

def build(input_shape, classes):
    return [Flatten(), Masked(4), Linear(classes)]
"""


@pytest.mark.slow
def test_a_model_that_draws_without_a_seed_is_not_resumed(data: Path, model: str, tmp_path: Path) -> None:
    """The files are the same, but each process builds a different network."""
    (tmp_path / "code" / "net.py").write_text(NET + UNSEEDED)
    config = configuration(data, tmp_path / "run", model=model, model_options={}, max_steps=3)
    run(config)
    with pytest.raises(CheckpointError, match="but computes something else: does it use random numbers without a seed"):
        run(replace(config, max_steps=5))
    done = dptrain("eval", "run", data, "--model", model, cwd=tmp_path)
    assert done.returncode == 0
    assert done.stderr.startswith(
        "dptrain: WARNING: the model has the same files as that of run but computes something else"
    )
    run(replace(config, max_steps=5, allow_changed_model=True))


@pytest.mark.mpi
@pytest.mark.once
def test_ranks_whose_models_draw_without_a_seed_end_with_one_error(data: Path, model: str, tmp_path: Path) -> None:
    (tmp_path / "code" / "net.py").write_text(NET + UNSEEDED)
    words = flags(data, tmp_path / "run", model=model, model_options={})
    done = dptrain("train", *words, cwd=tmp_path, mpi=own_mpi(), ranks=2, timeout=60)
    assert done.returncode == 1
    assert done.stderr.count("dptrain: error:") == 1
    assert "has another model than rank 0: its output with" in done.stderr
    assert not (tmp_path / "run").exists()
