"""Test-time augmentation: several views of each test image. It draws nothing."""

from __future__ import annotations

import numpy as np

from dptrain.data.augmentation import TTA
from dptrain.data.transforms.transform import Images
from dptrain.errors import UsageError
from dptrain.system.suggestions import did_you_mean
from dptrain.system.text import shown


def views(images: Images, tta: str) -> list[tuple[float, Images]]:
    """Test-time augmentation: the views of images (N, C, H, W), with the weights of their logits in the mean.

    "none" has the images alone. "mirror" has the mirror images too. "mirror-translate" has both (1/4 each), and both
    shifted by one pixel along either direction of the main diagonal, with a reflected border (1/8 each; Jordan 2024).
    """
    mirror = images[..., ::-1]
    if tta == "none":
        return [(1.0, images)]
    if tta == "mirror":
        return [(1 / 2, images), (1 / 2, mirror)]
    height, width = images.shape[2:]
    padded = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="reflect")
    shifted = [padded[:, :, start : start + height, start : start + width] for start in (0, 2)]
    return [(1 / 4, images), (1 / 4, mirror), *((1 / 8, view) for one in shifted for view in (one, one[..., ::-1]))]


def check_views(tta: str, image_shape: tuple[int, int, int]) -> None:
    """UsageError for an unknown test-time augmentation, or images (C, H, W) that are too small for it."""
    if tta not in TTA:
        raise UsageError(f"--tta {shown(repr(tta), 60)}: {did_you_mean(str(tta), TTA)}")
    _, height, width = image_shape
    if tta == "mirror-translate" and min(height, width) < 2:
        raise UsageError(f"--tta {tta} needs images of at least 2 x 2 pixels, these are {height} x {width}")
