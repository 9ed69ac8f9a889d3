"""The table of a comparison: one row an image, noise, seed and method."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten

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


BROKEN = "RunBroken"
"""The error type of an image that a cell had not done when it broke off."""


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
            if found is not None and _is_current(found, source, cell):
                mine.append(found | {"crop": cell.crop if is_cropped(source, cell.crop) else None})
            elif cell.error is not None:
                mine.append({"source": name, "status": FAILED, "error_type": BROKEN, "error": cell.error})
        seconds = _fit_seconds(cell.output)
        uses = Counter(row.get("model_sha256") for row in mine)
        shares = {sha256: seconds[sha256] / uses[sha256] for sha256 in seconds if uses[sha256]}
        rows += [_row(cell, row, root, shares) for row in mine]
        rows += [_row(cell, row, root, {}) for row in refused if row["status"] == FAILED]
    return rows


def _is_current(row: Row, source: Source, cell: Cell) -> bool:
    """Whether a row of the ledger is of these very files and of the configuration that is asked for."""
    asked = (source.sha256, source.reference_sha256, cell.config_digest)
    return (row.get("source_sha256"), row.get("reference_sha256"), row.get("config_digest")) == asked


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
    cells = {_place(row) for row in rows}
    found = [
        Failure(source, error, len(group), _where([_place(row) for row in group], cells) or "every method")
        for (source, error), group in groups.items()
    ]
    return sorted(found, key=lambda failure: -failure.cells)


@dataclass(frozen=True)
class Missing:
    """How many results a comparison lacks, and that in a sentence: which, and why; the empty one where it lacks none."""

    results: int
    sentence: str


def missing_of(cells: Sequence[Cell], rows: Iterable[Row], sources: Sequence[Source], *, stopped: bool) -> Missing:
    """What was not made of the results of all images in all cells; `stopped` by the user."""
    names = {table.text(source.name) for source in sources}
    made = Counter(_place(row) for row in rows if row["source"] in names and row["error_type"] != BROKEN)
    everywhere = [(cell.candidate, cell.noise, cell.seed) for cell in cells]
    left = {place: len(names) - made[place] for place in everywhere if made[place] < len(names)}
    if not left:
        return Missing(0, "")
    why = ["it was stopped"] * stopped
    if errors := [cell.error for cell in cells if cell.error is not None]:
        why.append(f"{len(errors)} of {len(cells)} cells broke off ({shorten(errors[0], 200, placeholder=' …')})")
    since = f", since {' and '.join(why)}" if why else ""
    number = sum(left.values())
    return Missing(
        number,
        f"Not complete{since}; {number} of {len(cells) * len(names)} results are missing"
        f"{_places(left, everywhere, len(names))}. The same command goes on with them.",
    )


def _places(left: Mapping[Place, int], everywhere: Sequence[Place], images: int) -> str:
    """Where so many of the images are missing: cell by cell where these are few, or what they have in common."""
    if len(everywhere) == 1:
        return ""
    if len(left) <= MOST_PLACES:
        return ": " + "; ".join(f"{_where([place], everywhere)} ({count} of {images})" for place, count in left.items())
    common = _where(list(left), everywhere)
    return f", in {len(left)} of {len(everywhere)} cells{common and f': {common}'}"


MOST_PLACES = 3  # named one by one
MOST_NAMES = 6  # of methods, noises or seeds; more are counted

Place = tuple[str, str, int]  # method, noise and seed


def _place(row: Row) -> Place:
    return row["candidate"], row["noise"], row["seed"]


def _where(here: Collection[Place], everywhere: Collection[Place]) -> str:
    """Which methods, noises and seeds these are; the empty string where it is all of them."""
    method, noise, seed = (
        _which([place[n] for place in here], {place[n] for place in everywhere}, kind)
        for n, kind in enumerate(("method", "noise", "seed"))
    )
    return ", ".join(filter(None, (" at ".join(filter(None, (method, noise))), seed)))


def _which(here: Sequence[str | int], everywhere: Collection[str | int], kind: str) -> str:
    """Which of the methods, noises or seeds; the empty string for all of them."""
    some = list(dict.fromkeys(here))
    if len(some) == len(everywhere):
        return ""
    if len(some) > MOST_NAMES:
        return f"{len(some)} of {len(everywhere)} {kind}s"
    told = ", ".join(map(str, some))
    return f"seed{'s' * (len(some) > 1)} {told}" if kind == "seed" else told
