"""Random augmentation of microbatches of uint8 images, without a loop over images, channels or pixels.

A transform is one class: its options, the random words that it needs, and its arithmetic. `make_transforms` has all of
them, in the order in which they are applied. The keys are in `dptrain.data.augmentation`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dptrain.data.augmentation import AugmentationConfig
from dptrain.data.transforms.color import Brightness, Contrast
from dptrain.data.transforms.crop import Crop
from dptrain.data.transforms.cutout import Cutout
from dptrain.data.transforms.flip import AlternatingFlip, Flip
from dptrain.data.transforms.resized_crop import ResizedCrop
from dptrain.data.transforms.test_time import check_views, views
from dptrain.data.transforms.transform import Images, Transform, Words

__all__ = ["Images", "Transform", "Words", "check_views", "make_transforms", "views"]


def make_transforms(
    config: AugmentationConfig, image_shape: tuple[int, int, int], mean: Sequence[float]
) -> list[Transform]:
    """The transforms of a configuration for images (C, H, W), in their order; UsageError if the images are too small.

    `mean` is the mean pixel (C,), from 0 to 1.
    """
    transforms: list[Transform] = []
    if config.flip:
        transforms.append(AlternatingFlip() if config.alternating_flip else Flip())
    if config.crop != "none":
        transforms.append(Crop(config.crop, config.crop_pixels))
    if config.resized_crop:
        transforms.append(ResizedCrop(config.resized_crop, config.resized_crop_aspect))
    if config.brightness:
        transforms.append(Brightness(config.brightness))
    if config.contrast:
        transforms.append(Contrast(config.contrast))
    if config.cutout:
        stated = config.cutout_fill
        fill = 255 * np.asarray(mean) if stated == "mean" else np.full(image_shape[0], int(stated))
        transforms.append(Cutout(config.cutout, np.rint(fill).astype(np.uint8)))
    for one in transforms:
        one.check(image_shape)
    return transforms
