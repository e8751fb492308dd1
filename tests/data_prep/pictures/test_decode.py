"""data_prep.pictures.decode: each kind of picture is converted by the stated rule, or refused with the reason."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from picture_files import encoded, pixels
from PIL import Image
from selection import examples

from data_prep.pictures.decode import MOST_PIXELS, Form, decode, decode_picture, quiet_pillow
from dptrain.data.manifest import Fit
from dptrain.errors import DataError


@pytest.fixture(autouse=True)
def _without_warnings() -> Iterator[None]:
    with quiet_pillow:
        yield


def png(header: tuple[int, int, int, int], *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG file: width, height, bit depth and colour type; and the chunks after its header."""
    first, last = (b"IHDR", struct.pack(">IIBBBBB", *header, 0, 0, 0)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in (first, *chunks, last)
    )


def decoded(content: bytes, size: tuple[int, int] = (9, 7), channels: int = 3, fit: Fit = "crop") -> np.ndarray:
    """Pixels as Pillow has them, (H, W) or (H, W, C)."""
    found, _ = decode(content, Form((channels, *size), fit))
    assert found.shape == (channels, *size)
    assert found.flags.c_contiguous
    return found[0] if channels == 1 else found.transpose(1, 2, 0)


def refused(content: bytes) -> str:
    with pytest.raises(DataError) as caught:
        decode(content, Form((3, 8, 8)))
    return str(caught.value)


@pytest.mark.parametrize(("format", "options"), [("PNG", {}), ("WEBP", {"lossless": True})])
def test_pixels_of_a_lossless_file_are_kept(format: str, options: dict[str, bool]) -> None:
    array = pixels()
    assert np.array_equal(decoded(encoded(array, format, **options)), array)
    assert decode(encoded(array), Form((3, 4, 4)))[1] == (9, 7)  # the size in the file


def test_a_jpeg_file_has_pillows_pixels() -> None:
    content = encoded(pixels(), "JPEG", quality=80)
    right = Image.open(io.BytesIO(content)).convert("RGB")
    assert np.array_equal(decoded(content), np.asarray(right))


def test_grey_and_palette_pictures_become_rgb_or_grey() -> None:
    array = pixels()
    grey = array[..., 0]
    assert np.array_equal(decoded(encoded(grey)), np.repeat(grey[..., None], 3, 2))
    assert np.array_equal(decoded(encoded(grey), channels=1), grey)
    weights = np.array([299, 587, 114])  # ITU-R 601-2, as Pillow documents
    assert np.abs(decoded(encoded(array), channels=1) - array @ weights / 1000).max() <= 1
    palette = Image.fromarray(array).quantize(8)
    assert np.array_equal(decoded(encoded(palette)), np.asarray(palette.convert("RGB")))
    black_and_white = Image.fromarray(grey).convert("1")
    assert set(decoded(encoded(black_and_white)).ravel().tolist()) == {0, 255}


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_pixels_are_laid_over_white(mode: str) -> None:
    array, alpha = pixels(), np.tile(np.array([0, 51, 255], np.uint8), 21).reshape(9, 7)
    colours = array if mode == "RGBA" else array[..., :1]
    picture = Image.fromarray(np.concatenate([colours, alpha[..., None]], 2), mode)
    share = alpha[..., None] / 255
    right = colours * share + 255 * (1 - share)
    assert np.abs(decoded(encoded(picture)) - right).max() <= 1


def test_a_palette_with_a_transparent_colour_is_laid_over_white() -> None:
    picture = Image.new("P", (7, 9), 1)
    picture.putpalette([9, 8, 7, 40, 50, 60])
    picture.paste(0, (0, 0, 3, 9))
    found = decoded(encoded(picture, transparency=0))
    assert found[0, 0].tolist() == [255, 255, 255]
    assert found[0, 6].tolist() == [40, 50, 60]


def test_16_bit_values_keep_their_upper_8_bits() -> None:
    values = np.arange(63, dtype=np.uint16).reshape(9, 7) * 1040
    assert np.array_equal(decoded(encoded(values), channels=1), values >> 8)


def png_of_16_bits(colour_type: int, transparent: bytes, values: np.ndarray) -> bytes:
    """A PNG file with one transparent colour, of 16-bit values (H, W) or (H, W, 3)."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = values.shape[1], values.shape[0], 16, colour_type
    return png(header, (b"tRNS", transparent), (b"IDAT", zlib.compress(rows)))


def test_a_transparent_16_bit_grey_is_laid_over_white_and_its_neighbour_is_not() -> None:
    values = np.tile(np.array([40000, 40001, 0], np.uint16), 21).reshape(9, 7)
    found = decoded(png_of_16_bits(0, struct.pack(">H", 40000), values), channels=1)
    assert np.array_equal(found, np.where(values == 40000, 255, values >> 8))


def test_16_bit_colours_of_which_one_is_transparent_are_refused() -> None:
    """Pillow compares their upper 8 bits with all 16 bits of the transparent colour."""
    values = np.full((9, 7, 3), 40000, np.uint16)
    content = png_of_16_bits(2, struct.pack(">3H", 1, 2, 3), values)
    assert "16-bit colours of which one is transparent" in refused(content)
    with Image.open(io.BytesIO(content)) as picture, pytest.raises(DataError, match="16-bit colours of which one"):
        decode_picture(picture, Form((3, *values.shape[:2])))


def test_cmyk_is_converted_by_pillow() -> None:
    picture = Image.fromarray(pixels()).convert("CMYK")
    content = encoded(picture, "JPEG", quality=100, subsampling=0)
    right = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    assert np.array_equal(decoded(content), right)
    assert np.abs(right - np.asarray(picture.convert("RGB"), np.float64)).mean() < 3


def test_the_first_frame_of_an_animation_is_taken() -> None:
    frames = [Image.new("RGB", (7, 9), colour) for colour in ((200, 0, 0), (0, 200, 0))]
    content = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decoded(content)[4, 3].tolist() == [200, 0, 0]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_in_the_exif_data_is_applied(orientation: int) -> None:
    """The eight cases of the EXIF standard: where row 0 and column 0 of the stored picture are seen."""
    array, exif = pixels(8, 8), Image.Exif()
    exif[0x0112] = orientation
    seen = {
        1: array,
        2: array[:, ::-1],
        3: array[::-1, ::-1],
        4: array[::-1],
        5: array.swapaxes(0, 1),
        6: np.rot90(array, -1),
        7: array[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(array),
    }
    assert np.array_equal(decoded(encoded(array, exif=exif), (8, 8)), seen[orientation])
    size = decode(encoded(pixels(9, 7), exif=exif), Form((3, 4, 4)))[1]
    assert size == ((7, 9) if orientation >= 5 else (9, 7))


def test_another_aspect_ratio_is_cropped_squashed_or_padded() -> None:
    """Of red, green and blue thirds of a wide picture, a square crop has the green one alone."""
    wide = Image.new("RGB", (90, 30))
    for number, colour in enumerate(["red", "lime", "blue"]):
        wide.paste(colour, (30 * number, 0, 30 * number + 30, 30))
    content = encoded(wide)
    assert (decoded(content, (10, 10))[:, 1:-1] == [0, 255, 0]).all()  # bicubic weights reach over the edges
    squashed = decoded(content, (9, 9), fit="squash")
    assert [squashed[4, column].argmax() for column in (0, 4, 8)] == [0, 1, 2]
    padded = decoded(content, (90, 90), fit="pad")
    assert np.array_equal(padded[30:60], np.asarray(wide))
    assert not padded[:30].any()
    assert not padded[60:].any()


def test_a_resized_picture_has_pillows_pixels() -> None:
    picture = Image.fromarray(pixels(40, 30))
    right = picture.resize((7, 9), Image.Resampling.BICUBIC)
    assert np.array_equal(decoded(encoded(picture), fit="squash"), np.asarray(right))


def test_a_large_jpeg_file_is_decoded_at_a_part_of_its_size() -> None:
    """A gradient, whose mean does not depend on the way of scaling; the file is 64 times as large."""
    ramp = np.tile(np.linspace(0, 255, 1024).astype(np.uint8), (1024, 1))
    found = decoded(encoded(ramp, "JPEG", quality=95), (16, 16), channels=1)
    assert np.abs(found - (np.arange(16) + 0.5) * 255 / 16).max() < 2


def png_header(width: int, height: int) -> bytes:
    """A PNG file that states a size and has hardly any data."""
    return png((width, height, 8, 2), (b"IDAT", zlib.compress(b"")))


def test_what_cannot_be_decoded_is_refused_with_the_reason() -> None:
    assert refused(b"") == "the file is empty"
    assert refused(b"hello") == "not a PNG, JPEG, WebP or GIF file"
    assert refused(encoded(pixels(), "BMP")) == "not a PNG, JPEG, WebP or GIF file"
    assert (
        refused(png_header(MOST_PIXELS - 1, 2))
        == f"2 x {MOST_PIXELS - 1:,} pixels, expected at most {MOST_PIXELS:,} in all"
    )
    assert refused(png_header(MOST_PIXELS, 3)) == f"more than {MOST_PIXELS:,} pixels"
    assert refused(png_header(40, 40)).startswith("damaged or truncated: ")
    for format in ("PNG", "JPEG", "WEBP", "GIF"):
        whole = encoded(pixels(60, 60), format)
        assert refused(whole[: len(whole) // 2]).startswith("damaged or truncated: "), format


@given(
    format=st.sampled_from(["PNG", "JPEG", "WEBP", "GIF"]),
    changes=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=5),
)
@examples(100)
def test_any_altered_bytes_are_decoded_or_refused(format: str, changes: list[tuple[int, int]]) -> None:
    content = bytearray(encoded(pixels(), format))
    for place, value in changes:
        content[place % len(content)] = value
    try:
        found, _ = decode(bytes(content), Form((3, 8, 8)))
    except DataError:
        return
    assert found.shape == (3, 8, 8)


def test_a_picture_of_several_frames_is_decoded_at_its_present_frame(tmp_path: Path) -> None:
    first, second = (Image.fromarray(pixels(9, 7)) for _ in range(2))
    first.save(tmp_path / "both.mpo", save_all=True, append_images=[second])
    form = Form((3, 9, 7), "crop")
    with Image.open(tmp_path / "both.mpo") as picture:
        found = [decode_picture(picture, form)]
        picture.seek(1)
        found.append(decode_picture(picture, form))
        expected = np.asarray(picture.convert("RGB")).transpose(2, 0, 1)
    assert not np.array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[1], expected)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "WEBP"])
def test_an_open_picture_gives_the_pixels_of_its_file_and_stays_as_it_is(format: str) -> None:
    content = encoded(pixels(), format)
    form = Form((3, 9, 7))
    with Image.open(io.BytesIO(content)) as picture, Image.open(io.BytesIO(content)) as other:
        for _ in range(2):  # Pillow decodes it between the two calls
            np.testing.assert_array_equal(decode_picture(picture, form), decode(content, form)[0])
            np.testing.assert_array_equal(np.asarray(picture.convert("RGB")), np.asarray(other.convert("RGB")))


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_a_picture_that_was_changed_gives_its_new_pixels(format: str) -> None:
    with Image.open(io.BytesIO(encoded(pixels(), format))) as picture:
        picture.paste((255, 0, 0), (0, 0, 7, 9))
        assert (decode_picture(picture, Form((3, 9, 7))) == np.array([255, 0, 0])[:, None, None]).all()
