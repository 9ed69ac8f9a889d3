"""Image files in, image files out, with everything but the pixels as it was.

Supported:

========= ==================================================================== =========================================
container what is read                                                         what is written
========= ==================================================================== =========================================
PNG       8- and 16-bit grey, grey + alpha, RGB, RGBA; 2- and 4-bit grey;      8 or 16 bits as read; a palette becomes
          palette; interlaced; colour key                                      RGB(A), a colour key an alpha channel;
                                                                               all other chunks are copied
JPEG      8-bit grey and colour, baseline and progressive                      quality 95, 4:4:4; EXIF, ICC, XMP, IPTC,
                                                                               density and comments are copied
TIFF      one image, 8- or 16-bit unsigned, grey or RGB with or without alpha; the source file with other pixels: byte
and       strips and tiles; both byte orders and planar configurations; none,  order, layout, compression and every tag
BigTIFF   LZW, deflate, zstd, PackBits and JPEG compression                    stay
stacks    TIFF and BigTIFF, plain, ImageJ or OME: one series of such images    the same, all frames
          without alpha along one axis T or Z, or one that the file does not
          name (Q, I); ImageJ's with all planes after one directory, too
========= ==================================================================== =========================================

Refused with an `ImageError` that names what was found: everything else, among it channels, stacks along several axes or
with alpha, pyramids, several series, OME-TIFF spread over several files, float, signed and 32-bit samples, CMYK, palette
TIFF, 1-bit masks, animations, and whatever is truncated or damaged. Pixels are never rotated: an orientation tag comes
back as it is.

All functions may be called from several threads at once, and none writes to the source.
"""

from __future__ import annotations

import stat
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from denoise_core.images.atomic import remove_stale_temporaries, write_atomic
from denoise_core.images.levels import from_float, to_float
from denoise_core.images.model import SUPPORTED, Header, Image, ImageError
from denoise_core.images.signatures import describe, sniff

__all__ = [
    "Header",
    "Image",
    "ImageError",
    "decode",
    "encode",
    "from_float",
    "read_header",
    "remove_stale_temporaries",
    "sniff",
    "to_float",
    "write_atomic",
]

_HEAD_BYTES = 512


def read_header(path: Path, *, max_pixels: int) -> Header:
    """What the headers of the file at `path` say of its pixels; none are decoded.

    `max_pixels` is the largest F × H × W to accept. Raises ImageError for what cannot be processed as far as headers
    tell; OSError, as for a file that is gone, passes through.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise ImageError(f"not a regular file; {SUPPORTED}")
    with path.open("rb") as file:
        container = _container(file.read(_HEAD_BYTES), path.suffix)
        header: Header = _guarded(container, file, max_pixels=max_pixels)
        return header


def decode(data: bytes, *, max_pixels: int) -> Image:
    """Decode the bytes of one image file.

    `max_pixels` is the largest F × H × W to accept, all frames of a stack together; more is refused before memory is
    asked for. Raises ImageError for anything wrong with the bytes, and nothing else for that reason.
    """
    container = _container(data[:_HEAD_BYTES])
    image: Image = _guarded(container, data, max_pixels=max_pixels)
    return image


def encode(image: Image, pixels: NDArray[Any]) -> bytes:
    """The bytes of `image`'s file with `pixels` in place of its own.

    `pixels` has the shape and dtype of `image.pixels`; alpha and metadata come from `image`. Lossless containers give
    exactly `pixels` back. Raises ValueError for other pixels, ImageError where the container cannot hold the result.
    """
    if pixels.shape != image.pixels.shape or pixels.dtype != image.pixels.dtype:
        raise ValueError(
            f"the pixels are {pixels.dtype} of shape {pixels.shape}, "
            f"and the image's are {image.pixels.dtype} of shape {image.pixels.shape}"
        )
    data: bytes = _module(image.container).encode(image, np.ascontiguousarray(pixels))
    return data


def _module(container: str) -> ModuleType:
    from denoise_core.images import jpeg, png, tiff

    return {"png": png, "jpeg": jpeg, "tiff": tiff}[container]


def _container(head: bytes, suffix: str = "") -> str:
    container = sniff(head)
    if container not in ("png", "jpeg", "tiff"):
        raise ImageError(describe(head, suffix))
    return container


def _guarded(container: str, source: bytes | BinaryIO, *, max_pixels: int) -> Any:
    """Call the container's decoder; a library's complaint about bad bytes becomes an ImageError."""
    module = _module(container)
    try:
        if isinstance(source, bytes):
            return module.decode(source, max_pixels=max_pixels)
        return module.read_header(source, max_pixels=max_pixels)
    except (ImageError, MemoryError):
        raise
    except OSError as error:
        if error.errno is not None:
            raise
        raise _damaged(container, error) from error
    except Exception as error:
        raise _damaged(container, error) from error


def _damaged(container: str, error: Exception) -> ImageError:
    words = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    return ImageError(f"the {container.upper()} is damaged: {words[:200]}")
