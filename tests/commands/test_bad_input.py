"""Bad input to dptrain: each kind is one clear error with a status, and no partial file is left."""

from __future__ import annotations

import re
import resource
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from command_runs import Done, assert_nothing_half_written, assert_one_error, dptrain_here, train, train_here
from mpi_runs import dptrain, own_mpi
from training_runs import LAST_STEP, flags, packed


@pytest.fixture
def copied_data(data: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(data, tmp_path / "copied-set"))


# Damaged data


def remove(folder: Path) -> None:
    (folder / "train-001-of-004.h5").unlink()


def alter(folder: Path) -> None:
    path = folder / "train-001-of-004.h5"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(folder: Path) -> None:
    path = folder / "train-001-of-004.h5"
    path.write_bytes(path.read_bytes()[:-9])


def swap(folder: Path) -> None:
    one, other = (folder / f"train-00{number}-of-004.h5" for number in (1, 2))
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)


def manifest_of_another_version(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"version": 3', '"version": 4'))


def manifest_cut_short(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(path.read_text()[:-40])


def no_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


DAMAGES = {
    "missing": (remove, ["train-001-of-004.h5: cannot be read: No such file", "pack the data set again"]),
    "altered": (alter, ["train-001-of-004.h5: ", "SHA-256", "altered"]),
    "truncated": (truncate, ["train-001-of-004.h5", "SHA-256", "cut short"]),
    "swapped": (swap, ["train-001-of-004.h5", "SHA-256"]),
    "other version": (manifest_of_another_version, ["manifest.json", "version 4, this program reads versions 1 to 3"]),
    "manifest cut short": (manifest_cut_short, ["manifest.json", "cannot be read as JSON"]),
    "no manifest": (no_manifest, ["not a data set", "give the folder of a packed data set"]),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_data_is_one_error_and_makes_no_run_folder(damage: str, copied_data: Path, tmp_path: Path) -> None:
    break_it, words = DAMAGES[damage]
    break_it(copied_data)
    assert_one_error(train_here(copied_data, tmp_path / "run"), *words)
    assert not (tmp_path / "run").exists()


# Wrong command lines


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--batch-size", "18"], ["--batch-size 18 is not a multiple of the 4 shards", "16 and 20"]),
        (["--batch-sise", "16"], ["'--batch-sise'", "did you mean '--batch-size'?"]),
        (["--batch_size=16"], ["'--batch_size'", "did you mean '--batch-size'?"]),
        (["--batch", "16"], ["'--batch'", "did you mean '--batch-size'?"]),
        (["--batch-size", "many"], ["--batch-size", "'many'"]),
        (["--lr", "-1"], ["--lr is -1.0, expected above 0"]),
        (["--schedule", "cosin"], ["--schedule is 'cosin'", "did you mean 'cosine'?"]),
        (["--model", "convnit"], ["did you mean 'convnet'?"]),
        (["--model-options", "widths"], ["--model-options 'widths'", "not TOML"]),
        (["another"], ["'another'"]),
    ],
)
def test_a_wrong_flag_or_value_is_one_error_with_advice(
    more: list[str], words: list[str], data: Path, tmp_path: Path
) -> None:
    assert_one_error(train_here(data, tmp_path / "run", *more), *words, status=2)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trian", "set"], ["unknown command 'trian'", "did you mean 'train'?"]),
        (["train"], ["no data set", "dptrain prep cifar10"]),
        ([], ["required"]),
        (["eval"], ["checkpoint, data"]),
        (["--lr", "0.1"], ["unknown command '0.1'", "train"]),
    ],
)
def test_a_wrong_command_is_one_error(arguments: list[str], words: list[str], tmp_path: Path) -> None:
    assert_one_error(dptrain_here(*arguments, cwd=tmp_path), *words, status=2)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("batch-sise = 16\n", ["settings.toml", "unknown key 'batch-sise'", "did you mean 'batch-size'?"]),
        ('lr = "fast"\n', ["--lr is 'fast', expected a number"]),
        ("lr = \n", ["settings.toml", "not TOML"]),
        ("epochs = 0\n", ["--epochs is 0, expected at least 1"]),
    ],
)
def test_a_wrong_configuration_file_is_one_error(text: str, words: list[str], data: Path, tmp_path: Path) -> None:
    (tmp_path / "settings.toml").write_text(text)
    done = dptrain_here("train", data, "--config", "settings.toml", "--run-dir", "run", cwd=tmp_path)
    assert_one_error(done, *words, status=2)
    assert not (tmp_path / "run").exists()


# Wrong checkpoints and run folders


@pytest.mark.parametrize(
    ("changes", "words", "status"),
    [
        ({"model": "linear", "model_options": {}}, ["another architecture", "Give the --model it was trained with"], 1),
        ({"model_options": {"widths": [4]}}, ["another architecture", "Conv2d(3", "Conv2d(4"], 1),
        ({"seed": 1}, ["another run", "--seed 0 there, 1 here"], 1),
        ({"resume": "never"}, ["--resume never", "already holds a run"], 2),
    ],
)
def test_a_run_folder_of_another_run_is_refused_and_kept(
    changes: dict[str, object], words: list[str], status: int, data: Path, trained: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(trained, tmp_path / "run"))
    before = {path: path.read_bytes() for path in folder.rglob("*.*") if path.is_file()}
    assert_one_error(train_here(data, folder, **changes), *words, status=status)
    assert {path: path.read_bytes() for path in folder.rglob("*.*") if path.is_file()} == before


def test_a_checkpoint_of_another_data_set_is_refused(trained: Path, tmp_path: Path) -> None:
    other = packed(tmp_path / "other", seed=1)
    checkpoint = trained / "checkpoints" / f"step-{LAST_STEP:08d}.h5"
    assert_one_error(train_here(other, tmp_path / "run", resume=checkpoint), str(checkpoint), "another data set")
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_for_other_classes_is_refused_by_eval(trained: Path, tmp_path: Path) -> None:
    other = packed(tmp_path / "other", classes=4)
    assert_one_error(dptrain_here("eval", trained, other, cwd=tmp_path), "trained for classes", "not the same task")


def test_a_model_for_another_number_of_classes_is_refused(data: Path, tmp_path: Path) -> None:
    (tmp_path / "ten.py").write_text(
        "from dptrain.nn.layers.flatten import Flatten\nfrom dptrain.nn.layers.linear import Linear\n"
        "def build(input_shape, classes):\n    return [Flatten(), Linear(10)]\n"
    )
    done = train_here(data, tmp_path / "run", model="ten.py:build", model_options={})
    assert_one_error(done, "outputs 10 logits, but the data set has 5 classes", status=2)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "command", [["inspect", "FILE"], ["eval", "FILE", "DATA"], ["train", "DATA", "--resume", "FILE"]]
)
def test_a_damaged_checkpoint_is_refused_by_every_command(
    command: list[str], data: Path, trained: Path, tmp_path: Path
) -> None:
    path = tmp_path / "cut.h5"
    path.write_bytes((trained / "checkpoints" / f"step-{LAST_STEP:08d}.h5").read_bytes()[:-1])
    arguments = [{"FILE": str(path), "DATA": str(data)}.get(word, word) for word in command]
    assert_one_error(dptrain_here(*arguments, cwd=tmp_path), "cut.h5", "cut short or altered")
    assert [entry.name for entry in tmp_path.iterdir()] == ["cut.h5"]


def test_a_run_folder_below_a_file_cannot_be_written(data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    done = dptrain_here("train", *flags(data, tmp_path / "file" / "run"), cwd=tmp_path)
    assert_one_error(done, "--run-dir", "cannot be used", "choose another folder", status=2)
    assert (tmp_path / "file").read_text() == "mine"


# Failures during a run


@pytest.mark.parametrize("lr", ["1e6", "1e30"])
def test_a_loss_that_is_not_finite_is_reported_with_step_and_learning_rate(lr: str, data: Path, tmp_path: Path) -> None:
    done = train_here(
        data, tmp_path / "run", lr=lr, warmup_steps=0, checkpoint_every="1", schedule="constant", epochs=20
    )
    assert_one_error(done, f"at learning rate {float(lr):.6g}", "Try a lower --lr")
    found = re.search(r"step (\d+): the (loss|gradient) is", done.stderr)
    assert found is not None
    step = int(found[1])
    assert_nothing_half_written(tmp_path / "run")
    assert sorted((tmp_path / "run" / "checkpoints").iterdir())[-1].name == f"step-{step - 1:08d}.h5"


def limited(size: int, *arguments: str | Path, cwd: Path) -> Done:
    """dptrain in a process whose files cannot grow beyond `size` bytes, as on a full disk."""
    return subprocess.run(
        [sys.executable, "-m", "dptrain", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)),
        check=False,
        timeout=60,
    )


@pytest.mark.slow
def test_a_full_disk_ends_the_run_with_one_error_and_keeps_the_earlier_checkpoint(
    data: Path, trained: Path, tmp_path: Path
) -> None:
    size = (trained / "checkpoints" / f"step-{LAST_STEP:08d}.h5").stat().st_size
    assert train(data, tmp_path / "run", max_steps=3).returncode == 0
    done = limited(size - 100, "train", *flags(data, tmp_path / "run"), cwd=tmp_path)
    assert_one_error(done, "step-00000007.h5: cannot be written: File too large", "Free some space")
    assert_nothing_half_written(tmp_path / "run")
    there = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert there == ["best.h5", "step-00000003.h5"]
    assert train(data, tmp_path / "run").returncode == 0


@pytest.mark.slow
def test_metrics_on_a_full_disk_end_the_run_with_one_error(data: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with (tmp_path / "run" / "metrics.jsonl").open("w") as file:
        file.truncate(1 << 30)  # writing to this file always fails
    done = limited(1 << 30, "train", *flags(data, tmp_path / "run"), cwd=tmp_path)
    assert_one_error(done, "metrics.jsonl: cannot be written: File too large")


@pytest.mark.mpi
@pytest.mark.once
def test_a_shard_missing_on_one_rank_ends_all_ranks_and_is_reported_once(copied_data: Path, tmp_path: Path) -> None:
    (copied_data / "train-003-of-004.h5").unlink()  # rank 1 holds shards 2 and 3
    done = dptrain("train", *flags(copied_data, tmp_path / "run"), cwd=tmp_path, mpi=own_mpi(), ranks=2, timeout=60)
    assert_one_error(done, f"rank 1 on {socket.gethostname()}", "train-003-of-004.h5: cannot be read", ranks=True)
    assert not (tmp_path / "run").exists()


@pytest.mark.mpi
@pytest.mark.once
def test_a_loss_that_is_not_finite_ends_all_ranks_and_is_reported_once(data: Path, tmp_path: Path) -> None:
    words = flags(data, tmp_path / "run", lr=1e30, warmup_steps=0)
    done = dptrain("train", *words, cwd=tmp_path, mpi=own_mpi(), ranks=2, timeout=60)
    assert_one_error(done, "the loss is nan", ranks=True)


@pytest.mark.mpi
def test_a_wrong_flag_under_mpirun_is_reported_once(data: Path, tmp_path: Path) -> None:
    done = dptrain("train", data, "--epoch", "3", cwd=tmp_path, mpi=own_mpi(), ranks=2, timeout=60)
    assert_one_error(done, "did you mean '--epochs'?", status=2, ranks=True)
