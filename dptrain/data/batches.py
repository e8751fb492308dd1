"""Microbatches of one shard, in an order that depends on (seed, epoch, shard) and nothing else."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dptrain.arrays.layout import array_shape
from dptrain.arrays.memory import Array, Workspace
from dptrain.arrays.random import Draws, Purpose, random_words
from dptrain.data.manifest import Manifest, Samples
from dptrain.data.transforms import cropped, flipped


class ShardBatches:
    """Training microbatches of one shard; epoch and step name one, so a run can begin anywhere."""

    def __init__(
        self, samples: Samples, shard: int, manifest: Manifest, *, size: int, seed: int, crop: str, flip: bool
    ) -> None:
        self.samples, self.shard, self.size, self.seed = samples, shard, size, seed
        self.crop, self.flip = crop, flip
        self.normalise = Normalisation(manifest)
        self._epoch = -1

    def batch(self, epoch: int, step: int, workspace: Workspace) -> tuple[Array, NDArray[np.int64]]:
        """Images (H, W, N, C) in the workspace's dtype and labels (N,) of a step of an epoch, both counted from 0.

        Every sample comes once an epoch: N is `size`, less or 0 in the last step. The images lie in the
        workspace until the next call.
        """
        if epoch != self._epoch:
            self._draw(epoch)
        rows = slice(step * self.size, (step + 1) * self.size)
        chosen = self._order[rows]
        images = self.samples.images[chosen]
        if self.flip and len(images):
            images = flipped(images, self._words[rows])
        if self.crop != "none" and len(images):
            images = cropped(images, self._words[rows], self.crop)
        return self.normalise(images, workspace), self.samples.labels[chosen]

    def draws(self, epoch: int, step: int) -> Draws:
        """The key of the random draws that layers make for a microbatch."""
        return Draws(self.seed, epoch, self.shard, step * self.size)

    def _draw(self, epoch: int) -> None:
        """Order and augmentation of a whole epoch; the words of augmentation go with the position, not the sample."""
        count = len(self.samples)
        order = random_words(self.seed, Purpose.SAMPLE_ORDER, self.shard, count, epoch=epoch)
        self._order = np.argsort(order, kind="stable")
        self._words = random_words(self.seed, Purpose.AUGMENTATION, self.shard, count, epoch=epoch)
        self._epoch = epoch


class Normalisation:
    """uint8 images (N, C, H, W) to floats (H, W, N, C): (pixel / 255 - mean) / std, per channel.

    The result lies in the workspace until the next call.
    """

    def __init__(self, manifest: Manifest) -> None:
        mean, std = np.array(manifest.mean), np.array(manifest.std)
        self.scale = (1 / (255 * std)).astype(np.float32)
        self.shift = (-mean / std).astype(np.float32)

    def __call__(self, images: NDArray[np.uint8], workspace: Workspace) -> Array:
        x = workspace.array("data", "images", array_shape(images.shape[1:], len(images)))
        np.copyto(x, images.transpose(2, 3, 0, 1))
        # Against a whole row of pixels: NumPy takes long runs faster than one of each few channels.
        row = x.shape[1] * len(images)
        rows = x.reshape(len(x), -1)
        rows *= np.tile(self.scale, row)
        rows += np.tile(self.shift, row)
        return x
