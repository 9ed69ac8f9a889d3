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
from image_files import LIMIT, anything, facts, off_by_one, picture, tiff
from numpy.typing import NDArray
from PIL import Image as Pillow

from denoise_core import images
from denoise_core.images import Header, ImageError, tiff_software
from denoise_core.images.levels import area_means


def stack(*shape: int, dtype: str = "uint16") -> NDArray[Any]:
    return np.stack([picture(*shape[1:], dtype=dtype, seed=seed) for seed in range(shape[0])])


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
    leading = source.shape[: axes.index("Y")]
    assert (image.header.planes, image.header.pixels) == (np.prod(leading), np.prod(source.shape[: len(leading) + 2]))
    assert np.array_equal(image.pixels, source)
    assert np.array_equal(image.pixels, independent(data, source.shape))
    assert image.pixels.dtype.isnative
    assert image.pixels.flags.c_contiguous
    assert (image.alpha, image.notes) == (None, ())
    path = tmp_path / "a.tif"
    path.write_bytes(data)
    assert images.read_header(path, max_pixels=LIMIT) == image.header
    other = anything(source.dtype, *source.shape)
    for pixels in (other, np.full_like(other, 77), source[::-1]):
        written = images.encode(image, pixels)
        assert np.array_equal(independent(written, source.shape), pixels)
        assert np.array_equal(images.decode(written, max_pixels=LIMIT).pixels, pixels)
        assert facts(written) == facts(data)
    same = images.encode(image, image.pixels)
    assert np.array_equal(independent(same, source.shape), source)
    return same


@pytest.mark.parametrize("compression", [None, "lzw", "zlib", "zstd", "packbits", "lzma"])
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
    assert images.encode(image, image.pixels) == data
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


# --- refused ---


def series_of(*images_: NDArray[Any], **options: Any) -> bytes:
    """One file, one write each."""
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        for each in images_:
            writer.write(each, photometric="minisblack", **options)
    return file.getvalue()


def pyramids(*levels: NDArray[Any], **options: Any) -> bytes:
    """One file, the smaller levels as sub-images of each page."""
    file = io.BytesIO()
    names = ("bigtiff", "byteorder", "ome")
    with tifffile.TiffWriter(file, **{name: options.pop(name) for name in names if name in options}) as writer:
        writer.write(levels[0], subifds=len(levels) - 1, tile=(16, 16), **options)
        options.pop("metadata", None)
        for level in levels[1:]:
            writer.write(level, subfiletype=1, tile=(16, 16), metadata=None, **options)
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
        (tiff(stack(4, 9, 8), photometric="minisblack", metadata={"axes": "RYX"}), "a stack with axes RYX"),
        (tiff(stack(32, 32, 32), photometric="minisblack", volumetric=True, tile=(16, 16, 16)), "volumes"),
        (
            pyramids(stack(3, 64, 64), stack(3, 64, 32), photometric="minisblack"),
            "2 images in one file",
        ),
        (
            pyramids(stack(3, 64, 64), stack(3, 64, 32), photometric="minisblack", ome=True, metadata={"axes": "TYX"}),
            "sub-images that are no pyramid: 32 × 64 pixels of 1 uint16 in a page of 64 × 64",
        ),
        (
            series_of(stack(3, 9, 8), stack(3, 9, 8)),
            "2 images in one file, the first with axes QYX and shape (3, 9, 8)",
        ),
        (series_of(stack(3, 9, 8), stack(2, 8, 8), metadata=None), "images in one file, the first with axes IYX"),
        (series_of(*stack(9, 9, 8), stack(1, 8, 8)[0], metadata=None), "2 images in one file, the first with axes IYX"),
        (
            series_of(*stack(5, 9, 8), stack(1, 8, 8)[0], *stack(9, 9, 8), metadata=None),
            "planes differ: plane 0 has 8 × 9 pixels of 1 uint16, plane 5 has 8 × 8",
        ),
        (series_of(*stack(5, 9, 8), picture(9, 8), *stack(9, 9, 8), metadata=None), "planes differ: plane 0 has 8 × 9"),
        (series_of(*stack(9, 9, 8), picture(15, 8), rowsperstrip=3, metadata=None), "2 images in one file"),
        (
            edited(IMAGEJ, 3, "PhotometricInterpretation", 0),
            "stored differently: the compression, colours or strips of plan",
        ),
        (edited(IMAGEJ, 3, "ImageLength", 20), "plane 0 has 32 × 24 pixels of 1 uint8, plane 3 has 32 × 20"),
        (
            edited(IMAGEJ, 3, "BitsPerSample", 16),
            "plane 0 has 32 × 24 pixels of 1 uint8, plane 3 has 32 × 24 pixels of 1 ui",
        ),
        (edited(IMAGEJ, 3, "ImageWidth", 30), "plane 0 has 32 × 24 pixels of 1 uint8, plane 3 has 30 × 24"),
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
        (edited(PLAIN, 1, "StripByteCounts", 10, 1), "522 bytes of pixel data of plane 1 cannot hold the 768"),
        (edited(DEFLATED, 2, "StripByteCounts", 10, 1), "strip 1 of plane 2 cannot be read"),
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
        (ome(planes(0, 1)), "some planes are missing"),
        (ome(planes(0, 1, 1)), "some planes are missing"),
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
    assert "24 bytes of pixel data of plane 0 cannot hold the 900,000,000" in message
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


# --- dtypes and axes ---

DTYPES = ["uint8", "uint16", "uint32", "int8", "int16", "int32", "float16", "float32", "float64"]
AXES = {"YX": (21, 18), "YXS": (21, 18, 3), "CYX": (2, 21, 18), "TZCYX": (2, 3, 2, 21, 18), "ZTYXS": (2, 2, 21, 18, 3)}


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("compression", "predictor"),
    [
        (None, 1),
        ("lzw", 1),
        ("lzw", 2),
        ("zlib", 2),
        ("zstd", 1),
        ("zlib", 3),
        ("packbits", 1),
        ("packbits", 2),
        ("packbits", 3),
        ("lzma", 2),
        ("lzma", 3),
    ],
)
def test_every_dtype(tmp_path: Path, dtype: str, order: str, compression: str | None, predictor: int) -> None:
    if (predictor == 3) > (dtype[0] == "f") or (predictor == 2 and dtype[0] == "f"):
        pytest.skip("tifffile writes no such predictor")
    for tile in ({}, {"tile": (16, 16)}):
        for axes in ("YXS", "TZCYX"):
            source = anything(dtype, *AXES[axes])
            options = {"photometric": "rgb" if axes == "YXS" else "minisblack", "metadata": {"axes": axes}, **tile}
            data = tiff(source, byteorder=order, compression=compression, predictor=predictor, **options)
            check(data, source, axes, tmp_path)


def test_floats_under_the_integer_predictor(tmp_path: Path) -> None:
    """As libtiff writes them: differences of the bit patterns."""
    source = anything("float32", 12, 16)
    data = tiff(source.view(np.int32), compression="zlib", predictor=2)
    as_float = edited(data, 0, "SampleFormat", 3)
    image = images.decode(as_float, max_pixels=LIMIT)
    assert image.dtype == "float32"
    assert np.array_equal(image.pixels, source)
    written = images.encode(image, source[::-1])
    assert np.array_equal(images.decode(written, max_pixels=LIMIT).pixels, source[::-1])


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("axes", ["CYX", "ZCYX", "TCYX", "TZYX", "TZCYX", "TZCYXS"])
@pytest.mark.parametrize("in_a_row", [False, True])
def test_imagej_hyperstacks(tmp_path: Path, axes: str, dtype: str, in_a_row: bool) -> None:
    if axes.endswith("S") and dtype != "uint8":
        pytest.skip("ImageJ has no such RGB")
    shape = [{"T": 3, "Z": 4, "C": 2, "Y": 20, "X": 30, "S": 3}[axis] for axis in axes]
    source = anything(dtype, *shape)
    names = [f"plane {n}" for n in range(int(np.prod(shape[: axes.index("Y")])))]
    metadata = {"axes": axes, "unit": "um", "spacing": 0.5, "finterval": 2.0, "Labels": names, "Ranges": (0.0, 9.0) * 2}
    data = tiff(source, imagej=True, resolution=(2.5, 2.5), truncate=in_a_row, metadata=metadata)
    assert check(data, source, axes, tmp_path) == data
    assert facts(data)["imagej"]["Labels"] == names


@pytest.mark.parametrize("axes", ["CYX", "ZCYX", "CZYX", "TCYX", "TZCYX", "CTZYX", "TZYXS", "QQYX"])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_several_axes(tmp_path: Path, axes: str, compression: str | None) -> None:
    shape = [{"T": 3, "Z": 4, "C": 2, "Q": 2, "Y": 20, "X": 30, "S": 3}[axis] for axis in axes]
    source = anything("uint16", *shape)
    photometric = "rgb" if axes.endswith("S") else "minisblack"
    for kind in ({}, {"ome": True}):
        if kind and axes.startswith("Q"):
            continue
        data = tiff(source, compression=compression, photometric=photometric, metadata={"axes": axes}, **kind)
        check(data, source, axes, tmp_path)


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("extra", ["unspecified", "unassalpha"])
def test_alpha_and_channels_of_a_stack(planar: str, extra: str) -> None:
    """A last sample that says so is alpha and stays; samples without colours are channels."""
    source = anything("uint16", 3, 20, 30, 3)
    stored = np.moveaxis(source, -1, 1).copy() if planar == "separate" else source
    data = tiff(stored, photometric="minisblack", planarconfig=planar, extrasamples=["unspecified", extra])
    image = images.decode(data, max_pixels=LIMIT)
    channels = 3 if extra == "unspecified" else 2
    assert image.header == Header("tiff", "QYXC", (3, 20, 30, channels), "uint16")
    assert np.array_equal(image.pixels, source[..., :channels])
    written = images.decode(images.encode(image, image.pixels[::-1]), max_pixels=LIMIT)
    assert np.array_equal(written.pixels, source[::-1, ..., :channels])
    if channels == 2:
        assert written.alpha is not None
        assert np.array_equal(written.alpha, source[..., 2])
    grey = tiff(source[..., :2], photometric="minisblack", planarconfig="contig", extrasamples=["unassalpha"])
    assert images.decode(grey, max_pixels=LIMIT).header.axes == "QYX"


# --- pyramids ---


def means(pixels: NDArray[Any], factor: int) -> NDArray[Any]:
    height, width = pixels.shape[-2:]
    blocks = pixels.reshape(*pixels.shape[:-2], height // factor, factor, width // factor, factor)
    return np.rint(blocks.mean(axis=(-3, -1))).astype(pixels.dtype)


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("kind", [{}, {"ome": True}, {"bigtiff": True, "byteorder": ">"}])
def test_the_levels_of_a_pyramid_are_made_again(kind: dict[str, Any], compression: str | None) -> None:
    source = anything("uint16", 3, 64, 96)
    options = {"photometric": "minisblack", "compression": compression, "metadata": {"axes": "CYX"}, **kind}
    data = pyramids(source, source[:, ::2, ::2], source[:, ::4, ::4], **options)
    image = images.decode(data, max_pixels=LIMIT)
    assert image.header == Header("tiff", "CYX" if "ome" in kind else "IYX", source.shape, "uint16")
    assert images.encode(image, image.pixels) == data
    other = anything("uint16", *source.shape, seed=1)
    written = images.encode(image, other)
    assert facts(written) == facts(data)
    with tifffile.TiffFile(io.BytesIO(written)) as tif:
        levels = [level.asarray() for level in tif.series[0].levels]
        if not levels[1:]:  # tifffile takes no levels from a shaped description
            levels += [np.stack([page.pages[n].asarray() for page in tif.pages]) for n in (0, 1)]  # type: ignore[union-attr,index]
    assert np.array_equal(levels[0], other)
    for level, factor in zip(levels[1:], (2, 4), strict=True):
        assert np.array_equal(level, means(other, factor))


def test_a_pyramid_of_colours() -> None:
    source = picture(70, 90, 3)
    data = pyramids(source, source[::2, ::2], photometric="rgb", compression="jpeg")
    image = images.decode(data, max_pixels=LIMIT)
    assert image.axes == "YXS"
    flat = np.full_like(source, 99)
    with tifffile.TiffFile(io.BytesIO(images.encode(image, flat))) as tif:
        assert np.abs(tif.series[0].levels[1].asarray().astype(int) - 99).max() <= 1


# --- an OME-TIFF over several files ---


def part(number: int, order: str = "XYCZT") -> tuple[bytes, NDArray[Any]]:
    """One of two files, each of which holds a time with two planes in each of three channels, and its pixels ZCYX."""
    source = anything("uint16", 2, 3, 9, 12, seed=number)
    axes = order[:1:-1].replace("T", "")  # of the pages of a file, the slowest first
    stored = source if axes == "ZC" else source.swapaxes(0, 1)
    places = (
        [(z, c) for z in range(2) for c in range(3)] if axes == "ZC" else [(z, c) for c in range(3) for z in range(2)]
    )
    planes = "".join(
        f'<TiffData IFD="{ifd}" FirstZ="{z}" FirstC="{c}" FirstT="{t}" PlaneCount="1">'
        f'<UUID FileName="part{t}.ome.tif">urn:uuid:{t}</UUID></TiffData>'
        for t in range(2)
        for ifd, (z, c) in enumerate(places)
    )
    text = (
        f'<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:{number}">'
        f'<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="{order}" Type="uint16" SizeX="12" SizeY="9" SizeZ="2" '
        f'SizeC="3" SizeT="2">{"".join(f"""<Channel ID="Channel:0:{c}" SamplesPerPixel="1"/>""" for c in range(3))}{planes}'
        "</Pixels></Image></OME>"
    )
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        for page, plane in enumerate(stored.reshape(6, 9, 12)):
            writer.write(plane, description=text if page == 0 else None, metadata=None, contiguous=False)
    return file.getvalue(), stored


@pytest.mark.parametrize("order", ["XYCZT", "XYZCT", "XYCTZ"])
def test_each_file_of_a_set_is_a_stack(tmp_path: Path, order: str) -> None:
    other = {}
    for number in range(2):
        data, source = part(number, order)
        image = images.decode(data, max_pixels=LIMIT)
        assert image.axes == ("CZYX" if order == "XYZCT" else "ZCYX")
        assert np.array_equal(image.pixels, source)
        other[number] = anything("uint16", *source.shape, seed=9 + number)
        written = images.encode(image, other[number], software="denoise-flows 1")
        (tmp_path / f"part{number}.ome.tif").write_bytes(written)
    with tifffile.TiffFile(tmp_path / "part0.ome.tif") as tif:
        found, axes = tif.series[0].asarray(), tif.series[0].axes
    both = np.stack([other[0], other[1]], axis=axes.index("T"))
    assert np.array_equal(found, both)


def test_a_set_whose_metadata_lie_elsewhere_is_a_stack_of_pages() -> None:
    text = '<BinaryOnly MetadataFile="a.companion.ome" UUID="urn:uuid:1"/>'
    data = ome("").replace(b'<Image ID="Image:0">', text.encode() + b'<Image ID="Image:0">')[: -len(text)]
    source = stack(3, 9, 12)
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        whole = f'<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">{text}</OME>'
        for number, page in enumerate(source):
            writer.write(page, description=whole if number == 0 else None, metadata=None, contiguous=False)
    image = images.decode(file.getvalue(), max_pixels=LIMIT)
    assert image.axes == "IYX"
    assert np.array_equal(image.pixels, source)
    assert data


# --- the software tag ---


def software(data: bytes) -> str:
    with tifffile.TiffFile(io.BytesIO(data)) as tif:
        return tif.pages[0].software


@pytest.mark.parametrize("same", [False, True])
@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compression", [None, "lzw"])
def test_the_software_tag_is_all_that_is_added(same: bool, big: bool, order: str, compression: str | None) -> None:
    source = stack(4, 20, 30)
    for before, after in (("a microscope", "a microscope; denoise-flows 1"), (False, "denoise-flows 1")):
        options = {"photometric": "minisblack", "bigtiff": big, "byteorder": order, "software": before}
        data = tiff(source, compression=compression, metadata=None, **options)
        image = images.decode(data, max_pixels=LIMIT)
        pixels = source if same else source[::-1]
        written = images.encode(image, pixels, software="denoise-flows 1")
        assert software(written) == after
        assert np.array_equal(tifffile.imread(io.BytesIO(written)), pixels)
        without = [{k: v for k, v in page.items() if k != "Software"} for page in facts(written)["tags"]]
        assert without == [{k: v for k, v in page.items() if k != "Software"} for page in facts(data)["tags"]]
        again = images.decode(written, max_pixels=LIMIT)
        twice = images.encode(again, again.pixels, software="once more")
        assert software(twice) == f"{after}; once more"
        assert np.array_equal(tifffile.imread(io.BytesIO(twice)), pixels)


@pytest.mark.parametrize("options", [{"imagej": True}, {"imagej": True, "truncate": True}, {"ome": True}])
def test_imagej_and_ome_stay_so_beside_the_software(options: dict[str, Any]) -> None:
    source = anything("uint16", 3, 2, 20, 30)
    data = tiff(source, metadata={"axes": "ZCYX"}, **options)
    image = images.decode(data, max_pixels=LIMIT)
    before, after = facts(data), facts(images.encode(image, source[::-1], software="denoise-flows 1"))
    assert before.pop("tags")[0]["ImageDescription"] == after.pop("tags")[0]["ImageDescription"]
    assert before == after


def test_lines_of_settings_stay_lines() -> None:
    data = tiff(GREY[0], software="SI.a = 1\nSI.b = 2", metadata=None)
    image = images.decode(data, max_pixels=LIMIT)
    assert software(images.encode(image, GREY[1], software="done")) == "SI.a = 1\nSI.b = 2\ndone"


@pytest.mark.parametrize("why", ["as many bytes as", "an index of where"])
def test_where_nothing_can_be_told_a_note_says_so(why: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A TIFF of nearly 4 GiB, for which a small one stands here, and one with an index of its directories."""
    if why == "as many bytes as":
        monkeypatch.setattr(tiff_software, "_LARGEST", 1000)
        data = tiff(GREY, photometric="minisblack", software="a microscope")
    else:
        data = tiff(GREY, photometric="minisblack", software=False, extratags=[(51123, "s", 0, "{}", True)])
    image = images.decode(data, max_pixels=LIMIT)
    assert [why in note for note in image.notes] == [True]
    written = images.encode(image, off_by_one(image.pixels), software="denoise-flows 1")
    assert b"denoise-flows" not in written
    path = tmp_path / "a.tif"
    path.write_bytes(data)
    with path.open("rb") as file:
        planes = images.open_planes(file, max_pixels=LIMIT)
        assert planes.notes == image.notes
        out = io.BytesIO(data)
        copy = planes.copy(out)
        for page in range(len(GREY)):
            copy.put(page, None)
        copy.finish("denoise-flows 1")
    assert out.getvalue() == data


def test_a_result_without_room_for_software_is_written_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small limits stand for 4 GiB."""
    data = tiff(GREY, photometric="minisblack", software="a microscope")
    image = images.decode(data, max_pixels=LIMIT)
    plain = images.encode(image, off_by_one(image.pixels))
    monkeypatch.setattr(tiff_software, "_OFFSETS", len(plain) + 100)
    assert images.encode(image, off_by_one(image.pixels), software="denoise-flows 1") == plain
    (note,) = tiff_software.add_software(io.BytesIO(plain), "denoise-flows 1")
    assert "as many bytes as" in note
    monkeypatch.setattr(tiff_software, "_OFFSETS", len(plain) - 1)
    with pytest.raises(ImageError, match="larger than 4 GB"):
        images.encode(image, off_by_one(image.pixels), software="denoise-flows 1")


def test_extremes_of_pixels_that_are_gone_are_named() -> None:
    extremes = [(280, "H", 1, 3, True), (281, "H", 1, 900, True), (341, "H", 1, 900, True)]
    image = images.decode(tiff(GREY, photometric="minisblack", extratags=extremes), max_pixels=LIMIT)
    note = "what the source's pixels were is still said by MinSampleValue, MaxSampleValue, SMaxSampleValue"
    assert image.notes == image.if_changed == (note,)


def beside_reduced(*sizes: int, **options: Any) -> tuple[NDArray[Any], bytes]:
    """A photograph of 64 × 96, and pages marked as reduced: 64 shrunk to each of the sizes."""
    photo = picture(64, 96, 3)
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        writer.write(photo, photometric="rgb", metadata=None, **options)
        for size in sizes:
            small = area_means(photo, size, size * 3 // 2)
            writer.write(small, photometric="rgb", subfiletype=1, metadata=None, **options)
    return photo, file.getvalue()


@pytest.mark.parametrize(("sizes", "options"), [((16,), {}), ((32, 16, 8), {"tile": (16, 16), "compression": "zlib"})])
def test_pages_marked_as_reduced_are_made_again(sizes: tuple[int, ...], options: dict[str, Any]) -> None:
    photo, data = beside_reduced(*sizes, **options)
    image = images.decode(data, max_pixels=LIMIT)
    assert image.header == Header("tiff", "YXS", photo.shape, "uint8")
    assert np.array_equal(image.pixels, photo)
    assert images.encode(image, photo) == data
    other = np.ascontiguousarray(photo[::-1])
    with tifffile.TiffFile(io.BytesIO(images.encode(image, other))) as tif:
        assert [page.is_reduced for page in tif.pages] == [False] + [True] * len(sizes)
        assert np.array_equal(tif.pages[0].asarray(), other)
        for page, size in zip(list(tif.pages)[1:], sizes, strict=True):
            assert np.array_equal(page.asarray(), area_means(other, size, size * 3 // 2))


@pytest.mark.parametrize("small", [picture(16, 24), picture(16, 16, 3)], ids=["grey", "square"])
def test_a_thumbnail_of_another_kind_is_called_that(small: NDArray[Any]) -> None:
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        writer.write(picture(64, 96, 3), photometric="rgb", metadata=None)
        writer.write(small, photometric="rgb" if small.ndim == 3 else "minisblack", subfiletype=1, metadata=None)
    with pytest.raises(
        ImageError, match=r"a thumbnail that is no smaller version of its image: .* beside 96 × 64 pixels"
    ):
        images.decode(file.getvalue(), max_pixels=LIMIT)
