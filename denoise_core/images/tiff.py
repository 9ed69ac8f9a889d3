"""TIFF 6.0 and BigTIFF: the output is the source file with other pixels in its strips or tiles.

Whatever else the file holds (ImageJ and OME descriptions, calibration, colour profiles, private tags) stays where it
is, byte for byte. `tiff_series` says what the pixels mean (axes, frames); the strips themselves are decoded here, because
a reader that replaces missing ones by zeros would hide a damaged file.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from denoise_core.images import jpeg
from denoise_core.images.model import Header, Image, ImageError, split_alpha, with_alpha
from denoise_core.images.tiff_directories import numbers, put, set_integers
from denoise_core.images.tiff_layout import JPEG, NONE, PACKBITS, RATIOS, YCBCR, Layout
from denoise_core.images.tiff_series import Series, read_series


@dataclass(frozen=True)
class _Segments:
    """Where all strips or tiles lie, those of one page after those of another; page n's begin at `begins[n]`."""

    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    begins: list[int]
    in_place: bool  # other pixels take the same room: nothing is compressed, and no two strips are the same

    def of(self, page: int) -> Iterator[tuple[int, int]]:
        """Offset and size of each of a page."""
        part = slice(self.begins[page], self.begins[page + 1])
        return zip(self.offsets[part].tolist(), self.sizes[part].tolist(), strict=True)


@dataclass(frozen=True)
class Carried:
    """The source file, and where its pixels are."""

    source: bytes
    series: Series
    segments: _Segments


def read_header(file: BinaryIO, *, max_pixels: int) -> Header:
    """The header of an open TIFF; reads directories and no pixels. Raises ImageError."""
    return read_series(file, max_pixels).header


def decode(data: bytes, *, max_pixels: int) -> Image:
    """Decode a TIFF; raises ImageError for what is damaged or not supported."""
    series = read_series(io.BytesIO(data), max_pixels)
    segments = _segments(data, series)
    layout = series.layout
    samples = np.empty((len(series.pages), layout.height, layout.width, layout.samples), layout.native)
    for number, page in enumerate(series.pages):
        where = f" of frame {number}" if series.axis else ""
        _decode_page(data, page.layout, segments.of(number), samples[number], where)
    pixels: NDArray[Any]
    if series.axis:
        pixels, alpha = (samples[..., 0] if layout.samples == 1 else samples), None
    else:
        pixels, alpha = split_alpha(samples[0], alpha=layout.alpha)
    header = series.header
    return Image(
        container="tiff",
        axes=header.axes,
        dtype=header.dtype,
        pixels=np.ascontiguousarray(pixels),
        alpha=alpha,
        carried=Carried(data, series, segments),
    )


def encode(image: Image, pixels: NDArray[Any]) -> bytes:
    """The source file with `pixels` in place of its own, in the same layout and compression (JPEG at quality 95)."""
    carried = image.carried
    if not isinstance(carried, Carried):
        raise TypeError("the image was not decoded from a TIFF")
    layout = carried.series.layout
    whole = pixels if carried.series.axis else with_alpha(image, pixels)
    frames = whole.reshape(len(carried.series.pages), layout.height, layout.width, layout.samples)
    pages = zip(carried.series.pages, frames, strict=True)
    coded = (segment for page, frame in pages for segment in _encode_page(frame, page.layout))
    out = io.BytesIO(carried.source)  # copies once it is written to, and gives its bytes away without a copy
    if carried.segments.in_place:
        for offset, new in zip(carried.segments.offsets, coded, strict=True):
            put(out, int(offset), new)
    else:
        _replace_segments(out, carried, coded)
    return out.getvalue()


# --- where the strips or tiles lie ---


def _segments(data: bytes, series: Series) -> _Segments:
    """Each strip or tile must be there, inside the file, away from its structure, and able to hold its pixels."""
    pages = [_listed(data, series, number) for number in range(len(series.pages))]
    far, long = (np.concatenate([page[i] for page in pages]) for i in (0, 1))
    begins = list(itertools.accumulate((len(page[0]) for page in pages), initial=0))
    if not far.all() or not long.all():
        raise ImageError("the TIFF is damaged: some of its strips or tiles are missing")
    beyond = (long > len(data)) | (far > len(data) - np.minimum(long, len(data)))
    if beyond.any():
        end = int(far[beyond][0]) + int(long[beyond][0])
        raise ImageError(f"the TIFF is truncated: its pixel data end at byte {end:,} of {len(data):,}")
    offsets, sizes = far.astype(np.int64), long.astype(np.int64)
    in_place = len(np.unique(offsets)) == len(offsets) and all(p.layout.compression == NONE for p in series.pages)
    segments = _Segments(offsets, sizes, begins, in_place)
    _refuse_bombs(series, segments)
    _refuse_overlaps(series, segments)
    return segments


def _listed(data: bytes, series: Series, number: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Offsets and sizes of a page's strips or tiles."""
    page, order = series.pages[number], series.source.order
    layout = page.layout
    if page.start is not None:
        plane_bytes = layout.height * layout.row_bytes
        offsets = page.start + plane_bytes * np.arange(layout.planes, dtype=np.uint64)
        return offsets, np.full_like(offsets, plane_bytes)
    offsets, sizes = (
        numbers(data, *each, order) for each in zip(layout.codes, (page.offsets, page.sizes), strict=True)
    )
    if not len(sizes) and len(offsets) == layout.segment_count and layout.compression == NONE and not layout.tiled:
        rows = [min(layout.segment_height, layout.height - y) for _, y, _ in layout.places()]
        sizes = np.array(rows, np.uint64) * np.uint64(layout.row_bytes)
    if not len(offsets) == len(sizes) == layout.segment_count:
        raise ImageError(
            f"the TIFF is damaged: it lists {len(offsets)} offsets and {len(sizes)} sizes "
            f"for {layout.segment_count} strips or tiles"
        )
    return offsets, sizes


def _refuse_bombs(series: Series, segments: _Segments) -> None:
    """Refuse a page whose strips or tiles cannot hold its pixels, before memory is asked for."""
    layout = series.layout
    need = layout.width * layout.height * layout.samples * layout.dtype.itemsize
    held = np.add.reduceat(segments.sizes, segments.begins[:-1])
    ratios = np.array([RATIOS[page.layout.compression] for page in series.pages], float)
    short = np.flatnonzero(held * ratios < need)
    if len(short):
        where = f" of frame {short[0]}" if series.axis else ""
        raise ImageError(
            f"the TIFF is damaged: {held[short[0]]:,} bytes of pixel data{where} "
            f"cannot hold the {need:,} that its header needs"
        )


def _refuse_overlaps(series: Series, segments: _Segments) -> None:
    """Refuse pixels on each other or on the file's structure; strips that are the same are no overlap.

    Where the lists of strips will be written anew, these have to stand alone too.
    """
    order = np.lexsort((segments.sizes, segments.offsets))
    pixels = np.stack([segments.offsets, segments.offsets + segments.sizes], axis=1)[order]
    again = np.zeros(len(pixels), bool)
    again[1:] = (pixels[1:] == pixels[:-1]).all(axis=1)
    alone = [pixels[~again]] if segments.in_place else [pixels[~again], series.own]
    shared = [series.shared, series.own] if segments.in_place else [series.shared]
    spans = np.concatenate([*alone, *shared])
    is_alone = np.arange(len(spans)) < sum(len(part) for part in alone)
    order = np.argsort(spans[:, 0], kind="stable")
    begins, ends, is_alone = spans[order, 0], spans[order, 1], is_alone[order]
    before = np.maximum.accumulate(ends)[:-1]
    before_alone = np.maximum.accumulate(np.where(is_alone, ends, 0))[:-1]
    if (begins[1:] < np.where(is_alone[1:], before, before_alone)).any():
        raise ImageError("the TIFF is damaged: its strips or tiles overlap each other or its directory")


# --- strips and tiles ---


def _decode_page(
    data: bytes, layout: Layout, segments: Iterator[tuple[int, int]], samples: NDArray[Any], where: str
) -> None:
    """Fill `samples` (H, W, samples); `where` names the page in errors."""
    view = memoryview(data)
    for number, ((offset, size), (plane, y, x)) in enumerate(zip(segments, layout.places(), strict=True)):
        rows, columns = min(layout.segment_height, layout.height - y), min(layout.segment_width, layout.width - x)
        try:
            values = _decode_segment(view[offset : offset + size], layout, rows)
        except ImageError as error:
            what = "tile" if layout.tiled else "strip"
            raise ImageError(f"{what} {number}{where} cannot be read: {error}") from error
        part = samples[y : y + rows, x : x + columns, plane : plane + layout.segment_samples]
        part[...] = values[:rows, :columns]


def _encode_page(samples: NDArray[Any], layout: Layout) -> Iterator[bytes]:
    """The strips or tiles of `samples` (H, W, samples), in the order of the file's tags."""
    for plane, y, x in layout.places():
        part = samples[y : y + layout.segment_height, x : x + layout.segment_width]
        if layout.separate:
            part = part[..., plane : plane + 1]
        if layout.tiled:
            below, right = layout.segment_height - part.shape[0], layout.segment_width - part.shape[1]
            part = np.pad(part, ((0, below), (0, right), (0, 0)), mode="edge")
        yield _encode_segment(part, layout)


def _decode_segment(coded: memoryview, layout: Layout, rows: int) -> NDArray[Any]:
    """Samples (segment height or `rows`, segment width, samples)."""
    width, samples, item = layout.segment_width, layout.segment_samples, layout.dtype.itemsize
    if layout.compression == JPEG:
        colours = _jpeg_colours(layout)
        values = jpeg.decode_samples(
            bytes(coded), max_pixels=width * layout.segment_height, tables=layout.tables, **colours
        )
        if values.shape[0] < rows or values.shape[1:] != (width, samples):
            raise ImageError(f"its JPEG data have the shape {values.shape}")
        return values
    height = layout.segment_height if layout.tiled else rows
    need = height * width * samples * item
    raw = _decompress(coded, layout.compression, layout.segment_height * width * samples * item)
    if len(raw) < need:
        raise ImageError(f"it holds {len(raw):,} bytes, and {need:,} are needed")
    values = np.frombuffer(raw, layout.dtype, need // item).reshape(height, width, samples)
    if layout.predictor == 2:
        values = values.astype(layout.native)
        np.cumsum(values, axis=1, dtype=values.dtype, out=values)
    return values


def _encode_segment(values: NDArray[Any], layout: Layout) -> bytes:
    import imagecodecs

    if layout.compression == JPEG:
        colours = _jpeg_colours(layout)
        return bytes(
            imagecodecs.jpeg8_encode(
                np.ascontiguousarray(values if values.shape[2] == 3 else values[..., 0]),
                level=jpeg.QUALITY,
                subsampling=layout.subsampling if layout.photometric == YCBCR else None,
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
            return bytes(imagecodecs.deflate_encode(raw, level=9))
        case 32773:
            row = values.shape[1] * values.shape[2] * values.itemsize
            return b"".join(bytes(imagecodecs.packbits_encode(raw[at : at + row])) for at in range(0, len(raw), row))
        case _:
            return bytes(imagecodecs.zstd_encode(raw))


def _decompress(coded: memoryview, compression: int, most: int) -> bytes | memoryview:
    """At most `most` bytes; raises ImageError where the data are damaged or hold more."""
    import imagecodecs

    decoders = {
        5: imagecodecs.lzw_decode,
        8: imagecodecs.zlib_decode,
        32946: imagecodecs.zlib_decode,
        PACKBITS: imagecodecs.packbits_decode,
        50000: imagecodecs.zstd_decode,
    }
    if compression == NONE:
        return coded
    try:
        return bytes(decoders[compression](bytes(coded), out=most))
    except (RuntimeError, ValueError) as error:
        raise ImageError(f"its data are truncated or damaged ({error})") from error


def _jpeg_colours(layout: Layout) -> dict[str, str]:
    if layout.segment_samples == 1:
        return {}
    return {"colorspace": "YCBCR" if layout.photometric == YCBCR else "RGB", "outcolorspace": "RGB"}


# --- the same file with other strips ---


def _replace_segments(out: io.BytesIO, carried: Carried, coded: Iterator[bytes]) -> None:
    """Put each new segment into the room that the old one shares with its neighbours, else at the end of the file."""
    segments, series = carried.segments, carried.series
    rooms = _merge(segments)
    fill, ends = rooms[:, 0].tolist(), rooms[:, 1].tolist()
    room_of = (np.searchsorted(rooms[:, 0], segments.offsets, side="right") - 1).tolist()
    end = out.seek(0, io.SEEK_END)
    if end - ends[-1] <= 1:  # the file ends with pixels: let it end where the new ones do
        end = ends[-1] = fill[-1]
        out.truncate(end)
    elif end % 2:
        put(out, end, b"\0")
        end += 1
    offsets, sizes = [], []
    for room, new in zip(room_of, coded, strict=True):
        if fill[room] + len(new) <= ends[room]:
            at = fill[room]
            fill[room] += len(new)
        else:
            at = end
            end += len(new)
        put(out, at, new)
        offsets.append(at)
        sizes.append(len(new))
    for begin, until in zip(fill, ends, strict=True):
        put(out, begin, bytes(until - begin))
    for page, begin, until in zip(series.pages, segments.begins, segments.begins[1:], strict=False):
        for code, tag, values in zip(page.layout.codes, (page.offsets, page.sizes), (offsets, sizes), strict=True):
            if tag is not None:
                set_integers(out, series.source, code, tag, values[begin:until])


def _merge(segments: _Segments) -> NDArray[np.int64]:
    """Start and end of the rooms that the segments, and single padding bytes between them, take, in file order."""
    order = np.argsort(segments.offsets, kind="stable")
    begins = segments.offsets[order]
    ends = np.maximum.accumulate(begins + segments.sizes[order])
    first = np.ones(len(begins), bool)
    first[1:] = begins[1:] > ends[:-1] + 1
    return np.stack([begins[first], ends[np.roll(first, -1)]], axis=1)
