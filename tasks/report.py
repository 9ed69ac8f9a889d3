"""The last step: the ledger becomes one table, and the table a page that a person reads."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL.Image
from prefect import task

from denoise_core import __version__, noise
from denoise_core.images import Image, cropped, decode, in_rgb, own_scale, write_atomic
from tasks import ledger, table
from tasks.arrangement import Arrangement, arrange, renamed
from tasks.blocks import LEAST_SAMPLES, middle_plane
from tasks.failures import by_reason
from tasks.faults import sentence
from tasks.intensities import Intensities
from tasks.outputs import lies_below
from tasks.report_page import Panel, make_panel, render_page
from tasks.scan import Scan
from tasks.settings import Settings
from tasks.steps import ONCE
from tasks.table import COLUMNS, DONE, FAILED, SKIPPED, Row, name_of
from tasks.work import read_below

RESULTS, PAGE = "results.parquet", "report.html"

WORST, SAMPLE = 4, 4
"""How many images the page shows of the worst, and of the others."""

_SAMPLE = "sample"
"""Why an image is shown that is none of the worst."""

GONE = "the source is no longer in the input"


@task(name="report", **{**ONCE, "task_run_name": "report"})
def report(settings: Settings, scan: Scan, faults: Sequence[BaseException], *, page: bool = True) -> list[Panel]:
    """Write ``results.parquet`` and, where asked for, ``report.html``; ``faults`` are those that failed a chunk.

    Returns:
        What the page shows of the worst images.
    """
    write_results(settings, scan, faults)
    return [panel for panel in _write_page(settings.output) if panel.why != _SAMPLE] if page else []


def write_results(settings: Settings, scan: Scan, faults: Sequence[BaseException] = ()) -> None:
    """One row an image of the input, the newest that any run has of it; and rows of images that have left the input."""
    rows = ledger.latest_rows(settings.output)
    present = {table.text(source.name) for source in scan.todo} | {row["source"] for row in scan.done}
    for name in list(rows):
        if name not in present:
            if rows[name]["status"] == DONE:
                rows[name] = rows[name] | {"note": "; ".join(filter(None, (rows[name].get("note"), GONE)))}
            else:
                del rows[name]
    for refused in [*scan.refused, *_lost(settings, scan, faults)]:
        row: Row = {
            "method": settings.method,
            "noise": settings.noise,
            "seed": settings.seed,
            "config_digest": settings.config_digest,
            "run_id": settings.run_id,
            "software_version": __version__,
            "created_at": table.now(),
        }
        rows[refused["source"]] = row | refused
    for name, row in rows.items():
        file = name_of(name)
        if row["status"] == FAILED and lies_below(settings.images, file) and (settings.images / file).is_file():
            rows[name] = row | {"note": f"images/{name} is the result of an earlier run"}
    _write_table(settings.run_folder, settings.config_digest, rows)


def remake_results(output: Path) -> bool:
    """Write ``results.parquet`` from the ledger alone, for the newest run; whether there is a ledger.

    Only the next run knows again which files are no images, cannot be read, or have left the input.
    """
    rows = ledger.latest_rows(output)
    if rows:
        newest = ledger.run_folders(output)[-1]
        digests = [str(row.get("config_digest") or "") for row in ledger.rows_of(newest)]
        _write_table(newest, digests[-1] if digests else "", rows)
    return bool(rows)


def _write_table(run_folder: Path, config_digest: str, rows: dict[str, Row]) -> None:
    provenance = {
        "software": f"denoise-flows {__version__}",
        "run_id": run_folder.name,
        "config_digest": config_digest,
        "config": _text_or_empty(run_folder / "config.toml"),
        "environment": _text_or_empty(run_folder / "environment.json"),
    }
    table.write(run_folder.parents[1] / RESULTS, rows.values(), provenance)


def _lost(settings: Settings, scan: Scan, faults: Sequence[BaseException]) -> list[Row]:
    """Failed rows of images whose chunk broke so badly that not even its ledger could be written."""
    if not faults:
        return []
    written = {row["source"] for row in ledger.rows_of(settings.run_folder)}
    lost: Row = {}
    table.fill(lost, status=FAILED, error_type=type(faults[0]).__name__, error=sentence(faults[0]))
    names = (table.text(source.name) for source in scan.todo)
    return [lost | {"source": name} for name in names if name not in written]


def write_page(output: Path) -> Path:
    """Render ``report.html`` from ``results.parquet``; pictures are shown of images whose files are still there.

    Raises:
        FileNotFoundError: there is no results table in ``output``.
    """
    _write_page(output)
    return output / PAGE


def _write_page(output: Path) -> list[Panel]:
    rows, provenance = table.read(output / RESULTS)
    try:
        config: dict[str, Any] = tomllib.loads(provenance.get("config", ""))
        environment: dict[str, Any] = json.loads(provenance.get("environment") or "{}")
    except ValueError:
        config, environment = {}, {}  # the page then says less of the run, and all of the images
    shown = {"software": provenance.get("software", ""), "run": provenance.get("run_id", "")}
    shown |= {key.replace("_", " "): str(value) for key, value in environment.items() if not isinstance(value, dict)}
    for name, version in (environment.get("packages") or {}).items():
        shown[name] = str(version)
    panels = _panels(rows, output, config)
    page = render_page(
        rows=rows,
        panels=panels,
        provenance=shown,
        config={key.replace("_", "-"): str(value) for key, value in config.items()},
        columns=[(column.name, column.description) for column in COLUMNS],
        title=f"Denoised: {table.text(Path(str(config.get('input', output))).name)}",
    )
    write_atomic(output / PAGE, page.encode("utf-8", "replace"))
    return panels


def worst_first(rows: Sequence[Row]) -> tuple[list[Row], str]:
    """The rows that are done, worst first, and by what: PSNR where it is known, structure in the residual elsewhere."""
    done = [row for row in rows if row["status"] == DONE and GONE not in (row["note"] or "")]
    scored = [row for row in done if row["psnr_denoised_db"] is not None]
    if scored:
        return sorted(scored, key=lambda row: float(row["psnr_denoised_db"])), "lowest PSNR"
    told = [row for row in done if row["residual_autocorrelation"] is not None]
    return sorted(told, key=lambda row: -abs(float(row["residual_autocorrelation"]))), "most structure in the residual"


def _panels(rows: Sequence[Row], output: Path, config: dict[str, Any]) -> list[Panel]:
    ranked, why = worst_first(rows)
    worst, others = ranked[:WORST], ranked[WORST:]
    evenly = np.linspace(0, len(others) - 1, min(SAMPLE, len(others))).round().astype(int)
    chosen = [(row, why) for row in worst] + [(others[i], _SAMPLE) for i in evenly]
    return [panel for row, reason in chosen if (panel := _panel(row, reason, output, config)) is not None]


def _panel(row: Row, why: str, output: Path, config: dict[str, Any]) -> Panel | None:
    """The strip of one image, from its source, its noise made again, and its output; ``None`` where a file is missing."""
    root = Path(str(config.get("input", "")))
    max_pixels = int(float(config.get("max_megapixels", 500.0)) * 1e6)
    try:
        written = output / name_of(row["output"])
        source = root / name_of(row["source"]) if root.is_dir() else root
        if math.prod(row["shape"]) > LEAST_SAMPLES and row["noise"] == "none" and not row["style"]:
            return _large_strip(row, why, source, written, config)
        content = source.read_bytes()
        if hashlib.sha256(content).hexdigest() != row["source_sha256"]:
            return None  # another file than the one that was denoised, perhaps a link to where the run never looked
        image = decode(content, max_pixels=max_pixels)
        image = cropped(in_rgb(image) if row["style"] else image, config.get("crop"))
        denoised = decode(written.read_bytes(), max_pixels=max_pixels)
        original = image if row["style"] else None
        if row["stylized"]:
            image = decode((output / name_of(row["stylized"])).read_bytes(), max_pixels=max_pixels)
        elif row["style"]:
            image = denoised
        return _strip(row, why, image, denoised, original=original, config=config)
    except Exception:  # noqa: BLE001 - a picture is an extra: whatever keeps it from being shown must not cost the page
        return None


def _large_strip(row: Row, why: str, source: Path, written: Path, config: dict[str, Any]) -> Panel | None:
    """That of a large stack, of which only one plane is read."""
    found = []
    for path in (source, written):
        with path.open("rb") as file:
            if path == source and hashlib.file_digest(file, "sha256").hexdigest() != row["source_sha256"]:
                return None
            found.append(middle_plane(file, row["axes"], str(config.get("channels", "auto")), max_pixels=_most(config)))
    (noisy, where), (after, _) = found
    limits = _limits(noisy.dtype)
    caption = ", ".join(filter(None, (where, _caption(row))))
    return make_panel(row["source"], noisy, after, clean=None, limits=limits, why=why, caption=caption)


def _most(config: dict[str, Any]) -> int:
    """The pixels that an image may have, as the run was told."""
    return int(float(config.get("max_megapixels", 500.0)) * 1e6)


def _limits(dtype: np.dtype[Any]) -> tuple[float, float] | None:
    own = own_scale(dtype)
    return None if own is None else (own.low, own.high)


def _strip(
    row: Row, why: str, image: Image, denoised: Image, *, original: Image | None, config: dict[str, Any]
) -> Panel:
    """A plane from the middle, of the middle stack where there are several."""
    arrangement = arrange(renamed(image.header, row["axes"]), str(config.get("channels", "auto")))
    stack, frame = arrangement.stacks // 2, arrangement.frames // 2
    number = stack * arrangement.frames + frame
    if row["noise"] == "none" and original is None:
        noisy = arrangement.planes(image.pixels)[number]  # as it lies in the file: large images are not copied
        clean = _reference(arrangement, number, row, config)
    else:
        noisy, clean = _made_again(arrangement, number, row, (image, original), config)
    after = arrangement.planes(denoised.pixels)[number]
    caption = ", ".join(filter(None, (arrangement.place(stack, frame), _caption(row))))
    limits = _limits(image.pixels.dtype)
    top = 1.0 if limits is None else limits[1]
    return make_panel(
        row["source"],
        arrangement.seen(noisy, top),
        arrangement.seen(after, top),
        clean=None if clean is None else arrangement.seen(clean, top),
        limits=limits,
        why=why,
        caption=caption,
        original=None if original is None else arrangement.planes(original.pixels)[number],
        only_painted=original is not None and row["stylized"] is None,
    )


def _reference(arrangement: Arrangement, number: int, row: Row, config: dict[str, Any]) -> npt.NDArray[Any] | None:
    """A plane of the image that a row was scored against, where it is still there."""
    if not (config.get("reference") and row["reference_sha256"]):
        return None
    try:
        found = decode(read_below(Path(str(config["reference"])), name_of(row["source"])), max_pixels=_most(config))
        plane: npt.NDArray[Any] = arrangement.planes(cropped(found, config.get("crop")).pixels)[number]
    except Exception:  # noqa: BLE001 - a picture is an extra
        return None
    return plane


def _made_again(
    arrangement: Arrangement, number: int, row: Row, images: tuple[Image, Image | None], config: dict[str, Any]
) -> tuple[npt.NDArray[Any], npt.NDArray[Any] | None]:
    """A plane of the noisy image, which is in no file, and of the clean one where noise was added."""
    image, original = images
    # Of a stylized image too it was the source whose range decided the scale.
    source = image if original is None else original
    intensities, clean = Intensities.of(source.pixels, arrangement, clean=row["noise"] != "none")
    if original is not None:
        clean = intensities.filled(image.pixels)
    if row["noise"] == "none":
        return intensities.of_file(clean)[number], None
    noisy = noise_again(intensities, clean, row, clip=bool(config.get("clip_noise")))
    return intensities.of_file(noisy)[number], intensities.of_file(clean)[number]


def noise_again(
    intensities: Intensities, clean: npt.NDArray[np.float32], row: Row, *, clip: bool
) -> npt.NDArray[np.float32]:
    """The noisy planes (N, H, W, C) that a row's run made of clean ones, on the unit scale."""
    rng = noise.rng(int(row["seed"]), name_of(row["source"]))
    return noise.add(clean, noise.parse(row["noise"]), rng, clip=clip, photons=intensities.photons)


def _caption(row: Row) -> str:
    if row["psnr_noisy_db"] is not None and row["psnr_denoised_db"] is not None:
        return f"PSNR {row['psnr_noisy_db']:.2f} → {row['psnr_denoised_db']:.2f} dB"
    parts = []
    if row["sigma_estimate"] is not None:
        parts.append(f"noise σ about {row['sigma_estimate']:.3g}")
    if row["residual_autocorrelation"] is not None:
        parts.append(f"residual autocorrelation {row['residual_autocorrelation']:+.3f}")
    return ", ".join(parts)


def summary_table(rows: Sequence[Row], run_id: str) -> list[dict[str, Any]]:
    """The table of the Prefect UI: counts and means of what this run did, what earlier ones did, and what failed."""
    here = [row for row in rows if GONE not in (row["note"] or "")]
    done = [row for row in here if row["status"] == DONE]
    groups = {
        "done": [row for row in done if row["run_id"] == run_id],
        "done earlier": [row for row in done if row["run_id"] != run_id],
        "failed": [row for row in here if row["status"] == FAILED],
        "not images": [row for row in here if row["status"] == SKIPPED],
    }
    groups = {name: group for name, group in groups.items() if group or name == "done"}
    lines: list[dict[str, Any]] = [{"figure": "images"} | {name: len(group) for name, group in groups.items()}]
    for label, (column, digits) in _MEANS.items():
        means = {name: _mean(group, column, digits) for name, group in groups.items()}
        if any(mean is not None for mean in means.values()):
            lines.append({"figure": label} | {name: "–" if mean is None else mean for name, mean in means.items()})
    return lines


_MEANS = {
    "PSNR noisy, dB": ("psnr_noisy_db", 2),
    "PSNR denoised, dB": ("psnr_denoised_db", 2),
    "SSIM noisy": ("ssim_noisy", 3),
    "SSIM denoised": ("ssim_denoised", 3),
    "residual autocorrelation": ("residual_autocorrelation", 3),
    "seconds an image": ("seconds", 2),
}


def _mean(rows: Sequence[Row], column: str, digits: int) -> float | None:
    values = [float(row[column]) for row in rows if row["status"] == DONE and row[column] is not None]
    return round(sum(values) / len(values), digits) if values else None


def summary_markdown(rows: Sequence[Row], output: Path, host: str, pictures: Sequence[Panel] = ()) -> str:
    """The page of the Prefect UI: the worst images, why others failed, and where the report lies.

    The UI shows pictures out of ``data:`` addresses, and neither of its versions a file of the machine it does not run on:
    the report is a path to copy.
    """
    lines = [f"Report, on {_cell(host)}: {_code(str(output / PAGE))}", "", f"Table: {_code(str(output / RESULTS))}"]
    ranked, why = worst_first(rows)
    if ranked:
        lines += ["", f"## Worst images ({why})"]
    said = ""
    for number, panel in enumerate(pictures, start=1):
        address, seen = _strip_of(panel)
        if seen != said:
            said = seen
            lines += ["", f"Side by side: {seen}."]
        lines += ["", f"**{number}. {_cell(panel.source)}**, {_cell(panel.caption)}", "", f"![{seen}]({address})"]
    if ranked:
        lines += ["", "| image | PSNR dB | σ estimate | residual autocorrelation |", "| --- | --- | --- | --- |"]
        for row in ranked[:10]:
            cells = [_figure(row[k], 2) for k in ("psnr_denoised_db", "sigma_estimate")]
            lines.append(
                f"| {_cell(row['source'])} | {' | '.join(cells)} | {_figure(row['residual_autocorrelation'], 3)} |"
            )
    reasons = by_reason(rows)
    if reasons:
        lines += ["", f"## Failed images ({sum(len(reason.sources) for reason in reasons)})", ""]
        lines += ["| images | reason | which |", "| --- | --- | --- |"]
    for reason in reasons:
        which = ", ".join(map(_cell, reason.sources[:_NAMED]))
        more = f" and {len(reason.sources) - _NAMED} more" if len(reason.sources) > _NAMED else ""
        lines.append(f"| {len(reason.sources)} | {_cell(f'{reason.kind}: {reason.sentence}')} | {which}{more} |")
    return "\n".join(lines)


_NAMED = 10  # images of a reason
_THUMBNAIL = 112  # side, pixels


def _strip_of(panel: Panel) -> tuple[str, str]:
    """The middles of a panel's pictures side by side, pixel by pixel, as the address of one JPEG; and what they are."""
    pictures = {"noisy": panel.noisy_png, "denoised": panel.denoised_png, "taken away": panel.residual_png}
    if panel.only_painted:
        pictures = {"painted": panel.denoised_png}
    if panel.original_png is not None:
        pictures = {"source": panel.original_png} | pictures
    if panel.clean_png is not None:
        pictures |= {"clean": panel.clean_png}
    shown: list[npt.NDArray[np.uint8]] = []
    for png in pictures.values():
        with PIL.Image.open(io.BytesIO(png)) as picture:
            width, height = (min(side, _THUMBNAIL) for side in picture.size)
            left, top = (picture.width - width) // 2, (picture.height - height) // 2
            shown.append(np.asarray(picture.convert("RGB").crop((left, top, left + width, top + height))))
    gap = np.full((shown[0].shape[0], 4, 3), 255, np.uint8)
    buffer = io.BytesIO()
    PIL.Image.fromarray(np.hstack([part for one in shown for part in (gap, one)][1:])).save(
        buffer, format="JPEG", quality=80
    )
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}", ", ".join(pictures)


def _code(text: str) -> str:
    """A text as code within a line of Markdown, whatever it holds."""
    plain = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    fence = "`" * (1 + max(map(len, re.findall("`+", plain)), default=0))
    return f"{fence}{plain}{fence}" if len(fence) == 1 else f"{fence} {plain} {fence}"


def _figure(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _cell(value: Any) -> str:
    """A text as one cell of a Markdown table: no markup, no line break."""
    plain = " ".join(str(value).split())
    return "".join(
        "\\" + c if c in "\\`*_{}[]()#+-!|~" else {"<": "&lt;", ">": "&gt;", "&": "&amp;"}.get(c, c) for c in plain
    )


def _text_or_empty(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""
