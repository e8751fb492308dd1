"""dptrain.training.evaluate_checkpoint: `dptrain eval` on the same and on other data sets, and what it refuses."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import resealed
from mpi_runs import mpirun, own_mpi
from training_runs import configuration, packed, run, session_and_state

from data_prep.pack import ImageData, LabelledImages, pack
from dptrain.checkpoint.format import checkpoint_bytes, read_checkpoint
from dptrain.data.manifest import REQUIRED, read_manifest
from dptrain.data.shard import read_shard
from dptrain.errors import CheckpointError, DataError, ModelError, UsageError
from dptrain.parallel.communicator import Communicator
from dptrain.training.evaluate import Evaluation
from dptrain.training.evaluate_checkpoint import evaluate_checkpoint

FEWER = "the hash of fewer parameters"
LAST = "checkpoints/step-00000014.h5"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A data set and the last checkpoint of a run on it."""
    folder = tmp_path_factory.mktemp("trained")
    data = packed(folder / "set")
    run(configuration(data, folder / "run"))
    return data, folder / "run" / LAST


def evaluation_of(data: Path, checkpoint: Path, model: str = "") -> Evaluation:
    return evaluate_checkpoint(read_checkpoint(checkpoint), checkpoint, data, Communicator(), model=model, threads=1)


@pytest.mark.parametrize(("change", "words"), [({"shape": (2, 6, 8)}, "(2, 6, 8)"), ({"classes": 4}, "'class-3')")])
def test_data_of_another_shape_or_other_classes_is_refused(
    change: dict[str, Any], words: str, trained: tuple[Path, Path], tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match="not the same task") as caught:
        evaluation_of(packed(tmp_path / "other", **change), trained[1])
    assert words in str(caught.value)


@pytest.mark.parametrize("average", ["ema", "lookahead"])
def test_the_average_is_evaluated_in_the_run_and_from_its_checkpoint(average: str, tmp_path: Path) -> None:
    data = packed(tmp_path / "set")
    finished, _ = run(configuration(data, tmp_path / "run", average=average, max_steps=13, lr=0.3))
    path = tmp_path / "run" / "checkpoints/step-00000013.h5"
    found = evaluation_of(data, path)
    assert (found.loss, found.accuracy) == (finished["test_loss"], finished["test_accuracy"])
    checkpoint = read_checkpoint(path)
    _, initial = session_and_state(configuration(data, tmp_path / "other"))
    assert not np.array_equal(checkpoint.state.vectors["average"], initial.parameters)
    layouts = {name: one for name, one in checkpoint.layouts.items() if not name.startswith("average")}
    raw = evaluate_checkpoint(checkpoint.restricted(layouts, path), path, data, Communicator(), threads=1)
    assert raw.loss != found.loss


def test_other_samples_of_the_same_task_are_evaluated(trained: tuple[Path, Path], tmp_path: Path) -> None:
    assert evaluation_of(packed(tmp_path / "other", test=11, seed=9, shards=2), trained[1]).samples == 11


def test_only_the_test_shards_are_opened(trained: tuple[Path, Path], tmp_path: Path) -> None:
    data = packed(tmp_path / "set")
    for path in data.glob("train-*"):
        path.unlink()
    assert evaluation_of(data, trained[1]).samples == 37
    (data / "test-001-of-004.h5").unlink()
    with pytest.raises(DataError, match="test-001-of-004"):
        evaluation_of(data, trained[1])


def repacked_beside_darker_images(data: Path, out: Path, classes: tuple[str, ...] = ()) -> Path:
    """The same test images in a data set of other, darker training images."""
    manifest = read_manifest(data)
    splits = {}
    for split in REQUIRED:
        parts = [read_shard(data, manifest, split, shard) for shard in range(manifest.shard_count)]
        images, labels = (np.concatenate([getattr(part, name) for part in parts]) for name in ("images", "labels"))
        splits[split] = LabelledImages(images // 3 if split == "train" else images, labels)
    pack(out, ImageData("darker", classes or manifest.classes, splits["train"], splits["test"]), shards=4)
    return out


def test_images_are_normalised_with_the_values_of_the_checkpoint(trained: tuple[Path, Path], tmp_path: Path) -> None:
    """The second data set has the same test images, but darker training images, so its mean and deviation differ."""
    data, checkpoint = trained
    darker = repacked_beside_darker_images(data, tmp_path / "darker")
    lines: list[str] = []
    found = [
        evaluate_checkpoint(
            read_checkpoint(checkpoint), checkpoint, folder, Communicator(), threads=1, note=lines.append
        )
        for folder in (data, darker)
    ]
    assert found[0].accuracy == found[1].accuracy
    assert found[0].loss == pytest.approx(
        found[1].loss, rel=1e-5
    )  # the shards differ, so the order of the sum differs too
    (line,) = lines
    assert line == f"images are normalised with the mean and deviation of the checkpoint; those of {darker} differ"


def test_the_evaluation_of_a_portable_run_without_portable_says_so(trained: tuple[Path, Path]) -> None:
    data, path = trained
    checkpoint = read_checkpoint(path)
    origin = replace(checkpoint.origin, config=checkpoint.origin.config.replace("portable = false", "portable = true"))
    lines: list[str] = []
    for one in (checkpoint, replace(checkpoint, origin=origin)):
        evaluate_checkpoint(one, path, data, Communicator(), threads=1, note=lines.append)
    (line,) = lines
    assert "is of a run with --portable" in line


@pytest.mark.parametrize("vector", ["parameters", "momentum"])
def test_a_checkpoint_with_a_value_that_is_not_finite_is_refused(
    vector: str, trained: tuple[Path, Path], tmp_path: Path
) -> None:
    """Only a program other than dptrain writes one."""
    data, path = trained
    checkpoint = read_checkpoint(path)
    checkpoint.state.vectors[vector][3] = np.nan
    broken = tmp_path / "broken.h5"
    broken.write_bytes(checkpoint_bytes(checkpoint.state, checkpoint.origin, checkpoint.layouts))
    message = r"broken\.h5: the (parameter|momentum of) conv1\.weight holds nan; use an earlier checkpoint"
    with pytest.raises(CheckpointError, match=message):
        run(configuration(data, tmp_path / "run", resume=str(broken)))
    if vector == "momentum":  # an evaluation does not read it
        assert evaluation_of(data, broken).samples == 37
        return
    with pytest.raises(CheckpointError, match=message):
        evaluation_of(data, broken)


@pytest.mark.slow
def test_a_checkpoint_without_a_mean_is_evaluated_with_that_of_the_data_set(tmp_path: Path) -> None:
    """One of format version 1."""
    folder = Path(__file__).parents[1] / "fixtures" / "version-1"
    checkpoint = read_checkpoint(folder / "checkpoint.h5")
    lines: list[str] = []
    found = evaluate_checkpoint(
        checkpoint, folder / "checkpoint.h5", folder / "data-set", Communicator(), threads=1, note=lines.append
    )
    assert found.accuracy == checkpoint.state.progress.test_accuracy
    assert len(lines) == 1
    assert "has no mean and deviation" in lines[0]


def other_shape(index: dict[str, Any]) -> None:
    for tensors in filter(None, index["vectors"].values()):
        tensors[0]["shape"] = [int(np.prod(tensors[0]["shape"]))]


def fewer(index: dict[str, Any]) -> None:
    for tensors in filter(None, index["vectors"].values()):
        del tensors[-1]
    index["params_sha256"] = FEWER


def at_another_step(index: dict[str, Any]) -> None:
    index["state"] |= {"step": 7, "epoch_samples": 0, "epoch_correct": 0, "test_accuracy": None}


def other_epochs(index: dict[str, Any]) -> None:
    index["origin"]["steps_per_epoch"] = 6


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (other_shape, "it has parameters [('conv1.weight', (54,)), "),
        (fewer, "('linear1.weight', (5, 27))], expected"),
        (at_another_step, "the file was edited"),
        (other_epochs, "the file was edited"),
    ],
)
def test_an_edited_checkpoint_that_does_not_fit_its_network_is_one_error(
    edit: Callable[[dict[str, Any]], None], words: str, trained: tuple[Path, Path], tmp_path: Path
) -> None:
    data, checkpoint = trained
    forged = tmp_path / "forged.h5"
    content = checkpoint.read_bytes()
    kept = read_checkpoint(checkpoint).state.parameters[:-5]

    def edited(index: dict[str, Any]) -> None:
        edit(index)
        if index["params_sha256"] is FEWER:
            index["params_sha256"] = hashlib.sha256(kept.tobytes()).hexdigest()

    forged.write_bytes(resealed(content, edited))
    with pytest.raises(CheckpointError) as caught:
        run(configuration(data, tmp_path / "run", resume=str(forged)))
    assert words in str(caught.value)
    if edit in (other_shape, fewer):
        with pytest.raises(CheckpointError) as caught:
            evaluation_of(data, forged)
        assert words in str(caught.value)


def test_classes_in_another_order_are_refused(trained: tuple[Path, Path], tmp_path: Path) -> None:
    classes = ("class-1", "class-0", "class-2", "class-3", "class-4")
    other = repacked_beside_darker_images(trained[0], tmp_path / "other", classes)
    with pytest.raises(CheckpointError, match="was trained for classes in this order"):
        evaluation_of(other, trained[1])


@pytest.fixture
def my_model(tmp_path: Path) -> tuple[Path, str]:
    """A file with an architecture, and its name for --model."""
    path = tmp_path / "net.py"
    path.write_text(
        "from dptrain.nn import Flatten, Linear\n"
        "def build(input_shape, classes):\n    return [Flatten(), Linear(classes)]\n"
    )
    return path, f"{path}:build"


def test_code_named_by_a_checkpoint_runs_only_with_model(my_model: tuple[Path, str], tmp_path: Path) -> None:
    path, model = my_model
    data = packed(tmp_path / "set")
    run(configuration(data, tmp_path / "run", model=model, model_options={}))
    path.write_text("raise SystemError('hostile code ran')\n" + path.read_text())
    with pytest.raises(UsageError, match=f"pass --model {re.escape(str(tmp_path / 'run' / 'model' / 'net.py'))}:build"):
        evaluation_of(data, tmp_path / "run" / LAST)
    with pytest.raises(ModelError, match="hostile code ran"):
        evaluation_of(data, tmp_path / "run" / LAST, model)


def test_an_architecture_file_may_move_but_its_layers_may_not_change(
    my_model: tuple[Path, str], tmp_path: Path
) -> None:
    path, model = my_model
    data = packed(tmp_path / "set")
    run(configuration(data, tmp_path / "run", model=model, model_options={}))
    moved = path.rename(tmp_path / "moved.py")
    assert evaluation_of(data, tmp_path / "run" / LAST, f"{moved}:build").samples == 37
    moved.write_text(moved.read_text().replace("Linear(classes)", "Linear(7), Linear(classes)"))
    with pytest.raises(CheckpointError, match="has another architecture"):
        evaluation_of(data, tmp_path / "run" / LAST, f"{moved}:build")


@pytest.mark.mpi
@pytest.mark.once
def test_missing_data_on_one_rank_ends_both_ranks(trained: tuple[Path, Path], tmp_path: Path) -> None:
    data, checkpoint = trained
    program = tmp_path / "wrapper.py"
    program.write_text(
        "import sys\nfrom dptrain.commands.main import main\nfrom dptrain.parallel.mpi import launched_rank\n"
        "sys.exit(main(['eval', sys.argv[1], '/nonexistent' if launched_rank() else sys.argv[2]]))\n"
    )
    done = mpirun(own_mpi(), 2, program, checkpoint, data, cwd=tmp_path, timeout=60)
    assert done.returncode == 1
    assert done.stderr.count("dptrain: error:") == 1
    assert "/nonexistent: no such folder" in done.stderr
