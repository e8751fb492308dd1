"""The keys of a training run, in small groups by subject; each is a flag of `dptrain train` and a key in TOML.

A function that needs one subject takes that group, and a whole TrainConfig is one: `make_schedule(config:
ScheduleConfig)`. Flags and TOML are flat, and so are the attributes. A new key is one line in its group.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields
from typing import Any

from dptrain.config.keys import Config, Scope, key, rules
from dptrain.optim import NAMES as OPTIMIZERS
from dptrain.optim.schedule import NAMES as SCHEDULES
from dptrain.system.paths import typed_path

BORDERS = ("none", "reflect", "zero")
REDUCTIONS = {"tree": "dptrain.parallel.reduce.tree:TreeReducer", "mpi": "dptrain.parallel.reduce.mpi:MPIReducer"}
SECONDS_OF = {"s": 1, "m": 60, "h": 3600}
DEFAULT_WARMUP, WARMUP_SHARE = 200, 10  # steps, but at most one of so many of the run's
INTERVAL = re.compile(r"(\d+)([smh]?)", re.ASCII)


def model_name(text: str) -> str:
    """The name of an architecture, or FILE.py:FUNCTION with `~` expanded."""
    return typed_path(text) if ":" in text else text


@dataclass(frozen=True)
class DataConfig(Config):
    """data"""

    data: str = key("", Scope.PROCESS, "folder of the packed data set", read=typed_path, metavar="DATA")
    batch_size: int = key(
        128, Scope.RUN, "global batch size, over all ranks; a multiple of the number of shards", least=1
    )
    seed: int = key(
        0, Scope.RUN, "seed of the initial parameters, the sample order and all random draws", least=0, below=2**63
    )


@dataclass(frozen=True)
class AugmentationConfig(Config):
    """augmentation of the training images"""

    crop: str = key(
        "none",
        Scope.BITS,
        "shift each image at random by up to 4 pixels and fill the border by reflection or with zeros",
        choices=BORDERS,
    )
    flip: bool = key(False, Scope.BITS, "mirror half of the images at random (not for digits or text)")


@dataclass(frozen=True)
class ModelConfig(Config):
    """network"""

    model: str = key(
        "convnet",
        Scope.BITS,
        "architecture: convnet, linear, or FILE.py:FUNCTION",
        read=model_name,
        metavar="NAME",
    )
    model_options: dict[str, Any] = field(
        default_factory=dict,
        metadata=rules(
            Scope.BITS, "arguments of the architecture, as TOML", example="widths = [32, 64], kernel_size = 5"
        ),
    )
    allow_changed_model: bool = key(
        False, Scope.PROCESS, "resume although the model's files have changed since the checkpoint"
    )


@dataclass(frozen=True)
class OptimizerConfig(Config):
    """optimizer"""

    optimizer: str = key("sgd", Scope.RUN, "update rule", choices=OPTIMIZERS)
    momentum: float = key(0.9, Scope.BITS, "momentum of sgd; 0 for none", least=0.0, below=1.0)
    nesterov: bool = key(True, Scope.BITS, "Nesterov momentum, for sgd")
    weight_decay: float = key(5e-4, Scope.BITS, "weight decay, for weights but not for biases", least=0.0)
    optimizer_options: dict[str, Any] = field(
        default_factory=dict,
        metadata=rules(Scope.BITS, "further arguments of the optimizer, as TOML", example="beta2 = 0.95"),
    )
    group_lr: dict[str, Any] = field(
        default_factory=dict,
        metadata=rules(
            Scope.BITS,
            "factors of the learning rate by group of parameters, as TOML",
            example="head = 10",
            factors=True,
        ),
    )


@dataclass(frozen=True)
class ScheduleConfig(Config):
    """length of the run and learning rate"""

    epochs: int = key(10, Scope.BITS, "passes over the training split", least=1)
    max_steps: int = key(
        0, Scope.PROCESS, "stop after this step; the schedule still covers all --epochs (0: no limit)", least=0
    )
    lr: float = key(0.05, Scope.BITS, "highest learning rate", above=0.0)
    schedule: str = key("cosine", Scope.BITS, "learning rate schedule", choices=SCHEDULES)
    warmup_steps: int = key(
        -1, Scope.BITS, "steps of linear warm-up (-1: 200, but at most a tenth of the run)", least=-1
    )
    step_epochs: float = key(4.0, Scope.BITS, "for --schedule step: epochs between two drops", above=0.0)
    step_factor: float = key(0.1, Scope.BITS, "for --schedule step: factor of a drop", above=0.0)

    def warmup(self, total_steps: int) -> int:
        """Steps of warm-up of a run whose schedule has that many steps."""
        return min(DEFAULT_WARMUP, total_steps // WARMUP_SHARE) if self.warmup_steps < 0 else self.warmup_steps


@dataclass(frozen=True)
class ParallelConfig(Config):
    """parallel work"""

    threads: int = key(
        0, Scope.PROCESS, "shards that a rank computes at the same time (0: its share of the host's cores)", least=0
    )
    reduction: str = key(
        "tree",
        Scope.BITS,
        "sum of the gradients: tree gives the same bits on any number of ranks, mpi is MPI_Allreduce",
        choices=tuple(REDUCTIONS),
    )
    elastic: bool = key(False, Scope.PROCESS, "continue without ranks that die (Open MPI >= 5, mpirun --with-ft ulfm)")


@dataclass(frozen=True)
class CheckpointConfig(Config):
    """run folder and checkpoints"""

    run_dir: str = key(
        "", Scope.FOLDER, "folder of the run (default: a new one, runs/DATA-MODEL-TIME)", read=typed_path
    )
    checkpoint_every: str = key(
        "0",
        Scope.PROCESS,
        "write a checkpoint every so many steps or so much time, such as 500, 90s, 15m or 1h, besides the one after "
        "each epoch (0: no more)",
        form=(INTERVAL, "a number of steps, or a time such as 90s, 15m or 1h"),
        metavar="STEPS|TIME",
    )
    resume: str = key(
        "auto",
        Scope.FOLDER,
        "auto: resume from the newest checkpoint in the run folder; never; or the path of a checkpoint or another run",
        read=typed_path,
    )

    @property
    def checkpoint_interval(self) -> tuple[int, int]:
        """Steps and seconds between two checkpoints; 0 for no such rule."""
        text, unit = self.checkpoint_every, self.checkpoint_every[-1]
        return (0, int(text[:-1]) * SECONDS_OF[unit]) if unit in SECONDS_OF else (int(text), 0)


@dataclass(frozen=True)
class ReportingConfig(Config):
    """log and stalled ranks"""

    log_every: int = key(50, Scope.PROCESS, "steps between two lines of metrics.jsonl", least=1)
    stall_limit: float = key(
        60.0, Scope.PROCESS, "report a rank that makes no progress for this many seconds (0: never)", least=0.0
    )
    stall_abort: float = key(
        600.0, Scope.PROCESS, "end a job of several ranks this many seconds after that report (0: never)", least=0.0
    )


@dataclass(frozen=True)
class TrainConfig(
    DataConfig,
    ModelConfig,
    AugmentationConfig,
    OptimizerConfig,
    ScheduleConfig,
    ParallelConfig,
    CheckpointConfig,
    ReportingConfig,
):
    """The whole configuration of `dptrain train`. UsageError for a value that cannot be used."""


SUBJECTS: tuple[Any, ...] = TrainConfig.__bases__
KEYS = {one.name: one for subject in SUBJECTS for one in fields(subject)}  # by name, in the order of the help
