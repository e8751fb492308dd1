"""dptrain.checkpoint.migrate: checkpoints of earlier formats are read to the bit, or refused."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from checkpoints import OLD, refused
from command_runs import Done, dptrain_here
from mpi_runs import dptrain, own_mpi

from dptrain.checkpoint.format import USER_BLOCK, Checkpoint, read_checkpoint
from dptrain.checkpoint.migrate import header_1, layer_lines
from dptrain.errors import CheckpointError
from dptrain.nn.layers.conv import Conv2d

EARLY = OLD.parents[1] / "version-2-early" / "checkpoint.h5"  # written before the release of version 2
SAVED_STEP, LAST_STEP = {OLD: 3, EARLY: 4}, 6


@pytest.fixture(params=SAVED_STEP, ids=lambda path: path.parent.name)
def saved(request: pytest.FixtureRequest) -> Path:
    """An old checkpoint."""
    return Path(request.param)


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A working folder with an old data set and a run that has the checkpoint."""
    shutil.copytree(OLD.parent / "data-set", tmp_path / "data-set")
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    shutil.copy(saved, tmp_path / "run" / "checkpoints" / f"step-{SAVED_STEP[saved]:08d}.h5")
    return tmp_path


FLAGS = "--batch-size 4 --epochs 2 --warmup-steps 3 --threads 1 --run-dir run"
MODELS = {OLD: ["--model", "linear"], EARLY: ["--model-options", "widths = [2]"]}


@pytest.mark.mpi
@pytest.mark.once
@pytest.mark.parametrize("ranks", [1, 2])
def test_an_old_run_is_resumed_on_its_old_data_and_evaluated(ranks: int, saved: Path, folder: Path) -> None:
    def command(*words: str) -> Done:
        if ranks == 1:
            return dptrain_here(*words, "--json", cwd=folder)
        return dptrain(*words, "--json", cwd=folder, mpi=own_mpi(), ranks=ranks)

    evaluated = command("eval", "run", "data-set")
    assert json.loads(evaluated.stdout)["accuracy"] == read_checkpoint(saved).state.progress.test_accuracy
    done = command("train", "data-set", *FLAGS.split(), *MODELS[saved])
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["step"] == LAST_STEP
    start = json.loads((folder / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert (start["event"], start["step"]) == ("start", SAVED_STEP[saved])
    assert "algorithm" not in done.stderr  # no note: the same layers with the same algorithms
    evaluated = dptrain_here("eval", "run", "data-set", "--json", cwd=folder)
    assert json.loads(evaluated.stdout)["accuracy"] == summary["test_accuracy"]


def sha256(checkpoint: Checkpoint, vector: str) -> str:
    return hashlib.sha256(checkpoint.state.vectors[vector].tobytes()).hexdigest()


def test_a_checkpoint_of_version_1_is_read() -> None:
    found = read_checkpoint(OLD)
    assert vars(found.state.progress) == {
        "step": 3,
        "samples_seen": 11,
        "epoch_loss": 19.259045124053955,
        "epoch_correct": 3,
        "epoch_samples": 11,
        "test_accuracy": 0.4,
        "validation_accuracy": None,
        "best_validation": None,
        "best_step": 0,
    }
    assert found.layouts["parameters"].shapes == {"linear1.weight": (3, 24), "linear1.bias": (3,)}
    assert sha256(found, "parameters") == "5269df5317764b36341bc0ec113cddffaceed0af45277de51c75efd5a03745be"
    assert sha256(found, "momentum") == "8918e00088ac781d8d312bfe5606e447ab1236e2a1302b7806b79454a2a225a8"
    assert (found.origin.classes, found.origin.input_shape) == (("class-0", "class-1", "class-2"), (2, 3, 4))
    assert (found.origin.mean, found.origin.std, found.notes) == ((), (), ())


def test_an_early_checkpoint_of_version_2_is_read() -> None:
    found = read_checkpoint(EARLY)
    assert found.state.step == 4
    assert sha256(found, "parameters") == "7769f6489ef7c2b6d6af80510d714951c094e1073359effaae971f7c429254d3"
    assert list(found.layouts) == ["parameters", "buffers", "momentum"]
    assert found.layouts["momentum"].shapes == found.layouts["parameters"].shapes
    assert found.origin.tuning == {"conv1": {"algorithm": "im2col"}}
    assert (len(found.origin.mean), found.origin.spec, found.notes) == (2, {}, ())


def test_lines_of_layers_are_compared_without_the_algorithm_and_without_a_users_arguments() -> None:
    convolution = Conv2d(2, (3, 3), padding=1)
    convolution.bind((2, 3, 4))
    old = [
        "input (2, 3, 4)",
        "conv1: Conv2d(2, (3, 3), stride=(1, 1), padding=(1, 1), algorithm='im2col') -> (2, 3, 4)",
        "scale1: Scale(factor=2.0, shape=(2, 3, 4)) -> (2, 3, 4)",
    ]
    new = ["input (2, 3, 4)", f"conv1: {convolution!r} -> (2, 3, 4)", "scale1: Scale(2.0) -> (2, 3, 4)"]
    assert layer_lines(old) == layer_lines(new)
    assert layer_lines(old) != layer_lines([line.replace("(3, 3)", "(5, 5)") for line in new])


def test_a_file_of_a_later_hdf5_version_is_reported_as_such(tmp_path: Path) -> None:
    """What HDF5 1.14 reports for a file that HDF5 2.0 wrote, and here for one with a superblock of version 99."""
    body = bytearray(OLD.read_bytes())[USER_BLOCK:]
    body[8] = 99
    path = tmp_path / "later.h5"
    path.write_bytes(sealed(bytes(body)))
    with pytest.raises(CheckpointError, match="bad superblock version number"):
        read_checkpoint(path)


def sealed(body: bytes) -> bytes:
    """A file of version 1 with a correct header."""
    return header_1(body).ljust(USER_BLOCK, b"\0") + body


def edited(content: bytes, edit: Callable[[h5py.File], None]) -> bytes:
    buffer = io.BytesIO(content)
    with h5py.File(buffer, "r+") as file:
        edit(file)
    return sealed(buffer.getvalue()[USER_BLOCK:])


def replace_dataset(file: h5py.File, name: str, new: Any) -> None:
    del file[name]
    file[name] = new


def hide_behind_soft_link(file: h5py.File, name: str) -> None:
    """The correct contents, behind a link."""
    file.move(name, "hidden")
    file[name] = h5py.SoftLink("/hidden")


def external_storage(file: h5py.File, elsewhere: Path) -> None:
    raw = elsewhere.with_suffix(".raw")
    raw.write_bytes(file["params/linear1.bias"][()].tobytes())  # the contents are correct: only their position is wrong
    del file["params/linear1.bias"]
    file["params"].create_dataset("linear1.bias", (3,), "<f4", external=[(str(raw), 0, 12)])


def virtual_dataset(file: h5py.File, elsewhere: Path) -> None:
    layout = h5py.VirtualLayout((3,), "<f4")
    layout[:] = h5py.VirtualSource(str(elsewhere), "params/linear1.bias", (3,))
    del file["params/linear1.bias"]
    file["params"].create_virtual_dataset("linear1.bias", layout)


def endless_dataset(file: h5py.File, elsewhere: Path) -> None:
    """64 TiB by its shape, nothing on the disk."""
    del file["params/linear1.bias"]
    file["params"].create_dataset("linear1.bias", (1 << 22, 1 << 22), "<f4", chunks=(64, 64))


EDITS: dict[str, Callable[[h5py.File, Path], None]] = {
    "soft link": lambda file, elsewhere: hide_behind_soft_link(file, "params/linear1.bias"),
    "external link": lambda file, elsewhere: replace_dataset(
        file, "params/linear1.bias", h5py.ExternalLink(str(elsewhere), "/params/linear1.bias")
    ),
    "group that is an external link": lambda file, elsewhere: replace_dataset(
        file, "params", h5py.ExternalLink(str(elsewhere), "/params")
    ),
    "group behind a soft link": lambda file, elsewhere: hide_behind_soft_link(file, "momentum"),
    "endless dataset": endless_dataset,
    "external storage": external_storage,
    "virtual dataset": virtual_dataset,
    "float64": lambda file, elsewhere: replace_dataset(file, "params/linear1.bias", np.zeros(3)),
    "big endian": lambda file, elsewhere: replace_dataset(file, "params/linear1.bias", np.zeros(3, ">f4")),
    "missing momentum": lambda file, elsewhere: file["momentum"].__delitem__("linear1.bias"),
    "additional parameter": lambda file, elsewhere: file["params"].__setitem__("x.bias", np.zeros(3, np.float32)),
    "group in place of a parameter": lambda file, elsewhere: (
        file["params"].__delitem__("linear1.bias"),
        file["params"].create_group("linear1.bias"),
    )[0],
    "missing attribute": lambda file, elsewhere: file.attrs.__delitem__("epoch_loss"),
    "text in place of a number": lambda file, elsewhere: file.attrs.__setitem__("step", "nine"),
    "environment that is no JSON": lambda file, elsewhere: file.attrs.__setitem__("environment", "{"),
    "other parameters than the hash says": lambda file, elsewhere: replace_dataset(
        file, "params/linear1.bias", np.zeros(3, np.float32)
    ),
    "other format": lambda file, elsewhere: file.attrs.__setitem__("format", "dptrain-dataset"),
}


@pytest.mark.slow
@pytest.mark.parametrize("edit", EDITS)
def test_a_file_of_version_1_with_wrong_contents_and_correct_hashes_is_refused(edit: str, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere.h5"
    elsewhere.write_bytes(OLD.read_bytes())
    content = edited(OLD.read_bytes(), lambda file: EDITS[edit](file, elsewhere))
    assert refused(tmp_path / "edited.h5", content)


def test_an_edit_that_changes_nothing_is_accepted(tmp_path: Path) -> None:
    """This shows that the tests above are refused for their change, not because the file was rewritten."""
    assert not refused(tmp_path / "edited.h5", edited(OLD.read_bytes(), lambda file: None))


def test_a_file_with_a_correct_hash_that_is_not_hdf5_is_refused(tmp_path: Path) -> None:
    assert refused(tmp_path / "noise.h5", sealed(np.random.default_rng(0).bytes(4000)))


@pytest.mark.slow
def test_no_file_beside_the_checkpoint_is_opened(tmp_path: Path) -> None:
    """A link to a named pipe: a program that opens it waits forever."""
    pipe = tmp_path / "pipe.h5"
    os.mkfifo(pipe)
    names = ("params", "params/linear1.bias", "momentum/linear1.bias")
    for name in names:
        link = h5py.ExternalLink(str(pipe), "/" + name)
        content = edited(OLD.read_bytes(), partial(replace_dataset, name=name, new=link))
        (tmp_path / f"linked-{names.index(name)}.h5").write_bytes(content)
    program = [sys.executable, "-c", READ_ALL, str(tmp_path)]
    done = subprocess.run(program, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.count("not a readable checkpoint") == len(names), done.stderr


READ_ALL = """
import sys
from pathlib import Path
from dptrain.checkpoint.format import read_checkpoint
from dptrain.errors import CheckpointError
for path in Path(sys.argv[1]).glob("linked-*.h5"):
    try:
        read_checkpoint(path)
    except CheckpointError as error:
        print(error)
"""
