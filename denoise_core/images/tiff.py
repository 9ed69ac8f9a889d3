"""TIFF 6.0 and BigTIFF: the output is the source file with other pixels in its strips or tiles.

Whatever else the file holds (ImageJ and OME descriptions, calibration, colour profiles, private tags, sub-directories)
stays where it is, byte for byte. tifffile says what the pixels mean (axes, stacks); the strips themselves are decoded
here, because a reader that replaces missing ones by zeros would hide a damaged file.
"""

from __future__ import annotations

import functools
import io
import itertools
import logging
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from denoise_core.images import jpeg
from denoise_core.images.model import Header, Image, ImageError, check_size, split_alpha, with_alpha

_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_INTEGERS = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}
_MOST_TAGS, _MOST_PAGES = 4096, 100_000
_MOST_TILE_PIXELS = 1 << 24
_MOST_VALUES = 64  # of a tag that describes samples: one for each

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 256, 257, 258, 259, 262
_FILL_ORDER, _STRIP_OFFSETS, _SAMPLES, _STRIP_ROWS, _STRIP_BYTES = 266, 273, 277, 278, 279
_PLANAR, _PREDICTOR, _TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _TILE_BYTES = 284, 317, 322, 323, 324, 325
_SUB_IFDS, _EXTRA_SAMPLES, _SAMPLE_FORMAT, _JPEG_TABLES, _SUBSAMPLING = 330, 338, 339, 347, 530
_NONE, _JPEG, _PACKBITS = 1, 7, 32773
_MIN_IS_WHITE, _MIN_IS_BLACK, _RGB, _YCBCR = 0, 1, 2, 6

_COMPRESSIONS = {
    2: "CCITT", 3: "CCITT fax 3", 4: "CCITT fax 4", 6: "old-style JPEG", 9: "JBIG", 34661: "JBIG", 33003: "JPEG 2000",
    33005: "JPEG 2000", 34712: "JPEG 2000", 34887: "LERC", 34892: "lossy JPEG", 34925: "LZMA", 50001: "WebP",
    50002: "JPEG XL", 52546: "JPEG XL",
}  # fmt: skip
_PHOTOMETRICS = {
    3: "palette colours", 4: "a transparency mask", 5: "CMYK colours", 8: "CIELab colours", 9: "ICCLab colours",
    10: "ITULab colours", 32803: "a colour filter array (raw camera data)", 34892: "linear raw camera data",
}  # fmt: skip
_FORMATS = {2: "signed integer", 3: "floating-point", 5: "complex integer", 6: "complex"}
_CODECS_SUPPORTED = "no compression, LZW, deflate, zstd, PackBits and JPEG are supported"
_ONE_IMAGE = "files of one grey or RGB image (axes YX or YXS) are supported"
# How much the densest codec can make of a byte; a file that needs more is refused before memory is asked for.
_RATIOS = {1: 1, 5: 4096, 8: 1032, 32946: 1032, _PACKBITS: 64, 50000: 65536, _JPEG: 4096}


class _Tag(NamedTuple):
    type: int
    number: int
    value_at: int
    entry_at: int


class _Segment(NamedTuple):
    offset: int
    size: int


@dataclass(frozen=True)
class _Directory:
    order: str  # "<" or ">"
    big: bool
    tags: dict[int, _Tag]
    used: list[tuple[int, int]]  # where the file's structure lies: start and end


@dataclass(frozen=True)
class _Layout:
    """The first directory, understood."""

    directory: _Directory
    width: int
    height: int
    samples: int
    colours: int
    dtype: np.dtype[Any]  # in the file's byte order
    compression: int
    photometric: int
    separate: bool
    predictor: int
    tiled: bool
    segment_width: int
    segment_height: int
    subsampling: tuple[int, int]
    tables: bytes | None

    @property
    def planes(self) -> int:
        return self.samples if self.separate else 1

    @property
    def segment_samples(self) -> int:
        return 1 if self.separate else self.samples

    @property
    def alpha(self) -> bool:
        return self.samples > self.colours

    @property
    def header(self) -> Header:
        shape = (self.height, self.width) if self.colours == 1 else (self.height, self.width, 3)
        return Header("tiff", "YX" if self.colours == 1 else "YXS", shape, self.dtype.newbyteorder("=").name)

    def places(self) -> Iterator[tuple[int, int, int]]:
        """Plane, first row and first column of each segment, in the order of the file's tags."""
        rows, columns = range(0, self.height, self.segment_height), range(0, self.width, self.segment_width)
        return itertools.product(range(self.planes), rows, columns)

    @property
    def segment_count(self) -> int:
        return self.planes * -(-self.height // self.segment_height) * -(-self.width // self.segment_width)


@dataclass(frozen=True)
class Carried:
    """The source file, and where its pixels are."""

    source: bytes
    layout: _Layout
    segments: list[_Segment]


def read_header(file: BinaryIO, *, max_pixels: int) -> Header:
    """The header of an open TIFF; reads directories and no pixels. Raises ImageError."""
    return _read_layout(file, max_pixels).header


def decode(data: bytes, *, max_pixels: int) -> Image:
    """Decode a TIFF; raises ImageError for what is damaged or not supported."""
    layout = _read_layout(io.BytesIO(data), max_pixels)
    segments = _segments(data, layout)
    item = layout.dtype.itemsize
    need = layout.width * layout.height * layout.samples * item
    held = sum(segment.size for segment in segments)
    if held * _RATIOS[layout.compression] < need:
        raise ImageError(
            f"the TIFF is damaged: {held:,} bytes of pixel data cannot hold the {need:,} that its header needs"
        )
    samples = np.empty(
        (layout.planes, layout.height, layout.width, layout.segment_samples), layout.dtype.newbyteorder("=")
    )
    for number, (segment, (plane, y, x)) in enumerate(zip(segments, layout.places(), strict=True)):
        rows, columns = min(layout.segment_height, layout.height - y), min(layout.segment_width, layout.width - x)
        try:
            values = _decode_segment(data[segment.offset : segment.offset + segment.size], layout, rows)
        except ImageError as error:
            raise ImageError(f"{'tile' if layout.tiled else 'strip'} {number} cannot be read: {error}") from error
        samples[plane, y : y + rows, x : x + columns] = values[:rows, :columns]
    whole = np.moveaxis(samples[..., 0], 0, -1) if layout.separate else samples[0]
    pixels, alpha = split_alpha(whole, alpha=layout.alpha)
    header = layout.header
    return Image(
        container="tiff",
        axes=header.axes,
        dtype=header.dtype,
        pixels=np.ascontiguousarray(pixels),
        alpha=alpha,
        carried=Carried(data, layout, segments),
    )


def encode(image: Image, pixels: NDArray[Any]) -> bytes:
    """The source file with `pixels` in place of its own, in the same layout and compression (JPEG at quality 95)."""
    carried = image.carried
    if not isinstance(carried, Carried):
        raise TypeError("the image was not decoded from a TIFF")
    layout = carried.layout
    whole = with_alpha(image, pixels).reshape(layout.height, layout.width, layout.samples)
    coded = []
    for plane, y, x in layout.places():
        part = whole[y : y + layout.segment_height, x : x + layout.segment_width]
        if layout.separate:
            part = part[..., plane : plane + 1]
        if layout.tiled:
            below, right = layout.segment_height - part.shape[0], layout.segment_width - part.shape[1]
            part = np.pad(part, ((0, below), (0, right), (0, 0)), mode="edge")
        coded.append(_encode_segment(part, layout))
    return _replace_segments(carried, coded)


# --- what the file says ---


def _read_layout(file: BinaryIO, max_pixels: int) -> _Layout:
    size = file.seek(0, io.SEEK_END)
    directory, pages = _walk(file, size)
    find = functools.partial(_integers, file, directory)
    width, height, samples = _one(find(_WIDTH)), _one(find(_HEIGHT)), _one(find(_SAMPLES), 1)
    _refuse_stacks(file, pages, directory, width * height * samples)
    check_size(width, height, max_pixels)
    return _layout(file, directory, find)


def _walk(file: BinaryIO, size: int) -> tuple[_Directory, int]:
    """The first directory, and the number of directories in the chain; each link is checked."""

    def read(at: int, count: int) -> bytes:
        if count > size - at:
            raise ImageError(f"the TIFF is truncated: it needs {count:,} bytes at byte {at:,} and has {size:,} in all")
        file.seek(at)
        return file.read(count)

    head = read(0, 8)
    order = "<" if head[:2] == b"II" else ">"
    version = struct.unpack(order + "H", head[2:4])[0]
    big = version == 43
    if version not in (42, 43):
        raise ImageError(f"a TIFF of version {version}; versions 42 (TIFF) and 43 (BigTIFF) are supported")
    if big and struct.unpack(order + "HH", head[4:8]) != (8, 0):
        raise ImageError("the BigTIFF is damaged: its offsets are not of 8 bytes")
    count_form, link_form, entry_bytes = ("Q", "Q", 20) if big else ("H", "I", 12)
    header_bytes = 16 if big else 8
    link = struct.unpack(order + link_form, read(8, 8) if big else head[4:8])[0]
    first: _Directory | None = None
    seen: set[int] = set()
    while link:
        if link in seen:
            raise ImageError("the TIFF is damaged: its directories form a circle")
        if len(seen) >= _MOST_PAGES:
            raise ImageError(f"the TIFF has more than {_MOST_PAGES:,} directories; {_ONE_IMAGE}")
        seen.add(link)
        count_bytes = struct.calcsize(order + count_form)
        tags = struct.unpack(order + count_form, read(link, count_bytes))[0]
        if not 0 < tags <= _MOST_TAGS:
            raise ImageError(f"the TIFF is damaged: a directory of {tags:,} tags")
        table = read(link + count_bytes, tags * entry_bytes + struct.calcsize(link_form))
        if first is None:
            end = link + count_bytes + len(table)
            first = _Directory(order, big, {}, [(0, header_bytes), (link, end)])
            _read_tags(first, table[: tags * entry_bytes], link + count_bytes, size)
        link = struct.unpack(order + link_form, table[tags * entry_bytes :])[0]
    if first is None:
        raise ImageError("the TIFF is damaged: it has no directory")
    return first, len(seen)


def _read_tags(directory: _Directory, table: bytes, at: int, size: int) -> None:
    """Fill the directory from its table of entries, which stands at byte `at` of a file of `size` bytes."""
    order, big = directory.order, directory.big
    form, inline = (order + "HHQ", 8) if big else (order + "HHI", 4)
    step = struct.calcsize(form) + inline
    for entry in range(0, len(table), step):
        code, kind, number = struct.unpack_from(form, table, entry)
        if kind not in _TYPE_BYTES:
            continue
        value_at = at + entry + step - inline
        room = number * _TYPE_BYTES[kind]
        if room > inline:
            value_at = struct.unpack_from(order + ("Q" if big else "I"), table, entry + step - inline)[0]
            if value_at + room > size:
                raise ImageError(f"the TIFF is truncated or damaged: the value of its tag {code} lies outside the file")
            directory.used.append((value_at, value_at + room))
        directory.tags.setdefault(code, _Tag(kind, number, value_at, at + entry))


def _integers(file: BinaryIO, directory: _Directory, code: int, most: int = _MOST_VALUES) -> tuple[int, ...]:
    """The values of a tag, none if it is absent."""
    tag = directory.tags.get(code)
    if tag is None:
        return ()
    if tag.type not in _INTEGERS:
        raise ImageError(f"the TIFF is damaged: its tag {code} holds no integers")
    if tag.number > most:
        raise ImageError(f"the TIFF is damaged: its tag {code} holds {tag.number:,} values")
    file.seek(tag.value_at)
    data = file.read(tag.number * _TYPE_BYTES[tag.type])
    return struct.unpack(f"{directory.order}{tag.number}{_INTEGERS[tag.type]}", data)


def _one(values: tuple[int, ...], default: int | None = None) -> int:
    if values:
        return values[0]
    if default is None:
        raise ImageError("the TIFF is damaged: it does not say its width and height")
    return default


def _refuse_stacks(file: BinaryIO, pages: int, directory: _Directory, values: int) -> None:
    """Name what has more than one image (stacks, channels, pages, pyramids) of `values` samples in all."""
    tifffile = _tifffile()
    file.seek(0)
    with tifffile.TiffFile(file, _multifile=False) as tif:
        series = tif.series
        if not series:
            raise ImageError("the TIFF is damaged: it has no readable image")
        first = series[0]
        axes, shape = first.axes, tuple(int(n) for n in first.shape)
        levels = len(first.levels)
        one = pages == 1 and len(series) == 1 and int(np.prod(shape, dtype=object)) == values
    if levels > 1:
        raise ImageError(f"a pyramid of {levels} levels, the first with axes {axes} and shape {shape}; {_ONE_IMAGE}")
    if _SUB_IFDS in directory.tags:
        raise ImageError(
            f"a TIFF with {directory.tags[_SUB_IFDS].number} sub-images (a pyramid or raw data); {_ONE_IMAGE}"
        )
    if one:
        return
    if len(series) > 1:
        raise ImageError(
            f"{len(series)} images in one file, the first with axes {axes} and shape {shape}; {_ONE_IMAGE}"
        )
    if len([n for n in shape if n > 1]) <= 2:
        raise ImageError(f"{pages} pages in one file, with axes {axes} and shape {shape} in all; {_ONE_IMAGE}")
    kind = "a multi-channel image" if "C" in axes and not set(axes) & set("TZQIR") else "a stack"
    raise ImageError(f"{kind} with axes {axes} and shape {shape}; {_ONE_IMAGE}")


def _layout(file: BinaryIO, directory: _Directory, find: Callable[[int], tuple[int, ...]]) -> _Layout:
    width, height = _one(find(_WIDTH)), _one(find(_HEIGHT))
    samples = _one(find(_SAMPLES), 1)
    photometric = _one(find(_PHOTOMETRIC), _MIN_IS_BLACK)
    compression = _one(find(_COMPRESSION), _NONE)
    predictor = _one(find(_PREDICTOR), 1)
    dtype = _dtype(directory, find(_BITS) or (1,), find(_SAMPLE_FORMAT) or (1,), photometric)
    if photometric not in (_MIN_IS_WHITE, _MIN_IS_BLACK, _RGB, _YCBCR):
        what = _PHOTOMETRICS.get(photometric, f"photometric interpretation {photometric}")
        raise ImageError(f"a TIFF with {what}; grey and RGB TIFF files are supported")
    if compression not in _RATIOS:
        what = _COMPRESSIONS.get(compression, f"number {compression}")
        raise ImageError(f"a TIFF with {what} compression; {_CODECS_SUPPORTED}")
    if photometric == _YCBCR and compression != _JPEG:
        raise ImageError("a TIFF with YCbCr colours outside JPEG compression; grey and RGB TIFF files are supported")
    if compression == _JPEG and dtype.itemsize != 1:
        raise ImageError("a TIFF with JPEG-compressed 16-bit samples; 8-bit samples are supported there")
    if predictor not in (1, 2) or (predictor == 2 and compression in (_NONE, _JPEG, _PACKBITS)):
        raise ImageError(f"a TIFF with predictor {predictor} on compression {compression}, which is not supported")
    if _one(find(_FILL_ORDER), 1) != 1:
        raise ImageError("a TIFF with reversed bits (fill order 2); fill order 1 is supported")
    colours = 1 if photometric in (_MIN_IS_WHITE, _MIN_IS_BLACK) else 3
    extra = find(_EXTRA_SAMPLES)
    is_alpha = samples == colours + 1 and (colours == 3 or extra[:1] in ((1,), (2,)))
    if samples != colours and not is_alpha:
        what = "grey" if colours == 1 else "RGB"
        raise ImageError(f"a TIFF of {samples} {what} samples a pixel; grey or RGB with at most an alpha are supported")
    tiled = _TILE_WIDTH in directory.tags
    segment_width = _one(find(_TILE_WIDTH)) if tiled else width
    segment_height = _one(find(_TILE_HEIGHT)) if tiled else min(_one(find(_STRIP_ROWS), height), height)
    tile_pixels = segment_width * segment_height
    if not tile_pixels or (tiled and tile_pixels > max(_MOST_TILE_PIXELS, 4 * width * height)):
        raise ImageError(f"the TIFF is damaged: it has tiles or strips of {segment_width} × {segment_height} pixels")
    subsampling = (find(_SUBSAMPLING) or (2, 2))[:2]
    if photometric == _YCBCR and (samples != 3 or subsampling not in ((1, 1), (2, 1), (1, 2), (2, 2))):
        raise ImageError(f"a TIFF with {samples} YCbCr samples at subsampling {subsampling}, which is not supported")
    if compression == _JPEG and samples not in (1, 3) and _one(find(_PLANAR), 1) != 2:
        raise ImageError("a TIFF with JPEG compression and alpha; grey and RGB are supported there")
    tables = None
    if _JPEG_TABLES in directory.tags:
        tag = directory.tags[_JPEG_TABLES]
        file.seek(tag.value_at)
        tables = file.read(tag.number * _TYPE_BYTES[tag.type])
    return _Layout(
        directory=directory,
        width=width,
        height=height,
        samples=samples,
        colours=colours,
        dtype=dtype,
        compression=compression,
        photometric=photometric,
        separate=samples > 1 and _one(find(_PLANAR), 1) == 2,
        predictor=predictor,
        tiled=tiled,
        segment_width=segment_width,
        segment_height=segment_height,
        subsampling=(subsampling[0], subsampling[-1]),
        tables=tables,
    )


def _dtype(directory: _Directory, bits: tuple[int, ...], formats: tuple[int, ...], photometric: int) -> np.dtype[Any]:
    supported = "8- and 16-bit unsigned samples are supported"
    if len(set(bits)) > 1 or len(set(formats)) > 1:
        raise ImageError(f"a TIFF whose samples differ in kind, with {bits[:4]} bits; {supported}")
    if photometric == 4 or bits[0] == 1:
        raise ImageError(f"a 1-bit TIFF, which is a mask and not a picture; {supported}")
    if formats[0] in _FORMATS:
        raise ImageError(f"a TIFF of {bits[0]}-bit {_FORMATS[formats[0]]} samples; {supported}")
    if bits[0] not in (8, 16):
        raise ImageError(f"a TIFF of {bits[0]}-bit samples; {supported}")
    return np.dtype(np.uint8 if bits[0] == 8 else np.uint16).newbyteorder(directory.order)  # type: ignore[arg-type]


def _segments(data: bytes, layout: _Layout) -> list[_Segment]:
    """Where the strips or tiles lie; each must be there, inside the file, and away from its structure."""
    directory = layout.directory
    codes = (_TILE_OFFSETS, _TILE_BYTES) if layout.tiled else (_STRIP_OFFSETS, _STRIP_BYTES)
    file = io.BytesIO(data)
    offsets, sizes = (_integers(file, directory, code, len(data)) for code in codes)
    if not sizes and len(offsets) == layout.segment_count and layout.compression == _NONE and not layout.tiled:
        row = layout.width * layout.segment_samples * layout.dtype.itemsize
        sizes = tuple(row * min(layout.segment_height, layout.height - y) for _, y, _ in layout.places())
    if not len(offsets) == len(sizes) == layout.segment_count:
        raise ImageError(
            f"the TIFF is damaged: it lists {len(offsets)} offsets and {len(sizes)} sizes "
            f"for {layout.segment_count} strips or tiles"
        )
    segments = [_Segment(*pair) for pair in zip(offsets, sizes, strict=True)]
    for offset, size in segments:
        if not offset or not size:
            raise ImageError("the TIFF is damaged: some of its strips or tiles are missing")
        if offset + size > len(data):
            raise ImageError(f"the TIFF is truncated: its pixel data end at byte {offset + size:,} of {len(data):,}")
    structure = [(start, end, False) for start, end in directory.used]
    pixels = [(offset, offset + size, True) for offset, size in dict.fromkeys(segments)]
    for (_, end, before), (start, _, after) in itertools.pairwise(sorted(structure + pixels)):
        if start < end and (before or after):
            raise ImageError("the TIFF is damaged: its strips or tiles overlap each other or its directory")
    return segments


def _tifffile() -> Any:
    import tifffile

    # It logs what it finds odd in a file; what matters of that is checked here.
    logging.getLogger("tifffile").setLevel(logging.CRITICAL + 1)
    return tifffile


# --- strips and tiles ---


def _decode_segment(coded: bytes, layout: _Layout, rows: int) -> NDArray[Any]:
    """Samples (segment height or `rows`, segment width, samples) in native byte order."""
    width, samples, item = layout.segment_width, layout.segment_samples, layout.dtype.itemsize
    if layout.compression == _JPEG:
        colours = _jpeg_colours(layout)
        values = jpeg.decode_samples(coded, max_pixels=width * layout.segment_height, tables=layout.tables, **colours)
        if values.shape[0] < rows or values.shape[1:] != (width, samples):
            raise ImageError(f"its JPEG data have the shape {values.shape}")
        return values
    height = layout.segment_height if layout.tiled else rows
    need = height * width * samples * item
    raw = _decompress(coded, layout.compression, layout.segment_height * width * samples * item)
    if len(raw) < need:
        raise ImageError(f"it holds {len(raw):,} bytes, and {need:,} are needed")
    values = np.frombuffer(raw, layout.dtype, need // item).reshape(height, width, samples)
    native = values.astype(layout.dtype.newbyteorder("="))
    if layout.predictor == 2:
        np.cumsum(native, axis=1, dtype=native.dtype, out=native)
    return native


def _encode_segment(values: NDArray[Any], layout: _Layout) -> bytes:
    import imagecodecs

    if layout.compression == _JPEG:
        colours = _jpeg_colours(layout)
        return bytes(
            imagecodecs.jpeg8_encode(
                np.ascontiguousarray(values if values.shape[2] == 3 else values[..., 0]),
                level=jpeg.QUALITY,
                subsampling=layout.subsampling if layout.photometric == _YCBCR else None,
                colorspace=colours.get("outcolorspace"),
                outcolorspace=colours.get("colorspace"),
            )
        )
    if layout.predictor == 2:
        values = values.copy()
        values[:, 1:] -= values[:, :-1].copy()
    raw = values.astype(layout.dtype).tobytes()
    match layout.compression:
        case 1:
            return raw
        case 5:
            return bytes(imagecodecs.lzw_encode(raw))
        case 8 | 32946:
            return bytes(imagecodecs.zlib_encode(raw))
        case 32773:
            row = values.shape[1] * values.shape[2] * values.itemsize
            return b"".join(bytes(imagecodecs.packbits_encode(raw[at : at + row])) for at in range(0, len(raw), row))
        case _:
            return bytes(imagecodecs.zstd_encode(raw))


def _decompress(coded: bytes, compression: int, most: int) -> bytes:
    """At most `most` bytes; raises ImageError where the data are damaged or hold more."""
    import imagecodecs

    decoders = {
        5: imagecodecs.lzw_decode,
        8: imagecodecs.zlib_decode,
        32946: imagecodecs.zlib_decode,
        _PACKBITS: imagecodecs.packbits_decode,
        50000: imagecodecs.zstd_decode,
    }
    if compression == _NONE:
        return coded
    try:
        return bytes(decoders[compression](coded, out=most))
    except (RuntimeError, ValueError) as error:
        raise ImageError(f"its data are truncated or damaged ({error})") from error


def _jpeg_colours(layout: _Layout) -> dict[str, str]:
    if layout.segment_samples == 1:
        return {}
    return {"colorspace": "YCBCR" if layout.photometric == _YCBCR else "RGB", "outcolorspace": "RGB"}


# --- the same file with other strips ---


def _replace_segments(carried: Carried, coded: list[bytes]) -> bytes:
    """Put each new segment into the room of the old ones, in order, and what does not fit at the end."""
    out = bytearray(carried.source)
    if carried.layout.compression == _NONE:
        for (offset, _), new in zip(carried.segments, coded, strict=True):
            out[offset : offset + len(new)] = new
        return bytes(out)

    rooms = _merge(carried.segments)
    for start, end in rooms:
        out[start:end] = bytes(end - start)
    if len(out) - rooms[-1][1] <= 1:  # the file ends with pixels: let it end where the new ones do
        del out[rooms.pop()[0] :]
    else:
        out += bytes(len(out) % 2)
    offsets = []
    number, used = 0, 0
    for new in coded:
        while number < len(rooms) and rooms[number][0] + used + len(new) > rooms[number][1]:
            number, used = number + 1, 0
        if number == len(rooms):
            offsets.append(len(out))
            out += new
            continue
        start = rooms[number][0] + used
        out[start : start + len(new)] = new
        offsets.append(start)
        used += len(new)
    layout = carried.layout
    codes = (_TILE_OFFSETS, _TILE_BYTES) if layout.tiled else (_STRIP_OFFSETS, _STRIP_BYTES)
    _set_integers(out, layout.directory, codes[0], offsets)
    _set_integers(out, layout.directory, codes[1], [len(new) for new in coded])
    return bytes(out)


def _merge(segments: list[_Segment]) -> list[list[int]]:
    """Start and end of the rooms that the segments, and single padding bytes between them, take, in file order."""
    rooms: list[list[int]] = []
    for offset, size in sorted(set(segments)):
        if rooms and offset <= rooms[-1][1] + 1:
            rooms[-1][1] = max(rooms[-1][1], offset + size)
        else:
            rooms.append([offset, offset + size])
    return rooms


def _set_integers(out: bytearray, directory: _Directory, code: int, values: list[int]) -> None:
    """Write a tag's values where they are, or as wider ones at the end of the file where they do not fit."""
    tag, order = directory.tags[code], directory.order
    if max(values) < 1 << (8 * _TYPE_BYTES[tag.type]):
        struct.pack_into(f"{order}{len(values)}{_INTEGERS[tag.type]}", out, tag.value_at, *values)
        return
    kind, inline, entry = (16, 8, "HHQ") if directory.big else (4, 4, "HHI")
    if max(values) >= 1 << (8 * _TYPE_BYTES[kind]) or (not directory.big and len(out) >= 1 << 32):
        raise ImageError("the result is larger than 4 GB, which its TIFF kind cannot hold; BigTIFF can")
    data = struct.pack(f"{order}{len(values)}{_INTEGERS[kind]}", *values)
    struct.pack_into(order + entry, out, tag.entry_at, code, kind, len(values))
    value_at = tag.entry_at + struct.calcsize(order + entry)
    if len(data) <= inline:
        out[value_at : value_at + len(data)] = data
        return
    out += bytes(len(out) % 2)
    struct.pack_into(order + entry[-1], out, value_at, len(out))
    out += data
