"""The page of a comparison: its figures by noise, quality against time, crops side by side, and the protocol."""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from denoise_core.images import write_atomic
from tasks import comparison
from tasks.comparison_plot import plot
from tasks.comparison_sheet import ENLARGED, Strip, sheet, strips_of
from tasks.comparison_summary import NOISY, Line, detail, headings, summarise, to_csv, to_markdown
from tasks.report_page import data_uri, template

PAGE, SHEET = "comparison.html", "sheet.png"

MOST_FAILURES = 100


def write_summary(root: Path) -> tuple[list[Line], str, list[str]]:
    """Write everything that is made from ``comparison.parquet``: the summary, the page, the sheet and the protocol.

    Returns the summary's lines, it as Markdown, and in sentences what could not be compared or shown.

    Raises:
        FileNotFoundError: there is no comparison in ``root``.
        DenoiseError: what is there is none of this version.
    """
    rows, provenance = comparison.read(root / comparison.TABLE)
    config: dict[str, Any] = tomllib.loads(provenance.get("config", ""))
    protocol: dict[str, Any] = json.loads(provenance.get("protocol") or "{}")
    candidates, against = protocol["methods"], protocol["against"]
    noises = [one["noise"] for one in protocol["noise"]]
    lines, left_out = summarise(rows, candidates=candidates, noises=noises, against=against)
    strips, unseen = strips_of(rows, root, config, candidates, noises)
    notes = [*protocol["notes"], *left_out, *unseen]
    published = protocol["published"]
    markdown = to_markdown(lines, published=published, notes=notes, against=against)
    write_atomic(root / comparison.SUMMARY_CSV, to_csv(lines).encode())
    write_atomic(root / comparison.SUMMARY_MD, markdown.encode())
    write_atomic(root / comparison.PROTOCOL, json.dumps(protocol, indent=2, ensure_ascii=False).encode())
    if strips:
        write_atomic(root / SHEET, sheet(strips))
    else:
        (root / SHEET).unlink(missing_ok=True)  # of an earlier comparison
    several = any(line.seeds > 1 for line in lines)
    failures = comparison.failures_of(rows)
    counted = [f"{len(candidates)} methods", f"{len(noises)} kinds of noise", f"{protocol['images']} images"]
    if missing := protocol.get("missing_results"):
        counted.append(f"not complete: {missing} results missing")
    page = template("comparison.html.j2").render(
        title=f"Compared: {Path(str(config['input'])).name}",
        run_line=" · ".join((*counted, protocol["software"])),
        failures=failures[:MOST_FAILURES],
        more_failures=len(failures[MOST_FAILURES:]),
        failed=sum(failure.cells for failure in failures),
        headings=headings(against, several=several),
        noises=[_noise_section(noise, lines, candidates, published, several=several) for noise in noises],
        against=against,
        strips=[_shown(strip) for strip in strips],
        enlarged=ENLARGED,
        notes=notes,
        protocol={key: _plain(value) for key, value in protocol.items() if key not in {"notes", "published"}},
    )
    write_atomic(root / PAGE, page.encode("utf-8", "replace"))
    return lines, markdown, [*left_out, *unseen]


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{key} {one}" for key, one in value.items())
    if isinstance(value, list):
        return ", ".join(_plain(one) if isinstance(one, dict) else str(one) for one in value)
    return "–" if value is None else str(value)


def _noise_section(
    noise: str,
    lines: Sequence[Line],
    candidates: Sequence[str],
    published: Mapping[str, Mapping[str, float]],
    *,
    several: bool,
) -> dict[str, Any]:
    here = [line for line in lines if line.noise == noise]
    ranked = sorted(here, key=lambda line: (line.candidate != NOISY, line.rank or math.inf))
    return {
        "noise": noise,
        "rows": [(line.rank, detail(line, several=several)) for line in ranked],
        "published": [(title, f"{values[noise]:.2f}") for title, values in published.items() if noise in values],
        "plot": plot(here, candidates),
    }


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
