"""Stacks: what is read, what comes back beside the pixels, what is refused."""

from __future__ import annotations

import io
import json
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from image_files import DATA, LIMIT, picture, tiff
from numpy.typing import NDArray
from PIL import Image as Pillow

from denoise_core import images
from denoise_core.images import Header, ImageError

PLACES = {"StripOffsets", "StripByteCounts", "TileOffsets", "TileByteCounts"}


def stack(*shape: int, dtype: str = "uint16") -> NDArray[Any]:
    return np.stack([picture(*shape[1:], dtype=dtype, seed=seed) for seed in range(shape[0])])


def facts(data: bytes) -> dict[str, Any]:
    """What tifffile says of a file, but where its pixels lie."""
    with tifffile.TiffFile(io.BytesIO(data)) as tif:
        series = tif.series[0]
        pages = [tifffile.TiffPage(tif, index=n) for n in range(len(tif.pages)) if tif.pages._seek(n)]
        return {
            "order": tif.byteorder,
            "big": tif.is_bigtiff,
            "series": len(tif.series),
            "axes": series.get_axes(squeeze=False),
            "shape": series.get_shape(squeeze=False),
            "kind": series.kind,
            "imagej": tif.imagej_metadata,
            "ome": tif.ome_metadata,
            "tags": [{t.name: repr(t.value) for t in p.tags.values() if t.name not in PLACES} for p in pages],
        }


def independent(data: bytes, shape: tuple[int, ...]) -> NDArray[Any]:
    """The pixels by tifffile, samples last, axes of length 1 left out."""
    pixels: NDArray[Any] = tifffile.imread(io.BytesIO(data))
    with tifffile.TiffFile(io.BytesIO(data)) as tif:
        if tif.series[0].get_axes(squeeze=True).endswith("SYX"):
            pixels = np.moveaxis(pixels, -3, -1)
    return pixels.reshape(shape)


def check(data: bytes, source: NDArray[Any], axes: str, tmp_path: Path) -> bytes:
    """Read, write other pixels, read those by tifffile; returns the file with its own pixels written anew."""
    image = images.decode(data, max_pixels=LIMIT)
    assert image.header == Header("tiff", axes, source.shape, source.dtype.name)
    assert (image.header.frames, image.header.pixels) == (source.shape[0], int(np.prod(source.shape[:3])))
    assert np.array_equal(image.pixels, source)
    assert np.array_equal(image.pixels, independent(data, source.shape))
    assert image.pixels.dtype.isnative
    assert image.pixels.flags.c_contiguous
    assert (image.alpha, image.notes) == (None, ())
    path = tmp_path / "a.tif"
    path.write_bytes(data)
    assert images.read_header(path, max_pixels=LIMIT) == image.header
    other = np.random.default_rng(1).integers(0, np.iinfo(source.dtype).max, source.shape).astype(source.dtype)
    for pixels in (other, np.full_like(other, 77), source[::-1]):
        written = images.encode(image, pixels)
        assert np.array_equal(independent(written, source.shape), pixels)
        assert np.array_equal(images.decode(written, max_pixels=LIMIT).pixels, pixels)
        assert facts(written) == facts(data)
    same = images.encode(image, image.pixels)
    assert np.array_equal(independent(same, source.shape), source)
    return same


@pytest.mark.parametrize("compression", [None, "lzw", "zlib", "zstd", "packbits"])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("layout", ["strips", "tiles", "one strip"])
@pytest.mark.parametrize("colours", ["grey", "rgb", "planes"])
def test_every_layout(
    tmp_path: Path, compression: str | None, order: str, dtype: str, layout: str, colours: str
) -> None:
    source = stack(4, 26, 21, dtype=dtype) if colours == "grey" else stack(4, 26, 21, 3, dtype=dtype)
    options: dict[str, Any] = {
        "byteorder": order,
        "bigtiff": order == "<" and dtype == "uint16",
        "compression": compression,
        "predictor": 2 if compression in ("lzw", "zlib", "zstd") else None,
        "photometric": "minisblack" if colours == "grey" else "rgb",
        "planarconfig": "separate" if colours == "planes" else None,
        "resolution": (12.5, 7.25),
        "software": "a microscope",
        "extratags": [(65000, "B", 7, b"\1\2\3\4\5\6\7", False)],
        "metadata": {"axes": "T" + {"grey": "YX", "rgb": "YXS", "planes": "SYX"}[colours]},
    }
    options |= {"strips": {"rowsperstrip": 7}, "tiles": {"tile": (16, 16)}, "one strip": {"rowsperstrip": 26}}[layout]
    data = tiff(np.moveaxis(source, -1, 1).copy() if colours == "planes" else source, **options)
    same = check(data, source, "TYX" if colours == "grey" else "TYXS", tmp_path)
    if compression is None:
        assert same == data or layout == "tiles"


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("frames", [2, 7, 8, 30])
@pytest.mark.parametrize(("metadata", "axes"), [(None, "IYX"), ({}, "QYX"), ({"axes": "ZYX"}, "ZYX")])
def test_frame_axes(
    tmp_path: Path, compression: str | None, frames: int, metadata: dict[str, Any] | None, axes: str
) -> None:
    source = stack(frames, 9, 12)
    check(tiff(source, photometric="minisblack", compression=compression, metadata=metadata), source, axes, tmp_path)


def test_axes_of_length_one_are_left_out(tmp_path: Path) -> None:
    source = stack(5, 20, 30)
    spread = source[:, None, None]
    check(tiff(spread, imagej=True, metadata={"axes": "TZCYX"}), source, "TYX", tmp_path)
    check(tiff(spread, ome=True, metadata={"axes": "TZCYX"}), source, "TYX", tmp_path)
    check(tiff(source[None], photometric="minisblack"), source, "QYX", tmp_path)
    row = stack(6, 1, 40)
    check(tiff(row, photometric="minisblack", metadata={"axes": "ZYX"}), row, "ZYX", tmp_path)


@pytest.mark.parametrize("axis", ["T", "Z"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("in_a_row", [False, True])
def test_imagej(tmp_path: Path, axis: str, dtype: str, order: str, in_a_row: bool) -> None:
    source = stack(5, 20, 30, dtype=dtype)
    metadata = {"axes": f"{axis}YX", "unit": "um", "spacing": 0.5, "finterval": 2.0, "Labels": [*"abcde"]}
    data = tiff(source, imagej=True, byteorder=order, resolution=(2.5, 2.5), truncate=in_a_row, metadata=metadata)
    with tifffile.TiffFile(io.BytesIO(data)) as tif:
        assert len(tif.pages) == (1 if in_a_row else 5)
        assert tif.imagej_metadata is not None
        assert tif.imagej_metadata["Labels"] == [*"abcde"]
    assert check(data, source, f"{axis}YX", tmp_path) == data


def test_imagej_colours(tmp_path: Path) -> None:
    source = stack(5, 20, 30, 3, dtype="uint8")
    for in_a_row in (False, True):
        data = tiff(source, imagej=True, truncate=in_a_row, metadata={"axes": "ZYXS"})
        assert check(data, source, "ZYXS", tmp_path) == data


@pytest.mark.parametrize("separate", [False, True])
def test_frames_in_a_row_by_tifffile(tmp_path: Path, separate: bool) -> None:
    source = stack(5, 20, 30, 3)
    stored, axes = (np.moveaxis(source, -1, 1).copy(), "TSYX") if separate else (source, "TYXS")
    options = {"planarconfig": "separate"} if separate else {}
    data = tiff(
        stored, photometric="rgb", rowsperstrip=6, truncate=True, bigtiff=True, metadata={"axes": axes}, **options
    )
    assert check(data, source, "TYXS", tmp_path) == data


@pytest.mark.parametrize("axis", ["T", "Z"])
@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("big", [False, True])
def test_ome(tmp_path: Path, axis: str, compression: str | None, big: bool) -> None:
    source = stack(5, 20, 30)
    metadata = {"axes": f"{axis}YX", "PhysicalSizeX": 0.108, "TimeIncrement": 0.1}
    data = tiff(source, ome=True, bigtiff=big, compression=compression, rowsperstrip=6, metadata=metadata)
    assert 'PhysicalSizeX="0.108"' in facts(data)["ome"]
    check(data, source, f"{axis}YX", tmp_path)
    colours = stack(5, 20, 30, 3, dtype="uint8")
    data = tiff(colours, ome=True, compression=compression, photometric="rgb", metadata={"axes": f"{axis}YXS"})
    check(data, colours, f"{axis}YXS", tmp_path)


def ome(planes: str, *, sizes: str = 'SizeT="3"', pages: int = 3, root: str = "") -> bytes:
    """A stack whose pages are described by hand."""
    whole = {"SizeX": 12, "SizeY": 9, "SizeZ": 1, "SizeC": 1, "SizeT": 1}
    rest = " ".join(f'{name}="{value}"' for name, value in whole.items() if name not in sizes)
    text = (
        f'<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" {root}><Image ID="Image:0">'
        f'<Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint16" {sizes} {rest}>'
        f'<Channel ID="Channel:0:0" SamplesPerPixel="1"/>{planes}</Pixels></Image></OME>'
    )
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        for number, page in enumerate(stack(pages, 9, 12)):
            writer.write(page, description=text if number == 0 else None, metadata=None, contiguous=False)
    return file.getvalue()


def planes(*order: int, inside: str = "") -> str:
    return "".join(
        f'<TiffData IFD="{ifd}" FirstT="{t}" PlaneCount="1">{inside}</TiffData>' for t, ifd in enumerate(order)
    )


def test_frames_come_in_the_order_that_ome_says(tmp_path: Path) -> None:
    source = stack(3, 9, 12)[[2, 0, 1]]
    data = ome(planes(2, 0, 1))
    assert check(data, source, "TYX", tmp_path) == data


@pytest.mark.parametrize("root", ["", 'UUID="urn:uuid:1"'])
def test_ome_that_names_its_own_file(tmp_path: Path, root: str) -> None:
    data = ome(planes(0, 1, 2, inside='<UUID FileName="before.ome.tif">urn:uuid:1</UUID>'), root=root)
    image = images.decode(data, max_pixels=LIMIT)
    assert image.axes == "TYX"
    (tmp_path / "after.tif").write_bytes(data)
    assert images.read_header(tmp_path / "after.tif", max_pixels=LIMIT) == image.header


@pytest.mark.parametrize("photometric", ["minisblack", "rgb", "ycbcr"])
@pytest.mark.parametrize("layout", [{"rowsperstrip": 16}, {"tile": (32, 32)}])
def test_jpeg_in_a_stack(photometric: str, layout: dict[str, Any]) -> None:
    source = stack(3, 70, 50, dtype="uint8") if photometric == "minisblack" else stack(3, 70, 50, 3, dtype="uint8")
    data = tiff(source, photometric=photometric, compression="jpeg", compressionargs={"level": 92}, **layout)
    image = images.decode(data, max_pixels=LIMIT)
    assert np.array_equal(image.pixels, tifffile.imread(io.BytesIO(data)))
    written = images.encode(image, image.pixels[::-1])
    assert facts(written) == facts(data)
    assert np.abs(tifffile.imread(io.BytesIO(written)).astype(int) - image.pixels[::-1]).mean() < 4


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_by_pillow(tmp_path: Path, compression: str | None) -> None:
    source = stack(4, 20, 30, dtype="uint8")
    first, *rest = (Pillow.fromarray(frame) for frame in source)
    file = io.BytesIO()
    first.save(file, "TIFF", save_all=True, append_images=rest, compression=compression)
    check(file.getvalue(), source, "IYX", tmp_path)
    image = images.decode(file.getvalue(), max_pixels=LIMIT)
    with Pillow.open(io.BytesIO(images.encode(image, source[::-1]))) as written:
        for number in range(4):
            written.seek(number)
            assert np.array_equal(np.asarray(written), source[::-1][number])


STACKS = {
    "acsn_TIRF_200Hz.tif": "ZYX",
    "stardist_img3d.tif": "QYX",
    "xyt_8bit__em_fly_eye.tif": "TYX",
    "xyz_8bit__nucleus.tif": "ZYX",
    "xyz_calibrated_16bit__golgi_bfa.tif": "ZYX",
}
REAL = {path.name: path for path in DATA.glob("ti*/*.tif") if path.name in STACKS}


@pytest.mark.skipif(not REAL, reason="the shared data are not there")
@pytest.mark.parametrize("name", STACKS)
def test_real_files(name: str, tmp_path: Path) -> None:
    data = REAL[name].read_bytes()
    same = check(data, tifffile.imread(REAL[name]), STACKS[name], tmp_path)
    assert same == data or name == "stardist_img3d.tif"  # which is deflated
    assert len(same) < 1.05 * len(data)


# --- refused ---


def series_of(*images_: NDArray[Any], **options: Any) -> bytes:
    """One file, one write each."""
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        for each in images_:
            writer.write(each, photometric="minisblack", **options)
    return file.getvalue()


def pyramids() -> bytes:
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        writer.write(stack(3, 64, 64), photometric="minisblack", subifds=1, tile=(16, 16))
        writer.write(stack(3, 32, 32), photometric="minisblack", subfiletype=1, tile=(16, 16))
    return file.getvalue()


def edited(data: bytes, page: int, name: str, value: int, index: int = 0) -> bytes:
    """The file with one value of one tag of one page changed."""
    with tifffile.TiffFile(io.BytesIO(data)) as tif:
        tag = tif.pages.get(page).tags[name]
        form = {3: "H", 4: "I", 16: "Q"}[tag.dtype]
        out = bytearray(data)
        struct.pack_into(tif.byteorder + form, out, tag.valueoffset + index * struct.calcsize("<" + form), value)
        return bytes(out)


def circle(data: bytes, back_to: int) -> bytes:
    """The file with a chain of directories that turns back from its last to an earlier one."""
    with tifffile.TiffFile(io.BytesIO(data)) as tif:
        starts = [tif.pages.get(n).offset for n in range(len(tif.pages))]
    out = bytearray(data)
    (count,) = struct.unpack_from("<H", out, starts[-1])
    struct.pack_into("<I", out, starts[-1] + 2 + 12 * count, starts[back_to])
    return bytes(out)


def by_hand(pages: list[dict[int, list[int] | int]], blob: bytes) -> bytes:
    """A little-endian TIFF of LONG tags, `blob` at byte 8; a plain int is the place of a list of two within the file."""
    out = bytearray(b"II\x2a\0" + struct.pack("<I", 8 + len(blob)) + blob)
    for number, tags in enumerate(pages):
        table = b""
        for code, values in sorted(tags.items()):
            if isinstance(values, int):
                table += struct.pack("<HHII", code, 4, 2, values)
            else:
                table += struct.pack("<HHII", code, 4, 1, values[0])
        following = len(out) + 2 + len(table) + 4 if number + 1 < len(pages) else 0
        out += struct.pack("<H", len(tags)) + table + struct.pack("<I", following)
    return bytes(out)


def plain_tags(width: int, height: int, **more: list[int] | int) -> dict[int, list[int] | int]:
    tags: dict[int, list[int] | int] = {
        256: [width],
        257: [height],
        258: [8],
        259: [1],
        262: [1],
        277: [1],
        278: [height],
    }
    return tags | {int(code[1:]): value for code, value in more.items()}


GREY = stack(5, 24, 32, dtype="uint8")
PLAIN = tiff(GREY, photometric="minisblack", rowsperstrip=8)
DEFLATED = tiff(GREY, photometric="minisblack", rowsperstrip=8, compression="zlib")
IMAGEJ = tiff(GREY, imagej=True, metadata={"axes": "TYX"})
IN_A_ROW = tiff(GREY, imagej=True, truncate=True, metadata={"axes": "TYX"})


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (
            tiff(stack(4, 9, 8, 4, dtype="uint8"), photometric="rgb", extrasamples=["unassalpha"]),
            "alpha channel, 4 frames",
        ),
        (
            tiff(stack(4, 9, 8, 2), photometric="minisblack", planarconfig="contig", extrasamples=["unassalpha"]),
            "a stack with an alpha channel, 4 frames of 8 × 9 pixels of 2 uint16",
        ),
        (tiff(stack(4, 9, 8), imagej=True, metadata={"axes": "CYX"}), "a multi-channel image with axes CYX"),
        (tiff(stack(4, 9, 8), ome=True, metadata={"axes": "CYX"}), "a multi-channel image with axes CYX"),
        (
            tiff(stack(6, 9, 8).reshape(3, 2, 9, 8), imagej=True, metadata={"axes": "TZYX"}),
            "axes TZYX and shape (3, 2, 9",
        ),
        (
            tiff(stack(6, 9, 8).reshape(3, 2, 9, 8), imagej=True, metadata={"axes": "ZCYX"}),
            "axes ZCYX and shape (3, 2, 9",
        ),
        (tiff(stack(6, 9, 8).reshape(3, 2, 9, 8), ome=True, metadata={"axes": "TZYX"}), "axes TZYX and shape (3, 2, 9"),
        (tiff(stack(6, 9, 8).reshape(3, 2, 9, 8), photometric="minisblack"), "axes QQYX and shape (3, 2, 9"),
        (tiff(stack(4, 9, 8), photometric="minisblack", metadata={"axes": "RYX"}), "a stack with axes RYX"),
        (tiff(stack(4, 9, 8).astype(np.float32), photometric="minisblack"), "32-bit floating-point"),
        (tiff(stack(32, 32, 32), photometric="minisblack", volumetric=True, tile=(16, 16, 16)), "volumes"),
        (pyramids(), "a pyramid of 2 levels, the first with axes QYX and shape (3, 64, 64)"),
        (
            series_of(stack(3, 9, 8), stack(3, 9, 8)),
            "2 images in one file, the first with axes QYX and shape (3, 9, 8)",
        ),
        (series_of(stack(3, 9, 8), stack(2, 8, 8), metadata=None), "images in one file, the first with axes IYX"),
        (series_of(*stack(9, 9, 8), stack(1, 8, 8)[0], metadata=None), "2 images in one file, the first with axes IYX"),
        (
            series_of(*stack(5, 9, 8), stack(1, 8, 8)[0], *stack(9, 9, 8), metadata=None),
            "frames differ: frame 0 has 8 × 9 pixels of 1 uint16, frame 5 has 8 × 8",
        ),
        (series_of(*stack(5, 9, 8), picture(9, 8), *stack(9, 9, 8), metadata=None), "frames differ: frame 0 has 8 × 9"),
        (series_of(*stack(9, 9, 8), picture(15, 8), rowsperstrip=3, metadata=None), "2 images in one file"),
        (
            edited(IMAGEJ, 3, "PhotometricInterpretation", 0),
            "stored differently: the compression, colours or strips of fram",
        ),
        (edited(IMAGEJ, 3, "ImageLength", 20), "frame 0 has 32 × 24 pixels of 1 uint8, frame 3 has 32 × 20"),
        (
            edited(IMAGEJ, 3, "BitsPerSample", 16),
            "frame 0 has 32 × 24 pixels of 1 uint8, frame 3 has 32 × 24 pixels of 1 ui",
        ),
        (edited(IMAGEJ, 3, "ImageWidth", 30), "frame 0 has 32 × 24 pixels of 1 uint8, frame 3 has 30 × 24"),
        (
            IMAGEJ.replace(b"images=5\nframes=5", b"images=4\nframes=4"),
            "a stack with axes TYX and shape (4, 24, 32), of whi",
        ),
        (
            IMAGEJ.replace(b"images=5\nframes=5", b"images=9\nframes=9"),
            "says 9 images",
        ),
        (IN_A_ROW.replace(b"images=5\nframes=5", b"images=9\nframes=9"), "truncated: its description says 9 images"),
        (edited(IN_A_ROW, 0, "RowsPerStrip", 8), "damaged"),
        (circle(PLAIN, 0), "circle"),
        (circle(PLAIN, 3), "circle"),
        (edited(PLAIN, 2, "StripByteCounts", 0, 1), "missing"),
        (edited(PLAIN, 2, "StripOffsets", 0, 2), "missing"),
        (edited(PLAIN, 2, "StripOffsets", 9, 2), "overlap"),
        (edited(PLAIN, 2, "StripOffsets", 1 << 30, 2), "truncated"),
        (edited(PLAIN, 1, "StripByteCounts", 10, 1), "522 bytes of pixel data of frame 1 cannot hold the 768"),
        (edited(DEFLATED, 2, "StripByteCounts", 10, 1), "strip 1 of frame 2 cannot be read"),
        (edited(tiff(GREY, photometric="minisblack", metadata=None), 2, "StripOffsets", 300), "overlap"),
    ],
)
def test_what_is_refused(data: bytes, words: str) -> None:
    with pytest.raises(ImageError) as caught:
        images.decode(data, max_pixels=LIMIT)
    assert words in str(caught.value)


ONE_FILE = '<UUID FileName="a.ome.tif">urn:uuid:1</UUID>'


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (
            ome(planes(0, 1, inside=ONE_FILE) + planes(2, inside=ONE_FILE.replace("1", "2"))),
            "spread over several files",
        ),
        (ome('<BinaryOnly MetadataFile="a.ome.xml" UUID="urn:uuid:1"/>'), "its XML does not fit its 3 pages"),
        (ome(planes(0, 1, 2, inside=ONE_FILE), root='UUID="urn:uuid:7"'), "its XML does not fit its 3 pages"),
        (ome(planes(0, 1, 2), root="<"), "its XML does not fit its 3 pages"),
        (ome(planes(0, 1)), "some frames are missing"),
        (ome(planes(0, 1, 1)), "some frames are missing"),
        (
            ome(planes(0, 1, 2), sizes='SizeT="4"'),
            "a stack with axes TYX and shape (4, 9, 12), of which the file has 3",
        ),
        (ome(planes(0, 1), sizes='SizeT="2"'), "a stack with axes TYX and shape (2, 9, 12), of which the file has 3"),
        (ome(planes(0), sizes='SizeT="1"'), "3 pages in one file, with axes YX"),
        (ome(planes(0, 1, 2), sizes='SizeT="3000000000"'), "3,000,000,003 planes"),
        (ome(planes(0, 1, 2), sizes='SizeX="9000000000"'), "planes"),
        (ome('<TiffData PlaneCount="4000000000"/>'), "4,000,000,003 planes"),
        (ome("", sizes='SizeT="x"'), "damaged"),
    ],
)
def test_ome_that_does_not_fit(data: bytes, words: str) -> None:
    with pytest.raises(ImageError) as caught:
        images.decode(data, max_pixels=LIMIT)
    assert words in str(caught.value)


def test_a_plane_of_an_ome_set_is_one_image() -> None:
    """A file of one page is an image whatever its set is: its metadata come back and no other file is needed."""
    data = ome(planes(0, inside=ONE_FILE) + planes(0, inside=ONE_FILE.replace("1", "2")), pages=1)
    assert images.decode(data, max_pixels=LIMIT).axes == "YX"


@pytest.mark.parametrize("data", [PLAIN, DEFLATED, IMAGEJ, IN_A_ROW])
def test_the_limit_holds_for_all_frames(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_bytes(data)
    assert images.decode(data, max_pixels=GREY.size).pixels.size == GREY.size
    with pytest.raises(ImageError, match="says 5 × 32 × 24 = 3,840 pixels, and at most 3,839 are allowed"):
        images.decode(data, max_pixels=GREY.size - 1)
    with pytest.raises(ImageError, match="at most 3,839"):
        images.read_header(tmp_path / "a.tif", max_pixels=GREY.size - 1)


@pytest.mark.parametrize("data", [PLAIN, DEFLATED, IMAGEJ, IN_A_ROW])
def test_every_cut_is_refused_or_harmless(data: bytes) -> None:
    for length in range(0, len(data), 7):
        try:
            image = images.decode(data[:length], max_pixels=LIMIT)
        except ImageError:
            continue
        assert np.array_equal(image.pixels, GREY), length


def test_frames_that_share_a_strip_get_their_own() -> None:
    blank = bytes(24)
    data = by_hand([plain_tags(6, 4, t273=[8], t279=[24])] * 3, blank)
    image = images.decode(data, max_pixels=LIMIT)
    assert (image.axes, image.pixels.shape, image.pixels.any()) == ("IYX", (3, 4, 6), False)
    other = np.arange(72, dtype=np.uint8).reshape(3, 4, 6)
    written = images.encode(image, other)
    assert np.array_equal(tifffile.imread(io.BytesIO(written)), other)


def test_frames_that_share_a_list_of_strips_are_refused() -> None:
    """To write one of them would move the other."""
    first = tiff(picture(6, 4), compression="zlib", rowsperstrip=3)
    with tifffile.TiffFile(io.BytesIO(first)) as tif:
        offsets, sizes = tif.pages[0].dataoffsets, tif.pages[0].databytecounts
    strips = b"".join(first[at : at + size] for at, size in zip(offsets, sizes, strict=True))
    blob = struct.pack("<IIII", 24, 24 + sizes[0], *sizes) + strips
    page = plain_tags(4, 6, t259=[8], t278=[3], t273=8, t279=16)
    assert np.array_equal(images.decode(by_hand([page], blob), max_pixels=LIMIT).pixels, picture(6, 4))
    with pytest.raises(ImageError, match="overlap"):
        images.decode(by_hand([page, page], blob), max_pixels=LIMIT)


def test_micromanager_index_gives_the_order() -> None:
    """A stack whose index map holds its frames in another order than their directories stand."""
    summary = json.dumps({"MicroManagerVersion": "1", "Frames": 3, "Slices": 1, "Channels": 1, "Positions": 1}).encode()
    frames = np.arange(72, dtype=np.uint8).reshape(3, 4, 6)

    def file(times: list[int]) -> bytes:
        index_at = 40 + len(summary)
        pixels_at = index_at + 8 + 20 * 3
        pages = [plain_tags(6, 4, t273=[pixels_at + 24 * n], t279=[24], t51123=[40]) for n in range(3)]
        size = 2 + 12 * len(pages[0]) + 4
        starts = [pixels_at + 72 + n * size for n in range(3)]
        head = struct.pack("<8I", 54773648, index_at, 0, 0, 0, 0, 2355492, len(summary)) + summary
        index = struct.pack("<2I", 3453623, 3) + b"".join(
            struct.pack("<5I", 0, 0, time, 0, start) for time, start in zip(times, starts, strict=True)
        )
        return by_hand(pages, head + index + frames.tobytes()) + bytes(200)  # tifffile takes a shorter one for cut

    image = images.decode(file([2, 0, 1]), max_pixels=LIMIT)
    assert image.axes == "TYX"
    assert np.array_equal(image.pixels, frames[[1, 2, 0]])
    for times in ([0, 1, 1 << 30], [0, 1, 1]):
        with pytest.raises(ImageError):
            images.decode(file(times), max_pixels=LIMIT)


# --- bombs ---


def peak(call: Any) -> tuple[Any, int]:
    """What the call returns and the memory it needed."""
    tracemalloc.start()
    try:
        return call(), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "options",
    [{}, {"rowsperstrip": 64}, {"imagej": True}, {"compression": "zlib"}, {"compression": "lzw", "tile": (64, 64)}],
)
def test_no_copies_beside_the_pixels(options: dict[str, Any]) -> None:
    source = np.random.default_rng(0).integers(0, 4000, (40, 256, 256), dtype=np.uint16)
    kind = {"metadata": {"axes": "TYX"}} if "imagej" in options else {"photometric": "minisblack"}
    data = tiff(source, **kind, **options)
    images.decode(data, max_pixels=LIMIT)  # what it imports does not count
    image, needed = peak(lambda: images.decode(data, max_pixels=LIMIT))
    assert needed < source.nbytes + 2_000_000
    written, needed = peak(lambda: images.encode(image, source))
    assert needed < 1.15 * max(len(data), len(written)) + 2_000_000


def test_thousands_of_strips() -> None:
    """Were each of them a copy of the file, this would not end."""
    source = np.random.default_rng(0).integers(0, 4000, (100, 256, 64), dtype=np.uint16)
    for compression in (None, "lzw"):
        data = tiff(source, photometric="minisblack", compression=compression, rowsperstrip=1)
        image = images.decode(data, max_pixels=LIMIT)
        assert np.array_equal(tifffile.imread(io.BytesIO(images.encode(image, source[::-1]))), source[::-1])


def test_frames_of_nothing_are_refused_before_memory_is_asked_for() -> None:
    huge = plain_tags(30_000, 30_000, t273=[8], t279=[24], t259=[8])
    data = by_hand([huge] * 100, bytes(24))

    def refused() -> str:
        with pytest.raises(ImageError) as caught:
            images.decode(data, max_pixels=1 << 40)
        return str(caught.value)

    message, needed = peak(refused)
    assert "24 bytes of pixel data of frame 0 cannot hold the 900,000,000" in message
    assert needed < 20_000_000


def test_many_tiny_pages() -> None:
    frames = 3000
    pages = [plain_tags(1, 1, t273=[8 + n], t279=[1]) for n in range(frames)]
    image, needed = peak(lambda: images.decode(by_hand(pages, bytes(range(250)) * 12), max_pixels=LIMIT))
    assert image.pixels.shape == (frames, 1, 1)
    assert image.pixels[249, 0, 0] == 249
    assert needed < 10_000_000


def test_directories_on_top_of_each_other_are_refused() -> None:
    """Each 12 bytes behind the one before, a million tags to read from some kilobytes."""
    tags, count = 1000, 1000
    out = bytearray(8 + 12 * (tags + count) + 100)
    out[:8] = b"II\x2a\0" + struct.pack("<I", 8)
    for number in range(count):
        start = 8 + 12 * number
        struct.pack_into("<H", out, start, tags)
        struct.pack_into("<I", out, start + 2 + 12 * tags, start + 12)
    with pytest.raises(ImageError, match="overlap each other"):
        images.decode(bytes(out), max_pixels=LIMIT)


def test_more_strips_than_bytes_are_refused() -> None:
    """A thousand pages that all point to one long list."""
    page = plain_tags(100, 100, t278=[1])
    data = bytearray(by_hand([page | {273: 8, 279: 8}] * 1000, bytes(8000)))
    with tifffile.TiffFile(io.BytesIO(bytes(data))) as tif:
        starts = [frame.offset for frame in tif.pages]
    for start in starts:
        for entry in range(start + 2, start + 2 + 12 * 9, 12):
            if struct.unpack_from("<H", data, entry)[0] in (273, 279):
                struct.pack_into("<I", data, entry + 4, 1000)
    with pytest.raises(ImageError, match="more strips or tiles than it has bytes"):
        images.decode(bytes(data), max_pixels=1 << 40)
