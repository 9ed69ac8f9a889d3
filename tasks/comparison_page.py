"""The page of a comparison: its figures by noise, quality against time, crops side by side, and the protocol."""

from __future__ import annotations

import io
import json
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from denoise_core.images import cropped, decode, write_atomic
from tasks import comparison
from tasks.arrangement import arrange
from tasks.comparison import NOISY, Line
from tasks.intensities import Intensities
from tasks.report import noise_again
from tasks.report_page import as_png, data_uri, display_range, template
from tasks.table import DONE, FAILED, Row
from tasks.work import read_below

PAGE, SHEET = "comparison.html", "sheet.png"

SIDE = 112  # of a crop, pixels; shown at 2:1
ENLARGED = 2
MOST_IMAGES = 2  # on the sheet
MOST_FAILURES = 100

Pixels = npt.NDArray[Any]


def write_summary(root: Path) -> tuple[list[Line], str]:
    """Write everything that is made from ``comparison.parquet``: the summary, the page, the sheet and the protocol.

    Returns the summary's lines, and it as Markdown.

    Raises:
        FileNotFoundError: there is no comparison in ``root``.
        DenoiseError: what is there is none of this version.
    """
    rows, provenance = comparison.read(root / comparison.TABLE)
    config: dict[str, Any] = tomllib.loads(provenance.get("config", ""))
    protocol: dict[str, Any] = json.loads(provenance.get("protocol") or "{}")
    candidates, against = protocol["methods"], protocol["against"]
    noises = [one["noise"] for one in protocol["noise"]]
    lines, left_out = comparison.summarise(rows, candidates=candidates, noises=noises, against=against)
    notes = list(protocol["notes"])
    if left_out:
        notes.append(f"{left_out} images and seeds are left out of the means: not every method has done them.")
    published = protocol["published"]
    markdown = comparison.to_markdown(lines, published=published, notes=notes, against=against)
    comparison.write_texts(root, lines, markdown, protocol)
    strips = _strips(rows, root, config, candidates, noises)
    if strips:
        write_atomic(root / SHEET, _sheet(strips))
    counted = (f"{len(candidates)} methods", f"{len(noises)} kinds of noise", f"{protocol['images']} images")
    page = template("comparison.html.j2").render(
        title=f"Compared: {Path(str(config['input'])).name}",
        run_line=" · ".join((*counted, protocol["software"])),
        failures=[row for row in rows if row["status"] == FAILED][:MOST_FAILURES],
        failed=sum(row["status"] == FAILED for row in rows),
        noises=[_noise_section(noise, lines, candidates, published) for noise in noises],
        against=against,
        strips=[_shown(strip) for strip in strips],
        enlarged=ENLARGED,
        notes=notes,
        protocol={key: _plain(value) for key, value in protocol.items() if key not in {"notes", "published"}},
    )
    write_atomic(root / PAGE, page.encode("utf-8", "replace"))
    return lines, markdown


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{key} {one}" for key, one in value.items())
    if isinstance(value, list):
        return ", ".join(_plain(one) if isinstance(one, dict) else str(one) for one in value)
    return "–" if value is None else str(value)


def _noise_section(
    noise: str, lines: Sequence[Line], candidates: Sequence[str], published: Mapping[str, Mapping[str, float]]
) -> dict[str, Any]:
    here = [line for line in lines if line.noise == noise]
    ranked = sorted(here, key=lambda line: (line.candidate != NOISY, line.rank or math.inf))
    return {
        "noise": noise,
        "rows": [(line.rank, comparison.detail(line)) for line in ranked],
        "published": [(title, f"{values[noise]:.2f}") for title, values in published.items() if noise in values],
        "plot": plot(here, candidates),
    }


# --- quality against time ---

WIDTH, HEIGHT = 560, 340
LEFT, RIGHT, TOP, BOTTOM = 52, 16, 16, 44
COLOURS = ("#1f77b4", "#d95f02", "#2ca02c", "#c2185b", "#7b52ab", "#8c6d31", "#0097a7", "#6b7280", "#b8860b", "#5c6bc0")


@dataclass(frozen=True)
class Plot:
    """A scatter plot in pixels: points with their labels, ticks of both axes, and the line of the best."""

    points: list[dict[str, Any]]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    front: str


def plot(lines: Sequence[Line], candidates: Sequence[str]) -> Plot | None:
    """Mean PSNR against seconds an image, these on a logarithmic scale; None where nothing has both."""
    told = [(line.candidate, line.seconds, line.psnr_db) for line in lines]
    known = [(name, seconds, psnr) for name, seconds, psnr in told if psnr is not None and seconds]
    if not known:
        return None
    xs, ys = [math.log10(seconds) for _, seconds, _ in known], [psnr for _, _, psnr in known]
    x_low, x_high = _widened(min(xs), max(xs), 0.5, 0.12)
    y_low, y_high = _widened(min(ys), max(ys), 0.5, 0.12)

    def x_of(seconds: float) -> float:
        return round(LEFT + (math.log10(seconds) - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT), 1)

    def y_of(psnr: float) -> float:
        return round(TOP + (y_high - psnr) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM), 1)

    at = [(name, x_of(seconds), y_of(psnr)) for name, seconds, psnr in known]
    labels = _labels(at)
    points = [
        {
            "x": x,
            "y": y,
            "name": name,
            "colour": COLOURS[candidates.index(name) % len(COLOURS)],
            "label": labels[name],
            "title": f"{name}: {psnr:.2f} dB, {seconds:.3g} s an image",
        }
        for (name, x, y), (_, seconds, psnr) in zip(at, known, strict=True)
    ]
    decades = range(math.floor(x_low), math.ceil(x_high) + 1)
    steps = (1, 2, 5) if x_high - x_low < 2.5 else (1,)
    x_ticks = [m * 10.0**k for k in decades for m in steps if x_low <= math.log10(m * 10.0**k) <= x_high]
    step = next(s for s in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50) if (y_high - y_low) / s <= 7)
    y_ticks = [n * step for n in range(math.ceil(y_low / step), math.floor(y_high / step) + 1)]
    return Plot(
        points,
        [(x_of(tick), f"{tick:g}") for tick in x_ticks],
        [(y_of(tick), f"{tick:.1f}" if step < 1 else f"{tick:.0f}") for tick in y_ticks],
        _front(at),
    )


def _widened(low: float, high: float, least: float, share: float) -> tuple[float, float]:
    middle, half = (low + high) / 2, max(high - low, least) / 2
    return middle - half * (1 + 2 * share), middle + half * (1 + 2 * share)


def _front(at: Sequence[tuple[str, float, float]]) -> str:
    """The points of the methods that none beats in both, as an SVG path of steps: better for more time."""
    path: list[str] = []
    best = math.inf
    for _, x, y in sorted(at, key=lambda point: (point[1], point[2])):
        if y < best:
            path.append(f"M {x} {y}" if not path else f"H {x} V {y}")
            best = y
    return " ".join(path)


def _labels(at: Sequence[tuple[str, float, float]]) -> dict[str, dict[str, Any]]:
    """Where each name stands: beside its point, moved up or down until it covers no other name and no point."""
    taken = [(x - 6, y - 6, x + 6, y + 6) for _, x, y in at]
    placed = {}
    for name, x, y in sorted(at, key=lambda point: point[2]):
        wide = 7.0 * len(name)
        options = []
        for away in (0, 13, -13, 26, -26, 39, -39, 52, -52):
            for side in (1, -1):
                left = x + 9 if side > 0 else x - 9 - wide
                box = (left, y + away - 7, left + wide, y + away + 7)
                inside = box[0] >= LEFT and box[2] <= WIDTH and box[1] >= 0 and box[3] <= HEIGHT - BOTTOM
                options.append((side, away, box, inside))
        free = [option for option in options if option[3] and not any(_cover(option[2], other) for other in taken)]
        side, away, box, _ = (free or options)[0]
        taken.append(box)
        placed[name] = {
            "x": x + 9 * side,
            "y": y + away + 4,
            "anchor": "start" if side > 0 else "end",
            "away": bool(away),
        }
    return placed


def _cover(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


# --- crops side by side ---


@dataclass(frozen=True)
class Strip:
    """Crops of one image at one noise: name, what is said of it, and a PNG of each."""

    source: str
    noise: str
    told: str
    views: list[tuple[str, str, bytes]]


def _strips(
    rows: Sequence[Row], root: Path, config: Mapping[str, Any], candidates: Sequence[str], noises: Sequence[str]
) -> list[Strip]:
    """Strips of a few images, the hardest and the middle one, each at every noise."""
    done = [row for row in rows if row["status"] == DONE and row["seed"] == config.get("seed", 0)]
    found = []
    for source in _chosen(done):
        for noise in noises:
            mine = {row["candidate"]: row for row in done if row["source"] == source and row["noise"] == noise}
            try:
                strip = _strip(source, noise, [mine[name] for name in candidates if name in mine], root, config)
            except Exception:  # noqa: BLE001, S112 - a picture is an extra: what keeps it from being shown must not cost the page
                continue
            if strip is not None:
                found.append(strip)
    return found


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
    image = cropped(decode(read_below(Path(config["input"]), source), max_pixels=most), config.get("crop"))
    arrangement = arrange(image.header)
    intensities, unit = Intensities.of(image.pixels, arrangement, clean=noise != "none")
    if noise == "none":
        other = decode(read_below(Path(config["reference"]), source), max_pixels=most)
        clean, noisy = intensities.unit(cropped(other, config.get("crop")).pixels), unit
    else:
        clean, noisy = unit, noise_again(unit, rows[0], clip=rows[0]["clip_noise"])
    named = [("clean", "", intensities.of_file(clean)), ("noisy", _score(rows[0], "noisy"), intensities.of_file(noisy))]
    for row in rows:
        pixels = decode((root / row["output"]).read_bytes(), max_pixels=most).pixels
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


def _shown(strip: Strip) -> dict[str, Any]:
    width, height = _size(strip.views[0][2])
    return {
        "source": strip.source,
        "noise": strip.noise,
        "told": strip.told,
        "size": (width * ENLARGED, height * ENLARGED),
        "views": [(name, score, data_uri(png)) for name, score, png in strip.views],
    }


def _size(png: bytes) -> tuple[int, int]:
    return int.from_bytes(png[16:20]), int.from_bytes(png[20:24])  # they stand in a PNG's header


GAP, HEAD, LINE = 8, 26, 20


def _sheet(strips: Sequence[Strip]) -> bytes:
    """All strips in one PNG, 2:1, each crop with its method and its PSNR above it."""
    from PIL import Image as Picture
    from PIL import ImageDraw, ImageFont

    tiles = [[Picture.open(io.BytesIO(png)).convert("RGB") for _, _, png in strip.views] for strip in strips]
    sizes = [(row[0].width * ENLARGED, row[0].height * ENLARGED) for row in tiles]
    wide = max(GAP + len(row) * (size[0] + GAP) for row, size in zip(tiles, sizes, strict=True))
    tall = GAP + sum(HEAD + 2 * LINE + size[1] + GAP for size in sizes)
    sheet = Picture.new("RGB", (wide, tall), "white")
    draw = ImageDraw.Draw(sheet)
    title, small = (ImageFont.load_default(size) for size in (17, 14))
    y = GAP
    for strip, row, (w, h) in zip(strips, tiles, sizes, strict=True):
        draw.text(
            (GAP, y), f"{strip.source}  {_noise_name(strip.noise)}".encode("ascii", "replace").decode(), "black", title
        )
        x = GAP
        for tile, (name, score, _) in zip(row, strip.views, strict=True):
            draw.text((x, y + HEAD), name, "black", small)
            draw.text((x, y + HEAD + LINE - 3), score, "#555555", small)
            sheet.paste(tile.resize((w, h), Picture.Resampling.NEAREST), (x, y + HEAD + 2 * LINE))
            x += w + GAP
        y += HEAD + 2 * LINE + h + GAP
    out = io.BytesIO()
    sheet.save(out, "PNG", optimize=True)
    return out.getvalue()


def _noise_name(noise: str) -> str:
    return "" if noise == "none" else noise
