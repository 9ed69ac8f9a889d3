"""Image files in, image files out, with everything but the pixels as it was.

Supported:

========= ==================================================================== =========================================
container what is read                                                         what is written
========= ==================================================================== =========================================
PNG       8- and 16-bit grey, grey + alpha, RGB, RGBA; 2- and 4-bit grey;      8 or 16 bits as read; a palette becomes
          palette; interlaced; colour key                                      RGB(A), a colour key an alpha channel;
                                                                               all other chunks are copied
JPEG      8-bit grey, RGB and CMYK (YCCK), baseline and progressive            the same at quality 95, 4:4:4; EXIF, ICC,
                                                                               XMP, IPTC, density and comments are copied
                                                                                (YCCK becomes CMYK)
TIFF      integers of 8, 16 and 32 bits, floats of 16, 32 and 64; grey, RGB,   the source file with other pixels: byte
and       CMYK (8 and 16 bits) or channels, with or without alpha; strips      order, layout, compression and every tag
BigTIFF   and tiles; both byte orders and planar configurations; none, LZW,    stay, but an addition to Software
          deflate, zstd, LZMA, PackBits and JPEG compression, integer and
          float predictors
stacks    TIFF and BigTIFF, plain, ImageJ or OME: one series of such images    the same, all planes
          along any of the axes T, Z, C, and Q or I where the file names
          none; ImageJ's with all planes after one directory, too; one file
          of an OME-TIFF that is spread over several
pyramids  of sub-images; of one image also of pages marked as reduced, such as the smaller levels made again
          a thumbnail
========= ==================================================================== =========================================

Where the pixels stay what they were, PNG and JPEG come back as they were stored, too.

Refused with an `ImageError` that names what was found: everything else, among it several series, stacks of pyramids
whose levels are pages, palette TIFF, 1-bit masks, complex and 64-bit integer samples, animations, and whatever is truncated or
damaged. Pixels are never rotated: an orientation tag comes back as it is.

All functions may be called from several threads at once, and none writes to the source.
"""

from __future__ import annotations

import stat
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from denoise_core.images.atomic import remove_stale_temporaries, write_atomic, writing
from denoise_core.images.bounds import check_memory, machine_bytes
from denoise_core.images.levels import Scale, changed, from_float, light, own_scale, to_float
from denoise_core.images.missing import fill_missing, find_missing, with_tails
from denoise_core.images.model import SUPPORTED, Header, Image, ImageError, check_size, damage_told
from denoise_core.images.orientation import as_stored, orientation, upright
from denoise_core.images.signatures import describe, sniff, to_come

if TYPE_CHECKING:
    from denoise_core.images.tiff_planes import Planes

__all__ = [
    "Header",
    "Image",
    "ImageError",
    "Scale",
    "as_stored",
    "changed",
    "check_memory",
    "check_size",
    "cropped",
    "decode",
    "encode",
    "fill_missing",
    "find_missing",
    "from_float",
    "in_rgb",
    "light",
    "machine_bytes",
    "open_planes",
    "orientation",
    "own_scale",
    "read_header",
    "remove_stale_temporaries",
    "sniff",
    "to_come",
    "to_float",
    "upright",
    "with_tails",
    "write_atomic",
    "writing",
]

_HEAD_BYTES = 512


def read_header(source: Path | BinaryIO, *, max_pixels: int, by_plane: bool = False) -> Header:
    """What the headers of the file `source`, by its path or open, say of its pixels; none are decoded.

    `max_pixels` is how many to accept, all planes of a stack together; `by_plane`: of each plane, where the file is a TIFF
    that has room for its pixels, since `open_planes` reads one at a time. Raises ImageError for what cannot be processed as
    far as headers tell; OSError, as for a file that is gone, passes through.
    """
    if not isinstance(source, Path):
        return _header(source, "", max_pixels, by_plane=by_plane)
    if not stat.S_ISREG(source.stat().st_mode):
        raise ImageError(f"not a regular file; {SUPPORTED}")
    with source.open("rb") as file:
        return _header(file, source.suffix, max_pixels, by_plane=by_plane)


def open_planes(file: BinaryIO, *, max_pixels: int) -> Planes:
    """The TIFF that is open as `file`, plane by plane; `max_pixels` is as for `read_header` by plane.

    Raises ImageError for anything wrong with it, also when a plane is read; OSError passes through.
    """
    from denoise_core.images.tiff_planes import Planes

    with damage_told("tiff"):
        return Planes(file, max_pixels)


def decode(data: bytes, *, max_pixels: int) -> Image:
    """Decode the bytes of one image file.

    `max_pixels` is how many pixels to accept, all planes of a stack together; more is refused before memory is asked for.
    Raises ImageError for anything wrong with the bytes, and nothing else for that reason.
    """
    container = _container(data[:_HEAD_BYTES])
    image: Image = _guarded(container, data, max_pixels=max_pixels)
    return image


def encode(image: Image, pixels: NDArray[Any], *, software: str = "") -> bytes:
    """The bytes of `image`'s file with `pixels` in place of its own.

    `pixels` has the shape and dtype of `image.pixels`; alpha and metadata come from `image`. Lossless containers give
    exactly `pixels` back, JPEG those that are the image's own. `software`, ASCII, is written where the container says
    what made a file: added to the tag Software of a TIFF, a Software text of a PNG, a comment of a JPEG. Raises ValueError
    for other pixels, ImageError where the container cannot hold the result.
    """
    if pixels.shape != image.pixels.shape or pixels.dtype != image.pixels.dtype:
        raise ValueError(
            f"the pixels are {pixels.dtype} of shape {pixels.shape}, "
            f"and the image's are {image.pixels.dtype} of shape {image.pixels.shape}"
        )
    data: bytes = _module(image.container).encode(image, np.ascontiguousarray(pixels), software)
    return data


def in_rgb(image: Image) -> Image:
    """A CMYK image as one in sRGB; any other image as it is. See `denoise_core.images.inks`."""
    from denoise_core.images import inks

    return inks.in_rgb(image)


def cropped(image: Image, side: int | None) -> Image:
    """The centre of an image, at most `side` × `side` pixels; the image itself where it is no larger, and for None.

    A cropped TIFF is a plain one: its alpha and its metadata, which may speak of places in the image, are left behind.
    """
    axes = [image.axes.index(name) for name in "YX"]
    if side is None or all(image.pixels.shape[axis] <= side for axis in axes):
        return image
    middle = [slice(None)] * image.pixels.ndim
    for axis in axes:
        start = max(0, image.pixels.shape[axis] - side) // 2
        middle[axis] = slice(start, start + side)
    pixels = np.ascontiguousarray(image.pixels[tuple(middle)])
    if image.container == "tiff":
        from denoise_core.images.tiff import plain, plain_notes

        notes = (*plain_notes(image), "the metadata of the file, which was cropped")
        return replace(plain(pixels, image.axes), notes=notes)
    alpha = None if image.alpha is None else np.ascontiguousarray(image.alpha[middle[axes[0]], middle[axes[1]]])
    carried: Any = replace(image.carried, source=b"")  # type: ignore[type-var] # that of PNG or JPEG: it holds other pixels
    return replace(image, pixels=pixels, alpha=alpha, carried=carried, if_changed=())


def _module(container: str) -> ModuleType:
    from denoise_core.images import jpeg, png, tiff

    return {"png": png, "jpeg": jpeg, "tiff": tiff}[container]


def _container(head: bytes, suffix: str = "") -> str:
    container = sniff(head)
    if container not in ("png", "jpeg", "tiff"):
        raise ImageError(describe(head, suffix))
    return container


def _header(file: BinaryIO, suffix: str, max_pixels: int, *, by_plane: bool) -> Header:
    container = _container(file.read(_HEAD_BYTES), suffix)
    if by_plane and container == "tiff":
        from denoise_core.images import tiff

        with damage_told("tiff"):
            return tiff.read_header(file, max_pixels=max_pixels, by_plane=True)
    header: Header = _guarded(container, file, max_pixels=max_pixels)
    return header


def _guarded(container: str, source: bytes | BinaryIO, *, max_pixels: int) -> Any:
    """Call the container's decoder; a library's complaint about bad bytes becomes an ImageError."""
    module = _module(container)
    with damage_told(container):
        if isinstance(source, bytes):
            return module.decode(source, max_pixels=max_pixels)
        return module.read_header(source, max_pixels=max_pixels)
