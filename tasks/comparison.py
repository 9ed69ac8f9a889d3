"""The table of a comparison, one row an image, noise, seed and method; and what it comes to.

Means, ranks and ratios are taken over the images (and seeds) that every method has done, so that no method gains by
failing on a hard one.
"""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from denoise_core.images import write_atomic
from tasks import ledger, table
from tasks.table import COLUMNS, DONE, FAILED, Column, Row

TABLE, SUMMARY_CSV, SUMMARY_MD, PROTOCOL = "comparison.parquet", "summary.csv", "summary.md", "protocol.json"
NOISY = "noisy"

_TAKEN = """
    shape dtype method preset scope kept noise seed device precision threads steps psnr_noisy_db psnr_denoised_db ssim_noisy
    ssim_denoised data_range sigma_estimate residual_autocorrelation fit_seconds denoise_seconds status error_type error
    source_sha256 reference_sha256 output_sha256 config_digest run_id software_version created_at
""".split()

COMPARISON_COLUMNS = (
    Column("source", "string", "Path of the image below the input, with forward slashes"),
    Column("candidate", "string", "The method as it takes part: METHOD[:PRESET][:SCOPE]"),
    Column("output", "string", "Path of the denoised image below the comparison's output; null when none was written"),
    Column("crop", "int64", "Side of the centre that was cut out first, pixels; null for whole images"),
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


@dataclass(frozen=True)
class Line:
    """What a method comes to at one noise. Means over images and seeds; null where there is no value."""

    noise: str
    candidate: str
    images: int  # image and seed pairs that every method has done
    failed: int  # of this method
    psnr_db: float | None
    psnr_sd_images_db: float | None  # standard deviation over images
    psnr_sd_seeds_db: float | None  # of the means of the seeds
    ssim: float | None
    rank: int | None  # by mean PSNR
    difference_db: float | None  # to the method of reference, image by image
    difference_sd_db: float | None
    seconds: float | None  # an image
    seconds_ratio: float | None  # to the method of reference
    threads: int | None


def rows_of(cells: Iterable[Cell], root: Path, sources: Mapping[str, str], refused: Sequence[Row]) -> list[Row]:
    """The rows of all cells from their ledgers; images that a broken cell has no row of are failed ones.

    `sources` are the images of the input and their SHA-256: rows of what was there before do not count.
    """
    rows = []
    for cell in cells:
        latest = ledger.latest_rows(cell.output)
        shares = _shares(cell.output)
        for name, sha256 in sources.items():
            found = latest.get(name)
            current = found is not None and found.get("source_sha256") in {sha256, None}
            if found is not None and current and found.get("config_digest") == cell.config_digest:
                rows.append(_row(cell, found, root, shares))
            elif cell.error is not None:
                broken = {"source": name, "status": FAILED, "error_type": "RunBroken", "error": cell.error}
                rows.append(_row(cell, broken, root, {}))
        rows += [_row(cell, row, root, {}) for row in refused if row["status"] == FAILED]
    return rows


def _row(cell: Cell, found: Row, root: Path, shares: Mapping[str, float]) -> Row:
    row = {name: found.get(name) for name in _TAKEN}
    output = found.get("output")
    shared = shares.get(str(found.get("model_sha256")))
    parts = [found.get("fit_seconds"), found.get("denoise_seconds"), shared]
    known = [float(part) for part in parts if part is not None]
    return row | {
        "source": found["source"],
        "candidate": cell.candidate,
        "output": None if output is None else table.text((cell.output / output).relative_to(root).as_posix()),
        "noise": cell.noise,
        "seed": cell.seed,
        "crop": cell.crop,
        "clip_noise": cell.clip_noise,
        "shared_fit_seconds": shared,
        "method_seconds": sum(known) if known and found.get("status") == DONE else None,
        "config_digest": cell.config_digest,
    }


def _shares(output: Path) -> dict[str, float]:
    """Seconds an image of the fits that served many, by the SHA-256 of their networks."""
    shares = {}
    for path in sorted((output / "models").glob("*.json")):
        try:
            about = json.loads(path.read_text(encoding="utf-8"))
            shares[str(about["file_sha256"])] = float(about["fit_seconds"]) / max(1, int(about["images"]))
        except (OSError, ValueError, KeyError, TypeError):
            continue  # a network from elsewhere: its time is not known
    return shares


def write(path: Path, rows: Iterable[Row], provenance: Mapping[str, str]) -> None:
    """Write the long table; its provenance holds the protocol and the configuration."""
    table.write(path, rows, provenance, COMPARISON_COLUMNS)


def read(path: Path) -> tuple[list[Row], dict[str, str]]:
    """The long table and its provenance."""
    return table.read(path, COMPARISON_COLUMNS)


def summarise(
    rows: Sequence[Row], *, candidates: Sequence[str], noises: Sequence[str], against: str
) -> tuple[list[Line], int]:
    """A line for every noise and method, the noisy images first; and how many image and seed pairs could not be compared."""
    lines: list[Line] = []
    left_out = 0
    for noise in noises:
        here = [row for row in rows if row["noise"] == noise]
        done = {
            name: {_pair(row): row for row in here if row["candidate"] == name and _scored(row)} for name in candidates
        }
        some = [set(found) for found in done.values() if found]
        common = sorted(set.intersection(*some)) if some else []
        left_out += len({_pair(row) for row in here}) - len(common)
        found = [_line(noise, name, here, done[name], common) for name in candidates]
        lines.append(_noisy_line(noise, next(iter(done[name] for name in candidates if done[name]), {}), common))
        lines += _ranked(found, done, common, against)
    return lines, left_out


def _scored(row: Row) -> bool:
    return row["status"] == DONE and row["psnr_denoised_db"] is not None


Pair = tuple[str, int]


def _pair(row: Row) -> Pair:
    return str(row["source"]), int(row["seed"])


def _line(noise: str, name: str, here: Sequence[Row], done: Mapping[Pair, Row], common: Sequence[Pair]) -> Line:
    mine = [done[pair] for pair in common if pair in done]
    failed = sum(row["candidate"] == name and row["status"] == FAILED for row in here)
    return Line(
        noise,
        name,
        len(mine),
        failed,
        *_figures(mine, "psnr_denoised_db", "ssim_denoised"),
        rank=None,
        difference_db=None,
        difference_sd_db=None,
        seconds=mean(row["method_seconds"] for row in mine),
        seconds_ratio=None,
        threads=next((row["threads"] for row in mine), None),
    )


def _noisy_line(noise: str, done: Mapping[Pair, Row], common: Sequence[Pair]) -> Line:
    mine = [done[pair] for pair in common if pair in done]
    figures = _figures(mine, "psnr_noisy_db", "ssim_noisy")
    return Line(noise, NOISY, len(mine), 0, *figures, None, None, None, None, None, None)


def _figures(
    rows: Sequence[Row], psnr: str, ssim: str
) -> tuple[float | None, float | None, float | None, float | None]:
    """PSNR, its spread over images and over seeds, and SSIM."""
    images, seeds = (_grouped(rows, key, psnr) for key in ("source", "seed"))
    return mean(row[psnr] for row in rows), spread(images), spread(seeds), mean(row[ssim] for row in rows)


def _grouped(rows: Sequence[Row], key: str, value: str) -> list[float]:
    """The mean of a value for each image, or each seed."""
    groups: dict[Any, list[float]] = {}
    for row in rows:
        groups.setdefault(row[key], []).append(float(row[value]))
    return [statistics.fmean(group) for group in groups.values()]


def _ranked(
    lines: Sequence[Line], done: Mapping[str, Mapping[Pair, Row]], common: Sequence[Pair], against: str
) -> list[Line]:
    """The lines with rank, and with what they differ by from the method of reference."""
    order = sorted((line.psnr_db for line in lines if line.psnr_db is not None), reverse=True)
    other = next((line for line in lines if line.candidate == against and line.images), None)
    ranked = []
    for line in lines:
        values = asdict(line)
        if line.psnr_db is not None:
            values["rank"] = order.index(line.psnr_db) + 1
        if other is not None and line.images and line is not other:
            gaps = [
                done[line.candidate][pair]["psnr_denoised_db"] - done[against][pair]["psnr_denoised_db"]
                for pair in common
            ]
            values |= {"difference_db": mean(gaps), "difference_sd_db": spread(gaps)}
        if other is not None and other.seconds and line.seconds is not None:
            values["seconds_ratio"] = line.seconds / other.seconds
        ranked.append(Line(**values))
    return ranked


def mean(values: Iterable[float | None]) -> float | None:
    """The mean of the values there are; None where there are none."""
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def spread(values: Sequence[float]) -> float | None:
    """The standard deviation of two values or more."""
    return statistics.stdev(values) if len(values) > 1 else None


def to_csv(lines: Sequence[Line]) -> str:
    """The summary as CSV, a value that there is not as an empty field."""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(Line.__dataclass_fields__), lineterminator="\n")
    writer.writeheader()
    for line in lines:
        writer.writerow({name: "" if value is None else value for name, value in asdict(line).items()})
    return out.getvalue()


def to_markdown(
    lines: Sequence[Line],
    *,
    published: Mapping[str, Mapping[str, float]],
    notes: Sequence[str],
    against: str,
) -> str:
    """Two tables and the protocol: methods by noises as a paper shows them, and every figure of each noise."""
    noises = list(dict.fromkeys(line.noise for line in lines))
    candidates = list(dict.fromkeys(line.candidate for line in lines))
    at = {(line.noise, line.candidate): line for line in lines}
    parts = [
        "PSNR (dB) / SSIM, means over images; best **bold**, second _italic_; seconds an image over all noises.",
        "",
    ]
    parts += _head(["method", *noises, "s/image"])
    for name in candidates:
        cells = [_paper_cell(at[noise, name]) for noise in noises]
        seconds = mean(at[noise, name].seconds for noise in noises)
        parts.append(_tr([name, *cells, _seconds(seconds)]))
    for title, values in published.items():
        parts.append(_tr([title, *(_fixed(values.get(noise), 2) for noise in noises), "–"]))
    for noise in noises:
        parts += ["", f"### {noise}", ""]
        parts += _head(
            ["method", "PSNR dB ± sd of images", "SSIM", f"dB to {against}", "rank", "s/image", "ratio", "n"]
        )
        parts += [_tr(detail(line)) for line in lines if line.noise == noise]
    return "\n".join([*parts, "", "Protocol:", "", *(f"- {note}" for note in notes), ""])


def detail(line: Line) -> list[str]:
    """The figures of a line as texts: method, PSNR, SSIM, difference, rank, seconds, ratio, n."""
    failed = f" ({line.failed} failed)" if line.failed else ""
    return [
        line.candidate,
        with_spread(line.psnr_db, line.psnr_sd_images_db),
        _fixed(line.ssim, 4),
        with_spread(line.difference_db, line.difference_sd_db, "+"),
        _fixed(line.rank, 0),
        _seconds(line.seconds),
        "–" if line.seconds_ratio is None else f"{line.seconds_ratio:.3g}",
        f"{line.images}{failed}",
    ]


def _paper_cell(line: Line) -> str:
    if line.psnr_db is None:
        return "–"
    text = f"{line.psnr_db:.2f} / {_fixed(line.ssim, 3)}"
    return {1: f"**{text}**", 2: f"_{text}_"}.get(line.rank or 0, text)


def with_spread(value: float | None, deviation: float | None, sign: str = "") -> str:
    """A mean, and behind it the standard deviation where there is one."""
    if value is None:
        return "–"
    behind = "" if deviation is None else f" ± {deviation:.2f}"
    return f"{value:{sign}.2f}{behind}".replace("-", "−")


def _fixed(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _seconds(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}" if value < 100 else f"{value:.0f}"


def _head(names: Sequence[str]) -> list[str]:
    return [_tr(names), _tr(["---", *["---:"] * (len(names) - 1)])]


def _tr(cells: Sequence[str]) -> str:
    escape: Callable[[str], str] = lambda cell: cell.replace("|", "\\|")  # noqa: E731
    return f"| {' | '.join(map(escape, cells))} |"


def write_texts(root: Path, lines: Sequence[Line], markdown: str, protocol: Mapping[str, Any]) -> None:
    """Write the summary's files and the protocol."""
    write_atomic(root / SUMMARY_CSV, to_csv(lines).encode())
    write_atomic(root / SUMMARY_MD, markdown.encode())
    write_atomic(root / PROTOCOL, json.dumps(protocol, indent=2, ensure_ascii=False).encode())
