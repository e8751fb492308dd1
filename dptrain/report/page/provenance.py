"""How to make the run again, what its bits depend on, and its configuration."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from dptrain.config.files import inline_table, to_toml
from dptrain.config.train import TrainConfig
from dptrain.report.page import figures
from dptrain.report.page.facts import PageFacts
from dptrain.report.page.markup import Html, definitions, element, folded, join, missing_note, table
from dptrain.report.page.reproduce import default, differing, train_command
from dptrain.system.text import counted, shown_lines
from dptrain.training.model_source import is_model_file

LONGEST_CONFIGURATION = 1 << 18


def reproduce(facts: PageFacts) -> Html:
    """The command, and everything that the bits depend on."""
    parts: list[object] = []
    config, checkpoint, manifest = facts.config, facts.checkpoint, facts.manifest
    if config is None:
        parts.append(missing_note(f"The command is left out: {facts.missing['config']}."))
    elif ":" in config.model and not is_model_file(config.model):
        parts.append(missing_note("The network is a function of a Python program, so no command makes this run again."))
    else:
        parts.append(element("p", "This command makes the same parameters again, on any number of ranks and threads:"))
        commands = [train_command(with_kept_model(config, facts.folder))]
        if manifest is not None and manifest.command:
            commands.insert(0, manifest.pack_command(Path(config.data), manifest.shard_count))
        parts.append(element("pre", element("code", *lines("\n".join(commands)))))
    history, start = facts.history, facts.history.last_start
    known: list[tuple[str, object]] = [("params_sha256", code(history.last.get("params_sha256")))]
    if checkpoint is not None:
        origin = checkpoint.origin
        shape = " x ".join(map(str, origin.input_shape))
        samples = "" if manifest is None else (
            f"{manifest.samples('train'):,} training and {manifest.samples('test'):,} test images, "
        )  # fmt: skip
        known += [
            ("data set", f"{origin.data_name}: {samples}{shape}, {len(origin.classes):,} classes"),
            ("data hash", code(origin.manifest_sha256)),
            ("parameters", f"{checkpoint.layouts['parameters'].size:,}"),
            *((name, origin.environment[name]) for name in origin.environment),
        ]
    names = ("dptrain", "python", "mpi4py", "mpi")
    known += [(name, history.versions[name]) for name in names if history.versions.get(name)]
    known += [("host", start.get("host")), ("ranks", figures.workers(start))]
    parts += [element("h3", "Environment"), definitions(known)]
    rows = [
        [figures.moment(one), figures.workers(one), f"{one['step']:,}", code(" ".join(map(str, command)))]
        for one in history.starts
        if isinstance(command := one.get("command"), list)
    ]
    head = ["time", "ranks", "from step", "command of a rank"]
    parts.append(folded(f"{counted(len(rows), 'start')} of the run", table("Starts", head, rows, texts=(1, 3))))
    return join(parts)


def with_kept_model(config: TrainConfig, folder: Path) -> TrainConfig:
    """The configuration with the path of the model's code in the run folder."""
    return replace(config, model=str(folder / config.model)) if ":" in config.model else config


def code(value: object) -> Html | None:
    return None if value is None else element("code", value)


def configuration(facts: PageFacts) -> Html:
    """Keys that differ from the defaults, then the whole configuration and the layers."""
    parts: list[object] = []
    if facts.config is not None:
        rows = [
            [name.replace("_", "-"), code(written(value)), code(written(default(name)) or figures.NONE)]
            for name, value in differing(facts.config).items()
        ]
        parts.append(table("Keys that differ from their defaults", ["key", "value", "default"], rows, texts=(1, 2)))
        text = shown_lines(to_toml(facts.config, folder=False), LONGEST_CONFIGURATION)
        parts.append(folded("All keys (config.toml)", element("pre", element("code", *lines(text)))))
    else:
        parts.append(missing_note(f"The configuration is left out: {facts.missing['config']}."))
    if facts.checkpoint is not None:
        layers = join(element("li", element("code", line)) for line in facts.checkpoint.origin.architecture)
        parts.append(folded("Layers", element("ol", layers, start=0)))
    return join(parts)


def written(value: object) -> str:
    return inline_table(value) if isinstance(value, dict) else str(value)


def lines(text: str) -> Iterator[object]:
    """The lines of a text that is safe, with their line breaks."""
    for line in text.rstrip("\n").split("\n"):
        yield line
        yield Html("\n")
