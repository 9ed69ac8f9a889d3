"""The table of a comparison: one row an image, noise, seed and method."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tasks import ledger, table
from tasks.table import COLUMNS, DONE, FAILED, Column, Row
from tasks.work import Source

TABLE, SUMMARY_CSV, SUMMARY_MD, PROTOCOL = "comparison.parquet", "summary.csv", "summary.md", "protocol.json"

_TAKEN = """
    shape dtype method preset scope kept noise seed device precision threads steps psnr_noisy_db psnr_denoised_db ssim_noisy
    ssim_denoised data_range noise_drawn corrupted_fraction sigma_estimate residual_autocorrelation fit_seconds
    denoise_seconds status error_type error note model_sha256 source_sha256 reference_sha256 output_sha256 config_digest run_id
    software_version created_at
""".split()

COMPARISON_COLUMNS = (
    Column("source", "string", "Path of the image below the input, with forward slashes"),
    Column("candidate", "string", "The method as it takes part: METHOD[:PRESET][:SCOPE]"),
    Column("output", "string", "Path of the denoised image below the comparison's output; null when none was written"),
    Column("crop", "int64", "Side of the centre that was cut out first, pixels; null where the whole image was taken"),
    Column("clip_noise", "bool", "Whether the noisy image was clipped to its value range"),
    Column(
        "shared_fit_seconds",
        "float64",
        "The image's share of the fit that served the whole directory, s; null without one",
    ),
    Column(
        "method_seconds",
        "float64",
        "Fit, share of a shared fit, and application, s: what the method took for the image",
    ),
    *(column for column in COLUMNS if column.name in _TAKEN),
)


@dataclass(frozen=True)
class Cell:
    """One method at one noise and seed: where its run wrote, and which configuration is asked for."""

    candidate: str
    noise: str
    seed: int
    clip_noise: bool
    crop: int | None
    output: Path
    config_digest: str
    error: str | None = None  # why the run as a whole broke off


def rows_of(cells: Iterable[Cell], root: Path, sources: Sequence[Source], refused: Sequence[Row]) -> list[Row]:
    """The rows of all cells from their ledgers; images that a broken cell has no row of are failed ones.

    `sources` are the images of the input: rows of what was there before do not count.
    """
    rows = []
    for cell in cells:
        latest = ledger.latest_rows(cell.output)
        mine: list[Row] = []
        for source in sources:
            name = table.text(source.name)
            found = latest.get(name)
            current = found is not None and found.get("source_sha256") in {source.sha256, None}
            if found is not None and current and found.get("config_digest") == cell.config_digest:
                mine.append(found | {"crop": cell.crop if is_cropped(source, cell.crop) else None})
            elif cell.error is not None:
                mine.append({"source": name, "status": FAILED, "error_type": "RunBroken", "error": cell.error})
        seconds = _fit_seconds(cell.output)
        uses = Counter(row.get("model_sha256") for row in mine)
        shares = {sha256: seconds[sha256] / uses[sha256] for sha256 in seconds if uses[sha256]}
        rows += [_row(cell, row, root, shares) for row in mine]
        rows += [_row(cell, row, root, {}) for row in refused if row["status"] == FAILED]
    return rows


def is_cropped(source: Source, crop: int | None) -> bool:
    """Whether the crop leaves anything of the image away."""
    shape = dict(zip(source.header.axes, source.header.shape, strict=True))
    return crop is not None and max(shape["Y"], shape["X"]) > crop


def _row(cell: Cell, found: Row, root: Path, shares: Mapping[str, float]) -> Row:
    row = {name: found.get(name) for name in _TAKEN}
    output = found.get("output")
    shared = shares.get(str(found.get("model_sha256")))
    parts = [found.get("fit_seconds"), found.get("denoise_seconds"), shared]
    known = [float(part) for part in parts if part is not None]
    return row | {
        "source": found["source"],
        "candidate": cell.candidate,
        "output": None if output is None else f"{cell.output.relative_to(root).as_posix()}/{output}",
        "noise": cell.noise,
        "seed": cell.seed,
        "crop": found.get("crop"),
        "clip_noise": cell.clip_noise,
        "shared_fit_seconds": shared,
        "method_seconds": sum(known) if known and found.get("status") == DONE else None,
        "config_digest": cell.config_digest,
    }


def _fit_seconds(output: Path) -> dict[str, float]:
    """What the fits that served many took, by the SHA-256 of their networks."""
    seconds = {}
    for path in sorted((output / "models").glob("*.json")):
        try:
            about = json.loads(path.read_text(encoding="utf-8"))
            seconds[str(about["file_sha256"])] = float(about["fit_seconds"])
        except (OSError, ValueError, KeyError, TypeError):
            continue  # a network from elsewhere: its time is not known
    return seconds


def write(path: Path, rows: Iterable[Row], provenance: Mapping[str, str]) -> None:
    """Write the long table; its provenance holds the protocol and the configuration."""
    table.write(path, rows, provenance, COMPARISON_COLUMNS)


def read(path: Path) -> tuple[list[Row], dict[str, str]]:
    """The long table and its provenance."""
    return table.read(path, COMPARISON_COLUMNS)


@dataclass(frozen=True)
class Failure:
    """An image and why it could not be done, by some of the methods or by all."""

    source: str
    error: str
    cells: int  # of so many, for each noise and seed
    where: str


def failures_of(rows: Sequence[Row]) -> list[Failure]:
    """The failed rows, those of one image with the same error as one; what most cells have comes first."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row["status"] == FAILED:
            groups.setdefault((str(row["source"]), str(row["error"])), []).append(row)
    cells = {(row["candidate"], row["noise"], row["seed"]) for row in rows}
    found = []
    for (source, error), group in groups.items():
        parts = [
            _where([str(row[name]) for row in group], {str(cell[n]) for cell in cells}) for n, name in enumerate(_CELL)
        ]
        where = " at ".join(part for part in parts[:2] if part)
        where += f"{', ' * bool(where)}seed {parts[2]}" if parts[2] else ""
        found.append(Failure(source, error, len(group), where or "every method"))
    return sorted(found, key=lambda failure: -failure.cells)


_CELL = ("candidate", "noise", "seed")


def _where(here: Sequence[str], everywhere: set[str]) -> str:
    """Which of the methods, noises or seeds; the empty string for all of them."""
    some = list(dict.fromkeys(here))
    return "" if len(some) == len(everywhere) else ", ".join(some)
