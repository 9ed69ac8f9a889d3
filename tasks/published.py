"""Published figures that a comparison may stand beside: PSNR in dB, means over the 24 Kodak images."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """Figures of one method by one protocol; `clipped` says whether Gaussian noise was."""

    title: str
    crop: int | None
    clipped: bool
    psnr_db: dict[str, float]


_ZS_N2N = {"gauss:25": 29.07, "gauss:50": 24.81, "poisson:50": 29.45}
_ZS_N2N_FULL = {
    "gauss:15": 32.30,
    "gauss:25": 29.54,
    "gauss:50": 25.82,
    "poisson:15": 26.80,
    "poisson:25": 28.21,
    "poisson:50": 30.13,
}

FIGURES = (
    Published("published: ZS-N2N (Mansour and Heckel, CVPR 2023, as later papers quote it)", 256, True, _ZS_N2N),
    Published("published: ZS-N2N, best iterate (ZS-NCD's comparison)", None, False, _ZS_N2N_FULL),
    Published("published: BM3D per channel, told σ (ZS-NCD's comparison)", None, False, {"gauss:25": 29.98}),
    Published("published: CBM3D, told σ (ZS-NCD's comparison)", None, False, {"gauss:25": 31.82}),
    Published("published: ZS-NCD", None, False, {"gauss:25": 30.60}),
)


def beside(
    sources: Sequence[str],
    shapes: Sequence[Sequence[int]],
    noises: Sequence[str],
    *,
    crop: int | None,
    clips: Callable[[str], bool],
) -> dict[str, dict[str, float]]:
    """The figures of these images, crop, noises and clipping, by title; none for other images than Kodak's 24."""
    numbers = sorted(
        int(number[1]) for name in sources if (number := re.fullmatch(r"(?:kodim|kodak)?(\d\d)\.png", name))
    )
    whole = all(sorted(shape) == [3, 512, 768] for shape in shapes)
    if numbers != list(range(1, 25)) or len(sources) != 24 or not whole:
        return {}
    found = {}
    for figures in FIGURES:
        values = {
            noise: figures.psnr_db[noise]
            for noise in noises
            if noise in figures.psnr_db and clips(noise) == (figures.clipped and noise.startswith("gauss:"))
        }
        if values and figures.crop == crop:
            found[figures.title] = values
    return found
