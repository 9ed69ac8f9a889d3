from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from image_files import ICC, LIMIT, anything, by_pillow, jpeg, off_by_one, picture
from PIL import Image as Pillow

from denoise_core import images
from denoise_core.images import Header, ImageError
from denoise_core.images import jpeg as jpeg_container


def exif(orientation: int = 6) -> bytes:
    tags = Pillow.Exif()
    tags[0x112] = orientation
    tags[0x10F] = "a camera"
    return tags.tobytes()


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("shape", [(48, 70), (48, 70, 3), (1, 1), (1, 1, 3), (17, 9, 3)])
def test_pixels_and_metadata(tmp_path: Path, shape: tuple[int, ...], progressive: bool) -> None:
    data = jpeg(
        picture(*shape), progressive=progressive, exif=exif(), icc_profile=ICC, dpi=(300, 150), comment=b"as found"
    )
    image = images.decode(data, max_pixels=LIMIT)
    source = by_pillow(data)
    assert np.abs(image.pixels.astype(int) - np.asarray(source)).max() <= 1
    path = tmp_path / "a.jpg"
    path.write_bytes(data)
    axes = "YXS" if len(shape) == 3 else "YX"
    assert images.read_header(path, max_pixels=LIMIT) == image.header == Header("jpeg", axes, shape, "uint8")

    pixels = off_by_one(image.pixels)
    written = images.encode(image, pixels)
    ours = by_pillow(written)
    assert ours.size == source.size  # not rotated
    assert ours.mode == source.mode
    for key in ("exif", "icc_profile", "dpi", "comment"):
        assert ours.info[key] == source.info[key], key
    if axes == "YXS":
        assert {layer[1:3] for layer in ours.layer} == {(1, 1)}
    assert ours.quantization[0][0] == quality_95()
    difference = np.asarray(ours).astype(int) - image.pixels
    assert np.sqrt(np.mean(difference**2)) < 2.5
    again = images.decode(written, max_pixels=LIMIT)
    assert images.encode(again, pixels) == written


def test_pixels_that_stay_are_not_coded_again() -> None:
    data = jpeg(picture(40, 40, 3), exif=exif())
    image = images.decode(data, max_pixels=LIMIT)
    assert images.encode(image, image.pixels) == data


@pytest.mark.parametrize("same", [False, True])
def test_the_software_is_a_comment(same: bool) -> None:
    data = jpeg(picture(40, 40, 3), exif=exif(), comment=b"as found")
    image = images.decode(data, max_pixels=LIMIT)
    pixels = image.pixels if same else off_by_one(image.pixels)
    written = images.encode(image, pixels, software="denoise-flows 1")
    assert b"\xff\xfe\x00\x11denoise-flows 1" in written
    assert b"as found" in written
    assert by_pillow(written).getexif() == by_pillow(data).getexif()
    again = images.decode(written, max_pixels=LIMIT)
    assert not same or np.array_equal(again.pixels, image.pixels)


def quality_95() -> int:
    return by_pillow(jpeg(picture(8, 8), quality=95)).quantization[0][0]


def test_without_metadata_none_is_made_up() -> None:
    data = jpeg(picture(30, 30, 3))
    image = images.decode(data, max_pixels=LIMIT)
    assert set(by_pillow(images.encode(image, off_by_one(image.pixels))).info) == set(by_pillow(data).info)


def test_rgb_stored_as_rgb_is_read_right() -> None:
    """An Adobe marker with transform 0 says that the components are not YCbCr; the output's are."""
    data = jpeg(picture(40, 40, 3), keep_rgb=True)
    assert b"Adobe" in data
    image = images.decode(data, max_pixels=LIMIT)
    assert np.abs(image.pixels.astype(int) - picture(40, 40, 3)).mean() < 3
    ours = by_pillow(images.encode(image, off_by_one(image.pixels)))
    assert np.abs(np.asarray(ours).astype(int) - image.pixels).mean() < 4


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_cut_is_found_even_behind_an_end_mark(restart: bool, progressive: bool) -> None:
    options = {"restart_marker_rows": 1} if restart else {}
    data = jpeg(picture(96, 96, 3), progressive=progressive, **options)
    images.decode(data, max_pixels=LIMIT)
    for share in (0.5, 0.7, 0.9, 0.99):
        cut = data[: int(share * len(data))]
        with pytest.raises(ImageError, match=r"truncated|damaged"):
            images.decode(cut, max_pixels=LIMIT)
        with pytest.raises(ImageError, match=r"truncated|damaged"):
            images.decode(cut.rstrip(b"\xff") + b"\xff\xd9", max_pixels=LIMIT)


@pytest.mark.parametrize(
    ("options", "notes"),
    [
        ({"quality": 95, "subsampling": 0}, ()),
        ({"quality": 95, "subsampling": 0, "progressive": True}, ()),
        ({"quality": 60, "subsampling": 0}, ("quality (becomes 95)",)),
        ({"quality": 95, "subsampling": 2}, ("chroma subsampling 4:2:0 (becomes 4:4:4)",)),
        ({"quality": 95, "subsampling": 1}, ("chroma subsampling 4:2:2 (becomes 4:4:4)",)),
        ({"quality": 95, "subsampling": 0, "restart_marker_blocks": 4}, ("restart marks",)),
    ],
)
def test_what_coding_anew_changes_is_named(options: dict[str, Any], notes: tuple[str, ...]) -> None:
    data = jpeg(picture(40, 40, 3), **options)
    image = images.decode(data, max_pixels=LIMIT)
    assert image.notes == image.if_changed == notes
    assert images.encode(image, image.pixels) == data
    again = images.decode(images.encode(image, off_by_one(image.pixels)), max_pixels=LIMIT)
    assert again.notes == ()


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
def test_progressive_stays_progressive(mode: str, progressive: bool) -> None:
    """Also where the pixels are noise, for which Pillow by itself has no room."""
    data = jpeg(picture(200, 300, 3), mode, progressive=progressive)
    image = images.decode(data, max_pixels=LIMIT)
    for pixels in (off_by_one(image.pixels), anything("uint8", *image.pixels.shape)):
        written = images.encode(image, pixels, software="denoise-flows 1")
        assert bool(by_pillow(written).info.get("progressive")) == progressive
        again = images.decode(written, max_pixels=LIMIT)
        assert again.pixels.shape == pixels.shape
        assert np.sqrt(np.mean((again.pixels.astype(float) - pixels) ** 2)) < 5


def test_no_index_points_at_images_that_are_gone() -> None:
    """An MPO is a JPEG with another behind it: only the first comes back, whether its pixels changed or not."""
    file = io.BytesIO()
    first = Pillow.fromarray(picture(40, 40, 3))
    first.save(file, "MPO", save_all=True, append_images=[first], quality=95, subsampling=0)
    image = images.decode(file.getvalue(), max_pixels=LIMIT)
    assert image.notes == ("data after the end of the image", "index of further images")
    assert image.if_changed == ()
    for pixels in (image.pixels, off_by_one(image.pixels)):
        written = images.encode(image, pixels)
        assert b"MPF\0" not in written
        assert by_pillow(written).format == "JPEG"
    same = images.encode(image, image.pixels)
    assert np.array_equal(images.decode(same, max_pixels=LIMIT).pixels, image.pixels)


def test_data_behind_the_image_are_named() -> None:
    data = jpeg(picture(20, 20), quality=95)
    image = images.decode(data + data, max_pixels=LIMIT)
    assert image.notes == ("data after the end of the image",)
    assert np.array_equal(image.pixels, images.decode(data, max_pixels=LIMIT).pixels)


def with_frame(marker: int = 0xC0, depth: int = 8, height: int = 20, width: int = 20, components: int = 1) -> bytes:
    body = struct.pack(">BHHB", depth, height, width, components) + b"\1\x11\0" * components
    return b"\xff\xd8\xff" + bytes([marker]) + struct.pack(">H", len(body) + 2) + body + b"\xff\xd9"


GOOD = jpeg(picture(64, 64, 3))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (with_frame(height=60_000, width=60_000), "3,600,000,000"),
        (with_frame(height=0), "0 pixels"),
        (with_frame(marker=0xC3), "lossless"),
        (with_frame(marker=0xC9), "arithmetic"),
        (with_frame(depth=12), "12-bit"),
        (with_frame(components=2), "2 components"),
        (GOOD[:2] + b"\xff\xee\0\x0eAdobe\0d\0\0\0\0\2" + GOOD[2:], "CMYK (YCCK) and has 3 components"),
        (with_frame(), "no image"),
        (GOOD[:10], "truncated"),
        (GOOD[:-2], "end mark"),
        (GOOD.replace(struct.pack(">BHH", 8, 64, 64), struct.pack(">BHH", 8, 3000, 3000)), "cannot hold"),
        (GOOD.replace(struct.pack(">BHH", 8, 64, 64), struct.pack(">BHH", 8, 128, 64)), "end before"),
    ],
)
def test_what_is_refused(tmp_path: Path, data: bytes, words: str) -> None:
    with pytest.raises(ImageError) as caught:
        images.decode(data, max_pixels=LIMIT)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("data", "words"),
    [(with_frame(components=5), "5 components"), (with_frame(height=60_000, width=60_000), "3,600,000,000")],
)
def test_the_header_alone_refuses(tmp_path: Path, data: bytes, words: str) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(data)
    with pytest.raises(ImageError, match=words):
        images.read_header(path, max_pixels=LIMIT)


def test_a_larger_limit_of_pixels_leaves_room_for_the_scans_of_larger_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """A progressive picture of about 10 scans; the limits stand for those of gigapixels."""
    data = jpeg(picture(48, 70, 3), progressive=True)
    monkeypatch.setattr(jpeg_container, "_LARGE_PIXELS", 100)
    monkeypatch.setattr(jpeg_container, "_SCANS_OF_LARGEST", 2)
    with pytest.raises(ImageError, match="at most 100 scans, and 6,720 pixels in all of them together"):
        images.decode(data, max_pixels=48 * 70)
    assert images.decode(data, max_pixels=50 * 48 * 70).pixels.shape == (48, 70, 3)
