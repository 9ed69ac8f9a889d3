"""TIFF 6.0 and BigTIFF: the output is the source file with other pixels in its strips or tiles.

Whatever else the file holds (ImageJ and OME descriptions, calibration, colour profiles, private tags) stays where it
is, byte for byte; only the tag Software of the first page gets an addition. `tiff_series` says what the pixels mean (axes,
planes); the strips themselves are coded in `tiff_segments`, because a reader that replaces missing ones by zeros would
hide a damaged file.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from denoise_core.images.bounds import SPARE, check_held, check_memory, check_used
from denoise_core.images.levels import area_means, same_bits
from denoise_core.images.model import Header, Image, split_alpha, with_alpha
from denoise_core.images.tiff_directories import Directory, Source, open_source
from denoise_core.images.tiff_rooms import Rewriter, Segments, densest, find_segments
from denoise_core.images.tiff_segments import decode_page, encode_page
from denoise_core.images.tiff_series import Series, read_series
from denoise_core.images.tiff_software import add_software, untold

_ORIENTATION, _ICC_PROFILE = 274, 34675
_LONG = 4096  # bytes of a tag's values


@dataclass(frozen=True)
class Carried:
    """The source file, and where its pixels are."""

    source: bytes
    series: Series
    segments: Segments


def read_header(file: BinaryIO, *, max_pixels: int, by_plane: bool = False) -> Header:
    """The header of an open TIFF; reads directories and no pixels. Raises ImageError."""
    series = read_series(file, max_pixels, by_plane=by_plane)
    size = series.source.size
    check_held(size, series.layout.bytes)
    check_held(size, len(series.pages) * series.layout.bytes, densest=densest(series))
    if size > SPARE:
        most = 2 * sum(page.layout.coded_bytes for page in series.all_pages)  # no codec makes more of noise
        check_used(size, min(find_segments(series).bytes, most) + _in_tags(series))
    return series.header


def _in_tags(series: Series) -> int:
    """Bytes of the file in long values of its tags, such as the layers of Photoshop: they are known, and carried over."""
    spans = series.shared[np.argsort(series.shared[:, 0], kind="stable")]
    spans = spans[spans[:, 1] - spans[:, 0] >= _LONG]
    before = np.maximum.accumulate(np.append(0, spans[:, 1]))[:-1]
    return int(np.maximum(spans[:, 1] - np.maximum(spans[:, 0], before), 0).sum())


def decode(data: bytes, *, max_pixels: int) -> Image:
    """Decode a TIFF; raises ImageError for what is damaged or not supported."""
    series = read_series(io.BytesIO(data), max_pixels)
    segments, view = find_segments(series), memoryview(data)
    check_memory(series.header)
    layout = series.layout
    samples = np.empty((len(series.pages), layout.height, layout.width, layout.samples), layout.native)
    for number, page in enumerate(series.pages):
        where = f" of plane {number}" if series.axes else ""
        decode_page(lambda at, size: view[at : at + size], page.layout, segments.of(number), samples[number], where)
    shaped = samples.reshape(*series.lengths, *samples.shape[1:])
    pixels, alpha = split_alpha(shaped, alpha=layout.alpha)
    header = series.header
    return Image(
        container="tiff",
        axes=header.axes,
        dtype=header.dtype,
        pixels=np.ascontiguousarray(pixels),
        alpha=alpha,
        notes=(*layout.notes, *untold(series.source), *series.if_changed),
        if_changed=series.if_changed,
        carried=Carried(data, series, segments),
    )


def encode(image: Image, pixels: NDArray[Any], software: str) -> bytes:
    """The source file with `pixels` in place of its own, in the same layout and compression (JPEG at quality 95).

    The levels of a pyramid are made again, as means over areas. Pixels that are the source's stay as they were coded. `software`
    is left out where a result of nearly 4 GiB has no room for it.
    """
    carried = image.carried
    if not isinstance(carried, Carried):
        raise TypeError("the image was not decoded from a TIFF")
    out = io.BytesIO(carried.source)  # copies once it is written to, and gives its bytes away without a copy
    if not same_bits(pixels, image.pixels):
        rewriter = Rewriter(out, carried.series, carried.segments)
        for page, coded in enumerate(_coded(image, carried.series, pixels)):
            rewriter.put_page(page, coded)
        rewriter.finish()
    if software and not untold(carried.series.source):
        add_software(out, software)
    return out.getvalue()


def _coded(image: Image, series: Series, pixels: NDArray[Any]) -> Iterator[Iterator[bytes]]:
    """The strips or tiles of each page, those of the pyramids last."""
    layout = series.layout
    planes = with_alpha(image, pixels).reshape(len(series.pages), layout.height, layout.width, layout.samples)
    for page, plane in zip(series.pages, planes, strict=True):
        yield encode_page(plane, page.layout)
    for levels, plane in zip(series.levels, planes, strict=True):
        for level in levels:
            smaller = area_means(plane, level.layout.height, level.layout.width)
            yield encode_page(smaller, level.layout)


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
    return replace(found, notes=(*plain_notes(image), note, "the metadata of the file"))


def plain_notes(image: Image) -> tuple[str, ...]:
    """The notes of a decoded TIFF that hold of a plain one made of it, too: that one says in Software what was done."""
    source, _ = _first_page(image)
    return tuple(note for note in image.lasting_notes if note not in untold(source))


def _first_page(image: Image) -> tuple[Source, Directory]:
    if not isinstance(image.carried, Carried):
        raise TypeError("the image was not decoded from a TIFF")
    source = open_source(io.BytesIO(image.carried.source))
    return source, source.directory(source.first)
