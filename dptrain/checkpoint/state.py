"""The state of a training run between two steps: named flat vectors and progress."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated

import numpy as np

from dptrain.arrays.layout import Layout
from dptrain.arrays.memory import Array, aligned_copy, aligned_zeros
from dptrain.nn.finite import not_finite
from dptrain.nn.network import Network
from dptrain.optim.average import AVERAGED
from dptrain.system.fields import Bounds

PARAMETERS, BUFFERS = "parameters", "buffers"

Layouts = Mapping[str, Layout]  # the layout of each vector of a state, by the vector's name


@dataclass
class Progress:
    """Progress of a run: `step` counts updates, the `epoch_` sums are over the finished steps of the current epoch.

    `test_accuracy` and `validation_accuracy` belong to the current parameters; they are None before their evaluation,
    and the second also without a validation split. `best_validation` is the best so far, at `best_step`.
    """

    step: int = 0
    samples_seen: int = 0
    epoch_loss: float = 0.0
    epoch_correct: int = 0
    epoch_samples: int = 0
    test_accuracy: float | None = None
    validation_accuracy: float | None = None
    best_validation: float | None = None
    best_step: Annotated[int, Bounds(0)] = 0

    @property
    def selection_accuracy(self) -> float | None:
        """The accuracy by which the best checkpoint is chosen: of the validation split, if there is one."""
        return self.test_accuracy if self.validation_accuracy is None else self.validation_accuracy


@dataclass
class TrainingState:
    """Named float32 vectors: "parameters" (P,), "buffers" (B,), the slots of the optimizer, each (P,), and if the run
    averages them, "average" (P,) and "average_buffers" (B,); progress.

    A state holds no rank count and no generator state: a resume needs neither.
    """

    vectors: dict[str, Array] = field(repr=False)
    progress: Progress = field(default_factory=Progress)

    @property
    def parameters(self) -> Array:
        return self.vectors[PARAMETERS]

    @property
    def step(self) -> int:
        return self.progress.step

    @property
    def params_sha256(self) -> str:
        """SHA-256 of the parameter vector, little-endian float32: equal if and only if the bits are."""
        return hashlib.sha256(self.parameters.astype("<f4", copy=False).tobytes()).hexdigest()

    def digest(self) -> str:
        """SHA-256 of all vectors with their names."""
        digest = hashlib.sha256()
        for name, vector in self.vectors.items():
            digest.update(f"{name} {vector.size}\n".encode())
            digest.update(vector.data)
        return digest.hexdigest()

    def tensors(self, layouts: Layouts) -> Iterator[tuple[str, Array]]:
        """The name of each tensor in messages, such as "momentum of conv1.weight", and its part of a vector."""
        words = {PARAMETERS: "parameter", BUFFERS: "buffer"}
        for name, layout in layouts.items():
            for tensor, part in layout.slices.items():
                yield f"{words.get(name, f'{name} of')} {tensor}", self.vectors[name][part]

    def not_finite(self, layouts: Layouts) -> str:
        """The first tensor with a value that is not finite, such as "parameter conv1.weight holds nan"; "" for none."""
        for name, values in self.tensors(layouts):
            if values.size and (what := not_finite(values)):
                return f"{name} holds {what}"
        return ""

    def copy(self) -> TrainingState:
        """A copy that shares no memory, with vectors aligned for arithmetic."""
        return TrainingState({name: aligned_copy(one) for name, one in self.vectors.items()}, replace(self.progress))


def vector_layouts(network: Network, slots: Iterable[str], *, averaged: bool = False) -> Layouts:
    """Layouts of the vectors of a network's state under an optimizer with these slots; `averaged` adds the averages."""
    layouts = {PARAMETERS: network.layout, BUFFERS: network.buffer_layout}
    averages = {AVERAGED[name]: layout for name, layout in layouts.items() if averaged}
    return {**layouts, **dict.fromkeys(slots, network.layout), **averages}


def evaluated(vectors: Mapping[str, Array]) -> dict[str, Array]:
    """The parameters and buffers that an evaluation uses: their averages, if a state has them."""
    return {name: vectors.get(average, vectors[name]) for name, average in AVERAGED.items()}


def initial_state(
    network: Network,
    layouts: Layouts,
    seed: int,
    images: Iterable[Array] | None = None,
    values: Mapping[str, Array] | None = None,
) -> TrainingState:
    """The state before step 0: parameters from the seed and sample images, averages equal to them, slots zero.

    `values`, by full name, take the place of initial parameters and buffers.
    """
    vectors = {name: aligned_zeros(layout.size) for name, layout in layouts.items()} | network.initial(seed, images)
    for name in (PARAMETERS, BUFFERS):
        for tensor, view in layouts[name].views(vectors[name]).items():
            if values and tensor in values:
                np.copyto(view, values[tensor])
    for name, average in AVERAGED.items():
        if average in layouts:
            np.copyto(vectors[average], vectors[name])
    return TrainingState(vectors)
