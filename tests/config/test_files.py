"""dptrain.config.files: configuration files and typed paths: saved, broken and hostile ones."""

from __future__ import annotations

import json
import os
import time
import tomllib
from pathlib import Path

import pytest
from command_runs import assert_one_error, dptrain_here, train_here
from mpi_runs import dptrain
from training_runs import configuration, flags, packed, run, session_and_state

from dptrain.config.files import inline_table, merged, parse_toml, read_toml
from dptrain.config.train import KEYS, TrainConfig
from dptrain.errors import UsageError
from dptrain.system.keys import from_text
from launch.supervise import settings


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packed(tmp_path_factory.mktemp("data") / "set")


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding)
    return path


def refusal(path: Path) -> str:
    """The error for a file, which is one line."""
    with pytest.raises(UsageError) as caught:
        read_toml(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
    return str(caught.value)


# Saved with a run


def test_the_saved_configuration_of_a_run_starts_a_new_run(data: Path, tmp_path: Path) -> None:
    """Found in the field: `--config RUN/config.toml` continued in the original folder, whose name was saved in it."""
    first = tmp_path / "runs" / "first"
    run(configuration(data, first, max_steps=2))
    saved = tomllib.loads((first / "config.toml").read_text())
    assert not {"run-dir", "resume"} & set(saved)
    done = dptrain_here("train", "--config", first / "config.toml", "--max-steps", "3", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    assert (tmp_path / summary["run_dir"]).resolve() != first.resolve()
    assert [path.name for path in sorted((first / "checkpoints").glob("step*"))] == ["step-00000002.h5"]


def test_the_run_folder_in_a_saved_configuration_is_ignored(tmp_path: Path) -> None:
    """Early versions saved it: a new run would continue in the old folder."""
    path = write(tmp_path / "run" / "config.toml", f'run-dir = "{tmp_path}/run"\nepochs = 3\nresume = "x.h5"\n')
    assert read_toml(path) == {"epochs": 3, "run_dir": f"{tmp_path}/run", "resume": "x.h5"}
    (tmp_path / "run" / "checkpoints").mkdir()
    assert read_toml(path) == {"epochs": 3}
    assert settings(["train", "--config", str(path)]).get("run_dir", "") == ""  # the launcher reads it in the same way


# Augmentation and warm-up


@pytest.mark.parametrize(
    ("text", "crop", "flip"),
    [
        ('augment = "reflect"', "reflect", True),
        ('augment = "zero"', "zero", True),
        ('augment = "none"', "none", False),
        ('augment = "reflect"\nflip = false', "reflect", False),
        ('flip = true\naugment = "none"', "none", True),
        ('crop = "zero"', "zero", False),
        ("flip = true", "none", True),
        ("", "none", False),
    ],
)
def test_augment_is_short_for_crop_and_flip(text: str, crop: str, flip: bool) -> None:
    config = merged(parse_toml(text, "text"))
    assert (config.crop, config.flip) == (crop, flip)


def test_a_flag_wins_over_the_short_form_in_a_file_and_the_reverse() -> None:
    digits = merged(parse_toml('augment = "reflect"', "text"), {"flip": False})
    assert (digits.crop, digits.flip) == ("reflect", False)
    plain = merged(parse_toml('crop = "zero"\nflip = true', "text"), {"augment": "none"})
    assert (plain.crop, plain.flip) == ("none", False)
    with pytest.raises(UsageError, match="--crop is 'reflection'; did you mean 'reflect'"):
        merged({"augment": "reflection"})


def test_crop_and_flip_together_give_the_bits_of_augment(data: Path, tmp_path: Path) -> None:
    hashes = {}
    for number, more in enumerate(
        (["--augment", "zero"], ["--crop", "zero", "--flip"], ["--crop", "zero"], ["--flip"])
    ):
        done = train_here(data, tmp_path / str(number), "--json", *more, max_steps=4)
        assert done.returncode == 0, done.stderr
        hashes[" ".join(more)] = json.loads(done.stdout.splitlines()[-1])["params_sha256"]
    assert hashes["--augment zero"] == hashes["--crop zero --flip"]
    assert len(set(hashes.values())) == 3


@pytest.mark.parametrize(("total", "steps"), [(3910, 200), (2000, 200), (1950, 195), (14, 1), (5, 0)])
def test_the_default_warm_up_is_200_steps_but_at_most_a_tenth_of_the_run(total: int, steps: int) -> None:
    """3,910 steps are 10 epochs of CIFAR-10."""
    assert TrainConfig().warmup(total) == steps
    assert TrainConfig(warmup_steps=200).warmup(total) == 200
    assert TrainConfig(warmup_steps=0).warmup(total) == 0


def test_a_warm_up_as_long_as_the_run_is_reported(data: Path, tmp_path: Path) -> None:
    for steps, noted in ((13, False), (14, True), (200, True), (-1, False)):
        session, _ = session_and_state(configuration(data, tmp_path / "run", warmup_steps=steps))
        assert [f"--warmup-steps {steps}" in note for note in session.notes] == [True] * noted


# Files


def test_a_byte_order_mark_is_accepted(tmp_path: Path) -> None:
    assert read_toml(write(tmp_path / "my.toml", "epochs = 3\n", "utf-8-sig")) == {"epochs": 3}


def test_a_named_pipe_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    started = time.monotonic()
    assert "not a regular file" in refusal(tmp_path / "pipe")
    done = dptrain("train", "x", "--resume", tmp_path / "pipe", "--config", tmp_path / "pipe", cwd=tmp_path, timeout=20)
    assert_one_error(done, "not a regular file", status=2)
    assert time.monotonic() - started < 20


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[model-options]\na = " + "[" * 5000 + "]" * 5000, "nested too deeply"),
        ("epochs = " + "9" * 5000, "not TOML: "),
        ("epochs = " + "9" * 30, "expected a number below 2^63"),
        ("epochs = 9223372036854775808", "--epochs is 9223372036854775808, expected a number below 2^63"),
        ("x\x1b[31m = 1", "not TOML"),
        ('"x\\u001b[31m" = 1', "unknown key 'x\\x1b[31m'"),
        ('"' + "x" * 5000 + '" = 1', "unknown key"),
        ('schedule = "' + "x" * 5000 + '"', "--schedule is"),
        ('resume = ""', "found an empty path"),
        ('model = "~nobody-here/x.py:build"', "there is no user 'nobody-here'"),
    ],
)
def test_a_hostile_file_is_one_error(text: str, words: str, tmp_path: Path) -> None:
    message = refusal(write(tmp_path / "my.toml", text))
    assert words in message
    assert message.isprintable()


def test_model_options_that_are_nested_too_deeply_are_a_one_line_error() -> None:
    with pytest.raises(UsageError, match="nested too deeply"):
        from_text(KEYS["model_options"], "a = " + "[" * 5000 + "]" * 5000)


# Paths


def test_a_tilde_is_expanded_in_files_and_flags(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell expands it in `--config ~/x`, but not in `--config=~/x`."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "set").symlink_to(data)
    text = 'data = "~/set"\nrun-dir = "~/in-file"\nresume = "~/r.h5"\nmodel = "~/m.py:build"\n'
    values = read_toml(write(tmp_path / "my.toml", text))
    home = str(tmp_path)
    assert values == {
        "data": f"{home}/set",
        "run_dir": f"{home}/in-file",
        "resume": f"{home}/r.h5",
        "model": f"{home}/m.py:build",
    }
    write(tmp_path / "small.toml", "batch-size = 16\nmax-steps = 2\n")
    done = dptrain_here("train", "~/set", "--config=~/small.toml", "--run-dir=~/in-flag", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "in-flag" / "checkpoints" / "step-00000002.h5").exists()
    assert dptrain_here("eval", "~/in-flag", "~/set", cwd=tmp_path).returncode == 0
    assert dptrain_here("inspect", "~/in-flag", cwd=tmp_path).returncode == 0
    assert settings(["train", "--run-dir=~/in-flag"])["run_dir"] == str(tmp_path / "in-flag")


@pytest.mark.parametrize("flag", ["--run-dir", "--resume", "--config"])
def test_an_empty_path_is_refused(flag: str, data: Path, tmp_path: Path) -> None:
    """The result of a shell variable that is not set: `--run-dir "$RUN"`."""
    done = dptrain_here("train", data, flag, "", cwd=tmp_path)
    assert_one_error(done, flag, "found an empty path", status=2)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_path_of_an_argument_is_refused(tmp_path: Path) -> None:
    for words in (["train", ""], ["eval", "x", ""], ["inspect", ""]):
        assert_one_error(dptrain_here(*words, cwd=tmp_path), "found an empty path", status=2)


def test_a_broken_link_is_an_error_in_a_flag_and_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    assert "No such file" in refusal(tmp_path / "link")
    for name in ("data", "run_dir", "resume"):
        for path in (tmp_path / "link", tmp_path / "link" / "below"):
            words = rf"{name.replace('_', '-')}.* is a symbolic link to .*gone, which does not exist"
            with pytest.raises(UsageError, match=words):
                from_text(KEYS[name], str(path))
            text = f'{name} = "{path}"'
            assert "is a symbolic link to" in refusal(write(tmp_path / "my.toml", text))
        assert from_text(KEYS[name], "not/there") == "not/there"


def test_a_run_folder_behind_a_broken_link_is_not_created(data: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    done = dptrain_here("train", *flags(data, tmp_path / "link"), cwd=tmp_path)
    assert_one_error(done, "--run-dir", "symbolic link", status=2)
    assert not (tmp_path / "gone").exists()
    for words in (["eval", str(tmp_path / "x")], ["prep", "verify"]):
        done = dptrain_here(*words, tmp_path / "link", cwd=tmp_path)
        assert done.returncode != 0
        assert done.stderr.count("\n") == 1
    assert "is a symbolic link to" in done.stderr


@pytest.mark.parametrize("value", ["two  spaces", 'q"\n\\', 1, 0.1, True, [], [[1], ["a"]], {"a b": {"c": [1]}}, {}])
def test_a_table_on_one_line_is_read_back(value: object) -> None:
    text = inline_table({"x": value, "y z": value})
    assert "\n" not in text
    assert tomllib.loads(f"table = {{{text}}}")["table"] == {"x": value, "y z": value}
