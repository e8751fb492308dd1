"""dptrain.config.train: values come from defaults, TOML and flags; a bad value is reported."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from dataclasses import Field, asdict, fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from selection import examples

from dptrain.config.files import merged, parse_toml, read_toml, to_toml
from dptrain.config.train import KEYS, REDUCTIONS, SUBJECTS, TrainConfig
from dptrain.data.augmentation import BORDERS, TTA
from dptrain.errors import UsageError
from dptrain.optim.schedule import NAMES as SCHEDULES
from dptrain.system.keys import Scope, flag, from_text

# TOML holds any Unicode but surrogates; no path holds NUL.
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
COUNT = st.integers(0, 10**6)
POSITIVE = st.floats(0, 1e6, exclude_min=True)
TOML_VALUE = st.recursive(
    st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
CONFIGS = st.builds(
    TrainConfig,
    data=TEXT,
    run_dir=TEXT,
    model=TEXT,
    model_options=st.dictionaries(TEXT, TOML_VALUE, max_size=3),
    epochs=st.integers(1, 10**6),
    max_steps=COUNT,
    batch_size=st.integers(1, 10**6),
    lr=POSITIVE,
    momentum=st.floats(0, 1, exclude_max=True),
    nesterov=st.booleans(),
    weight_decay=st.floats(0, 1e3),
    schedule=st.sampled_from(SCHEDULES),
    warmup_steps=COUNT,
    step_epochs=POSITIVE,
    step_factor=POSITIVE,
    schedule_options=st.dictionaries(TEXT, TOML_VALUE, max_size=3),
    optimizer_options=st.dictionaries(TEXT, TOML_VALUE, max_size=3),
    group_lr=st.dictionaries(TEXT, st.floats(0, 1e3), max_size=3),
    group_decay=st.dictionaries(TEXT, st.floats(0, 1e3), max_size=3),
    group_epochs=st.dictionaries(TEXT, st.floats(0, 1e3), max_size=3),
    seed=COUNT,
    crop=st.sampled_from(BORDERS),
    crop_pixels=st.integers(1, 1024),
    flip=st.booleans(),
    alternating_flip=st.booleans(),
    resized_crop=st.floats(0, 1, exclude_max=True),
    brightness=st.floats(0, 10),
    contrast=st.floats(0, 10),
    cutout=st.integers(0, 100),
    cutout_fill=st.just("mean") | st.integers(0, 255).map(str),
    tta=st.sampled_from(TTA),
    label_smoothing=st.floats(0, 1, exclude_max=True),
    threads=COUNT,
    reduction=st.sampled_from(sorted(REDUCTIONS)),
    checkpoint_every=st.from_regex(r"[0-9]{1,9}[smh]?", fullmatch=True),
    resume=TEXT,
    elastic=st.booleans(),
    stall_limit=st.floats(0, 1e6),
    stall_abort=st.floats(0, 1e6),
    log_every=st.integers(1, 10**6),
)


def refused(**values: Any) -> str:
    """The error for values that are refused."""
    with pytest.raises(UsageError) as caught:
        TrainConfig(**values)
    return str(caught.value)


@given(config=CONFIGS)
@examples(40)
def test_a_configuration_written_as_toml_is_read_back(config: TrainConfig) -> None:
    assert TrainConfig(**parse_toml(to_toml(config), "text")) == config


def test_toml_has_every_key_spelled_like_its_flag() -> None:
    written = tomllib.loads(to_toml(TrainConfig()))
    assert {flag(key.name) for key in fields(TrainConfig)} == {f"--{name}" for name in written}
    assert flag("batch_size") == "--batch-size"


def test_flags_win_over_the_file_and_the_file_over_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text('epochs = 3\nbatch-size = 64\nmodel-options = { widths = [4, 8] }\ndata = "caf\u00e9"\n', "utf-8")
    config = merged(read_toml(path), {"epochs": 5, "seed": 9})
    expected = {"epochs": 5, "seed": 9, "batch_size": 64, "model_options": {"widths": [4, 8]}, "data": "caf\u00e9"}
    assert asdict(config) == {**asdict(TrainConfig()), **expected}


def test_underscores_and_whole_numbers_are_accepted_in_a_file() -> None:
    assert parse_toml("batch_size = 8\nlr = 1", "text") == {"batch_size": 8, "lr": 1.0}
    assert type(parse_toml("lr = 1", "text")["lr"]) is float


@pytest.mark.parametrize(
    ("written", "nearest"),
    [
        ("batchsize", "batch-size"),
        ("learning-rate", "lr"),
        ("learning_rate", "lr"),
        ("weight_decy", "weight-decay"),
        ("epoch", "epochs"),
        ("banana", None),
    ],
)
def test_an_unknown_key_is_reported_with_the_nearest_key(written: str, nearest: str | None) -> None:
    with pytest.raises(UsageError) as caught:
        parse_toml(f"{written} = 1", "my.toml")
    assert f"my.toml: unknown key {written!r}" in str(caught.value)
    assert str(caught.value).endswith(f"did you mean {nearest!r}?" if nearest else "; see dptrain train --help")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"epochs": "10"}, "--epochs is '10', expected a whole number"),
        ({"epochs": 1.5}, "--epochs is 1.5, expected a whole number"),
        ({"epochs": True}, "--epochs is True, expected a whole number"),
        ({"lr": "fast"}, "--lr is 'fast', expected a number"),
        ({"lr": False}, "--lr is False, expected a number"),
        ({"data": 3}, "--data is 3, expected text"),
        ({"nesterov": 1}, "--nesterov is 1, expected true or false"),
        ({"model_options": [1]}, "--model-options is [1], expected a table"),
        ({"schedule": 1}, "--schedule is 1, expected text"),
    ],
)
def test_a_value_of_the_wrong_type_is_an_error(values: dict[str, Any], expected: str) -> None:
    assert refused(**values) == expected


BOUNDS = [
    ("epochs", 1, 0, "at least 1"),
    ("max_steps", 0, -1, "at least 0"),
    ("batch_size", 1, 0, "at least 1"),
    ("lr", 1e-9, 0.0, "above 0.0"),
    ("momentum", 0.0, -0.1, "at least 0.0"),
    ("momentum", 0.999, 1.0, "below 1.0"),
    ("weight_decay", 0.0, -1e-9, "at least 0.0"),
    ("warmup_steps", -1, -2, "at least -1"),
    ("step_epochs", 0.5, 0.0, "above 0.0"),
    ("step_factor", 0.1, 0.0, "above 0.0"),
    ("crop_pixels", 1, 0, "at least 1"),
    ("crop_pixels", 1024, 1025, "below 1025"),
    ("resized_crop", 0.0, -0.1, "at least 0.0"),
    ("resized_crop", 0.999, 1.0, "below 1.0"),
    ("resized_crop_aspect", 1.0, 0.9, "at least 1.0"),
    ("brightness", 0.0, -0.1, "at least 0.0"),
    ("contrast", 0.0, -0.1, "at least 0.0"),
    ("label_smoothing", 0.0, 1.0, "below 1.0"),
    ("cutout", 0, -1, "at least 0"),
    ("seed", 0, -1, "at least 0"),
    ("seed", 2**63 - 1, 2**63, "a number below 2^63"),
    ("threads", 0, -1, "at least 0"),
    ("stall_limit", 0.0, -0.1, "at least 0.0"),
    ("stall_abort", 0.0, -0.1, "at least 0.0"),
    ("log_every", 1, 0, "at least 1"),
]


@pytest.mark.parametrize(
    ("text", "steps", "seconds"), [("0", 0, 0), ("500", 500, 0), ("90s", 0, 90), ("15m", 0, 900), ("2h", 0, 7200)]
)
def test_a_checkpoint_interval_is_steps_or_time(text: str, steps: int, seconds: int) -> None:
    assert TrainConfig(checkpoint_every=text).checkpoint_interval == (steps, seconds)


@pytest.mark.parametrize("text", ["", "-1", "1.5h", "s", "10 s", "1d", "10ms", "\u0661"])
def test_an_invalid_interval_is_refused(text: str) -> None:
    assert refused(checkpoint_every=text) == (
        f"--checkpoint-every is {text!r}, expected a number of steps, or a time such as 90s, 15m or 1h"
    )


def test_an_interval_may_be_a_number_in_toml() -> None:
    """As in checkpoints of versions that had steps only."""
    assert parse_toml("checkpoint-every = 500", "text") == {"checkpoint_every": "500"}


@pytest.mark.parametrize(("name", "inside", "outside", "expected"), BOUNDS)
def test_a_value_beyond_its_bound_is_an_error(name: str, inside: Any, outside: Any, expected: str) -> None:
    assert getattr(TrainConfig(**{name: inside}), name) == inside
    assert refused(**{name: outside}) == f"{flag(name)} is {outside}, expected {expected}"


@pytest.mark.parametrize(
    ("name", "wrong", "nearest"),
    [("schedule", "cosin", "cosine"), ("crop", "reflection", "reflect"), ("reduction", "trees", "tree")],
)
def test_an_unknown_choice_is_reported_with_the_nearest(name: str, wrong: str, nearest: str) -> None:
    assert refused(**{name: wrong}) == f"{flag(name)} is {wrong!r}; did you mean {nearest!r}?"


def test_a_file_that_cannot_be_read_or_is_not_toml_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--config .*missing\.toml: cannot be read: No such file"):
        read_toml(tmp_path / "missing.toml")
    with pytest.raises(UsageError, match="cannot be read: not a regular file"):
        read_toml(tmp_path)
    path = tmp_path / "bad.toml"
    path.write_text("epochs = 3\nlr = fast\n")
    with pytest.raises(UsageError, match=r"bad\.toml: not TOML: .*line 2"):
        read_toml(path)


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("widths = [32, 64]", {"widths": [32, 64]}),
        ("widths = [8], bias = false", {"widths": [8], "bias": False}),
        ("a = 1, b = 'x, y; z'", {"a": 1, "b": "x, y; z"}),
        ("", {}),
    ],
)
def test_model_options_are_the_inside_of_an_inline_table(text: str, options: dict[str, Any]) -> None:
    assert from_text(KEYS["model_options"], text) == options


def test_a_file_that_is_not_text_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match=r"bad\.toml: cannot be read: not text in UTF-8"):
        read_toml(path)


def test_a_key_given_in_both_spellings_is_an_error() -> None:
    with pytest.raises(UsageError, match="'batch_size' is given twice"):
        parse_toml("batch-size = 64\nbatch_size = 128", "my.toml")


@pytest.mark.parametrize("key", ["lr", "weight_decay", "step_epochs", "step_factor"])
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_numbers_are_finite(key: str, value: float) -> None:
    with pytest.raises(UsageError, match=r"is (inf|nan), expected a finite number"):
        merged({key: value})


def test_model_options_that_are_not_toml_are_an_error_with_an_example() -> None:
    with pytest.raises(UsageError, match=r"--model-options 'widths: 3': not TOML .* --model-options 'widths = \[32"):
        from_text(KEYS["model_options"], "widths: 3")


def test_every_key_has_a_scope_and_belongs_to_one_subject() -> None:
    assert all(isinstance(key.metadata["scope"], Scope) for key in KEYS.values())
    assert sum(len(fields(subject)) for subject in SUBJECTS) == len(KEYS) == len(fields(TrainConfig))


def test_keys_of_the_run_folder_are_left_out_of_the_saved_configuration() -> None:
    saved = tomllib.loads(to_toml(TrainConfig(), folder=False))
    assert {"run-dir", "resume"} == set(tomllib.loads(to_toml(TrainConfig()))) - set(saved)


def test_factors_are_checked_and_read_from_a_flag() -> None:
    assert from_text(KEYS["group_lr"], "head = 10, body = 0.5") == {"head": 10, "body": 0.5}
    for factor in ("10", -1, float("nan"), True):
        assert refused(group_lr={"head": factor}).endswith("expected numbers of at least 0")
    with pytest.raises(UsageError, match=r"--group-lr 'head: 3': not TOML .* --group-lr 'head = 10'"):
        from_text(KEYS["group_lr"], "head: 3")


@pytest.mark.parametrize("key", [key for key in KEYS.values() if "example" in key.metadata], ids=lambda key: key.name)
def test_the_example_in_the_help_of_a_table_is_valid(key: Field[Any]) -> None:
    assert from_text(key, key.metadata["example"])


def test_names_of_groups_may_have_dots() -> None:
    expected = {"first.bias": 3, "head": 2}
    assert from_text(KEYS["group_epochs"], "first.bias = 3, head = 2") == expected
    assert from_text(KEYS["group_epochs"], '"first.bias" = 3, head = 2') == expected
    for text in ("group-epochs = { first.bias = 3, head = 2 }", "[group-epochs]\nhead = 2\nfirst.bias = 3"):
        assert parse_toml(text, "text")["group_epochs"] == expected
    assert from_text(KEYS["model_options"], "a.b = 3") == {"a": {"b": 3}}


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"alternating_flip": True}, "--alternating-flip has no effect without --flip"),
        ({"alternating_flip": True, "flip": False}, "--alternating-flip has no effect without --flip"),
        ({"crop_pixels": 2}, "--crop-pixels has no effect without --crop"),
        ({"resized_crop_aspect": 2.0}, "--resized-crop-aspect has no effect without --resized-crop"),
        ({"cutout_fill": "0"}, "--cutout-fill has no effect without --cutout"),
        ({"step_epochs": 2.0}, "--step-epochs has no effect without --schedule step:"),
        ({"step_factor": 0.5, "schedule": "linear"}, "--step-factor has no effect without --schedule step:"),
    ],
)
def test_a_flag_without_the_one_that_it_needs_is_an_error(flags: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        merged({}, flags)
    needed = {"flip": True, "schedule": "step", "resized_crop": 0.5, "cutout": 4}
    assert merged({"crop": "zero"}, flags | needed)
    assert merged(flags, {})  # a saved configuration has every key


def test_each_optimizer_has_its_default_learning_rate(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text('optimizer = "adamw"\n')
    assert [merged({"optimizer": name}).lr for name in ("sgd", "adamw")] == [0.05, 0.001]
    assert merged({}).lr == 0.05
    assert merged(read_toml(path)).lr == 0.001
    assert merged(read_toml(path), {"lr": 0.05}).lr == 0.05


def test_a_key_that_the_optimizer_does_not_take_is_an_error() -> None:
    for flags in ({"momentum": 0.9}, {"nesterov": False}):
        with pytest.raises(UsageError, match=f"--{next(iter(flags))} is not an option of --optimizer adamw"):
            merged({"optimizer": "adamw"}, flags)
    with pytest.raises(UsageError, match="--momentum"):
        merged({"optimizer": "adamw", "momentum": 0.8}, {})
    assert merged({"optimizer": "sgd"}, {"momentum": 0.8}).momentum == 0.8
    saved = parse_toml(to_toml(merged({"optimizer": "adamw"})), "config.toml")
    assert merged(saved, {"weight_decay": 0.1}).weight_decay == 0.1  # a saved configuration has every key


def test_an_unknown_table_is_an_error() -> None:
    with pytest.raises(UsageError, match=r"unknown key .train.; keys are at the top level, not in tables"):
        parse_toml("[train]\nlr = 1", "my.toml")


def test_the_configuration_is_read_without_numpy() -> None:
    """The launcher reads it, and starts faster without."""
    program = "import sys, dptrain.config.files; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.parametrize("fill", ["mean", "0", "7", "99", "100", "199", "249", "255"])
def test_the_fill_of_cutout_is_the_mean_or_a_pixel_value(fill: str) -> None:
    assert TrainConfig(cutout=2, cutout_fill=fill).cutout_fill == fill
    assert parse_toml("cutout-fill = 0", "text") == {"cutout_fill": "0"}


@pytest.mark.parametrize("fill", ["", "256", "260", "1000", "-1", "Mean", "0.5", "\u0661"])
def test_another_fill_of_cutout_is_refused(fill: str) -> None:
    assert refused(cutout_fill=fill) == f"--cutout-fill is {fill!r}, expected mean, or a pixel value from 0 to 255"


def test_a_configuration_of_before_a_key_of_augmentation_has_its_default() -> None:
    """Old checkpoints and run folders do not have the keys that were added later."""
    added = ("resized_crop", "resized_crop_aspect", "brightness", "contrast", "cutout_fill")
    written = tomllib.loads(to_toml(TrainConfig(cutout=8, crop="zero")))
    old = {name.replace("-", "_"): value for name, value in written.items()}
    old = {name: value for name, value in old.items() if name not in added}
    assert len(old) == len(written) - len(added)
    assert TrainConfig(**old) == TrainConfig(cutout=8, crop="zero")
