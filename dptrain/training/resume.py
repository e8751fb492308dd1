"""Which checkpoint a run resumes from, whether it is of this run, and what has changed since."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from dptrain.checkpoint.folder import RunFolder, step_of
from dptrain.checkpoint.format import Checkpoint, Origin, read_checkpoint
from dptrain.config.files import parse_toml
from dptrain.config.train import KEYS, TrainConfig
from dptrain.errors import CheckpointError, DptrainError, UsageError
from dptrain.system.cache import LARGEST_KIB
from dptrain.system.keys import Scope, flag
from dptrain.system.text import shown
from dptrain.training.agreement import PORTABLE, comparable
from dptrain.training.model_checks import model_change
from dptrain.training.model_source import ModelSource

Found = tuple[Path, Checkpoint]


def find_checkpoint(
    config: TrainConfig, folder: RunFolder, note: Callable[[str], None], *, set_aside: bool = True
) -> Found | None:
    """The checkpoint that --resume asks for, with its path; None to start a new run.

    With `set_aside`, broken checkpoints of a run that is continued are renamed.
    """
    if config.resume == "auto":
        return folder.newest(note, set_aside=set_aside) if config.run_dir else None
    if config.resume == "never":
        if config.run_dir and (there := folder.candidates()):
            raise UsageError(
                f"--resume never, but {folder.path} already holds a run ({there[-1].name}): choose another --run-dir, "
                "or resume with --resume auto"
            )
        return None
    path = Path(config.resume)
    found: Found | None = None
    if path.is_file():
        found = path, read_checkpoint(path)
    elif path.is_dir():
        found = RunFolder(path).newest(note)
    if found is None:
        raise CheckpointError(f"--resume {path}: no checkpoint there; expected auto, never, a checkpoint or run folder")
    path, checkpoint = found
    there = folder.numbered() if config.run_dir else []
    if there and step_of(there[-1]) > checkpoint.state.step:
        raise UsageError(
            f"--resume {path} is at step {checkpoint.state.step}, but {folder.path} holds later checkpoints "
            f"({there[-1].name}): resume from those with --resume auto, or choose another --run-dir"
        )
    return path, checkpoint


def l2_kib_of_checkpoint(config: TrainConfig) -> int:
    """The size of the cache that the checkpoint of --resume was computed for; 0 if there is none, or it has none."""
    try:
        found = find_checkpoint(config, RunFolder(Path(config.run_dir)), lambda line: None, set_aside=False)
    except DptrainError:
        return 0  # it is found again, and reported, when the run is opened
    return 0 if found is None else l2_kib_of(found[1].origin)


def l2_kib_of(origin: Origin) -> int:
    """The size of the cache that a checkpoint was computed for; 0 if it is not known."""
    of_network = origin.tuning.get("network")
    size = of_network.get("l2_kib") if isinstance(of_network, dict) else 0
    return size if isinstance(size, int) and 0 < size <= LARGEST_KIB else 0


def check_resumable(
    path: Path, checkpoint: Checkpoint, config: TrainConfig, origin: Origin, source: ModelSource | None = None
) -> list[str]:
    """Notes on what has changed since the checkpoint; CheckpointError if it is of another run."""
    earlier, state = checkpoint.origin, checkpoint.state
    if earlier.manifest_sha256 != origin.manifest_sha256:
        raise CheckpointError(
            f"{path}: made with another data set ({shown(earlier.data_name, 80)}, manifest "
            f"{earlier.manifest_sha256[:12]}...). Give that one, or start a new run in another --run-dir"
        )
    before = TrainConfig(**parse_toml(earlier.config, str(path)))
    changed = _changed_keys(before, config, earlier.steps_per_epoch, origin.steps_per_epoch)
    breaking = "; ".join(text for name, text in changed.items() if KEYS[name].metadata["scope"] is Scope.RUN)
    if breaking:
        raise CheckpointError(f"{path}: of another run: {shown(breaking, 500)}. Use its values, or another --run-dir")
    output = origin.model_output_sha256 if before.model_options == config.model_options else ""
    change = model_change(path, earlier, before.model, source, output, origin.environment)
    if difference := earlier.difference(origin):
        code = f" ({change})" if change and ":" in before.model else ""
        raise CheckpointError(
            f"{path}: of another architecture: {shown(difference, 500)}{code}. Give the --model it was trained with, "
            "or another --run-dir"
        )
    if change and not config.allow_changed_model:
        raise CheckpointError(f"{change}. Pass --allow-changed-model to accept this, or another --run-dir")
    if earlier.steps_per_epoch != origin.steps_per_epoch or (state.step and not state.progress.epoch_samples):
        raise CheckpointError(f"{path}: its step and its samples do not fit this run; the file was edited")
    notes = [change] if change else []
    if source is not None and before.model.rpartition(":")[2] == config.model.rpartition(":")[2]:
        changed.pop("model", None)  # the same function; whether its code is the same is checked above
    notes += [f"changed since the checkpoint: {shown(text, 500)}" for text in changed.values()]
    there = comparable(earlier.environment)
    moved = [key for key, value in comparable(origin.environment).items() if there.get(key) != value]
    cpus = {one.get("cpu", "").removesuffix(PORTABLE) for one in (earlier.environment, origin.environment)}
    if len(cpus) == 1 and "cpu" in moved:
        moved[moved.index("cpu")] = flag("portable")
    moved += [
        "cache size (--l2-kib)" if layer == "network" else f"algorithm of {layer}"
        for layer, one in origin.tuning.items()
        if earlier.tuning.get(layer) != one
    ]
    if moved:
        notes.append(f"another {', '.join(moved)} than the checkpoint's: bits may differ from an undisturbed run's")
    return notes


def _changed_keys(before: TrainConfig, now: TrainConfig, *steps_per_epoch: int) -> dict[str, str]:
    """Keys that decide the bits and have changed, each with a text that shows both values."""
    changed = {
        name: f"{flag(name)} {shown(getattr(before, name))} there, {shown(getattr(now, name))} here"
        for name, key in KEYS.items()
        if getattr(before, name) != getattr(now, name) and key.metadata["scope"] in (Scope.RUN, Scope.BITS)
    }
    warmups = {one.warmup(one.epochs * steps) for one, steps in zip((before, now), steps_per_epoch, strict=True)}
    if len(warmups) == 1:  # written in two ways
        changed.pop("warmup_steps", None)
    return changed
