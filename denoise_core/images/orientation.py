"""How a file says that its image is to be turned or mirrored to be seen upright (EXIF and TIFF 6.0, tag 274)."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

UPRIGHT = 1
_TAG = 274
_TURNS = {
    UPRIGHT: (False, 0),
    2: (True, 0),
    3: (False, 2),
    4: (True, 2),
    5: (True, 1),
    6: (False, -1),
    7: (True, -1),
    8: (False, 1),
}
"""Whether the image is mirrored from left to right, and how many quarter turns to the left come after that."""


def orientation(file: BinaryIO) -> int:
    """What the file that is open says, 1 to 8; 1, upright, where it says nothing that can be read.

    Of a PNG it is what stands before the pixels.
    """
    import PIL.Image

    with suppress(Exception), PIL.Image.open(file) as image:  # whatever is wrong with its metadata
        if image.format == "PNG":  # whose getexif() decodes the pixels to look behind them
            exif = PIL.Image.Exif()
            exif.load(image.info.get("exif", b""))
        else:
            exif = image.getexif()
        found = exif.get(_TAG)
        if found in _TURNS:
            return int(found)
    return UPRIGHT


def upright(pixels: NDArray[Any], stored: int) -> NDArray[Any]:
    """Pixels (H, W[, C]) of a file with this orientation as they are to be seen: a view, (W, H[, C]) where it is turned."""
    mirrored, turns = _TURNS[stored]
    return np.rot90(np.fliplr(pixels) if mirrored else pixels, turns)


def as_stored(pixels: NDArray[Any], stored: int) -> NDArray[Any]:
    """The inverse of `upright`."""
    mirrored, turns = _TURNS[stored]
    turned = np.rot90(pixels, -turns)
    return np.fliplr(turned) if mirrored else turned
