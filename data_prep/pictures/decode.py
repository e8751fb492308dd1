"""One picture: from the bytes of an image file to pixels of a given size.

The rules, in this order:

- The format is PNG, JPEG, WebP or GIF, whatever the file is called. Of several frames, the first one is taken.
- A picture of more than MOST_PIXELS pixels is refused before it is decoded.
- The orientation in the EXIF data is applied.
- 16-bit grey values keep their upper 8 bits; Pillow does the same with 16-bit colours.
- Transparent pixels are laid over white. A picture of 16-bit colours of which one is transparent is refused: Pillow
  loses the lower 8 bits, which tell this colour from its neighbours.
- Other modes (black and white, grey, palette, CMYK) are converted by Pillow to RGB or grey, without colour profiles.
- The size is changed with Pillow's bicubic filter. A JPEG file of at least four times the size is first decoded at a
  half, a quarter or an eighth of its size, as by Pillow's `thumbnail`.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from PIL.ImageFile import ImageFile

from dptrain.data.manifest import Fit
from dptrain.errors import DataError
from dptrain.system.files import read_bytes
from dptrain.system.shared_context import SharedContext
from dptrain.system.text import shown

from .containers import LARGEST_FILE

FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif")
MOST_PIXELS = 89_478_485  # as in Pillow's own check: 256 MiB for RGB
RGB_OF_16_BITS = b"\x10\x02"  # bit depth and colour type in the header of a PNG file
SIDEWAYS = (5, 6, 7, 8)  # orientations in EXIF data that swap height and width
DECODER = f"Pillow {PIL.__version__}"

FITS: tuple[Fit, ...] = get_args(Fit)


@dataclass(frozen=True)
class Form:
    """What pictures are made into: C is 3 (RGB) or 1 (grey); `fit` states how another aspect ratio becomes H x W.

    "crop" scales the picture until it covers the size, and cuts off what is beyond the centre; "squash" scales each
    side alone; "pad" scales the picture until it fits into the size, and fills the rest with black.
    """

    image_shape: tuple[int, int, int]
    fit: Fit = "crop"


def is_picture(name: str) -> bool:
    """Whether a file has the name of a picture that can be read."""
    return name.lower().endswith(SUFFIXES)


@contextmanager
def _no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


quiet_pillow = SharedContext(_no_warnings)  # Pillow warns on damaged metadata, and on sizes that `decode` checks


def decode_file(file: str | Path | bytes, form: Form) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """`decode`, for the path of an image file or its content; DataError also if it cannot be read."""
    try:
        return decode(file if isinstance(file, bytes) else read_bytes(file, LARGEST_FILE), form)
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}") from error


def decode(content: bytes, form: Form) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """The pixels (C, H, W) of an image file, and the size (height, width) of the picture in the file.

    DataError, without a name, if it cannot be decoded.
    """
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            size = image.height, image.width
            if image.height * image.width > MOST_PIXELS:
                raise DataError(f"{size[0]:,} x {size[1]:,} pixels, expected at most {MOST_PIXELS:,} in all")
            if image.format == "PNG" and content[24:26] == RGB_OF_16_BITS and "transparency" in image.info:
                raise DataError("16-bit colours of which one is transparent; save it with 8 bits or an alpha channel")
            twice = 2 * max(form.image_shape[1:])
            if min(size) >= 2 * twice:
                image.draft(None, (twice, twice))  # a smaller size for the decoder; only JPEG files have this
            image.load()  # may change the mode
            if (orientation := image.getexif().get(ExifTags.Base.Orientation, 1)) != 1:
                size = size[::-1] if orientation in SIDEWAYS else size
                ImageOps.exif_transpose(image, in_place=True)
            fitted = _fitted(_converted(image, "RGB" if form.image_shape[0] == 3 else "L"), form)
    except (DataError, MemoryError):
        raise
    except Image.DecompressionBombError:
        raise DataError(f"more than {MOST_PIXELS:,} pixels") from None
    except UnidentifiedImageError:
        raise DataError("not a PNG, JPEG, WebP or GIF file" if content else "the file is empty") from None
    except Exception as error:  # a damaged file can raise nearly anything
        reason = shown(str(error) or type(error).__name__, 200)
        raise DataError(f"damaged or truncated: {reason}") from error
    return _channels_first(fitted), size


def decode_picture(picture: Image.Image, form: Form) -> NDArray[np.uint8]:
    """The pixels (C, H, W) of a picture of Pillow, which stays as it is; DataError if it cannot be decoded.

    They are those that `decode` finds in its file, unless it is a large JPEG picture that Pillow has decoded in full.
    """
    try:
        if (content := _undecoded(picture)) is not None:
            return decode(content, form)[0]
        upright = ImageOps.exif_transpose(picture)
        return _channels_first(_fitted(_converted(upright, "RGB" if form.image_shape[0] == 3 else "L"), form))
    except (DataError, MemoryError):
        raise
    except Exception as error:  # Pillow decodes when the pixels are needed
        raise DataError(f"damaged, truncated or closed: {shown(str(error) or type(error).__name__, 200)}") from error


def _undecoded(picture: Image.Image) -> bytes | None:
    """The file of a picture that Pillow has opened and not decoded yet, of a format that `decode` reads."""
    if not isinstance(picture, ImageFile) or picture.format not in (*FORMATS, "MPO"):
        return None
    if picture.fp is None or picture.tell() != 0:
        return None
    picture.fp.seek(0)
    content: bytes = picture.fp.read()
    return content


def _channels_first(image: Image.Image) -> NDArray[np.uint8]:
    pixels = np.asarray(image)
    return np.ascontiguousarray(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1))


def _converted(image: Image.Image, mode: str) -> Image.Image:
    """The picture as RGB or L (grey)."""
    if image.mode in ("I", "I;16", "I;16B", "I;16L", "I;16N"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() >= 1 << 16:
            raise DataError(f"grey values from {values.min()} to {values.max()}, expected at most 16 bits")
        clear = values == image.info.get("transparency", -1)
        image = Image.fromarray(np.where(clear, 255, values >> 8).astype(np.uint8))
    elif image.mode in ("F", "LAB"):
        raise DataError(f"pixels are of Pillow's mode {image.mode}, which is not read; save it as RGB")
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == mode else image.convert(mode)


def _fitted(image: Image.Image, form: Form) -> Image.Image:
    """The picture with the form's height and width."""
    height, width = form.image_shape[1:]
    if image.size == (width, height):
        return image
    if form.fit == "squash":
        return image.resize((width, height), Image.Resampling.BICUBIC)
    change = ImageOps.fit if form.fit == "crop" else ImageOps.pad
    return change(image, (width, height), Image.Resampling.BICUBIC)
