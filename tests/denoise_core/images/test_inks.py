"""CMYK: denoised ink by ink and written as it was, and as RGB for what paints. Pillow reads what comes of it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from image_files import ICC, LIMIT, by_pillow, cmyk_jpeg, cmyk_profile, inks, jpeg, picture, tiff
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import ImageCms

from denoise_core import images
from denoise_core.images import Header, ImageError

SEPARATED: dict[str, Any] = {"photometric": "separated"}


def other(pixels: NDArray[Any]) -> NDArray[Any]:
    """Smooth pixels of the same shape that are not these."""
    return np.ascontiguousarray(pixels[::-1])


@pytest.mark.parametrize("ycck", [False, True])
def test_the_inks_of_a_jpeg_come_back(tmp_path: Path, ycck: bool) -> None:
    source = inks(48, 70)
    data = cmyk_jpeg(source, ycck=ycck)
    image = images.decode(data, max_pixels=LIMIT)
    assert image.header == Header("jpeg", "YXS", (48, 70, 4), "uint8")
    (tmp_path / "a.jpg").write_bytes(data)
    assert images.read_header(tmp_path / "a.jpg", max_pixels=LIMIT) == image.header
    assert np.abs(image.pixels.astype(int) - np.asarray(by_pillow(data))).max() <= 1
    assert np.abs(image.pixels.astype(int) - source).mean() < 5
    assert images.encode(image, image.pixels) == data

    wanted = other(image.pixels)
    written = images.encode(image, wanted, software="what was done")
    ours = by_pillow(written)
    assert (ours.mode, ours.info["adobe_transform"]) == ("CMYK", 0)
    assert {layer[1:3] for layer in ours.layer} == {(1, 1)}
    assert ours.info["comment"] == b"what was done"
    assert np.sqrt(np.mean((np.asarray(ours).astype(int) - wanted) ** 2)) < 2.5
    assert np.abs(images.decode(written, max_pixels=LIMIT).pixels.astype(int) - np.asarray(ours)).max() <= 1


def test_a_cmyk_jpegs_metadata_stay() -> None:
    exif = Pillow.Exif()
    exif[0x112] = 6
    data = cmyk_jpeg(inks(20, 30), exif=exif, icc_profile=cmyk_profile(), comment=b"as found")
    image = images.decode(data, max_pixels=LIMIT)
    ours, source = by_pillow(images.encode(image, other(image.pixels))), by_pillow(data)
    for key in ("exif", "icc_profile", "comment", "adobe_transform"):
        assert ours.info[key] == source.info[key], key


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"rowsperstrip": 7},
        {"compression": "lzw", "predictor": 2, "tile": (16, 32), "byteorder": ">"},
        {"compression": "zlib", "planarconfig": "separate"},
    ],
)
def test_the_inks_of_a_tiff_are_replaced_where_they_lie(dtype: str, alpha: bool, options: dict[str, Any]) -> None:
    source = inks(50, 41, dtype=dtype)
    samples = np.dstack([source, picture(50, 41, dtype=dtype)]) if alpha else source
    stored = np.moveaxis(samples, -1, 0) if "planarconfig" in options else samples
    extra = {"extrasamples": ["unassalpha"]} if alpha else {}
    data = tiff(stored, **SEPARATED, **options, **extra, iccprofile=cmyk_profile())
    image = images.decode(data, max_pixels=LIMIT)
    assert image.header == Header("tiff", "YXS", source.shape, dtype)
    assert np.array_equal(image.pixels, source)
    assert images.encode(image, image.pixels) == data
    wanted = other(source)
    written = images.encode(image, wanted)
    with tifffile.TiffFile(io.BytesIO(written)) as tif:
        page = tif.pages[0]
        assert (page.photometric.name, page.compression.name) == (
            "SEPARATED",
            {"lzw": "LZW", "zlib": "ADOBE_DEFLATE"}.get(options.get("compression", ""), "NONE"),
        )
        assert page.iccprofile == cmyk_profile()
        found = page.asarray()
    found = np.moveaxis(found, 0, -1) if "planarconfig" in options else found
    assert np.array_equal(found[..., :4], wanted)
    if alpha:
        assert np.array_equal(found[..., 4], samples[..., 4])
    if dtype == "uint8" and not alpha and "planarconfig" not in options:
        assert by_pillow(written).mode == "CMYK"
        assert np.array_equal(np.asarray(by_pillow(written)), wanted)


def test_a_cmyk_tiff_of_jpeg_strips() -> None:
    file = io.BytesIO()
    source = inks(48, 64)
    Pillow.frombytes("CMYK", (64, 48), source.tobytes()).save(file, "TIFF", compression="jpeg", quality=95)
    image = images.decode(file.getvalue(), max_pixels=LIMIT)
    assert np.abs(image.pixels.astype(int) - np.asarray(by_pillow(file.getvalue()))).max() <= 1
    wanted = other(image.pixels)
    ours = by_pillow(images.encode(image, wanted))
    assert ours.mode == "CMYK"
    assert np.sqrt(np.mean((np.asarray(ours).astype(int) - wanted) ** 2)) < 2.5


def as_pillow_sees(data: bytes) -> NDArray[np.uint8]:
    image = by_pillow(data)
    if "icc_profile" not in image.info:
        return np.asarray(image.convert("RGB"))
    own, srgb = ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"])), ImageCms.createProfile("sRGB")
    return np.asarray(ImageCms.profileToProfile(image, own, srgb, outputMode="RGB"))


@pytest.mark.parametrize("profile", [None, cmyk_profile()])
@pytest.mark.parametrize("container", ["jpeg", "tiff"])
def test_as_rgb_it_looks_as_it_does_to_others(container: str, profile: bytes | None) -> None:
    source = inks(40, 50)
    made = {"jpeg": cmyk_jpeg(source, icc_profile=profile), "tiff": tiff(source, **SEPARATED, iccprofile=profile)}
    expected = as_pillow_sees(made[container])
    image = images.decode(made[container], max_pixels=LIMIT)
    found = images.in_rgb(image)
    assert found.header == image.header.in_rgb == Header(container, "YXS", (40, 50, 3), "uint8")
    assert np.abs(found.pixels.astype(int) - expected).max() <= 2
    assert "the inks of CMYK: they became RGB" in found.notes
    written = images.encode(found, found.pixels)
    assert by_pillow(written).mode == "RGB"
    assert "icc_profile" not in by_pillow(written).info
    assert np.sqrt(np.mean((np.asarray(by_pillow(written)).astype(int) - expected) ** 2)) < 4
    assert images.decode(written, max_pixels=LIMIT).header == found.header


def test_the_profile_decides_the_colours() -> None:
    source = inks(20, 20)
    plain, by_profile, damaged, of_rgb = (
        images.in_rgb(images.decode(tiff(source, **SEPARATED, iccprofile=profile), max_pixels=LIMIT)).pixels
        for profile in (None, cmyk_profile(), cmyk_profile()[:300], ICC)
    )
    assert np.abs(plain.astype(int) - by_profile).mean() > 5
    assert np.array_equal(damaged, plain)
    assert np.array_equal(of_rgb, plain)


@pytest.mark.parametrize("profile", [None, cmyk_profile()])
def test_sixteen_bits_stay_sixteen(profile: bytes | None) -> None:
    deep = inks(20, 30, dtype="uint16")
    data = tiff(deep, **SEPARATED, iccprofile=profile)
    found = images.in_rgb(images.decode(data, max_pixels=LIMIT))
    shallow = tiff((deep // 257).astype(np.uint8), **SEPARATED, iccprofile=profile)
    assert found.pixels.dtype == np.uint16
    assert np.abs(found.pixels / 257 - as_pillow_sees(shallow)).max() < 2.5
    assert len(np.unique(found.pixels)) > 256


def test_alpha_orientation_and_the_rest_of_the_metadata() -> None:
    samples = np.dstack([inks(20, 30), picture(20, 30)])
    data = tiff(samples, **SEPARATED, extrasamples=["unassalpha"], extratags=[(274, "H", 1, 6, True)])
    found = images.in_rgb(images.decode(data, max_pixels=LIMIT))
    assert found.alpha is not None
    assert np.array_equal(found.alpha, samples[..., 4])
    assert "the metadata of the file" in found.notes
    written = images.encode(found, found.pixels)
    assert (by_pillow(written).mode, by_pillow(written).size) == ("RGBA", (20, 30))  # Pillow turns it as it says
    with tifffile.TiffFile(io.BytesIO(written)) as tif:
        assert tif.pages[0].tags[274].value == 6
    exif = Pillow.Exif()
    exif[0x112] = 6
    one = images.decode(cmyk_jpeg(inks(20, 30), exif=exif, icc_profile=cmyk_profile()), max_pixels=LIMIT)
    rgb = images.in_rgb(one)
    assert by_pillow(images.encode(rgb, rgb.pixels)).getexif()[0x112] == 6


def test_a_stack_and_a_crop_of_inks() -> None:
    frames = np.stack([inks(20, 30), other(inks(20, 30))])
    data = tiff(frames, **SEPARATED, metadata={"axes": "TYXS"})
    image = images.decode(data, max_pixels=LIMIT)
    assert image.header == Header("tiff", "TYXS", (2, 20, 30, 4), "uint8")
    rgb = images.in_rgb(image)
    assert rgb.header == image.header.in_rgb == Header("tiff", "TYXS", (2, 20, 30, 3), "uint8")
    assert images.in_rgb(rgb) is rgb
    crop = images.cropped(image, 12)
    assert np.array_equal(crop.pixels, frames[:, 4:16, 9:21])
    assert np.array_equal(images.in_rgb(crop).pixels, rgb.pixels[:, 4:16, 9:21])


def test_what_is_no_cmyk_stays_as_it_is() -> None:
    for data in (jpeg(picture(9, 9, 3)), tiff(picture(9, 9, 4), photometric="minisblack", planarconfig="contig")):
        image = images.decode(data, max_pixels=LIMIT)
        assert images.in_rgb(image) is image
        assert image.header.in_rgb == image.header


def test_damaged_inks_are_refused() -> None:
    data = cmyk_jpeg(inks(64, 64))
    with pytest.raises(ImageError, match="truncated or damaged"):
        images.decode(data[: len(data) * 2 // 3] + b"\xff\xd9", max_pixels=LIMIT)
