"""What people read about a run before its first step and after its last one: rows of a name and a text."""

from __future__ import annotations

import math
import shlex
from collections import Counter
from pathlib import Path

from dptrain.system.text import counted, shown
from dptrain.training.events import RunFacts, RunFinished
from dptrain.training.model_source import is_model_file

Rows = list[tuple[str, str]]  # a name and a text
Cells = list[tuple[int, str]]  # importance, the highest is 0, and a text
MOST_HOSTS = 4  # that are listed by name


def start_rows(run: RunFacts, step: int, resumed_from: str | None) -> Rows:
    """The facts of a run at its start; `step` is that of the checkpoint `resumed_from`."""
    origin = f", from {resumed_from} (step {step:,})" if resumed_from else ""
    shape, classes = "x".join(map(str, run.image_shape)), f"{run.classes} classes"
    images = f"{run.train_samples:,} training and {run.test_samples:,} test images {shape}, {classes}"
    each = " on each rank" if run.ranks > 1 else ""
    return [
        ("run folder", f"{run.run_dir}{origin}"),
        ("data set", f"{run.data}: {images}"),
        ("network", f"{run.model}: {run.parameters:,} parameters"),
        ("ranks", run.connection),
        *([("hosts" if len({*run.hosts}) > 1 else "host", _hosts(run.hosts))] if run.hosts else []),
        ("threads", f"{counted(run.threads, 'shard')} at a time{each}"),
        ("shards", f"{run.shards}, {_share(run.shards, run.ranks)} on each rank" if run.ranks > 1 else f"{run.shards}"),
        ("steps", f"{run.last_step:,} in all, {run.steps_per_epoch:,} an epoch"),
        ("global batch", f"{counted(run.batch_size, 'image')}, {run.batch_size // run.shards} of each shard"),
    ]


def result_rows(end: RunFinished, seconds: float, steps: int, rate: float | None) -> Rows:
    """The results. `seconds`, `steps` and `rate` in images/s are of this process; a rate of None is not known."""
    total = f"{end.test_correct:,} of {end.test_samples:,}"
    speed = "" if rate is None else f", {rate:,.0f} images/s"
    rows = [("test accuracy", f"{percent(end.test_accuracy)} ({total}), test loss {end.test_loss:.4f}")]
    if end.tta_accuracy is not None:
        rows.append(("", f"{percent(end.tta_accuracy)} with test-time augmentation ({end.tta})"))
    rows.append(("time", f"{duration(seconds)}, {counted(steps, 'step')}{speed}"))
    rows.append(("last checkpoint", end.last_checkpoint))
    if end.validation_accuracy is not None:
        rows.insert(1, ("validation", percent(end.validation_accuracy)))
    if end.best_checkpoint is not None and end.best_accuracy is not None:
        split = "test" if end.validation_accuracy is None else "validation"
        best = f"chosen on the {split} split: {percent(end.best_accuracy)}, step {end.best_step:,}"
        rows.append(("best checkpoint", f"{end.best_checkpoint} ({best})"))
    rows.append(("metrics", str(Path(end.run_dir) / "metrics.jsonl")))
    if (page := Path(end.run_dir) / "report.html").is_file():
        rows.append(("report", str(page)))
    rows.append(("configuration", str(Path(end.run_dir) / "config.toml")))
    rows.append(("params_sha256", end.params_sha256))
    return rows


def next_commands(run: RunFacts, step: int, program: str = "dptrain") -> Rows:
    """What is useful after a run that has ended at this step, and the command for it, quoted for a shell."""

    def line(*words: str) -> str:
        return f"{program} {shlex.join(words)}"

    if ":" in run.model and not is_model_file(run.model):  # a function of a program in Python: no command has it
        return [("checkpoint contents", line("inspect", run.run_dir))]
    model = ["--model", run.model] if ":" in run.model else []  # code is run only if the command names it
    launch = ["launch", "-n", str(run.ranks), "--"] if run.ranks > 1 else []
    again = [*launch, "train", "--config", str(Path(run.run_dir) / "config.toml"), "--run-dir", run.run_dir]
    if step < run.last_step:  # by early stopping or a callback
        more, purpose = ["--early-stop", "0"] if run.early_stop else [], f"resume up to step {run.last_step:,}"
    elif run.last_step < run.epochs * run.steps_per_epoch:
        more, purpose = ["--max-steps", "0"], f"resume up to epoch {run.epochs}"
    else:
        more, purpose = ["--epochs", str(2 * run.epochs)], f"resume for {counted(run.epochs, 'more epoch')}"
    return [
        ("accuracy by class", line("eval", run.run_dir, run.data, *model)),
        ("checkpoint contents", line("inspect", run.run_dir)),
        (purpose, line(*again, *more)),
    ]


def lines_of(rows: Rows) -> list[str]:
    """Rows as aligned lines that can be printed."""
    width = max(len(name) for name, _ in rows)
    return [f"{name:<{width}}  {shown(text)}" for name, text in rows]


def fitted(cells: Cells, width: int, gap: str = "  ") -> str:
    """The cells in one line; the least important are left out until it fits."""
    kept = list(cells)
    while kept and len(gap.join(text for _, text in kept)) > width:
        kept.remove(max(kept))
    return gap.join(text for _, text in kept)


def percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def duration(seconds: float) -> str:
    """Seconds in words: 12.3 s, 2 min 05 s, 3 h 20 min."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def clock(seconds: float) -> str:
    """Seconds as hours, minutes and seconds: 0:42, 12:03, 1:02:03."""
    minutes, rest = divmod(math.ceil(seconds), 60)
    return f"{minutes}:{rest:02}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def _hosts(hosts: tuple[str, ...]) -> str:
    """The hosts with their numbers of ranks, if there are several."""
    ranks = Counter(hosts)
    if len(ranks) == 1:
        return hosts[0]
    each = [f"{host} ({counted(number, 'rank')})" for host, number in [*ranks.items()][:MOST_HOSTS]]
    return f"{len(ranks)}: {', '.join(each)}{', ...' * (len(ranks) > MOST_HOSTS)}"


def _share(shards: int, ranks: int) -> str:
    """How many shards a rank has: 4, or 2 to 3."""
    least, more = divmod(shards, ranks)
    return f"{least} to {least + 1}" if more else f"{least}"
