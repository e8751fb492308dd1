"""Random brightness and contrast.

Both are those of torchvision's ColorJitter, for uint8 images. The factor of an image is drawn uniformly from
max(0, 1 - amount) to 1 + amount, in float64 from the upper 53 bits of its word. The arithmetic on pixels is in float32;
the result is limited to 0 to 255 and truncated to a whole number, as in torchvision.

Differences to torchvision: brightness always comes before contrast (there the order is random), and see `Contrast`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dptrain.arrays.random import Purpose
from dptrain.data.transforms.transform import Images, Transform, Words, uniform

GRAY = np.array([299, 587, 114])  # thousandths of red, green and blue in a gray value (ITU-R BT.601)


class _Color(Transform):
    def __init__(self, amount: float) -> None:
        self.amount = amount

    def factors(self, words: Words) -> NDArray[np.float64]:
        """The factor of each image, (N,)."""
        low = max(0.0, 1 - self.amount)
        return low + (1 + self.amount - low) * uniform(words[:, 0])


class Brightness(_Color):
    """pixel -> factor * pixel."""

    purpose = Purpose.BRIGHTNESS

    def __call__(self, images: Images, words: Words) -> Images:
        scaled = images * self.factors(words).astype(np.float32)[:, None, None, None]
        np.minimum(scaled, np.float32(255), out=scaled)
        return scaled.astype(np.uint8)


class Contrast(_Color):
    """pixel -> factor * pixel + (1 - factor) * mean, where the mean is that of the image's gray values.

    The gray value of a pixel is 0.299 R + 0.587 G + 0.114 B, or, if the image does not have three channels, the mean of
    its channels. The mean is computed from exact sums. torchvision has 0.2989 for red, truncates each gray value to a
    whole number before the mean, and takes images of one or three channels only.
    """

    purpose = Purpose.CONTRAST

    def __call__(self, images: Images, words: Words) -> Images:
        n, channels, height, width = images.shape
        factors = self.factors(words)
        sums = images.reshape(n * channels, height * width).sum(axis=1, dtype=np.int64).reshape(n, channels)
        weights = GRAY if channels == len(GRAY) else np.ones(channels, np.int64)
        mean = (sums @ weights) / (int(weights.sum()) * height * width)
        scaled = images * factors.astype(np.float32)[:, None, None, None]
        scaled += ((1 - factors) * mean).astype(np.float32)[:, None, None, None]
        np.clip(scaled, 0, 255, out=scaled)
        return scaled.astype(np.uint8)
