"""Crops of a comparison side by side: a few images, each at every noise, by every method; and all of them in one PNG."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from denoise_core.images import cropped, decode
from tasks.arrangement import arrange
from tasks.comparison_summary import noise_name
from tasks.faults import sentence
from tasks.intensities import Intensities
from tasks.report import noise_again
from tasks.report_page import as_png, display_range
from tasks.table import DONE, Row, name_of
from tasks.work import read_below

SIDE = 112  # of a crop, pixels; shown at 2:1
ENLARGED = 2
MOST_IMAGES = 2  # on the sheet

Pixels = npt.NDArray[Any]


@dataclass(frozen=True)
class Strip:
    """Crops of one image at one noise: name, what is said of it, and a PNG of each."""

    source: str
    noise: str
    told: str
    views: list[tuple[str, str, bytes]]


def strips_of(
    rows: Sequence[Row], root: Path, config: Mapping[str, Any], candidates: Sequence[str], noises: Sequence[str]
) -> tuple[list[Strip], list[str]]:
    """Strips of a few images, the hardest and the middle one, each at every noise; in sentences, why there are others not."""
    done = [row for row in rows if row["status"] == DONE and row["seed"] == config.get("seed", 0)]
    found, unseen = [], []
    for source in _chosen(done):
        for noise in noises:
            mine = {row["candidate"]: row for row in done if row["source"] == source and row["noise"] == noise}
            try:
                strip = _strip(source, noise, [mine[name] for name in candidates if name in mine], root, config)
            except Exception as error:  # noqa: BLE001 - a picture is an extra: what keeps it from being shown must not cost the page
                unseen.append(f"Crops of {source} at {noise_name(noise)} are not shown: {sentence(error)}")
                continue
            if strip is not None:
                found.append(strip)
    return found, unseen


def _chosen(done: Sequence[Row]) -> list[str]:
    """The image with the lowest mean PSNR and the one in the middle, of those that most cells have done."""
    scores: dict[str, list[float]] = {}
    for row in done:
        if row["psnr_denoised_db"] is not None:
            scores.setdefault(row["source"], []).append(row["psnr_denoised_db"])
    most = max(map(len, scores.values()), default=0)
    ranked = sorted((name for name in scores if len(scores[name]) == most), key=lambda n: (sum(scores[n]), n))
    return list(dict.fromkeys([*ranked[:1], *ranked[len(ranked) // 2 :][:1]]))[:MOST_IMAGES]


def _strip(source: str, noise: str, rows: Sequence[Row], root: Path, config: Mapping[str, Any]) -> Strip | None:
    if not rows:
        return None
    most = int(float(config.get("max_megapixels", 500.0)) * 1e6)
    image = cropped(decode(read_below(Path(config["input"]), name_of(source)), max_pixels=most), config.get("crop"))
    arrangement = arrange(image.header)
    intensities, unit = Intensities.of(image.pixels, arrangement, clean=noise != "none")
    if noise == "none":
        other = decode(read_below(Path(config["reference"]), name_of(source)), max_pixels=most)
        clean, noisy = intensities.unit(cropped(other, config.get("crop")).pixels), unit
    else:
        clean, noisy = unit, noise_again(intensities, unit, rows[0], clip=rows[0]["clip_noise"])
    named = [("clean", "", intensities.of_file(clean)), ("noisy", _score(rows[0], "noisy"), intensities.of_file(noisy))]
    for row in rows:
        pixels = decode((root / name_of(row["output"])).read_bytes(), max_pixels=most).pixels
        named.append((row["candidate"], _score(row, "denoised"), arrangement.planes(pixels)))
    middle = arrangement.stacks // 2 * arrangement.frames + arrangement.frames // 2
    own = intensities.own
    full = 1.0 if own is None else own.high
    flat = [(name, told, _plane(arrangement.seen(planes[middle], full))) for name, told, planes in named]
    top, left = most_detailed(flat[0][2], SIDE)
    cut = [(name, told, pixels[top : top + SIDE, left : left + SIDE]) for name, told, pixels in flat]
    low, high, display = display_range(cut[1][2], None if own is None else (own.low, own.high))
    height, width = cut[0][2].shape[:2]
    told = f"{width} × {height} pixels from ({left}, {top}), where the image has most detail; {display}"
    return Strip(source, noise, told, [(name, score, as_png(part, low, high)) for name, score, part in cut])


def _score(row: Row, which: str) -> str:
    value = row[f"psnr_{which}_db"]
    return "" if value is None else f"{value:.2f} dB"


def _plane(plane: Pixels) -> npt.NDArray[np.float64]:
    """(H, W, C) as (H, W) or (H, W, 3)."""
    return (plane if plane.shape[2] == 3 else plane.mean(axis=2)).astype(np.float64)


def most_detailed(image: npt.NDArray[np.float64], side: int) -> tuple[int, int]:
    """Row and column of the side × side window of an image (H, W) or (H, W, C) with the largest mean gradient."""
    grey = image if image.ndim == 2 else image.mean(axis=2)
    height, width = grey.shape
    down, along = np.gradient(grey) if min(grey.shape) > 1 else (np.zeros_like(grey), np.zeros_like(grey))
    sums = np.zeros((height + 1, width + 1))
    sums[1:, 1:] = np.hypot(down, along).cumsum(axis=0).cumsum(axis=1)
    h, w = min(side, height), min(side, width)
    totals = sums[h:, w:] - sums[:-h, w:] - sums[h:, :-w] + sums[:-h, :-w]
    top, left = np.unravel_index(int(np.argmax(totals)), totals.shape)
    return int(top), int(left)


GAP, HEAD, LINE = 8, 26, 20


def sheet(strips: Sequence[Strip]) -> bytes:
    """All strips in one PNG, 2:1, each crop with its method and its PSNR above it."""
    from PIL import Image as Picture
    from PIL import ImageDraw, ImageFont

    tiles = [[Picture.open(io.BytesIO(png)).convert("RGB") for _, _, png in strip.views] for strip in strips]
    sizes = [(row[0].width * ENLARGED, row[0].height * ENLARGED) for row in tiles]
    title, small = (ImageFont.load_default(size) for size in (17, 14))
    steps = [
        GAP + max(size[0], *(math.ceil(small.getlength(text)) for *texts, _ in strip.views for text in texts))
        for strip, size in zip(strips, sizes, strict=True)
    ]
    wide = max(GAP + len(row) * step for row, step in zip(tiles, steps, strict=True))
    tall = GAP + sum(HEAD + 2 * LINE + size[1] + GAP for size in sizes)
    picture = Picture.new("RGB", (wide, tall), "white")
    draw = ImageDraw.Draw(picture)
    y = GAP
    for strip, row, (w, h), step in zip(strips, tiles, sizes, steps, strict=True):
        head = f"{strip.source}  {noise_name(strip.noise)}"
        draw.text((GAP, y), head.encode("latin-1", "backslashreplace").decode("latin-1"), "black", title)
        x = GAP
        for tile, (name, score, _) in zip(row, strip.views, strict=True):
            draw.text((x, y + HEAD), name, "black", small)
            draw.text((x, y + HEAD + LINE - 3), score, "#555555", small)
            picture.paste(tile.resize((w, h), Picture.Resampling.NEAREST), (x, y + HEAD + 2 * LINE))
            x += step
        y += HEAD + 2 * LINE + h + GAP
    out = io.BytesIO()
    picture.save(out, "PNG", optimize=True)
    return out.getvalue()
