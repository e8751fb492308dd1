"""Random resized crop: a random part of each image, enlarged to the size of the image.

Szegedy et al. 2015 ("Inception"), section 6, in the form of torchvision's RandomResizedCrop. Images have H x W pixels.

1. The area is drawn uniformly from `area` * H * W to H * W, and the logarithm of the aspect ratio, width by height,
   uniformly from -log(`aspect`) to log(`aspect`). They give a width and a height, both rounded.
2. If the part is not within the image, step 1 is repeated, up to 10 times. After that it is the largest part around
   the middle whose aspect ratio is within the limits.
3. Its place is drawn uniformly from all places inside the image.
4. The part is enlarged by bilinear interpolation, as `torch.nn.functional.interpolate(..., align_corners=False)`. On an
   axis with n output pixels and a part of m pixels, output pixel i is at s = (i + 1/2) m / n - 1/2, limited to 0 to
   m - 1. Its value is (1 - w) * pixel[floor(s)] + w * pixel[floor(s) + 1], with w = s - floor(s).

Word k, for k from 0 to 9, belongs to attempt k: bits 0 to 31 are the area, bits 32 to 63 the aspect ratio. Bits 0 to 31
of word 10 are the vertical place, bits 32 to 63 the horizontal one.

The weights w are rounded to multiples of 1/256. The resampling of an axis is a product with a matrix of 256 times the
weights. So all products and sums of both axes are whole numbers below 2^24, which float32 holds exactly, in any order
and with any BLAS. Only the result, divided by 2^16, is rounded to the nearest whole number (halves up). So the bits are
the same on every CPU, and a pixel differs from that of exact weights by at most 1.5.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dptrain.arrays.functions import exp, log
from dptrain.arrays.random import Purpose
from dptrain.data.transforms.transform import Images, Transform, Words, halves, uniform

ATTEMPTS = 10
ONE = 256  # the weights are multiples of 1 / ONE

Integers = NDArray[np.int64]


class ResizedCrop(Transform):
    """A part of at least the share `area` of the image, whose sides have a ratio of at most `aspect`."""

    purpose = Purpose.RESIZED_CROP
    words = ATTEMPTS + 1

    def __init__(self, area: float, aspect: float = 4 / 3) -> None:
        self.area, self.aspect = area, aspect

    def __call__(self, images: Images, words: Words) -> Images:
        n, channels, height, width = images.shape
        tops, lefts, heights, widths = self.parts(words, height, width)
        across = _weights(lefts, widths, width)
        down = _weights(tops, heights, height)
        rows = np.matmul(images.reshape(n, channels * height, width).astype(np.float32), across.transpose(0, 2, 1))
        resized: NDArray[np.float32] = np.matmul(down[:, None], rows.reshape(images.shape))
        resized += ONE * ONE // 2
        resized *= 1 / (ONE * ONE)
        return resized.astype(np.uint8)

    def parts(self, words: Words, height: int, width: int) -> tuple[Integers, Integers, Integers, Integers]:
        """Top, left, height and width of the part of each image, int64 (N,) each."""
        of_area, of_aspect = halves(words[:, :ATTEMPTS])
        area = (self.area + (1 - self.area) * uniform(of_area, 32)) * (height * width)
        ratio = exp((2 * uniform(of_aspect, 32) - 1) * log(np.array([self.aspect])))
        widths, heights = np.rint(np.sqrt(area * ratio)), np.rint(np.sqrt(area / ratio))
        fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
        first, every = fits.argmax(axis=1), np.arange(len(words))
        none = ~fits[every, first]
        middle_height, middle_width = self._middle(height, width)
        heights = np.where(none, middle_height, heights[every, first]).astype(np.int64)
        widths = np.where(none, middle_width, widths[every, first]).astype(np.int64)
        down, right = (one.astype(np.int64) for one in halves(words[:, ATTEMPTS]))
        tops = np.where(none, (height - heights) // 2, down % (height - heights + 1))
        lefts = np.where(none, (width - widths) // 2, right % (width - widths + 1))
        return tops, lefts, heights, widths

    def _middle(self, height: int, width: int) -> tuple[int, int]:
        """The largest height and width within an image whose ratio is within the limits."""
        return min(height, max(1, round(width * self.aspect))), min(width, max(1, round(height * self.aspect)))


def _weights(starts: Integers, extents: Integers, size: int) -> NDArray[np.float32]:
    """The matrices (N, size, size) that resample parts of an axis of `size` pixels to `size` pixels, times ONE.

    A part begins at the pixel `starts` (N,) and has `extents` (N,) pixels.
    """
    last = extents[:, None] - 1
    place = np.clip((2 * np.arange(size) + 1) * extents[:, None] - size, 0, 2 * size * last)  # s, times 2 * size
    lower = place // (2 * size)
    upper_weight = ((place - lower * 2 * size) * ONE + size) // (2 * size)
    matrices = np.zeros((len(starts), size, size), np.float32)
    image, pixel = np.arange(len(starts))[:, None], np.arange(size)
    matrices[image, pixel, starts[:, None] + lower] = ONE - upper_weight
    matrices[image, pixel, starts[:, None] + np.minimum(lower + 1, last)] += upper_weight
    return matrices
