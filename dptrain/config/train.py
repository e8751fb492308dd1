"""The keys of a training run, in groups by subject. Each is a flag of `dptrain train` and a key in TOML files.

TrainConfig inherits all groups, so flags, TOML keys and attributes are flat. A new key is one line in its group.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from dptrain.data.augmentation import AugmentationConfig
from dptrain.optim import NAMES as OPTIMIZERS
from dptrain.optim import WEIGHT_DECAY
from dptrain.optim.schedule import NAMES as SCHEDULES
from dptrain.system.cache import LARGEST_KIB
from dptrain.system.keys import Config, Scope, key
from dptrain.system.paths import typed_path

RUN, BITS, FOLDER, PROCESS = Scope
AVERAGES = ("none", "ema", "lookahead")
REDUCTIONS = {
    "tree": "dptrain.parallel.reduce.tree:TreeReducer",
    "mpi": "dptrain.parallel.reduce.mpi:MPIReducer",
}
# Reporters for other tools: the package that one needs, and its class.
REPORTS = {
    "tensorboard": ("tensorboardX", "dptrain.report.tensorboard:TensorBoard"),
    "mlflow": ("mlflow", "dptrain.report.mlflow:MLflow"),
}
SECONDS_OF = {"s": 1, "m": 60, "h": 3600}
DEFAULT_WARMUP, WARMUP_SHARE = 200, 10  # 200 steps, but at most a tenth of the run
INTERVAL = re.compile(r"(\d+)([smh]?)", re.ASCII).fullmatch, "a number of steps, or a time such as 90s, 15m or 1h"
FACTORS = (
    lambda table: all(type(one) in (int, float) and 0 <= one < math.inf for one in table.values()),
    "numbers of at least 0",
)
STEP = ("schedule", "step")
WEIGHTS = (
    lambda table: all(type(one) in (int, float) and 0 < one < math.inf for one in table.values()),
    "weights above 0",
)


def report_names(text: str) -> list[str]:
    """The names in a list with commas."""
    return [name for part in text.split(",") if (name := part.strip())]


KNOWN_REPORTS = (
    lambda text: set(report_names(text)) <= REPORTS.keys() and len(set(report_names(text))) == len(report_names(text)),
    f"names out of {', '.join(REPORTS)}, with commas between them",
)


def model_name(text: str) -> str:
    """The name of an architecture, or FILE.py:FUNCTION with `~` expanded."""
    return typed_path(text) if ":" in text else text


@dataclass(frozen=True, init=False, repr=False, eq=False)
class DataConfig(Config):
    """data"""

    data: str = key("", PROCESS, "folder of the packed data set", read=typed_path, metavar="DATA")
    batch_size: int = key(128, RUN, "global batch size: a multiple of the number of shards", at_least=1)
    accumulate: int = key(1, BITS, "parts of a shard's microbatch; batch norm normalises each part alone", at_least=1)
    seed: int = key(0, RUN, "seed of initial parameters, sample order and all random draws", at_least=0)


@dataclass(frozen=True, init=False, repr=False, eq=False)
class ModelConfig(Config):
    """network"""

    model: str = key(
        "convnet",
        BITS,
        "name of a built-in network such as resnet20, or FILE.py:FUNCTION",
        read=model_name,
        metavar="NAME",
    )
    model_options: Mapping[str, Any] = key({}, BITS, "arguments of the model", example="widths = [32, 64]")
    init_from: str = key(
        "",
        RUN,
        "begin with the tensors of a checkpoint, run folder, .safetensors or .npz file that fit",
        read=typed_path,
        metavar="FILE",
    )
    freeze: str = key("", RUN, "layers and tensors that stay as they are: 'conv*,norm1.bias'", metavar="NAME[,NAME...]")
    allow_changed_model: bool = key(False, PROCESS, "resume although model files have changed since the checkpoint")


@dataclass(frozen=True, init=False, repr=False, eq=False)
class LossConfig(Config):
    """training loss"""

    label_smoothing: float = key(0.0, BITS, "share of the target spread over all classes", at_least=0.0, below=1.0)
    class_weights: Mapping[str, Any] = key(
        {}, BITS, "weights by class name or number (others: 1)", rule=WEIGHTS, example="cat = 2, dog = 0.5"
    )
    balance_classes: bool = key(False, BITS, "weight each class by the inverse of its number of training samples")


@dataclass(frozen=True, init=False, repr=False, eq=False)
class OptimizerConfig(Config):
    """optimizer"""

    optimizer: str = key("sgd", RUN, "update rule", choices=OPTIMIZERS)
    momentum: float = key(0.9, BITS, "momentum of sgd, lars and muon; 0 for none", at_least=0.0, below=1.0)
    nesterov: bool = key(True, BITS, "Nesterov momentum, for sgd and muon")
    weight_decay: float = key(WEIGHT_DECAY, BITS, "weight decay, but not of biases and norms", at_least=0.0)
    optimizer_options: Mapping[str, Any] = key({}, BITS, "more arguments of the optimizer", example="beta2 = 0.95")
    clip_norm: float = key(0.0, BITS, "scale a gradient with a larger norm down to this norm (0: off)", at_least=0.0)
    average: str = key("none", RUN, "evaluate an average of the parameters instead of the parameters", choices=AVERAGES)
    average_options: Mapping[str, Any] = key({}, BITS, "arguments of the average", example="decay = 0.99")
    group_lr: Mapping[str, Any] = key(
        {}, BITS, "learning rate factors of groups", rule=FACTORS, example="head = 10", dotted=True
    )
    group_epochs: Mapping[str, Any] = key(
        {},
        BITS,
        "epochs for which groups are trained; then they are frozen",
        rule=FACTORS,
        example="first.bias = 3",
        dotted=True,
    )
    group_decay: Mapping[str, Any] = key(
        {}, BITS, "weight decay factors of groups", rule=FACTORS, example="bias = 1", dotted=True
    )


@dataclass(frozen=True, init=False, repr=False, eq=False)
class ScheduleConfig(Config):
    """length and learning rate"""

    epochs: int = key(10, BITS, "passes over the training split", at_least=1)
    max_steps: int = key(0, PROCESS, "stop after this step; the schedule still covers all epochs (0: off)", at_least=0)
    early_stop: int = key(
        0, BITS, "stop after so many epochs without a better validation accuracy (0: never)", at_least=0
    )
    lr: float = key(0.05, BITS, "highest learning rate (default for adamw: 0.001, for lars: 1)", above=0.0)
    schedule: str = key("cosine", BITS, "learning rate schedule", choices=SCHEDULES)
    warmup_steps: int = key(-1, BITS, "steps of linear warm-up (-1: 200, at most a tenth of the run)", at_least=-1)
    step_epochs: float = key(4.0, BITS, "for --schedule step: epochs between two drops", above=0.0, needs=STEP)
    step_factor: float = key(0.1, BITS, "for --schedule step: factor of a drop", above=0.0, needs=STEP)
    schedule_options: Mapping[str, Any] = key(
        {}, BITS, "more arguments of the schedule", example="milestones = [82, 123]"
    )

    def warmup(self, total_steps: int) -> int:
        """Steps of warm-up in a schedule of `total_steps`."""
        return min(DEFAULT_WARMUP, total_steps // WARMUP_SHARE) if self.warmup_steps < 0 else self.warmup_steps


@dataclass(frozen=True, init=False, repr=False, eq=False)
class ParallelConfig(Config):
    """parallel computing"""

    threads: int = key(0, PROCESS, "shards that a rank computes at a time (0: its share of the cores)", at_least=0)
    l2_kib: int = key(
        0,
        BITS,
        "L2 cache of a core in KiB, for rows at a time (0: of this machine, or of the checkpoint)",
        at_least=0,
        below=LARGEST_KIB + 1,
    )
    reduction: str = key("tree", BITS, "sum of gradients (mpi: bits depend on the ranks)", choices=(*REDUCTIONS,))
    portable: bool = key(False, BITS, "the same bits on every x86-64 CPU with AVX2 and FMA; see the documentation")
    elastic: bool = key(False, PROCESS, "continue without ranks that die (Open MPI >= 5, mpirun --with-ft ulfm)")
    stall_limit: float = key(60.0, PROCESS, "report a rank without progress for so many seconds (0: off)", at_least=0.0)
    stall_abort: float = key(600.0, PROCESS, "end a job so many seconds after such a report (0: off)", at_least=0.0)


@dataclass(frozen=True, init=False, repr=False, eq=False)
class CheckpointConfig(Config):
    """run folder, checkpoints and log"""

    run_dir: str = key("", FOLDER, "folder of the run (default: a new one, runs/DATA-MODEL-TIME)", read=typed_path)
    checkpoint_every: str = key(
        "0",
        PROCESS,
        "steps or time between more checkpoints: 500, 90s, 15m (0: none)",
        rule=INTERVAL,
        metavar="STEPS|TIME",
    )
    keep_best: int = key(1, PROCESS, "checkpoints to keep of those with the best accuracy", at_least=1)
    resume: str = key("auto", FOLDER, "checkpoint or run folder to resume (auto: the newest; never)", read=typed_path)
    log_every: int = key(50, PROCESS, "steps between two lines of metrics.jsonl", at_least=1)
    report: bool = key(True, PROCESS, "write report.html into the run folder at the end of the run")
    report_to: str = key(
        "", PROCESS, f"report to other tools too: {', '.join(REPORTS)}", rule=KNOWN_REPORTS, metavar="NAME,NAME"
    )
    timeline: int = key(
        0, PROCESS, "record so many steps of all ranks in timeline.json (0: off)", at_least=0, below=1001
    )

    @property
    def checkpoint_interval(self) -> tuple[int, int]:
        """Steps and seconds between two checkpoints; 0 where the interval is not given in that unit."""
        text, unit = self.checkpoint_every, self.checkpoint_every[-1]
        return (0, int(text[:-1]) * SECONDS_OF[unit]) if unit in SECONDS_OF else (int(text), 0)


@dataclass(frozen=True)
class TrainConfig(
    DataConfig,
    ModelConfig,
    AugmentationConfig,
    LossConfig,
    OptimizerConfig,
    ScheduleConfig,
    ParallelConfig,
    CheckpointConfig,
):
    """The whole configuration of `dptrain train`. UsageError for a value that cannot be used."""


SUBJECTS: tuple[Any, ...] = TrainConfig.__bases__
KEYS = {one.name: one for subject in SUBJECTS for one in fields(subject)}  # by name, in the order of the help
