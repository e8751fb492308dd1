"""The network of a checkpoint, without its data set."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from dptrain.checkpoint.format import Checkpoint, Origin
from dptrain.checkpoint.state import BUFFERS, PARAMETERS
from dptrain.config.files import parse_toml
from dptrain.config.train import TrainConfig
from dptrain.errors import CheckpointError, UsageError
from dptrain.nn.network import Network
from dptrain.system.text import shown
from dptrain.training.architecture import Architecture, build_network
from dptrain.training.model_checks import kept_model
from dptrain.training.model_source import is_model_file


def trained_configuration(origin: Origin, path: Path, model: str | Architecture) -> TrainConfig:
    """The configuration that a checkpoint at `path` was trained with.

    UsageError if it names a user's model, whose code runs only when the user passes it as `model`.
    """
    trained = TrainConfig(**parse_toml(origin.config, str(path)))
    if ":" in trained.model and not model:
        if not is_model_file(trained.model):
            raise UsageError(
                f"{shown(path)} was trained in Python with the function {shown(trained.model, 300)}. Pass it again: "
                "dptrain.load(path, model=function); or write it to a file and pass --model FILE.py:FUNCTION"
            )
        name = kept_model(path, trained.model, origin.model_files) or trained.model
        raise UsageError(
            f"{shown(path)} was trained with {shown(trained.model, 300)}. Refusing to run model code named by a "
            f"checkpoint; pass --model {shown(name, 300)}"
        )
    return trained


def network_of(checkpoint: Checkpoint, path: Path, model: str | Architecture = "") -> Network:
    """The network that a checkpoint, read from `path`, was trained with; `model` replaces the name of its architecture.

    CheckpointError if its layers or tensors are not those of the checkpoint.
    """
    origin = checkpoint.origin
    trained = trained_configuration(origin, path, model)
    network = build_network(model or trained.model, trained.model_options, origin.input_shape, len(origin.classes))
    check_network(origin, network, path)
    for vector, layout in ((PARAMETERS, network.layout), (BUFFERS, network.buffer_layout)):
        there, here = ([*one.shapes.items()] for one in (checkpoint.layouts[vector], layout))
        if there != here:
            raise CheckpointError(
                f"{shown(path)}: of another network: it has {vector} {shown(there, 300)}, expected {shown(here, 300)}"
            )
    return network


def check_network(origin: Origin, network: Network, path: Path, why: str = "") -> None:
    """CheckpointError unless the network is that of the checkpoint; `why` may explain a difference."""
    here = replace(origin, architecture=tuple(network.description()), spec=network.spec())
    if difference := origin.completed(network).difference(here):
        raise CheckpointError(
            f"{shown(path)} has another architecture: {shown(difference, 500)}{why}; give the right --model"
        )
