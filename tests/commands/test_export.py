"""`dptrain export`: formats, figures, the PyTorch module, errors for people."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from command_runs import assert_one_error, dptrain_here
from training_runs import CLASSES, SHAPE, configuration, run

from dptrain.checkpoint.folder import RunFolder
from dptrain.checkpoint.pretrained import read_pretrained
from dptrain.export import FORMATS
from dptrain.export.pytorch import source
from dptrain.training.rebuild import network_of

MODEL = """
from dptrain.nn import Conv2d, Flatten, Linear


def build(input_shape, classes):
    return [Conv2d(3), Flatten(), Linear(classes)]


def other(input_shape, classes):
    return [Conv2d(4), Flatten(), Linear(classes)]
"""


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_run_folder_is_exported_and_the_figures_are_printed(suffix: str, trained: Path, tmp_path: Path) -> None:
    newest = RunFolder(trained).newest(print)
    assert newest is not None
    done = dptrain_here("export", trained, "--to", f"model{suffix}", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    figures, sha = json.loads(done.stdout), newest[1].state.params_sha256
    assert figures["bytes"] == (tmp_path / f"model{suffix}").stat().st_size
    assert (figures["params_sha256"], figures["values"], figures["step"]) == (sha, "parameters", 14)
    assert (tuple(figures["input_shape"]), len(figures["classes"])) == (SHAPE, CLASSES)
    lines = dptrain_here("export", newest[0], "--to", f"again{suffix}", cwd=tmp_path).stdout.splitlines()
    assert lines == [
        f"again{suffix}: {figures['bytes']:,} bytes; images 2x6x7, 5 classes",
        f"parameters of step 14, params_sha256 {sha}",
    ]
    assert {path.name for path in tmp_path.iterdir()} == {f"model{suffix}", f"again{suffix}"}


def test_print_torch_prints_the_module_alone(trained: Path, tmp_path: Path) -> None:
    newest = RunFolder(trained).newest(print)
    assert newest is not None
    done = dptrain_here("export", trained, "--print-torch", cwd=tmp_path)
    assert done.stdout == source(newest[1], network_of(newest[1], trained))
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("words", "expected", "status"),
    [
        (["--to", "model.pt"], "expected a file that ends with .onnx, .safetensors, .npz", 2),
        (["--to", "no/model.npz"], "no/model.npz: cannot be written: No such file or directory", 2),
        ([], "one of the arguments --to --print-torch is required", 2),
        (["--print-torch", "--json"], "leave out --json", 2),
    ],
)
def test_what_cannot_be_exported_is_one_error(
    words: list[str], expected: str, status: int, trained: Path, tmp_path: Path
) -> None:
    assert_one_error(dptrain_here("export", trained, *words, cwd=tmp_path), expected, status=status)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("package", ["onnx", "safetensors"])
def test_a_missing_package_is_an_error_with_the_command_that_installs_it(
    package: str, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == package] + [package]:
        monkeypatch.setitem(sys.modules, name, None)
    done = dptrain_here("export", trained, "--to", f"model.{package}", cwd=tmp_path)
    assert_one_error(done, f"needs the package {package}", f"pip install 'dptrain[{package}]'", status=2)


def test_the_code_of_a_users_model_runs_only_when_it_is_given(data: Path, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(MODEL)
    model, folder = f"{tmp_path / 'net.py'}:build", tmp_path / "run"
    run(configuration(data, folder, model=model, model_options={}, max_steps=1))
    refused = dptrain_here("export", folder, "--to", "model.onnx", cwd=tmp_path)
    assert_one_error(refused, "Refusing to run model code", "model/net.py:build", status=2)
    done = dptrain_here("export", folder, "--to", "model.onnx", "--model", model, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    wrong = dptrain_here("export", folder, "--to", "model.onnx", "--model", f"{model[:-5]}other", cwd=tmp_path)
    assert_one_error(wrong, "has another architecture")
    assert dptrain_here("export", folder, "--to", "model.npz", cwd=tmp_path).returncode == 0
    assert len(read_pretrained(tmp_path / "model.npz", {"conv1.bias": (3,)}, print).tensors) == 1
