"""The configuration of a training run: every flag, its TOML key of the same name, and its check.

Values come from the defaults below, then a TOML file, then flags; the merged result is saved with the run.
"""

from __future__ import annotations

import json
import math
import operator
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import MISSING, Field, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import tomli_w

from dptrain.errors import UsageError
from dptrain.optim.schedule import NAMES as SCHEDULES
from dptrain.system.files import parse_toml as toml_values
from dptrain.system.files import read_text
from dptrain.system.paths import dangling, typed_path
from dptrain.system.suggestions import EXPLANATIONS, did_you_mean
from dptrain.system.text import shown

BORDERS = ("none", "reflect", "zero")
REDUCTIONS = ("tree", "mpi")
SECONDS_OF = {"s": 1, "m": 60, "h": 3600}
DEFAULT_WARMUP, WARMUP_SHARE = 200, 10  # steps, but at most one of so many of the run's
KEYS_OF_PATHS = ("data", "run_dir", "resume")
INTERVAL = re.compile(r"(\d+)([smh]?)", re.ASCII)

# A checkpoint says at which sample of which shard the run stands, and these keys decide what that means.
KEYS_OF_THE_RUN = ("batch_size", "seed")
# These belong to a folder, and are not saved in it: `--config RUN/config.toml` is to begin a new run.
KEYS_OF_THE_FOLDER = ("run_dir", "resume")
# These change neither the arithmetic of a step nor the order of the samples.
KEYS_OF_THE_PROCESS = (
    "data",
    "run_dir",
    "threads",
    "resume",
    "max_steps",
    "checkpoint_every",
    "elastic",
    "stall_limit",
    "stall_abort",
    "log_every",
    "allow_changed_model",
)


def _key(default: Any, help: str, **more: Any) -> Any:
    return field(default=default, metadata={"help": help, **more})


@dataclass(frozen=True)
class TrainConfig:
    """Everything `dptrain train` can be told. UsageError when a value cannot be used."""

    data: str = _key("", "folder of the packed data set")
    run_dir: str = _key("", "folder of the run (default: a new one, runs/<data>-<model>-<time>)")
    model: str = _key("convnet", "architecture: convnet, linear, or FILE.py:FUNCTION")
    model_options: dict[str, Any] = field(
        default_factory=dict,
        metadata={"help": "arguments of the architecture as TOML, such as 'widths = [32, 64]'"},
    )
    epochs: int = _key(10, "passes over the training split", least=1)
    max_steps: int = _key(0, "end after this step; the schedule stays that of --epochs (0: no limit)", least=0)
    batch_size: int = _key(128, "global batch, over all ranks: a multiple of the number of shards", least=1)
    lr: float = _key(0.05, "learning rate at the top of the schedule", above=0.0)
    momentum: float = _key(0.9, "momentum, 0 for none", least=0.0, below=1.0)
    nesterov: bool = _key(True, "Nesterov's look-ahead")
    weight_decay: float = _key(5e-4, "L2 penalty on weights, not on biases", least=0.0)
    schedule: str = _key("cosine", "course of the learning rate", choices=SCHEDULES)
    warmup_steps: int = _key(
        -1, "steps of linear warm-up before the schedule (-1: 200, but at most a tenth of the run)", least=-1
    )
    step_epochs: float = _key(4.0, "schedule step: epochs between two drops", above=0.0)
    step_factor: float = _key(0.1, "schedule step: what a drop multiplies the learning rate by", above=0.0)
    seed: int = _key(0, "decides initial parameters, sample order and augmentation", least=0, below=2**63)
    crop: str = _key(
        "none", "move training images by up to 4 pixels at random; the border is filled as named", choices=BORDERS
    )
    flip: bool = _key(False, "flip half of the training images, at random, left to right (not for digits or text)")
    threads: int = _key(0, "shards a rank computes side by side (0: its fair share of the host's cores)", least=0)
    reduction: str = _key(
        "tree", "how gradients are summed: tree gives the same bits on any number of ranks", choices=REDUCTIONS
    )
    checkpoint_every: str = _key(
        "0",
        "also write a checkpoint every so many steps, or so much time: 500, 90s, 15m, 1h (0: only each epoch)",
        form=(INTERVAL, "a number of steps, or a time such as 90s, 15m or 1h"),
        metavar="STEPS|TIME",
    )
    resume: str = _key(
        "auto",
        "auto: resume from the run folder's newest checkpoint; never; or the path of a checkpoint or another run",
    )
    allow_changed_model: bool = _key(False, "resume although the model's files have changed since the checkpoint")
    elastic: bool = _key(False, "continue without ranks that die (Open MPI >= 5, mpirun --with-ft ulfm)")
    stall_limit: float = _key(
        60.0, "seconds after which a rank that makes no progress is reported (0: never)", least=0.0
    )
    stall_abort: float = _key(
        600.0, "seconds from that report until the job ends, if it has several ranks (0: never)", least=0.0
    )
    log_every: int = _key(50, "steps between two lines of metrics.jsonl", least=1)

    def __post_init__(self) -> None:
        for key in fields(self):
            _check(key, getattr(self, key.name))
            _check_text(flag(key.name), getattr(self, key.name))

    @property
    def checkpoint_interval(self) -> tuple[int, int]:
        """Steps and seconds between two checkpoints; 0 for no such rule."""
        text, unit = self.checkpoint_every, self.checkpoint_every[-1]
        return (0, int(text[:-1]) * SECONDS_OF[unit]) if unit in SECONDS_OF else (int(text), 0)

    def warmup(self, total_steps: int) -> int:
        """Steps of warm-up of a run whose schedule has that many steps."""
        return min(DEFAULT_WARMUP, total_steps // WARMUP_SHARE) if self.warmup_steps < 0 else self.warmup_steps

    def to_toml(self, *, leave_out: Collection[str] = ()) -> str:
        """The configuration as TOML text that `read_toml` reads back, but for the keys to leave out."""
        values = {name.replace("_", "-"): value for name, value in asdict(self).items() if name not in leave_out}
        return tomli_w.dumps(values)


def flag(name: str) -> str:
    """The flag of a key: batch_size is --batch-size."""
    return "--" + name.replace("_", "-")


def _check(key: Field[Any], value: Any) -> None:
    """UsageError unless the value has the key's type and lies within its bounds."""
    name, rules = flag(key.name), key.metadata
    kind = dict if key.default is MISSING else type(key.default)
    if type(value) is not kind:
        raise UsageError(f"{name} is {_written(value)}, expected {_kind_name(kind)}")
    if "form" in rules and not rules["form"][0].fullmatch(value):
        raise UsageError(f"{name} is {_written(value)}, expected {rules['form'][1]}")
    if "choices" in rules and value not in rules["choices"]:
        raise UsageError(f"{name} is {_written(value)}; {did_you_mean(str(value), rules['choices'])}")
    if isinstance(value, float) and not math.isfinite(value):
        raise UsageError(f"{name} is {value}, expected a finite number")
    bounds: dict[str, tuple[Callable[[Any, Any], bool], str]] = {
        "least": (operator.ge, "at least"),
        "above": (operator.gt, "above"),
        "below": (operator.lt, "below"),
    }
    for rule, (holds, words) in bounds.items():
        if rule in rules and not holds(value, rules[rule]):
            raise UsageError(f"{name} is {_written(value)}, expected {words} {rules[rule]}")
    if isinstance(value, int) and abs(value) >= 2**63:
        raise UsageError(f"{name} is {_written(value)}, expected a number below 2^63")


def _written(value: Any) -> str:
    """A value for an error message. Python writes no whole number of more than 4,300 digits."""
    try:
        return shown(repr(value), 200)
    except ValueError:
        return "a number of thousands of digits"


def _check_text(name: str, value: Any) -> None:
    """UsageError for text that config.toml and checkpoints cannot hold: both are UTF-8."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    if "\0" in text:
        raise UsageError(f"{name} is {shown(text, 200)}, expected text without NUL characters")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UsageError(
            f"{name} is {shown(text, 200)}, expected a name in UTF-8, as the run saves it; rename the file or folder, "
            "or give a symbolic link to it"
        ) from None


def _kind_name(kind: type) -> str:
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false", dict: "a table of arguments"}
    return names[kind]


def read_toml(path: Path, notes: list[str] | None = None) -> dict[str, Any]:
    """Values by key from a TOML file; UsageError when it cannot be read or has an unknown key.

    Of the config.toml in a run folder, `run-dir` and `resume` do not count: earlier versions saved them, and with them
    a new run would continue in the old folder. A note says so.
    """
    if why := dangling(path):
        raise UsageError(f"--config {shown(path)}: {why}")
    try:
        text = read_text(path)
    except OSError as error:
        raise UsageError(f"--config {shown(path)}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"--config {shown(path)}: {error}") from error
    values = parse_toml(text, shown(path))
    try:
        for name in set(KEYS_OF_PATHS) & set(values):
            if values[name] or name == "resume":
                values[name] = typed_path(values[name])
        if ":" in values.get("model", ""):
            values["model"] = typed_path(values["model"])
    except UsageError as error:
        raise UsageError(f"{shown(path)}: {error}") from None
    if path.name == "config.toml" and (path.parent / "checkpoints").is_dir():
        dropped = [flag(name) for name in KEYS_OF_THE_FOLDER if values.pop(name, "auto") not in ("", "auto")]
        if dropped and notes is not None:
            notes.append(
                f"{shown(path)} was saved with a run, and its {' and '.join(dropped)} do not count: this is a new run; "
                f"to resume the saved one, give --run-dir {shown(path.parent)}"
            )
    return values


def parse_toml(text: str, origin: str) -> dict[str, Any]:
    """Values by key from TOML text; `origin` names it in errors. Whole numbers do where a number is meant."""
    try:
        raw = toml_values(text)
    except ValueError as error:
        raise UsageError(f"{origin}: not TOML: {error}") from error
    known = {key.name: key for key in fields(TrainConfig)}
    values: dict[str, Any] = {}
    for written, value in raw.items():
        name = written.replace("-", "_")
        if name == "augment":
            values[name] = value
            continue
        if name not in known and isinstance(value, dict):
            raise UsageError(
                f"{origin}: table [{shown(written, 60)}]: keys stand at the top, the only table is [model-options]"
            )
        if name not in known:
            raise UsageError(f"{origin}: unknown key {shown(repr(written), 60)}; {unknown_key(written)}")
        if name in values:
            raise UsageError(f"{origin}: {written!r} is given twice; keep one")
        if type(value) is int and isinstance(known[name].default, float):
            value = float(value)
        elif type(value) is int and "form" in known[name].metadata:
            value = str(value)
        values[name] = value
        try:
            _check(known[name], values[name])
        except UsageError as error:
            raise UsageError(f"{origin}: {error}") from None
    try:
        return spelled_out(values)
    except UsageError as error:
        raise UsageError(f"{origin}: {error}") from None


def spelled_out(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values with `augment`, the short form, as `crop` and `flip`, where these are not given themselves."""
    rest = dict(values)
    if "augment" not in rest:
        return rest
    border = rest.pop("augment")
    if border not in BORDERS:
        raise UsageError(f"--augment is {_written(border)}; {did_you_mean(str(border), BORDERS)}")
    return {"crop": border, "flip": border != "none"} | rest


def unknown_key(word: str) -> str:
    """What to say of a flag or key that `dptrain train` does not have."""
    known = [*(key.name.replace("_", "-") for key in fields(TrainConfig)), "augment", "config", "json"]
    known = [flag(name) for name in known] if word.startswith("-") else known
    return did_you_mean(word, known, "see dptrain train --help", EXPLANATIONS)


def parse_model_options(text: str) -> dict[str, Any]:
    """Arguments of an architecture from a flag, the inside of an inline table: 'widths = [32, 64], kernel_size = 5'."""
    try:
        options: dict[str, Any] = toml_values(f"options = {{{text}}}")["options"]
    except ValueError as error:
        raise UsageError(
            f"--model-options {_written(text)}: not TOML ({error}); write for example "
            "--model-options 'widths = [32, 64], kernel_size = 5'"
        ) from error
    return options


def check_paths(config: TrainConfig) -> None:
    """UsageError for a path that is, or leads through, a symbolic link to nothing."""
    for name in KEYS_OF_PATHS:
        value = getattr(config, name)
        if value and (why := dangling(Path(value))):
            where = "the data set" if name == "data" else flag(name)
            raise UsageError(f"{where} {shown(value)}: {why}; name another path or correct the link")


def merged(*sources: Mapping[str, Any]) -> TrainConfig:
    """A configuration from several sources, later ones win."""
    values: dict[str, Any] = {}
    for source in sources:
        values |= spelled_out(source)
    return TrainConfig(**values)
