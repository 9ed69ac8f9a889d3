"""CMYK as RGB, for what paints: denoising leaves the inks what they are."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from denoise_core.images import jpeg, tiff
from denoise_core.images.levels import light, parts
from denoise_core.images.model import Image

NOTE = "the inks of CMYK: they became RGB"


def in_rgb(image: Image) -> Image:
    """A CMYK image as one in sRGB, of the same container, size and data type; any other image as it is.

    Colours are those that the file's own ICC profile gives the inks; without one that can be used, those of `light`. What the
    file says of its inks is left behind, the profile too, and of a TIFF all metadata but its orientation and alpha.
    """
    if not image.header.inks:
        return image
    module: Any = {"jpeg": jpeg, "tiff": tiff}[image.container]
    colours = _by_profile(image.pixels, module.profile(image))
    if colours is None:
        colours = _without_profile(image.pixels)
    recoloured: Image = module.recoloured(image, colours, NOTE)
    return recoloured


def _without_profile(inks: NDArray[Any]) -> NDArray[Any]:
    """Inks (..., 4) of integers as the light (..., 3) that they leave."""
    top = float(np.iinfo(inks.dtype).max)
    colours = np.empty((*inks.shape[:-1], 3), inks.dtype)
    for part in parts(inks):
        colours[part] = np.rint(light(inks[part], top))
    return colours


def _by_profile(inks: NDArray[Any], profile: bytes | None) -> NDArray[Any] | None:
    """Inks (..., 4) as sRGB (..., 3) by an ICC profile; None without one, and for one that is damaged or not of CMYK."""
    import imagecodecs

    if profile is None:
        return None
    flat = inks.reshape(1, -1, 4)
    try:
        seen = imagecodecs.cms_transform(
            flat, profile, imagecodecs.cms_profile("srgb"), colorspace="cmyk", outcolorspace="rgb"
        )
    except (RuntimeError, ValueError):
        return None
    return np.asarray(seen).reshape(*inks.shape[:-1], 3)
