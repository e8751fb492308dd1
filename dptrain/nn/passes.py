"""The context of a layer's forward and backward pass."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dptrain.arrays.layout import Shape
from dptrain.arrays.memory import Array, Workspace
from dptrain.arrays.random import NO_KEY, WORDS_PER_COUNT, Draws, Purpose, random_words

Parameters = Mapping[str, Any]  # arrays by the tensors' names, and whatever `prepare` has made of them
Arrays = Mapping[str, Array]


class Views(dict[str, Array]):
    """Arrays by name, to be filled in place."""

    def __setitem__(self, name: str, value: Array) -> None:
        if value is not self.get(name):  # views[name] += value assigns the same array
            raise TypeError(f"assigning to {name!r} has no effect: write into the array, by [{name!r}][...] = value")


def read_only(array: Array) -> Array:
    """A view that cannot be written to."""
    view = array.view()
    view.setflags(write=False)
    return view


@dataclass(slots=True)
class Pass:
    """The context of one forward pass of a layer and its backward pass.

    parameters    by name, as `prepare` returned them; read only
    buffers       by name; read only
    gradients     of the parameters, zero before the backward pass, which writes them: gradients["weight"][...] = value
    statistics    of this microbatch, for the buffers; a forward pass in training writes them
    training      False for an evaluation: then nothing is drawn, and no statistics are written
    need_dx       whether the backward pass must return the gradient of the layer's input
    workspace     memory for arrays, for this thread alone
    """

    parameters: Parameters
    buffers: Arrays
    workspace: Workspace
    training: bool = False
    gradients: Arrays = field(default_factory=dict)
    statistics: Arrays = field(default_factory=dict)
    need_dx: bool = True
    draws: Draws = NO_KEY
    layer_number: int = 0
    drawn: int = 0  # how often the layer has drawn

    def uniform(self, shape: Shape) -> Array:
        """New random numbers in [0, 1) for an array (..., N, C): 24 bits each, in the workspace's dtype.

        A sample's numbers depend on seed, epoch, shard, its position, the layer, and the layer's earlier draws in this
        pass.
        """
        *extents, samples, channels = shape
        per_sample = math.prod(extents) * channels
        counts = -(-per_sample // (2 * WORDS_PER_COUNT))  # a word gives two numbers
        words = random_words(
            self.draws.seed,
            Purpose.LAYER,
            self.draws.shard,
            samples * counts * WORDS_PER_COUNT,
            epoch=self.draws.epoch,
            stream=self.layer_number << 32 | self.drawn,
            start=self.draws.position * counts,
        )
        self.drawn += 1
        halves = words.astype("<u8", copy=False).view("<u4").reshape(samples, -1)[:, :per_sample]
        numbers = (halves >> np.uint32(8)).astype(self.workspace.dtype)
        numbers *= 2.0**-24
        return np.ascontiguousarray(np.moveaxis(numbers.reshape(samples, *extents, channels), 0, -2))
