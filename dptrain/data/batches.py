"""Microbatches of one shard: samples in the order of the epoch, augmented and normalised.

Order and augmentation depend on (seed, epoch, shard) and on nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dptrain.arrays.layout import array_shape
from dptrain.arrays.memory import Array, Workspace
from dptrain.arrays.random import Draws, Purpose, random_words
from dptrain.data.manifest import Manifest
from dptrain.data.shard import Samples
from dptrain.data.transforms import Images, Transform, Words


class ShardBatches:
    """Training microbatches of one shard, for any step of any epoch, so that a run can resume at any step."""

    def __init__(
        self,
        samples: Samples,
        shard: int,
        manifest: Manifest,
        *,
        size: int,
        seed: int,
        transforms: Sequence[Transform] = (),
    ) -> None:
        self.samples, self.shard, self.size, self.seed = samples, shard, size, seed
        self.transforms = transforms
        self._drawn_once = {one.purpose: self._words_of(one, 0) for one in transforms if one.alternating}
        self.normalise = Normalisation(manifest)
        self._epoch = -1

    def batch(self, epoch: int, step: int, workspace: Workspace) -> tuple[Array, NDArray[np.int64]]:
        """Images (H, W, N, C) in the workspace's dtype and labels (N,) of a step of an epoch, both counted from 0.

        Every sample occurs once per epoch: N is `size`, or less (possibly 0) in the last steps. The images stay in the
        workspace until the next call.
        """
        images, chosen = self.augmented(epoch, slice(step * self.size, (step + 1) * self.size))
        return self.normalise(images, workspace), self.samples.labels[chosen]

    def order(self, epoch: int) -> NDArray[np.intp]:
        """The rows of the shard's samples in the order of an epoch, (n,)."""
        if epoch != self._epoch:
            self._epoch, self._order = epoch, np.argsort(self._words(Purpose.SAMPLE_ORDER, epoch), kind="stable")
            drawn = [one for one in self.transforms if not one.alternating]
            self._drawn = {one.purpose: self._words_of(one, epoch) for one in drawn}  # by position, not by sample
        return self._order

    def augmented(self, epoch: int, positions: slice | NDArray[np.intp]) -> tuple[Images, NDArray[np.intp]]:
        """Augmented images uint8 (N, C, H, W) at positions in an epoch, and their rows in the shard (N,)."""
        chosen = self.order(epoch)[positions]
        images = self.samples.images[chosen]
        for transform in self.transforms:
            if transform.alternating:
                words = self._drawn_once[transform.purpose][chosen] ^ np.uint64(epoch & 1)
            else:
                words = self._drawn[transform.purpose][positions]
            images = transform(images, words)
        return images, chosen

    def draws(self, epoch: int, step: int) -> Draws:
        """The key of the random draws that layers make for a microbatch."""
        return Draws(self.seed, epoch, self.shard, step * self.size)

    def _words_of(self, transform: Transform, epoch: int) -> Words:
        """The words of a transform for each position in the epoch, or for each sample of the shard, (n, words)."""
        return self._words(transform.purpose, epoch, transform.words).reshape(len(self.samples), transform.words)

    def _words(self, purpose: Purpose, epoch: int, each: int = 1) -> Words:
        return random_words(self.seed, purpose, self.shard, each * len(self.samples), epoch=epoch)


class HasStatistics(Protocol):
    """A manifest, or another record with the mean and deviation of each channel, of pixels scaled to 0..1."""

    @property
    def mean(self) -> tuple[float, ...]: ...

    @property
    def std(self) -> tuple[float, ...]: ...


class Normalisation:
    """uint8 images (N, C, H, W) to floats (H, W, N, C): (pixel / 255 - mean) / std, per channel.

    The result stays in the workspace until the next call.
    """

    def __init__(self, origin: HasStatistics) -> None:
        mean, std = np.array(origin.mean), np.array(origin.std)
        self.scale = (1 / (255 * std)).astype(np.float32)
        self.shift = (-mean / std).astype(np.float32)

    def __call__(self, images: NDArray[np.uint8], workspace: Workspace) -> Array:
        x = workspace.array("data", "images", array_shape(images.shape[1:], len(images)))
        np.copyto(x, images.transpose(2, 3, 0, 1))
        # Whole rows of pixels at a time: NumPy is slow on short runs of C values.
        row = x.shape[1] * len(images)
        rows = x.reshape(len(x), -1)
        rows *= np.tile(self.scale, row)
        rows += np.tile(self.shift, row)
        return x
