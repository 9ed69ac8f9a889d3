from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from image_files import DATA, ICC, LIMIT, anything, by_pillow, facts, off_by_one, picture, tiff

from denoise_core import images
from denoise_core.images import Header, ImageError

OWN_TAGS = {"StripOffsets", "StripByteCounts", "TileOffsets", "TileByteCounts"}
LOSSLESS = ["none", "lzw", "zlib", "zstd", "packbits", "lzma"]


def tags(data: bytes) -> dict[str, Any]:
    """Every tag but those that say where the pixels lie."""
    with tifffile.TiffFile(io.BytesIO(data)) as tif:
        page = tif.pages[0]
        found = {tag.name: repr(tag.value) for tag in page.tags.values() if tag.name not in OWN_TAGS}
        return {**found, "order": tif.byteorder, "big": tif.is_bigtiff, "tiled": page.is_tiled}


def check(data: bytes, source: np.ndarray, tmp_path: Path, colours: int = 0, notes: int = 0) -> bytes:
    """Read, write other pixels, and read those back by tifffile; returns what was written."""
    image = images.decode(data, max_pixels=LIMIT)
    expected = source[..., :colours] if colours else source
    assert np.array_equal(image.pixels, expected)
    assert image.pixels.dtype.isnative
    assert len(image.notes) == notes
    path = tmp_path / "a.tif"
    path.write_bytes(data)
    assert images.read_header(path, max_pixels=LIMIT) == image.header
    assert image.header == Header("tiff", "YX" if image.pixels.ndim == 2 else "YXS", expected.shape, source.dtype.name)
    other = np.random.default_rng(1).integers(0, np.iinfo(source.dtype).max, expected.shape).astype(source.dtype)
    written = b""
    for wanted in (image.pixels, np.full_like(other, 77), other):
        pixels = wanted
        written = images.encode(image, pixels)
        again = images.decode(written, max_pixels=LIMIT)
        assert np.array_equal(again.pixels, pixels)
        if image.alpha is not None:
            assert again.alpha is not None
            assert np.array_equal(again.alpha, image.alpha)
            pixels = np.dstack([pixels, image.alpha])
        assert tags(written) == tags(data)
        independent = tifffile.imread(io.BytesIO(written))
        if independent.shape != pixels.shape:
            independent = np.moveaxis(independent, 0, -1)
        assert np.array_equal(independent, pixels)
    return written


@pytest.mark.parametrize("compression", LOSSLESS)
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("shape", [(50, 41), (50, 41, 3)])
@pytest.mark.parametrize("layout", ["strips", "tiles", "planes"])
def test_every_layout(
    tmp_path: Path, compression: str, order: str, dtype: str, shape: tuple[int, ...], layout: str
) -> None:
    source = picture(*shape, dtype=dtype)
    options: dict[str, Any] = {
        "byteorder": order,
        "bigtiff": order == ">" and dtype == "uint16",
        "compression": None if compression == "none" else compression,
        "predictor": 2 if compression in ("lzw", "zlib", "zstd", "lzma") else None,
        "photometric": "rgb" if len(shape) == 3 else "minisblack",
        "resolution": (12.5, 7.25),
        "resolutionunit": "CENTIMETER",
        "iccprofile": ICC,
        "software": "a microscope",
        "datetime": "2024:05:06 07:08:09",
        "extratags": [(315, "s", 0, "somebody", True), (65000, "B", 7, b"\1\2\3\4\5\6\7", True)],
    }
    if layout == "tiles":
        options["tile"] = (16, 32)
    else:
        options["rowsperstrip"] = 7
    planar = layout == "planes" and len(shape) == 3
    data = tiff(
        np.moveaxis(source, -1, 0) if planar else source, planarconfig="separate" if planar else None, **options
    )
    written = check(data, source, tmp_path)
    if compression == "none" and layout != "tiles":
        image = images.decode(data, max_pixels=LIMIT)
        assert images.encode(image, image.pixels) == data
    if dtype == "uint8" and compression in ("none", "lzw", "zlib", "packbits") and not planar:
        ours = np.asarray(by_pillow(written))
        assert np.array_equal(ours, images.decode(written, max_pixels=LIMIT).pixels)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("extra", ["unassalpha", "assocalpha", "unspecified"])
def test_alpha_is_kept(tmp_path: Path, dtype: str, planar: str, extra: str) -> None:
    source = picture(30, 20, 4, dtype=dtype)
    data = tiff(
        np.moveaxis(source, -1, 0) if planar == "separate" else source,
        photometric="rgb",
        planarconfig=planar,
        extrasamples=[extra],
        compression="zlib",
    )
    check(data, source, tmp_path, colours=3, notes=extra == "unspecified")
    assert all("of no declared meaning" in note for note in images.decode(data, max_pixels=LIMIT).notes)


def test_white_is_zero_stays_so(tmp_path: Path) -> None:
    source = picture(20, 20, dtype="uint16")
    written = check(tiff(source, photometric="miniswhite"), source, tmp_path)
    assert tags(written)["PhotometricInterpretation"] == repr(tifffile.PHOTOMETRIC.MINISWHITE)


def test_imagej_calibration_comes_back(tmp_path: Path) -> None:
    source = picture(20, 30, dtype="uint16")
    data = tiff(
        source, imagej=True, resolution=(2.5, 2.5), metadata={"unit": "um", "axes": "YX", "Labels": ["one"], "min": 3.0}
    )
    check(data, source, tmp_path)
    image = images.decode(data, max_pixels=LIMIT)
    with tifffile.TiffFile(io.BytesIO(images.encode(image, image.pixels[::-1].copy()))) as tif:
        assert tif.imagej_metadata is not None
        assert tif.imagej_metadata["unit"] == "um"
        assert tif.imagej_metadata["Labels"] == "one"
        assert tif.pages[0].tags["XResolution"].value == (5, 2)


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_ome_calibration_comes_back(tmp_path: Path, compression: str | None) -> None:
    source = picture(20, 30, dtype="uint16")
    metadata = {"axes": "YX", "PhysicalSizeX": 0.108, "PhysicalSizeXUnit": "µm"}
    data = tiff(source, ome=True, compression=compression, metadata=metadata)
    check(data, source, tmp_path)
    image = images.decode(data, max_pixels=LIMIT)
    with (
        tifffile.TiffFile(io.BytesIO(data)) as before,
        tifffile.TiffFile(io.BytesIO(images.encode(image, image.pixels))) as after,
    ):
        assert after.ome_metadata == before.ome_metadata
        assert 'PhysicalSizeX="0.108"' in str(after.ome_metadata)


def test_axes_of_length_one_come_back() -> None:
    source = picture(20, 30, dtype="uint16")
    data = tiff(source[None, None, None], imagej=True, metadata={"axes": "TZCYX"})
    image = images.decode(data, max_pixels=LIMIT)
    assert image.pixels.shape == (20, 30)
    with (
        tifffile.TiffFile(io.BytesIO(data)) as before,
        tifffile.TiffFile(io.BytesIO(images.encode(image, source))) as after,
    ):
        assert after.series[0].get_shape(squeeze=False) == before.series[0].get_shape(squeeze=False)


@pytest.mark.parametrize("photometric", ["rgb", "ycbcr", "minisblack"])
@pytest.mark.parametrize("layout", [{"rowsperstrip": 16}, {"tile": (32, 32)}])
@pytest.mark.parametrize("subsampling", [(1, 1), (2, 2)])
def test_jpeg_in_tiff(photometric: str, layout: dict[str, Any], subsampling: tuple[int, int]) -> None:
    source = picture(70, 50) if photometric == "minisblack" else picture(70, 50, 3)
    options = {"subsampling": subsampling} if photometric == "ycbcr" else {}
    data = tiff(source, photometric=photometric, compression="jpeg", compressionargs={"level": 92}, **layout, **options)
    image = images.decode(data, max_pixels=LIMIT)
    assert np.array_equal(image.pixels, tifffile.imread(io.BytesIO(data)))
    written = images.encode(image, off_by_one(image.pixels))
    assert tags(written) == tags(data)
    assert images.encode(image, image.pixels) == data
    again = tifffile.imread(io.BytesIO(written))
    assert again.shape == source.shape
    assert np.abs(again.astype(int) - image.pixels).mean() < 4


def test_a_file_does_not_grow_where_the_pixels_compress_as_well() -> None:
    source = picture(100, 100)
    data = tiff(source, compression="zlib", rowsperstrip=10)
    image = images.decode(data, max_pixels=LIMIT)
    assert len(images.encode(image, source[::-1])) < 1.01 * len(data)
    assert len(images.encode(image, np.zeros_like(source))) < len(data) / 2


def test_short_byte_counts_give_way_to_long_ones() -> None:
    """A flat image's strip fits 16-bit counts; a noisy one's does not."""
    flat = np.zeros((300, 300), np.uint8)
    data = bytearray(tiff(flat, compression="zlib", rowsperstrip=300))
    with tifffile.TiffFile(io.BytesIO(bytes(data))) as tif:
        tag = tif.pages[0].tags["StripByteCounts"]
        count = tag.value[0]
    struct.pack_into("<HHIHH", data, tag.offset, 279, 3, 1, count, 0)
    image = images.decode(bytes(data), max_pixels=LIMIT)
    noisy = np.random.default_rng(0).integers(0, 256, flat.shape, dtype=np.uint8)
    assert np.array_equal(tifffile.imread(io.BytesIO(images.encode(image, noisy))), noisy)


def test_without_byte_counts_as_old_writers_leave_it() -> None:
    out = bytearray(PLAIN)
    with tifffile.TiffFile(io.BytesIO(PLAIN)) as tif:
        tag = tif.pages[0].tags["StripByteCounts"]
    struct.pack_into("<H", out, tag.offset, 65001)
    image = images.decode(bytes(out), max_pixels=LIMIT)
    assert np.array_equal(image.pixels, GREY)
    assert np.array_equal(images.decode(images.encode(image, GREY[::-1]), max_pixels=LIMIT).pixels, GREY[::-1])


GREY = picture(32, 32)
PLAIN = tiff(GREY, rowsperstrip=8)
REAL = sorted((DATA / "tiff_variety").glob("*.tif")) + sorted((DATA / "tirf").glob("*.tif"))


@pytest.mark.skipif(not REAL, reason="the shared data are not there")
@pytest.mark.parametrize("path", REAL, ids=lambda path: path.name)
def test_real_files(path: Path) -> None:
    data = path.read_bytes()
    source = tifffile.imread(path)
    image = images.decode(data, max_pixels=LIMIT)
    assert images.read_header(path, max_pixels=LIMIT) == image.header
    with tifffile.TiffFile(path) as tif:
        assert image.axes == tif.series[0].axes
    assert image.pixels.dtype == source.dtype
    assert np.array_equal(image.pixels, source)
    assert images.encode(image, image.pixels) == data
    other = anything(source.dtype, *source.shape)
    written = images.encode(image, other)
    assert np.array_equal(tifffile.imread(io.BytesIO(written)), other)
    assert facts(written) == facts(data)
    assert len(written) == len(data) or path.name == "stardist_img3d.tif"  # which is deflated


def edited(data: bytes, name: str, value: int, index: int = 0) -> bytes:
    """The file with one value of one tag changed."""
    with tifffile.TiffFile(io.BytesIO(data)) as tif:
        tag = tif.pages[0].tags[name]
        form = {3: "H", 4: "I", 16: "Q"}[tag.dtype]
        out = bytearray(data)
        struct.pack_into(tif.byteorder + form, out, tag.valueoffset + index * struct.calcsize("<" + form), value)
        return bytes(out)


def circular() -> bytes:
    out = bytearray(PLAIN)
    (at,) = struct.unpack_from("<I", out, 4)
    (count,) = struct.unpack_from("<H", out, at)
    struct.pack_into("<I", out, at + 2 + 12 * count, at)
    return bytes(out)


def many_tags() -> bytes:
    out = bytearray(tiff(GREY, bigtiff=True))
    (at,) = struct.unpack_from("<Q", out, 8)
    struct.pack_into("<Q", out, at, 1 << 60)
    return bytes(out)


def sub_image(page: np.ndarray, sub: np.ndarray) -> bytes:
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        writer.write(page, subifds=1)
        writer.write(sub)
    return file.getvalue()


def two_sizes() -> bytes:
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        writer.write(picture(64, 64))
        writer.write(picture(20, 30))
    return file.getvalue()


def big_header(side: int) -> bytes:
    return edited(edited(edited(PLAIN, "ImageWidth", side), "ImageLength", side), "RowsPerStrip", side)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (tiff(picture(9, 9), photometric="palette", colormap=np.zeros((3, 256), np.uint16)), "palette"),
        (tiff(picture(9, 9, 4).astype(np.float32), photometric="separated"), "CMYK TIFF of float32 samples"),
        (tiff(picture(9, 9, 4), photometric="separated", extratags=[(332, "H", 1, 2, True)]), "other inks"),
        (tiff(picture(9, 9, 5), photometric="separated", extrasamples=["unspecified"]), "5 inks"),
        (tiff(picture(9, 9) > 99), "1-bit"),
        (tiff(picture(9, 9), bitspersample=8, compression="png"), "PNG"),
        (tiff(picture(9, 9).astype(np.uint64)), "64-bit unsigned samples"),
        (tiff(picture(9, 9).astype(np.int64)), "64-bit signed samples"),
        (tiff(picture(9, 9).astype(np.complex64)), "64-bit complex samples"),
        (tiff(picture(9, 9, 5), photometric="rgb", planarconfig="contig"), "5 RGB samples"),
        (sub_image(picture(64, 64), picture(64, 64)), "2 images in one file"),
        (sub_image(picture(64, 64), picture(32, 32, dtype="uint16")), "2 images in one file"),
        (two_sizes(), "2 images in one file"),
        (circular(), "circle"),
        (many_tags(), "tags"),
        (big_header(60_000), "3,600,000,000"),
        (big_header(3000), "offsets"),
        (edited(PLAIN, "StripByteCounts", 10), "778 bytes of pixel data cannot hold the 1,024"),
        (edited(PLAIN, "StripByteCounts", 0, 1), "missing"),
        (edited(PLAIN, "StripOffsets", 0, 2), "missing"),
        (edited(PLAIN, "StripOffsets", 9, 2), "overlap"),
        (edited(PLAIN, "StripOffsets", 1 << 30, 2), "truncated"),
        (PLAIN[:-40], "truncated"),
        (PLAIN[:6], "truncated"),
        (PLAIN[:60], "truncated"),
        (edited(edited(tiff(GREY, tile=(16, 16)), "TileWidth", 60_000), "TileLength", 60_000), "60000 × 60000"),
        (b"II\x2a\0" + bytes(60), "no directory"),
    ],
)
def test_what_is_refused(data: bytes, words: str) -> None:
    with pytest.raises(ImageError) as caught:
        images.decode(data, max_pixels=LIMIT)
    assert words in str(caught.value)


@pytest.mark.parametrize("compression", ["lzw", "zlib", "zstd", "packbits", "jpeg"])
def test_a_cut_strip_is_found(compression: str) -> None:
    data = tiff(picture(64, 64), compression=compression, rowsperstrip=64)
    with tifffile.TiffFile(io.BytesIO(data)) as tif:
        size = tif.pages[0].databytecounts[0]
    with pytest.raises(ImageError, match="strip 0 cannot be read"):
        images.decode(edited(data, "StripByteCounts", size // 2), max_pixels=LIMIT)


def test_a_strip_that_inflates_without_end_is_refused() -> None:
    bomb = tiff(np.zeros((4000, 4000), np.uint8), compression="zlib", rowsperstrip=4000)
    small = edited(edited(edited(bomb, "ImageWidth", 10), "ImageLength", 10), "RowsPerStrip", 10)
    with pytest.raises(ImageError, match="damaged"):
        images.decode(small, max_pixels=LIMIT)
