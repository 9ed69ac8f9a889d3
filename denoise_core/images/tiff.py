"""TIFF 6.0 and BigTIFF: the output is the source file with other pixels in its strips or tiles.

Whatever else the file holds (ImageJ and OME descriptions, calibration, colour profiles, private tags) stays where it
is, byte for byte; only the tag Software of the first page gets an addition. `tiff_series` says what the pixels mean (axes,
planes); the strips themselves are coded in `tiff_segments`, because a reader that replaces missing ones by zeros would
hide a damaged file.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from denoise_core.images.levels import area_means, same_bits
from denoise_core.images.model import Header, Image, ImageError, split_alpha, with_alpha
from denoise_core.images.tiff_directories import Directory, Source, numbers, open_source, put, set_integers
from denoise_core.images.tiff_layout import NONE, RATIOS
from denoise_core.images.tiff_segments import decode_page, encode_page
from denoise_core.images.tiff_series import Page, Series, read_series
from denoise_core.images.tiff_software import add_software

_ORIENTATION, _ICC_PROFILE = 274, 34675


@dataclass(frozen=True)
class _Segments:
    """Where all strips or tiles of `Series.all_pages` lie, one page after another; page n's begin at `begins[n]`."""

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
        where = f" of plane {number}" if series.axes else ""
        decode_page(data, page.layout, segments.of(number), samples[number], where)
    shaped = samples.reshape(*series.lengths, *samples.shape[1:])
    pixels, alpha = split_alpha(shaped, alpha=layout.alpha)
    header = series.header
    return Image(
        container="tiff",
        axes=header.axes,
        dtype=header.dtype,
        pixels=np.ascontiguousarray(pixels),
        alpha=alpha,
        carried=Carried(data, series, segments),
    )


def encode(image: Image, pixels: NDArray[Any], software: str) -> bytes:
    """The source file with `pixels` in place of its own, in the same layout and compression (JPEG at quality 95).

    The levels of a pyramid are made again, as means over areas. Pixels that are the source's stay as they were coded.
    """
    carried = image.carried
    if not isinstance(carried, Carried):
        raise TypeError("the image was not decoded from a TIFF")
    out = io.BytesIO(carried.source)  # copies once it is written to, and gives its bytes away without a copy
    if not same_bits(pixels, image.pixels):
        coded = _coded(image, carried.series, pixels)
        if carried.segments.in_place:
            for offset, new in zip(carried.segments.offsets, coded, strict=True):
                put(out, int(offset), new)
        else:
            _replace_segments(out, carried, coded)
    if software:
        add_software(out, software)
    return out.getvalue()


def _coded(image: Image, series: Series, pixels: NDArray[Any]) -> Iterator[bytes]:
    """All strips or tiles of all pages, those of the pyramids last."""
    layout = series.layout
    planes = with_alpha(image, pixels).reshape(len(series.pages), layout.height, layout.width, layout.samples)
    for page, plane in zip(series.pages, planes, strict=True):
        yield from encode_page(plane, page.layout)
    for levels, plane in zip(series.levels, planes, strict=True):
        for level in levels:
            smaller = area_means(plane, level.layout.height, level.layout.width)
            yield from encode_page(smaller, level.layout)


def plain(pixels: NDArray[Any], axes: str, *, alpha: NDArray[Any] | None = None, **tags: Any) -> Image:
    """A decoded TIFF of these pixels and no metadata but `tags` of tifffile.imwrite; alpha is not associated."""
    import tifffile

    colours = {3: "rgb", 4: "separated"}[pixels.shape[-1]] if axes.endswith("S") else "minisblack"
    options = {"photometric": colours, "metadata": {"axes": axes}, **tags}
    if alpha is not None:
        pixels = np.concatenate([pixels, alpha[..., None]], axis=-1)
        options["extrasamples"] = ["unassalpha"]
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, **options)
    return decode(file.getvalue(), max_pixels=pixels.size)


def profile(image: Image) -> bytes | None:
    """The ICC profile of a decoded TIFF, that of its first page."""
    source, first = _first_page(image)
    tag = first.tags.get(_ICC_PROFILE)
    return None if tag is None else source.raw(tag)


def recoloured(image: Image, pixels: NDArray[Any], note: str) -> Image:
    """The image with RGB (..., H, W, 3) in place of its CMYK: a plain TIFF, with the orientation and alpha of the file."""
    source, first = _first_page(image)
    orientation = source.integers(first, _ORIENTATION)[:1]
    tags = [(_ORIENTATION, "H", 1, orientation[0], True)] if orientation else []
    found = plain(pixels, image.axes, alpha=image.alpha, extratags=tags)
    return replace(found, notes=(*image.notes, note, "the metadata of the file"))


def _first_page(image: Image) -> tuple[Source, Directory]:
    if not isinstance(image.carried, Carried):
        raise TypeError("the image was not decoded from a TIFF")
    source = open_source(io.BytesIO(image.carried.source))
    return source, source.directory(source.first)


# --- where the strips or tiles lie ---


def _segments(data: bytes, series: Series) -> _Segments:
    """Each strip or tile must be there, inside the file, away from its structure, and able to hold its pixels."""
    pages = [_listed(data, page, series.source.order) for page in series.all_pages]
    far, long = (np.concatenate([page[i] for page in pages]) for i in (0, 1))
    begins = list(itertools.accumulate((len(page[0]) for page in pages), initial=0))
    if not far.all() or not long.all():
        raise ImageError("the TIFF is damaged: some of its strips or tiles are missing")
    beyond = (long > len(data)) | (far > len(data) - np.minimum(long, len(data)))
    if beyond.any():
        end = int(far[beyond][0]) + int(long[beyond][0])
        raise ImageError(f"the TIFF is truncated: its pixel data end at byte {end:,} of {len(data):,}")
    offsets, sizes = far.astype(np.int64), long.astype(np.int64)
    in_place = len(np.unique(offsets)) == len(offsets) and all(p.layout.compression == NONE for p in series.all_pages)
    segments = _Segments(offsets, sizes, begins, in_place)
    _refuse_bombs(series, segments)
    _refuse_overlaps(series, segments)
    return segments


def _listed(data: bytes, page: Page, order: str) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Offsets and sizes of a page's strips or tiles."""
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
    pages = [page.layout for page in series.all_pages]
    need = np.array([page.width * page.height * page.samples * page.dtype.itemsize for page in pages])
    held = np.add.reduceat(segments.sizes, segments.begins[:-1])
    short = np.flatnonzero(held * np.array([RATIOS[page.compression] for page in pages], float) < need)
    if len(short):
        where = f" of plane {short[0]}" if series.axes else ""
        raise ImageError(
            f"the TIFF is damaged: {held[short[0]]:,} bytes of pixel data{where} "
            f"cannot hold the {need[short[0]]:,} that its header needs"
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
    for page, begin, until in zip(series.all_pages, segments.begins, segments.begins[1:], strict=False):
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
