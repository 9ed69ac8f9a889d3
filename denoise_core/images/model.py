"""What an image file is to the rest of the program: a header, pixels, and what its encoder wants back."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from denoise_core.errors import DenoiseError

SUPPORTED = "PNG, JPEG and TIFF are supported"


class ImageError(DenoiseError):
    """The file cannot be processed: one sentence that names what was found and what is supported, without the path."""


@dataclass(frozen=True)
class Header:
    """What a file's headers say of its pixels.

    `shape` is that of `Image.pixels`: (H, W) for axes "YX", (H, W, 3) for "YXS", and (H, W, 4) where the colours are the inks
    of CMYK, each from 0 for none to the data type's greatest value. A stack has further axes before these, in
    the order of the file: T (time), Z (depth), C (channels), or Q or I where the file does not say, as in "TZCYX". Samples
    of a pixel that are no colours are channels, too: "YXC". An alpha channel is not counted.
    """

    container: str
    axes: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def pixels(self) -> int:
        """Of all planes; a pixel may have several samples."""
        return math.prod(self.shape[: self.axes.index("X") + 1])

    @property
    def itemsize(self) -> int:
        """Bytes of a sample."""
        return np.dtype(self.dtype).itemsize

    @property
    def bytes(self) -> int:
        """Of all samples but those of an alpha, decoded."""
        return math.prod(self.shape) * self.itemsize

    @property
    def inks(self) -> bool:
        """Whether the colours are cyan, magenta, yellow and black."""
        return self.axes.endswith("S") and self.shape[-1] == 4

    @property
    def in_rgb(self) -> Header:
        """That of the image in RGB, which it is already unless its colours are inks."""
        return Header(self.container, self.axes, (*self.shape[:-1], 3), self.dtype) if self.inks else self

    @property
    def planes(self) -> int:
        """How many planes of rows and columns the stack has; 1 for a single image."""
        return math.prod(self.shape[: self.axes.index("Y")])


@dataclass(frozen=True, eq=False)
class Image:
    """One decoded image, or one stack of planes.

    `pixels` has the axes and shape that `Header` tells of, in native byte order and the file's own values; `alpha` is
    None or of the same dtype, (..., H, W) without a last axis of samples. `notes` are short phrases for what the encoded
    file will not carry, or what was taken for what; those that are in `if_changed`, too, hold only where other pixels than
    the file's own are encoded. `carried` belongs to the container's encoder: everything of the source
    that has to come back.
    """

    container: str
    axes: str
    dtype: str
    pixels: NDArray[Any]
    alpha: NDArray[Any] | None
    notes: tuple[str, ...] = ()
    if_changed: tuple[str, ...] = ()
    carried: object = field(default=None, repr=False)

    @property
    def lasting_notes(self) -> tuple[str, ...]:
        """Those that hold whatever pixels are encoded."""
        return tuple(note for note in self.notes if note not in self.if_changed)

    @property
    def header(self) -> Header:
        """The same facts as `read_header` gives."""
        return Header(self.container, self.axes, tuple(self.pixels.shape), self.dtype)


@contextlib.contextmanager
def damage_told(container: str) -> Iterator[None]:
    """A library's complaint about bad bytes becomes an ImageError; faults of the disk and of memory pass through."""
    try:
        yield
    except (ImageError, MemoryError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        words = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise ImageError(f"the {container.upper()} is damaged: {words[:200]}") from error


def check_size(width: int, height: int, max_pixels: int, *, planes: int = 1) -> None:
    """Refuse an image that is empty or that would need more memory than the caller allows; raises ImageError."""
    if width < 1 or height < 1:
        raise ImageError(f"the header is damaged: it says {width} × {height} pixels")
    pixels = planes * width * height
    if pixels > max_pixels:
        size = f"{width} × {height}" if planes == 1 else f"{planes} × {width} × {height}"
        raise ImageError(f"the header says {size} = {pixels:,} pixels, and at most {max_pixels:,} are allowed")


def with_alpha(image: Image, pixels: NDArray[Any]) -> NDArray[Any]:
    """`pixels` (..., H, W) or (..., H, W, S) with the image's alpha, if any, as the last sample."""
    if image.alpha is None:
        return np.ascontiguousarray(pixels)
    colours = pixels[..., None] if pixels.ndim == image.alpha.ndim else pixels
    return np.concatenate([colours, image.alpha[..., None]], axis=-1)


def split_alpha(samples: NDArray[Any], *, alpha: bool) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """(..., H, W, S) into pixels, (..., H, W) of one sample, and the last sample as alpha if there is one."""
    if not alpha:
        return (samples[..., 0] if samples.shape[-1] == 1 else samples), None
    colour = samples[..., 0] if samples.shape[-1] == 2 else samples[..., :-1]
    return np.ascontiguousarray(colour), np.ascontiguousarray(samples[..., -1])
