"""Text in pictures, drawn by Pillow: the font, and text that is cut to a width."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable

from PIL import Image, ImageDraw, ImageFont

from dptrain.system.text import shown

FONT, LINE = 13, 18  # pixels
PAPER, INK, PALE = (255, 255, 255), (20, 20, 20), (120, 120, 120)
Color = tuple[int, int, int]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


class Lettering:
    """Writes on an image, with a font for all of Europe's letters if the system has one, else with Pillow's own."""

    def __init__(self, image: Image.Image) -> None:
        self.draw = ImageDraw.Draw(image)
        self.font, self._readable = _font()

    def width(self, text: str) -> float:
        """The width of a text that is not cut, in pixels."""
        return self.draw.textlength(self._readable(shown(text)), font=self.font)

    def write(self, place: tuple[float, float], text: str, color: Color, most: int) -> None:
        """Write text that is cut to `most` pixels; `place` is its upper left corner."""
        text = cut = self._readable(shown(text))
        while cut and self.draw.textlength(text, font=self.font) > most:
            cut = cut[:-1]
            text = f"{cut}..."
        self.draw.text(place, text, fill=color, font=self.font)


def _font() -> tuple[Font, Callable[[str], str]]:
    """The font, and what makes text fit it."""
    try:
        return ImageFont.truetype("DejaVuSans.ttf", FONT), str
    except OSError:
        return ImageFont.load_default(FONT), to_ascii


def to_ascii(text: str) -> str:
    """Text without accents, and with ? for other letters: Pillow's own font has only ASCII."""
    plain = (one for one in unicodedata.normalize("NFKD", text) if not unicodedata.combining(one))
    return "".join(one if one.isascii() else "?" for one in plain)
