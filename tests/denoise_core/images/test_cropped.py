"""The centre of an image, as a file of the same kind."""

from __future__ import annotations

import io

import numpy as np
import pytest
import tifffile
from PIL import Image as Pillow

from denoise_core.images import cropped, decode, encode, in_rgb, tiff_software
from tests.denoise_core.images.image_files import LIMIT, inks, picture, tiff


def file_of(pixels: np.ndarray, kind: str) -> bytes:
    out = io.BytesIO()
    if kind == "tiff":
        tifffile.imwrite(out, pixels, photometric="rgb" if pixels.ndim == 3 else "minisblack", description="kept?")
    else:
        Pillow.fromarray(pixels).save(out, kind.upper(), quality=95, subsampling=0)
    return out.getvalue()


@pytest.mark.parametrize("kind", ["png", "jpeg", "tiff"])
@pytest.mark.parametrize("shape", [(40, 60), (41, 61, 3)])
def test_the_centre_is_written_as_it_was_cut_out(kind: str, shape: tuple[int, ...]) -> None:
    image = decode(file_of(picture(*shape), kind), max_pixels=LIMIT)
    middle = cropped(image, 20)
    top, left = (shape[0] - 20) // 2, (shape[1] - 20) // 2
    assert np.array_equal(middle.pixels, image.pixels[top : top + 20, left : left + 20])
    again = decode(encode(middle, middle.pixels), max_pixels=LIMIT)
    assert again.pixels.shape == middle.pixels.shape
    assert again.container == kind
    if kind != "jpeg":
        assert np.array_equal(again.pixels, middle.pixels)
    assert bool(middle.notes) == (kind == "tiff"), "a cropped TIFF says what it left behind"


def test_no_crop_and_a_crop_beyond_the_image_are_the_image_itself() -> None:
    image = decode(file_of(picture(20, 30), "png"), max_pixels=LIMIT)
    assert cropped(image, None) is image
    assert cropped(image, 30) is image
    assert cropped(image, 25).pixels.shape == (20, 25)


def test_alpha_and_the_frames_of_a_stack() -> None:
    out = io.BytesIO()
    Pillow.fromarray(picture(40, 50, 4)).save(out, "PNG")
    image = decode(out.getvalue(), max_pixels=LIMIT)
    middle = cropped(image, 10)
    assert image.alpha is not None
    assert middle.alpha is not None
    assert np.array_equal(middle.alpha, image.alpha[15:25, 20:30])
    assert decode(encode(middle, middle.pixels), max_pixels=LIMIT).alpha is not None

    frames = np.stack([picture(40, 50, dtype="uint16", seed=i) for i in range(3)])
    out = io.BytesIO()
    tifffile.imwrite(out, frames, photometric="minisblack", metadata={"axes": "ZYX"})
    stack = cropped(decode(out.getvalue(), max_pixels=LIMIT), 10)
    assert stack.axes == "ZYX"
    again = decode(encode(stack, stack.pixels), max_pixels=LIMIT)
    assert again.axes == "ZYX"
    assert np.array_equal(again.pixels, frames[:, 15:25, 20:30])


@pytest.mark.parametrize("why", ["an index", "a size"])
@pytest.mark.parametrize("what", ["cropped", "in RGB"])
def test_a_plain_tiff_tells_in_software_what_its_source_could_not(
    what: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A source of Micro-Manager, whose directories cannot move, or of nearly 4 GB."""
    tags = [(51123, "s", 0, "{}", True)] * (why == "an index")
    data = tiff(inks(25, 30), photometric="separated", software=False, metadata=None, extratags=tags)
    if why == "a size":
        monkeypatch.setattr(tiff_software, "_LARGEST", len(data) - 1)
    image = decode(data, max_pixels=LIMIT)
    assert "Software" in str(image.notes)
    found = cropped(image, 10) if what == "cropped" else in_rgb(image)
    assert "Software" not in str(found.notes)
    with tifffile.TiffFile(io.BytesIO(encode(found, found.pixels, software="what was done"))) as tif:
        assert tif.pages[0].software.endswith("what was done")  # type: ignore[union-attr]
