"""The report: one self-contained HTML page out of the results table and a few comparison strips."""

import base64
import datetime
import functools
import hashlib
import io
import math
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

Row = Mapping[str, Any]

MAX_TABLE_ROWS = 5_000
MAX_FAILURES_LISTED = 500
MAX_FAILURES_OPEN = 12  # of one reason; the rest of it stands folded

NO_VALUE = "–"


@dataclass(frozen=True)
class Panel:
    """One image's comparison strip: PNG files of equal size, 8-bit, grey or RGB.

    `display` states the crop and the display range; `why` says why this image is shown ("worst by PSNR", "sample").
    """

    source: str
    caption: str
    display: str
    noisy_png: bytes
    denoised_png: bytes
    residual_png: bytes
    clean_png: bytes | None
    why: str
    original_png: bytes | None = None  # of a stylized image: what it was painted from
    only_painted: bool = False  # no noise was added and none taken away


# --- comparison strips ---


def _as_shown(image: npt.NDArray[Any], crop: int) -> npt.NDArray[np.float64]:
    """(H, W) or (H, W, C) → centre crop (h, w) or (h, w, 3), float64, in the file's units."""
    H, W = image.shape[:2]
    h, w = min(crop, H), min(crop, W)
    top, left = (H - h) // 2, (W - w) // 2
    x = image[top : top + h, left : left + w].astype(np.float64)
    if x.ndim == 3 and x.shape[2] != 3:
        x = x.mean(axis=2)
    return x


def as_png(x: npt.NDArray[np.float64], low: float, high: float) -> bytes:
    """A PNG of 8 bits of an image (H, W) or (H, W, 3), ``low`` black and ``high`` white; NaN is black."""
    from PIL import Image

    grey = np.nan_to_num((x - low) / (high - low), nan=0.0, posinf=1.0, neginf=0.0)
    buffer = io.BytesIO()
    Image.fromarray(np.rint(np.clip(grey, 0, 1) * 255).astype(np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()


def display_range(noisy: npt.NDArray[np.float64], limits: tuple[float, float] | None) -> tuple[float, float, str]:
    """What to show as black and as white of a noisy image in the file's units, and that in words; `limits` of its type."""
    if limits is not None and limits[1] - limits[0] == 255:
        return *limits, f"display {limits[0]:.0f} … {limits[1]:.0f}"
    least, most = limits or (-math.inf, math.inf)
    finite = noisy[np.isfinite(noisy)]
    if finite.size == 0:
        least, most = limits or (0.0, 1.0)
        return least, most, f"display {_significant(least)} … {_significant(most)}, no finite value"
    # Added noise reaches past what the file can hold; that much of it is not shown, for the sake of the contrast.
    low, high = (min(max(float(v), least), most) for v in np.percentile(finite, [0.1, 99.9]))
    if high <= low:
        half = (most - least) / 510 if limits else max(abs(low), 1.0) / 510
        low, high = low - half, low + half
    return low, high, f"display {_significant(low)} … {_significant(high)} (0.1 to 99.9 % of the noisy crop)"


def _residual_limit(residual: npt.NDArray[np.float64], least: float) -> float:
    """The 99.5 % point of |residual|, rounded up to a readable number, at least `least`."""
    finite = np.abs(residual[np.isfinite(residual)])
    limit = float(np.percentile(finite, 99.5)) if finite.size else 0.0
    if limit <= least:
        return least
    unit = 10.0 ** math.floor(math.log10(limit))
    return next(m * unit for m in (1, 1.5, 2, 2.5, 3, 4, 5, 6, 7.5, 10) if limit <= m * unit * (1 + 1e-9))


def make_panel(
    source: str,
    noisy: npt.NDArray[Any],
    denoised: npt.NDArray[Any],
    *,
    clean: npt.NDArray[Any] | None,
    limits: tuple[float, float] | None,
    why: str,
    caption: str,
    crop: int = 256,
    original: npt.NDArray[Any] | None = None,
    only_painted: bool = False,
) -> Panel:
    """Cut the middle of an image and encode it noisy, denoised, residual (noisy − denoised) and, where known, clean.

    Noisy, denoised and clean share one display range: the `limits` of bytes, else the 0.1 to 99.9 % of the
    noisy crop, within the limits. The residual has its own, symmetric around mid-grey. `display` states both.

    Parameters
    ----------
    source
        The image's name, as in the results table.
    noisy, denoised, clean, original
        (H, W) or (H, W, C), integers or floats, in the file's own units. With C other than 1 and 3 the mean over the
        channels is shown. NaN is shown as the display's lower end.
    limits
        The range of the file's type, (0, 65535); None for floats and what else seldom fills it.
    why, caption
        Why this image is shown; what is to be said of it.
    crop
        Side of the crop in pixels.
    original, only_painted
        Of a stylized image, what it was painted from; and whether nothing else was done to it.

    Raises
    ------
    ValueError
        The arrays differ in shape, are empty, or are not (H, W) or (H, W, C).
    """
    for name, image in (("denoised", denoised), ("clean", clean), ("original", original)):
        if image is not None and image.shape != noisy.shape:
            raise ValueError(
                f"{source}: the {name} image has shape {image.shape} and the noisy one {noisy.shape}. "
                "A comparison needs equal shapes."
            )
    if noisy.ndim not in (2, 3) or noisy.size == 0:
        raise ValueError(f"{source}: an image of shape {noisy.shape} cannot be shown; (H, W) or (H, W, C) is needed.")
    y, f = _as_shown(noisy, crop), _as_shown(denoised, crop)
    low, high, stated = display_range(y, limits)
    with np.errstate(invalid="ignore"):  # ∞ − ∞
        residual = y - f
    limit = _residual_limit(residual, 1.0 if limits else (high - low) * 1e-6)

    H, W = noisy.shape[:2]
    h, w = y.shape[:2]
    parts = [f"whole image, {W} × {H} px" if (h, w) == (H, W) else f"middle {w} × {h} px of {W} × {H}"]
    if noisy.ndim == 3 and noisy.shape[2] not in (1, 3):
        parts.append(f"mean of {noisy.shape[2]} channels")
    parts.append(f"{stated}, residual ±{_significant(limit)} around grey")
    return Panel(
        source=source,
        caption=caption,
        display="; ".join(parts),
        noisy_png=as_png(y, low, high),
        denoised_png=as_png(f, low, high),
        residual_png=as_png(residual, -limit, limit),
        clean_png=None if clean is None else as_png(_as_shown(clean, crop), low, high),
        why=why,
        original_png=None if original is None else as_png(_as_shown(original, crop), low, high),
        only_painted=only_painted,
    )


# --- text ---

# Joiner and variation selectors make emoji; every other invisible or direction-changing character is spelt out.
_HARMLESS = {"\u200d", "\ufe0e", "\ufe0f"}


def _visible(text: str) -> str:
    """Text that shows what it holds: control, bidirectional and undecodable characters as escapes."""
    if text.isprintable():
        return text
    return "".join(
        c.encode("unicode_escape").decode()
        if unicodedata.category(c) in {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"} and c not in _HARMLESS
        else c
        for c in text
    )


def _finalize(value: object) -> object:
    return value if isinstance(value, Markup) else _visible(str(value))


def _breakable(text: str) -> Markup:
    """A path that may break after its separators, rather than anywhere."""
    return Markup("<wbr>").join(_visible(part) for part in re.split(r"(?<=[/_-])", text))


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        return None
    return float(value) if math.isfinite(value) else None


def _fixed(digits: int) -> Callable[[float], str]:
    return lambda v: f"{v:,.{digits}f}".replace("-", "−")


def _four_digits(value: float) -> str:
    """Four significant digits, and whole numbers above that: 0.01234, 12.30, 41,237."""
    if value == 0:
        return "0"
    if abs(value) < 1e-6 or abs(value) >= 1e9:
        return f"{value:.2e}".replace("-", "−")
    return _fixed(max(0, 3 - math.floor(math.log10(abs(value)))))(value)


def _significant(value: float) -> str:
    text = _four_digits(value)
    return text.rstrip("0").rstrip(".") if "." in text else text


def _percent(value: float) -> str:
    return "0" if value == 0 else "< 0.01" if 0 < value < 1e-4 else f"{100 * value:.2f}"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours} h {m:02d} min" if hours else f"{m} min {s:02d} s"


# --- the table ---


@dataclass(frozen=True)
class _Shown:
    """How a column of the results table is shown: a text column where `text` is None."""

    name: str
    label: str
    text: Callable[[float], str] | None = None
    fold: bool = False  # said once above the table when every row has the same


_SHOWN = (
    _Shown("source", "Image"),
    _Shown("status", "Status"),
    _Shown("axes", "Axes", fold=True),
    _Shown("shape", "Shape"),
    _Shown("dtype", "Type", fold=True),
    _Shown("method", "Method", fold=True),
    _Shown("preset", "Preset", fold=True),
    _Shown("scope", "Scope", fold=True),
    _Shown("style", "Painted after", fold=True),
    _Shown("denoised_as", "Denoised as", fold=True),
    _Shown("noise", "Noise added", fold=True),
    _Shown("noise_drawn", "Level drawn"),
    _Shown("device", "Device", fold=True),
    _Shown("psnr_noisy_db", "PSNR noisy (dB)", _fixed(2)),
    _Shown("psnr_denoised_db", "PSNR denoised (dB)", _fixed(2)),
    _Shown("ssim_noisy", "SSIM noisy", _fixed(3)),
    _Shown("ssim_denoised", "SSIM denoised", _fixed(3)),
    _Shown("sigma_estimate", "σ estimate", _four_digits),
    _Shown("residual_autocorrelation", "Residual autocorr.", _fixed(3)),
    _Shown("mean_noisy", "Mean noisy", _four_digits),
    _Shown("mean_denoised", "Mean denoised", _four_digits),
    _Shown("clipped_fraction", "Clipped (%)", _percent),
    _Shown("flags", "Look at"),
    _Shown("seconds", "Time (s)", _fixed(1)),
    _Shown("note", "Note"),
)


def _missing(value: object) -> bool:
    return value is None or (isinstance(value, float | np.floating) and not math.isfinite(value)) or value == ""


def _text(value: object) -> str:
    if isinstance(value, list | tuple | np.ndarray):
        return " × ".join(str(v) for v in value)
    return str(value)


def _cell(shown: _Shown, row: Row) -> dict[str, str]:
    """One cell: its text, the key it is sorted by (empty: no value), and its kind."""
    value = row.get(shown.name)
    if _missing(value):
        return {"text": NO_VALUE, "key": "", "kind": "none"}
    number = _number(value) if shown.text else None
    if shown.text and number is not None:
        return {"text": shown.text(number), "key": repr(number), "kind": "number"}
    return {"text": _text(value), "key": "", "kind": "name" if shown.name == "source" else "text"}


def _table(rows: Sequence[Row], columns: Sequence[tuple[str, str]]) -> dict[str, Any]:
    described = dict(columns)
    one_level = all(_missing(r.get("noise_drawn")) or r.get("noise_drawn") == r.get("noise") for r in rows)
    offered = [s for s in _SHOWN if s.name in described and not (s.name == "noise_drawn" and one_level)]
    values = {s.name: {_text(r[s.name]) for r in rows if not _missing(r.get(s.name))} for s in offered}
    empty = [s for s in offered if rows and not values[s.name]]
    folded = [s for s in offered if s.fold and len(rows) > 1 and len(values[s.name]) == 1]
    shown = [s for s in offered if s not in empty and s not in folded]

    chosen = list(rows)
    if len(rows) > MAX_TABLE_ROWS:
        # The rows that need a look: failures, then the lowest scores. They keep the table's own order.
        def need(i: int) -> tuple[int, float]:
            rank = {"failed": 0, "done": 1}.get(str(rows[i].get("status")), 2)
            psnr = _number(rows[i].get("psnr_denoised_db"))
            return rank, math.inf if psnr is None else psnr

        chosen = [rows[i] for i in sorted(sorted(range(len(rows)), key=need)[:MAX_TABLE_ROWS])]
    return {
        "columns": [{"label": s.label, "description": described[s.name], "numeric": s.text is not None} for s in shown],
        "rows": [{"status": str(r.get("status")), "cells": [_cell(s, r) for s in shown]} for r in chosen],
        "total": len(rows),
        "folded": [(s.label, next(iter(values[s.name]))) for s in folded],
        "empty": [s.label for s in empty if s.text] if any(r.get("status") == "done" for r in rows) else [],
    }


# --- the page ---


def _why(row: Row, name: str, otherwise: str) -> str:
    value = row.get(name)
    return otherwise if _missing(value) else " ".join(str(value).split())


def _failures(rows: Sequence[Row]) -> dict[str, Any]:
    """Failed rows by reason, the commonest first; per reason a few in the open and the rest folded."""
    failed = [r for r in rows if r.get("status") == "failed"]
    groups: dict[str, list[tuple[str, str]]] = {}
    for row in failed:
        item = (str(row.get("source")), _why(row, "error", "No sentence was recorded."))
        groups.setdefault(_why(row, "error_type", "no reason recorded"), []).append(item)
    room = MAX_FAILURES_LISTED
    listed = []
    for reason, items in sorted(groups.items(), key=lambda group: (-len(group[1]), group[0])):
        # Every reason gets its examples, however many files share the commonest one.
        shown = items[: max(room, MAX_FAILURES_OPEN)]
        room -= len(shown)
        listed.append(
            {
                "reason": reason,
                "count": len(items),
                "open": shown[:MAX_FAILURES_OPEN],
                "folded": shown[MAX_FAILURES_OPEN:],
                "unlisted": len(items) - len(shown),
            }
        )
    return {"total": len(failed), "groups": listed}


def _skipped(rows: Sequence[Row]) -> dict[str, Any]:
    skipped = [(str(r.get("source")), _why(r, "error", "")) for r in rows if r.get("status") == "skipped"]
    return {"total": len(skipped), "listed": skipped[:MAX_FAILURES_LISTED]}


def _mean_pair(rows: Sequence[Row], before: str, after: str) -> tuple[float, float, int] | None:
    pairs = [
        (b, a) for r in rows if (b := _number(r.get(before))) is not None and (a := _number(r.get(after))) is not None
    ]
    if not pairs:
        return None
    return sum(b for b, _ in pairs) / len(pairs), sum(a for _, a in pairs) / len(pairs), len(pairs)


def _figures(rows: Sequence[Row], wall_seconds: float | None) -> list[dict[str, str]]:
    """The counts on top: label, value, a note under it, and a tone."""
    count = {s: sum(r.get("status") == s for r in rows) for s in ("done", "failed", "skipped")}
    figures = [
        {"label": "Images", "value": f"{len(rows):,}", "note": "", "tone": ""},
        {"label": "Done", "value": f"{count['done']:,}", "note": "", "tone": "done" if count["done"] else ""},
        {"label": "Failed", "value": f"{count['failed']:,}", "note": "", "tone": "failed" if count["failed"] else ""},
        {"label": "Skipped", "value": f"{count['skipped']:,}", "note": "", "tone": ""},
    ]
    spent = [s for r in rows if r.get("status") == "done" and (s := _number(r.get("seconds"))) is not None]
    each = f"median {_duration(float(np.median(spent)))} an image" if spent else ""
    if wall_seconds is not None:
        figures.append({"label": "Time", "value": _duration(wall_seconds), "note": each, "tone": ""})
    elif spent:
        figures.append({"label": "Time, all images", "value": _duration(sum(spent)), "note": each, "tone": ""})
    if psnr := _mean_pair(rows, "psnr_noisy_db", "psnr_denoised_db"):
        b, a, n = psnr
        gain = f"{a - b:+.2f} dB, {n:,} image{'s' * (n != 1)}".replace("-", "−")
        figures.append({"label": "Mean PSNR", "value": f"{b:.2f} → {a:.2f} dB", "note": gain, "tone": "wide"})
    if ssim := _mean_pair(rows, "ssim_noisy", "ssim_denoised"):
        b, a, n = ssim
        figures.append({"label": "Mean SSIM", "value": f"{b:.3f} → {a:.3f}", "note": "", "tone": "wide"})
    return figures


def _run_line(rows: Sequence[Row], config: Mapping[str, str]) -> str:
    """What was run, in one line: from the configuration, else from what the rows agree on."""
    parts = []
    for name in ("method", "preset", "scope", "noise", "seed", "device"):
        values = {str(r[name]) for r in rows if not _missing(r.get(name))}
        value = values.pop() if len(values) == 1 else config.get(name, "")
        if value and value != "none":
            parts.append(value if name == "method" else f"{name} {value}")
    return " · ".join(parts)


def _date_line(rows: Sequence[Row]) -> str:
    dates = [r["created_at"] for r in rows if not _missing(r.get("created_at"))]
    if not dates:
        return ""
    latest = max(dates, key=str)
    try:
        when = datetime.datetime.fromisoformat(str(latest))
    except ValueError:
        return f"last row {latest}"
    return f"last row {when:%Y-%m-%d %H:%M %Z}".rstrip()


def data_uri(png: bytes) -> str:
    """A PNG as an address that holds it."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def _picture(panel: Panel) -> dict[str, Any]:
    views = [("noisy", panel.noisy_png), ("denoised", panel.denoised_png), ("residual", panel.residual_png)]
    if panel.only_painted:
        views = [("stylized", panel.denoised_png)]
    if panel.clean_png is not None:
        views.append(("clean" if panel.original_png is None else "stylized", panel.clean_png))
    if panel.original_png is not None:
        views.append(("original", panel.original_png))
    return {
        "source": panel.source,
        "caption": panel.caption,
        "display": panel.display,
        "why": panel.why,
        # Width and height stand in a PNG's header, at bytes 16 to 24: with them the page does not jump as it loads.
        "size": (int.from_bytes(panel.noisy_png[16:20]), int.from_bytes(panel.noisy_png[20:24])),
        "views": [(name, data_uri(png)) for name, png in views],
    }


def _csp_hash(source: str) -> Markup:
    digest = base64.b64encode(hashlib.sha256(str(source).encode()).digest()).decode("ascii")
    return Markup("'sha256-{}'").format(digest)


@functools.cache
def template(name: str) -> Template:
    """A template beside this module, whose text is all escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["csp_hash"] = _csp_hash
    environment.filters["breakable"] = _breakable
    return environment.get_template(name)


def render_page(
    *,
    rows: list[dict[str, Any]],
    panels: list[Panel],
    provenance: dict[str, str],
    config: dict[str, str],
    columns: list[tuple[str, str]],
    title: str,
    wall_seconds: float | None = None,
) -> str:
    """Render the report as one self-contained HTML page, encodable as UTF-8 whatever the file names hold.

    The page loads nothing: its style, its script and its images are inside, and its Content-Security-Policy lets no
    other script, style or address in. All text is escaped; control characters in names are shown as escapes.

    Parameters
    ----------
    rows
        The results table, one dict an image; any value may be None. The page shows at most `MAX_TABLE_ROWS` of them,
        the failures and the lowest PSNR before others, and says so.
    panels
        The comparison strips, in the order in which they are shown.
    provenance, config
        Shown at the end as name and value: versions, seed, device, run; the run's options. Method, preset, scope,
        noise, seed and device of `config` also make the line under the title.
    columns
        (name, description) of the results table's columns. Those that the page knows how to show are shown, with the
        description as tooltip.
    title
        The page's title and heading.
    wall_seconds
        How long the run took; without it the sum over the images is given instead.
    """
    return template("report.html.j2").render(
        title=title,
        run_line=_run_line(rows, config),
        date_line=_date_line(rows),
        figures=_figures(rows, wall_seconds),
        failures=_failures(rows),
        skipped=_skipped(rows),
        table=_table(rows, columns),
        max_rows=f"{MAX_TABLE_ROWS:,}",
        panels=[_picture(panel) for panel in panels],
        provenance=provenance,
        config=config,
    )
