"""The marks that zs-fit is to pass, row by row: mark, aim, what was measured, and the command that measures it.

    python -m benchmarks.marks

Measures nothing: it reads what the commands left in benchmarks/results. Of several results for one row, the one over most
images and seeds counts, then the newest. Spreads are standard deviations over the seeds; n is the number of images.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.common import read

Found = tuple[float, float | None, str]  # value, spread, remark
Finder = Callable[[], Found | None]


@dataclass(frozen=True)
class Command:
    """`python -m` this; `long` takes more than some minutes, `gpu` needs one."""

    text: str
    long: bool = True
    gpu: bool = False


CLIPPED = Command("benchmarks.methods --crop 256 --noise gauss:25 --clip-noise --baseline-images 24")
CROPS = Command("benchmarks.methods --crop 256 --noise gauss:25,gauss:50 --only zs-fit")
FULL = Command("benchmarks.methods --noise gauss:25 --only zs-fit")
OTHERS = Command(
    "benchmarks.methods --noise gauss:15,gauss:50,poisson:15,poisson:25,poisson:50 --only zs-fit-fast-directory"
)
TRANSFER = Command("benchmarks.transfer")
CONFOCAL = Command("benchmarks.methods --images confocal_pairs --only zs-fit", long=False)
STACK = Command("benchmarks.stack", long=False)
COST = Command("benchmarks.cost")
MEMORY = Command("benchmarks.memory 10000", long=False)
HOSTILE = Command("benchmarks.hostile", long=False)
CUDA = Command("benchmarks.cuda", long=False, gpu=True)


@dataclass(frozen=True)
class Check:
    """A figure and what it is held against; `at_most` where less is better."""

    what: str
    mark: float | None
    aim: float | None
    unit: str
    find: Finder
    at_most: bool = False

    def verdict(self, value: float) -> str:
        """What the value reaches."""
        for name, bound in (("aim", self.aim), ("mark", self.mark)):
            if bound is not None and (value <= bound if self.at_most else value >= bound):
                return f"{name} reached"
        return "missed" if self.mark is not None else "below the aim"


@dataclass(frozen=True)
class Row:
    """A row of the table."""

    what: str
    command: Command
    checks: tuple[Check, ...] = ()


def methods_row(
    label: str, noise: str, crop: int | None = None, clip: bool = False, images: str = "kodak24"
) -> dict[str, Any] | None:
    """The best founded result of one label of `benchmarks.methods`."""
    wanted = {"noise": noise, "crop": crop, "clip_noise": clip, "images": images}
    found = [
        {**row, "steps": document["baseline_steps"]}
        for document in read("methods-*")
        if all(document[key] == value for key, value in wanted.items())
        for row in document["rows"]
        if row["label"] == label
    ]
    return max(found, key=lambda row: (row["images"], row["seeds"], row.get("gain_n", 0)), default=None)


def db(*labels: str, above: float = 0.0, noise: str = "gauss:25", **options: Any) -> Finder:
    """The highest of the labels, less `above`."""

    def find() -> Found | None:
        rows = [row for label in labels if (row := methods_row(label, noise, **options)) is not None]
        if not rows:
            return None
        row = max(rows, key=lambda row: float(row["db"]))
        return row["db"] - above, row["db_sd"], f"{row['label']}, {row['db']:.2f} dB, n = {row['images']}"

    return find


def total_seconds(label: str, noise: str) -> Finder:
    def find() -> Found | None:
        row = methods_row(label, noise)
        return None if row is None else (row["seconds_a_seed"], None, f"{row['images']} images, fit and application")

    return find


def against_baseline(label: str, key: str) -> Finder:
    """`gain_db` or `times_faster` of the clipped crops."""

    def find() -> Found | None:
        row = methods_row(label, "gauss:25", 256, clip=True)
        if row is None or key not in row:
            return None
        told = f"n = {row.get('gain_n', 0)}, baseline of {row['steps']} steps"
        return row[key], row["gain_sd"] if key == "gain_db" else None, told

    return find


def from_result(pattern: str, value: Callable[[dict[str, Any]], Found | None]) -> Finder:
    """From the newest result that has it; quick looks at crops do not count."""

    def find() -> Found | None:
        whole = (document for document in read(pattern) if document.get("crop") is None)
        return next((found for document in whole if (found := value(document)) is not None), None)

    return find


def absolute(find: Finder) -> Finder:
    def without_sign() -> Found | None:
        found = find()
        return None if found is None else (abs(found[0]), found[1], f"{found[0]:+.2f} dB, {found[2]}")

    return without_sign


def _fit_ratio(document: dict[str, Any]) -> Found | None:
    seconds = {row["side"]: row["fit_seconds"] for row in document["size"]}
    if not {512, 4096} <= seconds.keys():
        return None
    return seconds[4096] / seconds[512], None, f"preset {document['preset']}"


def _share(document: dict[str, Any]) -> Found:
    row = min(document["network"], key=lambda row: float(row["share"]))
    told = f"{row['layers']} × {row['width']} maps, {row['gflops']:.0f} of {row['bare_gflops']:.0f} GFLOP/s"
    large = f"{100 * row['share_of_large']:.0f} % of large tiles without margins"
    return 100 * row["share"], None, f"{told}, {row['megapixels_a_second']:.2f} megapixels/s, network alone; {large}"


def _at_once(document: dict[str, Any]) -> Found | None:
    if (document["images"], document["side"], document["preset"]) != (24, 256, "fast"):
        return None
    return document["ratio"], document["ratio_sd"], document["reason"]


def _loss(key: str) -> Callable[[dict[str, Any]], Found]:
    def loss(document: dict[str, Any]) -> Found:
        kept = ", ".join(f"{name} {count}" for name, count in document["kept"]["fitted to others"].items())
        return document[f"{key}_db"], document[f"{key}_sd"], f"{document['preset']}, n = {document['n']}, kept: {kept}"

    return loss


def _gain(key: str) -> Callable[[dict[str, Any]], Found]:
    def gain(document: dict[str, Any]) -> Found:
        stack = document["rows"]["stack"]
        return (
            document["gains"][key],
            stack[f"{key}_sd"],
            f"{stack[f'{key}_db']:.2f} dB, {document['preset']}, {stack['seeds']} seed(s)",
        )

    return gain


PUBLISHED = {"gauss:15": 32.30, "gauss:50": 25.82, "poisson:15": 26.80, "poisson:25": 28.21, "poisson:50": 30.13}
IMAGE, DIRECTORY = ("zs-fit-fast-image", "zs-fit-best-image"), ("zs-fit-fast-directory", "zs-fit-best-directory")

TABLE = (
    Row(
        "zs-n2n paper against the plain baseline, same steps (here on 256² crops, σ = 25 clipped)",
        CLIPPED,
        (
            Check("distance", 0.05, 0.05, "dB", absolute(against_baseline("zs-n2n-paper", "gain_db")), at_most=True),
            Check("speed", None, 3, "×", against_baseline("zs-n2n-paper", "times_faster")),
        ),
    ),
    Row(
        "zs-fit fast, scope image, 24 256² crops, σ = 25 clipped, against the baseline at step 3000",
        CLIPPED,
        (
            Check("gain", 0.5, 0.8, "dB", against_baseline(IMAGE[0], "gain_db")),
            Check("speed", 50, 100, "×", against_baseline(IMAGE[0], "times_faster")),
        ),
    ),
    Row(
        "the same, best",
        CLIPPED,
        (
            Check("gain", 1.2, 1.8, "dB", against_baseline(IMAGE[1], "gain_db")),
            Check("speed", 10, 10, "×", against_baseline(IMAGE[1], "times_faster")),
        ),
    ),
    Row(
        "24 256² crops against the best published data-free figures (29.88 and 26.58 dB)",
        CROPS,
        tuple(
            Check(f"{noise}, scope {scope}", 0, 0.4, "dB", db(*labels, above=published, noise=noise, crop=256))
            for noise, published in (("gauss:25", 29.88), ("gauss:50", 26.58))
            for scope, labels in (("image", IMAGE), ("directory", DIRECTORY))
        ),
    ),
    Row("full size, scope image, σ = 25, fast", FULL, (Check("PSNR", 30.3, 30.8, "dB", db(IMAGE[0])),)),
    Row(
        "full size, scope directory, σ = 25, fast",
        FULL,
        (
            Check("PSNR", 31.0, 31.4, "dB", db(DIRECTORY[0])),
            Check("total time", 200, 200, "s", total_seconds(DIRECTORY[0], "gauss:25"), at_most=True),
        ),
    ),
    Row(
        "full size, scope directory, σ = 25, best",
        FULL,
        (
            Check("PSNR", 31.5, 31.82, "dB", db(DIRECTORY[1])),
            Check("total time", 1500, 1500, "s", total_seconds(DIRECTORY[1], "gauss:25"), at_most=True),
        ),
    ),
    Row(
        "full size, scope directory, above ZS-N2N's published best iterates",
        OTHERS,
        tuple(
            Check(f"{noise} above {published}", 1.5, 2, "dB", db(*DIRECTORY, above=published, noise=noise))
            for noise, published in PUBLISHED.items()
        ),
    ),
    Row(
        "a model fitted to 12 Kodak images applied to the other 12, below fitting to them",
        TRANSFER,
        (
            Check("loss, both only applied", 0.3, 0.1, "dB", from_result("transfer-*", _loss("loss")), at_most=True),
            Check("loss to refined", 0.3, 0.1, "dB", from_result("transfer-*", _loss("loss_to_refined")), at_most=True),
        ),
    ),
    Row(
        "confocal_pairs (noisy 29.64, ZS-N2N by crops 34.81 dB)",
        CONFOCAL,
        (Check("PSNR", 36.2, 37, "dB", db(*IMAGE, *DIRECTORY, noise="real", images="confocal_pairs")),),
    ),
    Row(
        "tirf, scope stack above scope image",
        STACK,
        (
            Check("against the mean of the others", 0, 2, "dB", from_result("stack-*", _gain("others"))),
            Check("against the other half", 0, 2, "dB", from_result("stack-*", _gain("half"))),
        ),
    ),
    Row(
        "fit time at 4096² over that at 512²",
        COST,
        (Check("ratio", 1.2, 1.0, "×", from_result("cost-*", _fit_ratio), at_most=True),),
    ),
    Row(
        "peak memory for one 10,000 × 10,000 uint16 image",
        MEMORY,
        (
            Check(
                "ru_maxrss",
                2500,
                1500,
                "MB",
                from_result("memory-10000", lambda d: (d["megabytes"]["zs-fit"], None, "zs-fit, one run")),
                at_most=True,
            ),
        ),
    ),
    Row(
        "application, as a share of what the same convolutions reach in a bare loop",
        COST,
        (Check("share", 70, 90, "%", from_result("cost-*", _share)),),
    ),
    Row(
        "a CUDA GPU: images a second for the 24 crops at once against one after another",
        CUDA,
        (Check("ratio", 10, 30, "×", from_result("cuda", _at_once)),),
    ),
    Row(
        "a hostile directory: no image more than 0.1 dB under scope image",
        HOSTILE,
        (
            Check(
                "worst difference",
                -0.1,
                -0.1,
                "dB",
                from_result(
                    "hostile-*",
                    lambda d: (d["worst"], None, f"{d['worst_image']}, {d['preset']}, {d['seeds']} seed(s)"),
                ),
            ),
            Check(
                "and against no network",
                -0.1,
                -0.1,
                "dB",
                from_result(
                    "hostile-*", lambda d: (d["worst_against_estimate"], None, d["worst_against_estimate_image"])
                ),
            ),
        ),
    ),
)


def commands() -> list[Command]:
    """Those of the table, each once."""
    return list(dict.fromkeys(row.command for row in TABLE))


def lines(row: Row) -> Iterator[str]:
    yield from textwrap.wrap(row.what, 110)
    yield f"  python -m {row.command.text}"
    for check in row.checks:
        bounds = ", ".join(
            f"{name} {'≤' if check.at_most else '≥'} {bound:g}"
            for name, bound in (("mark", check.mark), ("aim", check.aim))
            if bound is not None
        )
        found = check.find()
        told = "not run"
        if found is not None:
            value, deviation, remark = found
            spread = "" if deviation is None else f" ± {deviation:.2f}"
            told = f"{value:.2f}{spread} {check.unit}, {check.verdict(value)} ({remark})"
        yield f"    {check.what:32}{bounds:26}{told}"


def main() -> int:
    for number, row in enumerate(TABLE, start=1):
        print(f"{number:2}. " + "\n    ".join(lines(row)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
