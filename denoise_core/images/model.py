"""What an image file is to the rest of the program: a header, pixels, and what its encoder wants back."""

from __future__ import annotations

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

    `shape` is that of `Image.pixels`: (H, W) for axes "YX", (H, W, 3) for "YXS". A stack has an axis of F frames before
    these: T (time), Z (depth), or Q or I where the file does not say, as in "TYX". An alpha channel is not counted.
    """

    container: str
    axes: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def pixels(self) -> int:
        """F × H × W."""
        return self.frames * self.shape[self.axes.index("Y")] * self.shape[self.axes.index("X")]

    @property
    def frames(self) -> int:
        """How many frames the stack has; 1 for a single image."""
        return 1 if self.axes.startswith("Y") else self.shape[0]


@dataclass(frozen=True, eq=False)
class Image:
    """One decoded image, or one stack of F > 1 frames.

    `pixels` is (H, W) or (H, W, 3), of a stack (F, H, W) or (F, H, W, 3), native uint8 or uint16, in the file's own
    values; `alpha` is (H, W) of the same dtype or None, and None for stacks. `notes` are short phrases for what the
    encoded file will not carry. `carried` belongs to the container's encoder: everything of the source that has to
    come back.
    """

    container: str
    axes: str
    dtype: str
    pixels: NDArray[Any]
    alpha: NDArray[Any] | None
    notes: tuple[str, ...] = ()
    carried: object = field(default=None, repr=False)

    @property
    def header(self) -> Header:
        """The same facts as `read_header` gives."""
        return Header(self.container, self.axes, tuple(self.pixels.shape), self.dtype)


def check_size(width: int, height: int, max_pixels: int, *, frames: int = 1) -> None:
    """Refuse an image that is empty or that would need more memory than the caller allows; raises ImageError."""
    if width < 1 or height < 1:
        raise ImageError(f"the header is damaged: it says {width} × {height} pixels")
    pixels = frames * width * height
    if pixels > max_pixels:
        size = f"{width} × {height}" if frames == 1 else f"{frames} × {width} × {height}"
        raise ImageError(f"the header says {size} = {pixels:,} pixels, and at most {max_pixels:,} are allowed")


def with_alpha(image: Image, pixels: NDArray[Any]) -> NDArray[Any]:
    """`pixels` (H, W) or (H, W, 3) with the image's alpha, if any, as the last sample: (H, W[, S])."""
    if image.alpha is None:
        return np.ascontiguousarray(pixels)
    return np.dstack([pixels, image.alpha])


def split_alpha(samples: NDArray[Any], *, alpha: bool) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """(H, W, S) into pixels, (H, W) or (H, W, 3), and the last sample as alpha if there is one."""
    if not alpha:
        return (samples[..., 0] if samples.shape[2] == 1 else samples), None
    colour = samples[..., 0] if samples.shape[2] == 2 else samples[..., :-1]
    return np.ascontiguousarray(colour), np.ascontiguousarray(samples[..., -1])
