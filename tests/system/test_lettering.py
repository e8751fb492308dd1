"""dptrain.system.lettering: text in pictures."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from dptrain.system.lettering import INK, PAPER, Lettering, to_ascii


def test_text_for_a_font_of_ascii_keeps_its_base_letters() -> None:
    assert to_ascii("na\u00efve cafe\u0301 \u65e5\u672c 5") == "naive cafe ?? 5"


@pytest.mark.parametrize("text", ["short", "a name that is longer than the place for it"])
def test_text_is_cut_to_its_place(text: str) -> None:
    image = Image.new("RGB", (400, 30), PAPER)
    lettering = Lettering(image)
    lettering.write((10, 5), text, INK, 80)
    columns = np.flatnonzero((np.asarray(image) != 255).any(axis=(0, 2)))
    right = min(80.0, lettering.width(text))
    assert 10 <= columns[0] < 14
    assert 10 + right - 12 < columns[-1] <= 10 + right
