"""Images that are stored otherwise than they are to be seen."""

from __future__ import annotations

import io

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from denoise_core.images import as_stored, orientation, upright


def exif(stored: int) -> Image.Exif:
    tags = Image.Exif()
    tags[274] = stored
    return tags


@pytest.mark.parametrize("container", ["PNG", "JPEG"])
@pytest.mark.parametrize("stored", range(1, 9))
def test_seen_as_pillow_shows_it_and_back(container: str, stored: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, container, exif=exif(stored))
    found = orientation(io.BytesIO(file.getvalue()))
    assert found == stored
    with Image.open(file) as image:
        read, seen = np.asarray(image), np.asarray(ImageOps.exif_transpose(image))
    np.testing.assert_array_equal(upright(read, found), seen)
    np.testing.assert_array_equal(as_stored(seen, found), read)
    np.testing.assert_array_equal(as_stored(upright(read[..., 0], found), found), read[..., 0])


def test_of_a_tiff() -> None:
    file = io.BytesIO()
    tifffile.imwrite(file, np.zeros((16, 24), np.uint16), extratags=[(274, "H", 1, 6, True)])
    file.seek(0)
    assert orientation(file) == 6


@pytest.mark.parametrize("data", [b"", b"no image", b"\x89PNG\r\n\x1a\n"])
def test_upright_where_nothing_is_said(data: bytes) -> None:
    assert orientation(io.BytesIO(data)) == 1


@pytest.mark.parametrize("stored", [0, 9, 65535])
def test_upright_where_nonsense_is_said(stored: int) -> None:
    file = io.BytesIO()
    Image.new("L", (16, 16)).save(file, "PNG", exif=exif(stored))
    file.seek(0)
    assert orientation(file) == 1
