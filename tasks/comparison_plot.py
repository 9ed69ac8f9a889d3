"""Quality against time, as a scatter plot in SVG's pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tasks.comparison_summary import Line

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
    """The points of the methods that none beats in both, as an SVG path of steps: better for more time; empty of one."""
    path: list[str] = []
    best = math.inf
    for _, x, y in sorted(at, key=lambda point: (point[1], point[2])):
        if y < best:
            path.append(f"M {x} {y}" if not path else f"H {x} V {y}")
            best = y
    return " ".join(path) if len(path) > 1 else ""


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
