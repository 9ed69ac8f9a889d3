"""Random text over an image, in the one scalable font that every Pillow wheel carries, Aileron Regular."""

from __future__ import annotations

import string
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from PIL import ImageFont

ALPHABET = string.ascii_letters + string.digits
SHORTEST, LONGEST = 3, 12
"""Characters a string."""


class Glyph(NamedTuple):
    """The pixels of a character's ink, from the top of the line and from the pen, and the pen's way to the next one."""

    rows: npt.NDArray[np.intp]
    columns: npt.NDArray[np.intp]
    advance: int


def scatter(
    pixels: npt.NDArray[np.float32], covered: npt.NDArray[np.bool_], rng: np.random.Generator, share: float
) -> None:
    """Write strings into `pixels` (H, W, C), and into `covered` (H, W), until the share of its pixels is reached.

    Letters and digits, evenly drawn; the colour is uniform in [0, 1] in each channel; the type size is a 40th to a 12th of
    the shorter side, but not below 8 to 12 pixels; the place is uniform over all where a part of the string shows. Glyphs have
    hard edges, so that a pixel is hit or not, and the last one is left unfinished: the share is met to the pixel.
    """
    height, width, channels = pixels.shape
    missing = round(share * height * width)
    shorter = min(height, width)
    while missing:
        size = int(rng.integers(max(8, shorter // 40), max(12, shorter // 12), endpoint=True))
        letters = rng.integers(len(ALPHABET), size=rng.integers(SHORTEST, LONGEST, endpoint=True))
        colour = rng.random(channels, dtype=np.float32)
        glyphs = [_glyph(ALPHABET[letter], _font(size)) for letter in letters]
        pen = int(rng.integers(1 - sum(glyph.advance for glyph in glyphs), width))
        line = int(rng.integers(1 - 2 * size, height))
        for glyph in glyphs:
            y, x = _free(covered, glyph.rows + line, glyph.columns + pen)
            covered[y[:missing], x[:missing]] = True
            pixels[y[:missing], x[:missing]] = colour
            missing -= len(y[:missing])
            pen += glyph.advance


def _free(
    covered: npt.NDArray[np.bool_], y: npt.NDArray[np.intp], x: npt.NDArray[np.intp]
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Those of the pixels that are in the image and not covered yet."""
    inside = (y >= 0) & (y < covered.shape[0]) & (x >= 0) & (x < covered.shape[1])
    y, x = y[inside], x[inside]
    free = ~covered[y, x]
    return y[free], x[free]


@lru_cache(maxsize=256)
def _font(size: int) -> ImageFont.FreeTypeFont:
    """The basic layout engine, whatever else is installed: the same ink on every machine with the same Pillow."""
    from PIL import ImageFont

    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font.font_variant(layout_engine=ImageFont.Layout.BASIC)


def _glyph(character: str, font: ImageFont.FreeTypeFont) -> Glyph:
    from PIL import Image, ImageDraw

    left, top, right, bottom = (int(edge) for edge in font.getbbox(character, mode="1"))
    image = Image.new("1", (right - left, bottom - top))
    draw = ImageDraw.Draw(image)
    draw.fontmode = "1"
    draw.text((-left, -top), character, fill=1, font=font)
    rows, columns = np.nonzero(np.asarray(image))
    return Glyph(rows + top, columns + left, round(font.getlength(character)))
