"""What the Prefect UI is given of a run: the table and the page."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tasks.report import summary_markdown, summary_table
from tasks.report_page import make_panel
from tasks.table import COLUMNS, Row


def row(source: str, **values: Any) -> Row:
    return (
        dict.fromkeys(column.name for column in COLUMNS) | {"source": source, "status": "done", "run_id": "2"} | values
    )


def test_the_table_has_a_column_a_status_and_means_of_what_was_done() -> None:
    rows = [
        row("a", psnr_denoised_db=30.0, seconds=1.0),
        row("b", psnr_denoised_db=31.0, seconds=2.0),
        row("c", psnr_denoised_db=20.0, run_id="1"),
        row("d", status="failed", seconds=9.0),
        row("left", run_id="1", note="the source is no longer in the input"),
    ]
    assert summary_table(rows, "2") == [
        {"figure": "images", "done": 2, "done earlier": 1, "failed": 1},
        {"figure": "PSNR denoised, dB", "done": 30.5, "done earlier": 20.0, "failed": "–"},
        {"figure": "seconds an image", "done": 1.5, "done earlier": "–", "failed": "–"},
    ]
    assert summary_table([], "2") == [{"figure": "images", "done": 0}]


def test_the_page_shows_true_pixels_and_takes_no_name_for_markup(photo: np.ndarray) -> None:
    name = "a|b](x) <img src=x>`.png"
    clean = photo[:200, :300]
    noisy = clean[:, ::-1]
    panel = make_panel(name, noisy, clean, clean=clean, limits=(0, 255), why="lowest PSNR", caption="PSNR 20 → 30 dB")
    rows = [row(name, psnr_denoised_db=30.0, seconds=1.0)]
    rows += [row(f"{name}{n}", status="failed", error_type="ImageError", error=f"lacks {n} bytes") for n in range(12)]
    page = summary_markdown(rows, Path("/out/a`b"), "host", [panel])
    assert "`` /out/a`b/report.html ``" in page
    assert "<img" not in page
    assert page.count("](data:image/jpeg;base64,") == page.count("](") - page.count("\\](") == 1
    assert "| 12 | ImageError: lacks 0 bytes |" in page
    assert page.count("lacks") == 1
    assert " and 2 more |" in page
    strip = np.asarray(Image.open(io.BytesIO(base64.b64decode(page.split("base64,")[1].split(")")[0]))), np.int16)
    assert strip.shape == (112, 4 * 112 + 3 * 4, 3)
    middle = noisy[44:156, 94:206].astype(np.int16)  # of the 256 in the middle, which is all of 200 rows
    assert np.abs(strip[:, :112] - middle).mean() < 8
    assert np.abs(strip[:, 116:228] - clean[44:156, 94:206]).mean() < 8
