"""Strips and tiles of a TIFF: their codecs and predictors."""

from __future__ import annotations

import functools
import lzma
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from denoise_core.images import jpeg
from denoise_core.images.model import ImageError
from denoise_core.images.tiff_layout import JPEG, LZMA, NONE, PACKBITS, SEPARATED, YCBCR, Layout

_LZMA_MEMORY = 128 << 20  # bytes; the highest preset of xz takes 65 MB

ReadAt = Callable[[int, int], memoryview]
"""Offset and size to the bytes of a file."""


def decode_page(
    read: ReadAt, layout: Layout, segments: Iterator[tuple[int, int]], samples: NDArray[Any], where: str
) -> None:
    """Fill `samples` (H, W, samples) from what `read` gives; `where` names the page in errors."""
    for number, ((offset, size), (plane, y, x)) in enumerate(zip(segments, layout.places(), strict=True)):
        rows, columns = min(layout.segment_height, layout.height - y), min(layout.segment_width, layout.width - x)
        try:
            values = _decode_segment(read(offset, size), layout, rows)
        except ImageError as error:
            what = "tile" if layout.tiled else "strip"
            raise ImageError(f"{what} {number}{where} cannot be read: {error}") from error
        part = samples[y : y + rows, x : x + columns, plane : plane + layout.segment_samples]
        part[...] = values[:rows, :columns]


def encode_page(samples: NDArray[Any], layout: Layout) -> Iterator[bytes]:
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
        integers = values.astype(layout.native).view(f"u{item}")
        np.cumsum(integers, axis=1, dtype=integers.dtype, out=integers)
        return integers.view(layout.native)
    if layout.predictor == 3:
        return _float_sums(np.frombuffer(raw, np.uint8, need).reshape(height, item * width, samples), layout)
    return values


def _encode_segment(values: NDArray[Any], layout: Layout) -> bytes:
    import imagecodecs

    if layout.compression == JPEG:
        colours = _jpeg_colours(layout)
        return bytes(
            imagecodecs.jpeg8_encode(
                np.ascontiguousarray(values[..., 0] if values.shape[2] == 1 else values),
                level=jpeg.QUALITY,
                subsampling=layout.subsampling if layout.photometric == YCBCR else None,
                colorspace=colours.get("outcolorspace"),
                outcolorspace=colours.get("colorspace"),
            )
        )
    raw = _predicted(values, layout).tobytes()
    if layout.compression == NONE:
        return raw
    if layout.compression == PACKBITS:
        row = values.shape[1] * values.shape[2] * values.itemsize
        return b"".join(bytes(imagecodecs.packbits_encode(raw[at : at + row])) for at in range(0, len(raw), row))
    deflate = functools.partial(imagecodecs.deflate_encode, level=9)
    encoders: dict[int, Callable[[bytes], Any]] = {
        5: imagecodecs.lzw_encode,
        8: deflate,
        32946: deflate,
        50000: imagecodecs.zstd_encode,
        LZMA: imagecodecs.lzma_encode,
    }
    return bytes(encoders[layout.compression](raw))


def _float_sums(stored: NDArray[np.uint8], layout: Layout) -> NDArray[Any]:
    """Floats from their bytes (H, bytes × W, samples), of a row the highest of all first, each less the one before.

    Adobe Photoshop TIFF Technical Note 3, the floating-point predictor; the byte order of the file is none of its.
    """
    height, _, samples = stored.shape
    summed = np.cumsum(stored, axis=1, dtype=np.uint8)
    by_byte = summed.reshape(height, layout.dtype.itemsize, layout.segment_width, samples)
    big_endian = np.ascontiguousarray(np.moveaxis(by_byte, 1, -1)).view(layout.dtype.newbyteorder(">"))
    return big_endian[..., 0].astype(layout.native)


def _predicted(values: NDArray[Any], layout: Layout) -> NDArray[Any]:
    """What is compressed of values (H, W, samples)."""
    if layout.predictor == 2:
        integers = np.ascontiguousarray(values).view(f"u{values.itemsize}")
        differences = integers.copy()
        differences[:, 1:] -= integers[:, :-1]
        return differences.view(layout.native).astype(layout.dtype)
    if layout.predictor == 3:
        height, _, samples = values.shape
        big_endian = np.ascontiguousarray(values.astype(values.dtype.newbyteorder(">")))[..., None].view(np.uint8)
        stored = np.moveaxis(big_endian, -1, 1).reshape(height, -1, samples)
        differences = stored.copy()
        differences[:, 1:] -= stored[:, :-1]
        return differences
    return values.astype(layout.dtype)


def _decompress(coded: memoryview, compression: int, most: int) -> bytes | memoryview:
    """At most `most` bytes; raises ImageError where the data are damaged or hold more."""
    import imagecodecs

    decoders = {
        5: imagecodecs.lzw_decode,
        8: imagecodecs.zlib_decode,
        32946: imagecodecs.zlib_decode,
        PACKBITS: imagecodecs.packbits_decode,
        50000: imagecodecs.zstd_decode,
        LZMA: _lzma_decode,
    }
    if compression == NONE:
        return coded
    try:
        return bytes(decoders[compression](bytes(coded), out=most))
    except (RuntimeError, ValueError, lzma.LZMAError) as error:
        raise ImageError(f"its data are truncated or damaged ({error})") from error


def _lzma_decode(coded: bytes, *, out: int) -> bytes:
    """At most `out` bytes. Not by imagecodecs, which gives as much memory as the data ask for."""
    return lzma.LZMADecompressor(memlimit=_LZMA_MEMORY).decompress(coded, max_length=out)


def _jpeg_colours(layout: Layout) -> dict[str, str]:
    if layout.segment_samples == 1:
        return {}
    if layout.photometric == SEPARATED:
        return {"colorspace": "CMYK", "outcolorspace": "CMYK"}
    return {"colorspace": "YCBCR" if layout.photometric == YCBCR else "RGB", "outcolorspace": "RGB"}
