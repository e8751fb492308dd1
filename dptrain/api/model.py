"""A trained network: its tensors, its predictions, its evaluation, and files for other programs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dptrain.api.images import Picture, pixels_of
from dptrain.api.packing import PathLike
from dptrain.api.process import all_ranks, one_blas_thread
from dptrain.api.tensors import NamedTensors
from dptrain.arrays.layout import Layout
from dptrain.arrays.memory import Array
from dptrain.checkpoint.folder import open_checkpoint
from dptrain.checkpoint.state import PARAMETERS, evaluated
from dptrain.config.files import parse_toml
from dptrain.data_prep.pictures.decode import Form
from dptrain.errors import UsageError
from dptrain.export import check_suffix, write
from dptrain.nn.network import Network
from dptrain.parallel.communicator import together
from dptrain.system.paths import absolute_path
from dptrain.system.streams import write_to_stderr
from dptrain.system.text import shown
from dptrain.training.agreement import agree_on
from dptrain.training.architecture import Architecture
from dptrain.training.classifier import SHIPPED, Classifier
from dptrain.training.evaluate import Evaluation
from dptrain.training.evaluate_checkpoint import evaluate_checkpoint
from dptrain.training.rebuild import network_of

TTA = Literal["none", "mirror", "mirror-translate"]
ModelFunction = Callable[..., Any]  # (input shape (C, H, W), number of classes, **options) -> layers


def architecture_of(model: str | ModelFunction) -> str | Architecture:
    """The value of `model` for the functions of training: a function gets the name MODULE:FUNCTION."""
    if isinstance(model, str):
        return model
    if not callable(model):
        raise UsageError(f"model: found {shown(repr(model), 80)}, expected a name, FILE.py:FUNCTION or a function")
    name = getattr(model, "__qualname__", type(model).__qualname__)
    return Architecture(f"{getattr(model, '__module__', '__main__')}:{name}", model)


def data_set_path(data: object) -> Path:
    """The absolute path of a packed data set; UsageError for anything else, such as arrays."""
    if not isinstance(data, str | os.PathLike):
        raise UsageError(
            f"data: found {shown(repr(data), 80)}, expected a DataSet or the folder of a packed data set; to pack "
            "arrays: dptrain.pack((images, labels), folder)"
        )
    return absolute_path(data)


def load(checkpoint: PathLike | None = None, model: str | ModelFunction = "") -> Model:
    """The network of a checkpoint file, or of the newest checkpoint of a run folder.

    Without a path it is the convnet that comes with dptrain, for CIFAR-10's 10 classes. `model` is FILE.py:FUNCTION or
    the function itself, for a network of your own. Raises CheckpointError or UsageError.
    """
    path = SHIPPED if checkpoint is None else absolute_path(checkpoint)
    return Model(path, architecture_of(model))


class Model(NamedTensors):
    """A trained network. It uses the averages of parameters and buffers, if the checkpoint has them.

    Several threads may use it. It can be pickled, if its function can be: the copy reads the checkpoint again.
    """

    def __init__(self, path: Path, model: str | Architecture = "") -> None:
        def note(line: str) -> None:
            write_to_stderr(f"dptrain: {shown(line)}")

        self.path, self._model = path, model
        self._checkpoint = open_checkpoint(path, note)
        for line in self._checkpoint.notes:
            note(line)
        self._classifier = Classifier(self._checkpoint, path, model)

    def __reduce__(self) -> tuple[Any, ...]:
        return Model, (self.path, self._model)

    def __fspath__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        count = self._checkpoint.layouts[PARAMETERS].size
        return f"<Model {shown(self.path)}: step {self.step}, {count:,} parameters, {len(self.classes)} classes>"

    @property
    def step(self) -> int:
        """The number of steps that it was trained for."""
        return self._checkpoint.state.step

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, in the order of the probabilities."""
        return self._classifier.classes

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W): channels, height and width of an image in pixels."""
        return self._classifier.image_shape

    @property
    def layers(self) -> tuple[str, ...]:
        """A line for each layer."""
        return self._checkpoint.origin.architecture

    @property
    def config(self) -> dict[str, Any]:
        """The configuration of the run, by key."""
        return parse_toml(self._checkpoint.origin.config, str(self.path))

    @property
    def params_sha256(self) -> str:
        """SHA-256 of the parameters, as `dptrain train` prints it."""
        return self._checkpoint.state.params_sha256

    def _vector(self, name: str) -> tuple[Layout, Array]:
        return self._checkpoint.layouts[name], evaluated(self._checkpoint.state.vectors)[name]

    def probabilities(self, images: NDArray[np.uint8] | Iterable[Picture]) -> Array:
        """The probability of each class, float32 (n, K).

        `images` are uint8 (n, C, H, W), or paths of picture files and pictures of Pillow, which are scaled as when the
        training images were packed. UsageError for something else, DataError for a broken picture or an array of
        another shape or type.
        """
        with one_blas_thread:
            return self._classifier.probabilities(pixels_of(images, Form(self.image_shape, self._classifier.fit)))

    def predict(self, images: NDArray[np.uint8] | Iterable[Picture]) -> list[str]:
        """The name of the most probable class of each image; see `probabilities`."""
        return [self.classes[number] for number in self.probabilities(images).argmax(axis=1)]

    def evaluate(
        self, data: PathLike, split: str = "test", *, tta: TTA = "none", threads: int = 0, predictions: bool = False
    ) -> Evaluation:
        """Loss and accuracy on a split of a packed data set, overall and by class.

        `tta` is the test-time augmentation, `threads` the number of cores (0: all). With `predictions=True` the result
        has `predictions`: for each sample its label, its predicted class, and the probabilities of all classes. The
        ranks of mpirun share the work. Raises a DptrainError.
        """
        with all_ranks() as (communicator, _):
            with together(communicator):
                folder = data_set_path(data)
            values = {"split": split, "tta": tta, "predictions": predictions, "params_sha256": self.params_sha256}
            agree_on("evaluation", values, communicator, "call evaluate with the same arguments on all ranks")
            return evaluate_checkpoint(
                self._checkpoint,
                self.path,
                folder,
                communicator,
                model=self._model,
                tta=tta,
                threads=threads,
                predictions=predictions,
                probabilities=predictions,
                split=split,
                note=lambda line: write_to_stderr(f"dptrain: {line}"),
            )

    def export(self, path: PathLike) -> Path:
        """Write the network for other programs; the suffix is the format: .onnx, .safetensors, .npz or .h5.

        UsageError for another suffix, or if the file cannot be written.
        """
        path = check_suffix(absolute_path(path))
        write(path, self._checkpoint, self._network)
        return path

    def torch_source(self) -> str:
        """The source of a PyTorch module; `export` to a .safetensors file writes its values."""
        from dptrain.export.pytorch import source

        return source(self._checkpoint, self._network())

    def _network(self) -> Network:
        return network_of(self._checkpoint, self.path, self._model)
