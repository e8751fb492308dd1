"""The configuration of a training run: every flag, its TOML key of the same name, and its check.

Values come from the defaults below, then a TOML file, then flags; the merged result is saved with the run.
"""

from __future__ import annotations

import json
import math
import operator
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import tomli_w

from dptrain.errors import UsageError, did_you_mean
from dptrain.schedule import NAMES as SCHEDULES
from dptrain.system.text import shown

AUGMENTATIONS = ("none", "reflect", "zero")
REDUCTIONS = ("tree", "mpi")
SECONDS_OF = {"s": 1, "m": 60, "h": 3600}
INTERVAL = re.compile(r"(\d+)([smh]?)", re.ASCII)

# A checkpoint says at which sample of which shard the run stands, and these keys decide what that means.
KEYS_OF_THE_RUN = ("batch_size", "seed")
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
    warmup_steps: int = _key(200, "steps of linear warm-up before the schedule", least=0)
    step_epochs: float = _key(4.0, "schedule step: epochs between two drops", above=0.0)
    step_factor: float = _key(0.1, "schedule step: what a drop multiplies the learning rate by", above=0.0)
    seed: int = _key(0, "decides initial parameters, sample order and augmentation", least=0, below=2**63)
    augment: str = _key(
        "none", "flip and crop by 4 pixels at random, the border filled by reflection or zeros", choices=AUGMENTATIONS
    )
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
        "auto", "auto: go on from the run folder's newest checkpoint; never; or the path of a checkpoint or another run"
    )
    elastic: bool = _key(False, "go on without ranks that die (Open MPI >= 5, mpirun --with-ft ulfm)")
    stall_limit: float = _key(60.0, "seconds after which a rank that does not get on is named (0: never)", least=0.0)
    stall_abort: float = _key(
        600.0, "seconds from then until it ends the job, if there are other ranks (0: never)", least=0.0
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

    def to_toml(self) -> str:
        """The configuration as TOML text that `read_toml` reads back."""
        return tomli_w.dumps({name.replace("_", "-"): value for name, value in asdict(self).items()})


def flag(name: str) -> str:
    """The flag of a key: batch_size is --batch-size."""
    return "--" + name.replace("_", "-")


def _check(key: Field[Any], value: Any) -> None:
    """UsageError unless the value has the key's type and lies within its bounds."""
    name, rules = flag(key.name), key.metadata
    kind = dict if key.default is MISSING else type(key.default)
    if type(value) is not kind:
        raise UsageError(f"{name} is {value!r}, expected {_kind_name(kind)}")
    if "form" in rules and not rules["form"][0].fullmatch(value):
        raise UsageError(f"{name} is {value!r}, expected {rules['form'][1]}")
    if "choices" in rules and value not in rules["choices"]:
        raise UsageError(f"{name} is {value!r}; {did_you_mean(str(value), rules['choices'])}")
    if isinstance(value, float) and not math.isfinite(value):
        raise UsageError(f"{name} is {value}, expected a finite number")
    bounds: dict[str, tuple[Callable[[Any, Any], bool], str]] = {
        "least": (operator.ge, "at least"),
        "above": (operator.gt, "above"),
        "below": (operator.lt, "below"),
    }
    for rule, (holds, words) in bounds.items():
        if rule in rules and not holds(value, rules[rule]):
            raise UsageError(f"{name} is {value}, expected {words} {rules[rule]}")


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


def read_toml(path: Path) -> dict[str, Any]:
    """Values by key from a TOML file; UsageError when it cannot be read or has an unknown key."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"--config {path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"--config {path}: not a text file in UTF-8, which TOML is: {error}") from error
    return parse_toml(text, str(path))


def parse_toml(text: str, origin: str) -> dict[str, Any]:
    """Values by key from TOML text; `origin` names it in errors. Whole numbers do where a number is meant."""
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{origin}: not TOML: {error}") from error
    known = {key.name: key for key in fields(TrainConfig)}
    values: dict[str, Any] = {}
    for written, value in raw.items():
        name = written.replace("-", "_")
        if name not in known and isinstance(value, dict):
            raise UsageError(f"{origin}: table [{written}]: keys stand at the top, the only table is [model-options]")
        if name not in known:
            raise UsageError(
                f"{origin}: unknown key {written!r}; {did_you_mean(written, [k.replace('_', '-') for k in known])}"
            )
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
    return values


def parse_model_options(text: str) -> dict[str, Any]:
    """Arguments of an architecture from a flag, the inside of an inline table: 'widths = [32, 64], kernel_size = 5'."""
    try:
        options: dict[str, Any] = tomllib.loads(f"options = {{{text}}}")["options"]
    except tomllib.TOMLDecodeError as error:
        raise UsageError(
            f"--model-options {text!r}: not TOML ({error}); write for example "
            "--model-options 'widths = [32, 64], kernel_size = 5'"
        ) from error
    return options


def merged(*sources: Mapping[str, Any]) -> TrainConfig:
    """A configuration from several sources, later ones win."""
    values: dict[str, Any] = {}
    for source in sources:
        values |= source
    return TrainConfig(**values)
