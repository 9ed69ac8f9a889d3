"""What a comparison comes to: means, spreads, ranks and ratios, as lines, CSV and Markdown.

They are taken over the images (and seeds) that every method has done, so that no method gains by failing on a hard one.
"""

from __future__ import annotations

import csv
import io
import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from tasks.table import DONE, FAILED, NOT_SCORED, Row

NOISY = "noisy"


@dataclass(frozen=True)
class Line:
    """What a method comes to at one noise. Means over images and seeds; null where there is no value."""

    noise: str
    candidate: str
    pairs: int = 0  # of image and seed, that every method has done
    images: int = 0  # of these pairs
    seeds: int = 0
    failed: int = 0  # pairs, of this method
    psnr_db: float | None = None
    psnr_sd_images_db: float | None = None  # standard deviation over images, each the mean of its seeds
    psnr_sd_seeds_db: float | None = None  # of the means of the seeds
    ssim: float | None = None
    rank: int | None = None  # by mean PSNR
    difference_db: float | None = None  # to the method of reference, pair by pair
    difference_sd_images_db: float | None = None
    difference_sd_seeds_db: float | None = None
    seconds: float | None = None  # an image; null for a method that does nothing
    seconds_ratio: float | None = None  # to the method of reference
    threads: int | None = None


def summarise(
    rows: Sequence[Row], *, candidates: Sequence[str], noises: Sequence[str], against: str
) -> tuple[list[Line], list[str]]:
    """A line for every noise and method, the noisy images first; and in sentences what could not be compared."""
    lines: list[Line] = []
    left_out: list[str] = []
    without_means: list[str] = []
    without_ssim = 0
    for noise in noises:
        here = [row for row in rows if row["noise"] == noise]
        done = {
            name: {_pair(row): row for row in here if row["candidate"] == name and _scored(row)} for name in candidates
        }
        some = [set(found) for found in done.values() if found]
        shared = set.intersection(*some) if some else set()
        common, others = sorted(shared), sorted({_pair(row) for row in here} - shared)
        left_out += [_why_left_out([row for row in here if _pair(row) == pair]) for pair in others]
        averaged = [row for row in here if row["status"] == DONE and _pair(row) in shared]
        without_ssim += len({_pair(row) for row in averaged if row["ssim_denoised"] is None})
        perfect = dict.fromkeys(row["candidate"] for row in averaged if not _scored(row))
        without_means += [
            f"{name} has no mean PSNR at {noise_name(noise)}: its results are the clean images." for name in perfect
        ]
        found = [_line(noise, name, here, done[name], common) for name in candidates]
        lines.append(_noisy_line(noise, next((done[name] for name in candidates if done[name]), {}), common))
        lines += _ranked(found, done, common, against)
    told = [*(f"{count} × left out of the means: {why}." for why, count in _alike(left_out)), *without_means]
    if without_ssim:
        told.append(
            f"{without_ssim} × left out of the means of SSIM, though n counts it: an image less than 11 pixels high or wide."
        )
    return lines, told


def _scored(row: Row) -> bool:
    """Whether the row counts: noisy and denoised images are averaged over the same ones."""
    return row["status"] == DONE and row["psnr_noisy_db"] is not None and row["psnr_denoised_db"] is not None


def _why_left_out(rows: Sequence[Row]) -> str:
    """Why the results of one image and seed, by all methods, have no mean."""
    if any(row["status"] == FAILED for row in rows):
        return "an image at one noise and seed that not every method has done"
    unscored = [row for row in rows if not _scored(row)]
    if not unscored:
        return "an image at one noise and seed that is not done by every method yet"
    if all(row["data_range"] is None for row in unscored):
        return f"an image that is not scored: {_why_not_scored(unscored[0])}"
    if any(row["psnr_noisy_db"] is None for row in unscored):
        return "an image whose noisy pixels equal the clean ones, so that their PSNR is infinite"
    return "an image of which a result equals the clean one, so that its PSNR is infinite"


def _why_not_scored(row: Row) -> str:
    """The reason that the row's note gives."""
    reasons = [part for part in (row["note"] or "").split("; ") if part.startswith(NOT_SCORED)]
    return reasons[0].removeprefix(NOT_SCORED) if reasons else "the clean image has no finite data range above 0"


def _alike(sentences: Iterable[str]) -> list[tuple[str, int]]:
    """Each sentence and how often it is there, the commonest first; those alike but for figures and quotations are one."""
    groups: dict[str, list[str]] = {}
    for sentence in sentences:
        groups.setdefault(re.sub(r"\d+|'[^']*'", "#", sentence), []).append(sentence)
    told = [(f"{group[0]}{', and the like' if len(set(group)) > 1 else ''}", len(group)) for group in groups.values()]
    return sorted(told, key=lambda one: -one[1])


Pair = tuple[str, int]


def _pair(row: Row) -> Pair:
    return str(row["source"]), int(row["seed"])


def _line(noise: str, name: str, here: Sequence[Row], done: Mapping[Pair, Row], common: Sequence[Pair]) -> Line:
    mine = [done[pair] for pair in common if pair in done]
    failed = sum(row["candidate"] == name and row["status"] == FAILED for row in here)
    return replace(
        _scores(Line(noise, name, failed=failed), mine, "denoised"),
        seconds=mean(row["method_seconds"] for row in mine) or None,
        threads=next((row["threads"] for row in mine), None),
    )


def _noisy_line(noise: str, done: Mapping[Pair, Row], common: Sequence[Pair]) -> Line:
    return _scores(Line(noise, NOISY), [done[pair] for pair in common if pair in done], "noisy")


def _scores(line: Line, rows: Sequence[Row], which: str) -> Line:
    """The line with the scores of the noisy images or of the denoised ones."""
    values = {_pair(row): float(row[f"psnr_{which}_db"]) for row in rows}
    return replace(
        line,
        pairs=len(rows),
        images=len({source for source, _ in values}),
        seeds=len({seed for _, seed in values}),
        psnr_db=mean(values.values()),
        psnr_sd_images_db=_spread_over(0, values),
        psnr_sd_seeds_db=_spread_over(1, values),
        ssim=mean(row[f"ssim_{which}"] for row in rows),
    )


def _spread_over(which: int, values: Mapping[Pair, float]) -> float | None:
    """The standard deviation over images (0) of the means of their seeds, or over seeds (1) of those of their images."""
    groups: dict[str | int, list[float]] = {}
    for pair, value in values.items():
        groups.setdefault(pair[which], []).append(value)
    means = [statistics.fmean(group) for group in groups.values()]
    return statistics.stdev(means) if len(means) > 1 else None


def _ranked(
    lines: Sequence[Line], done: Mapping[str, Mapping[Pair, Row]], common: Sequence[Pair], against: str
) -> list[Line]:
    """The lines with rank, and with what they differ by from the method of reference."""
    order = sorted((line.psnr_db for line in lines if line.psnr_db is not None), reverse=True)
    other = next((line for line in lines if line.candidate == against and line.images), None)
    ranked = []
    for plain in lines:
        line = plain
        if line.psnr_db is not None:
            line = replace(line, rank=order.index(line.psnr_db) + 1)
        if other is not None and line.images and plain is not other:
            mine, theirs = done[line.candidate], done[against]
            gaps = {pair: mine[pair]["psnr_denoised_db"] - theirs[pair]["psnr_denoised_db"] for pair in common}
            line = replace(
                line,
                difference_db=mean(gaps.values()),
                difference_sd_images_db=_spread_over(0, gaps),
                difference_sd_seeds_db=_spread_over(1, gaps),
            )
        if other is not None and other.seconds and line.seconds is not None:
            line = replace(line, seconds_ratio=line.seconds / other.seconds)
        ranked.append(line)
    return ranked


def mean(values: Iterable[float | None]) -> float | None:
    """The mean of the values there are; None where there are none."""
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


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
    several = any(line.seeds > 1 for line in lines)
    parts += _head(["method", *map(noise_name, noises), "s/image"])
    for name in candidates:
        cells = [_paper_cell(at[noise, name]) for noise in noises]
        seconds = mean(at[noise, name].seconds for noise in noises)
        parts.append(_tr([name, *cells, _seconds(seconds)]))
    for title, values in published.items():
        parts.append(_tr([title, *(_fixed(values.get(noise), 2) for noise in noises), "–"]))
    for noise in noises:
        parts += ["", f"### {noise_name(noise)}", ""]
        parts += _head([*headings(against, several=several)])
        parts += [_tr(detail(line, several=several)) for line in lines if line.noise == noise]
    return "\n".join([*parts, "", "Protocol:", "", *(f"- {note}" for note in notes), ""])


def noise_name(noise: str) -> str:
    """The noise of a comparison as tables head it."""
    return "own noise" if noise == "none" else noise


def headings(against: str, *, several: bool) -> list[str]:
    """What stands above the figures of `detail`; `several`: there are several seeds."""
    psnr = ["PSNR dB ± sd of images", *["sd of seeds"] * several]
    return ["method", *psnr, "SSIM", f"dB to {against} ± sd of images", *["sd of seeds"] * several, *_LAST]


_LAST = ("rank", "s/image", "ratio", "n")


def detail(line: Line, *, several: bool) -> list[str]:
    """The figures of a line as texts, in the order of `headings`; n is images times seeds."""
    failed = f" ({line.failed} failed)" if line.failed else ""
    whole = line.pairs == line.images * line.seeds
    count = f"{line.images} × {line.seeds}" if several and whole else f"{line.pairs}"
    psnr = [with_spread(line.psnr_db, line.psnr_sd_images_db), *[_fixed(line.psnr_sd_seeds_db, 3)] * several]
    gap = with_spread(line.difference_db, line.difference_sd_images_db, "+")
    return [
        line.candidate,
        *psnr,
        _fixed(line.ssim, 4),
        gap,
        *[_fixed(line.difference_sd_seeds_db, 3)] * several,
        _fixed(line.rank, 0),
        _seconds(line.seconds),
        "–" if line.seconds_ratio is None else f"{line.seconds_ratio:.3g}",
        f"{count}{failed}",
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
