"""The page of a comparison: where labels stand, what is shown of an image, and how it looks in a browser."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from denoise_core.images import Header
from tasks import comparison
from tasks.comparison import BROKEN, Cell, Missing, failures_of, missing_of
from tasks.comparison_page import write_summary
from tasks.comparison_plot import HEIGHT, LEFT, WIDTH, _cover, plot
from tasks.comparison_sheet import most_detailed
from tasks.comparison_summary import NOISY, Line, summarise, to_csv, to_markdown
from tasks.table import Row
from tasks.work import Source

NAMES = ["zs-fit", "zs-fit:best:directory", "nl-bayes", "zs-n2n:paper", "nlm", "tv"]


def line(name: str, psnr: float | None, seconds: float | None) -> Line:
    return Line("gauss:25", name, pairs=4, images=4, seeds=1, psnr_db=psnr, rank=1, seconds=seconds)


def row(candidate: str, source: str, psnr: float | None, *, seconds: float = 1.0, seed: int = 0) -> Row:
    values = {
        "source": source, "candidate": candidate, "noise": "gauss:25", "seed": seed, "method_seconds": seconds,
        "psnr_noisy_db": 20.0, "psnr_denoised_db": psnr, "ssim_noisy": 0.3, "ssim_denoised": 0.8,
        "data_range": 255.0, "threads": 1,
        "status": "failed" if psnr is None else "done", "error": "it broke" if psnr is None else None,
    }  # fmt: skip
    return {column.name: None for column in comparison.COMPARISON_COLUMNS} | values


def test_means_are_over_what_every_method_has_done() -> None:
    rows = [row("a", "easy", 30.0), row("a", "hard", 20.0), row("b", "easy", 29.0), row("b", "hard", None)]
    lines, left_out = summarise(rows, candidates=["a", "b", "c"], noises=["gauss:25"], against="b")
    found = {one.candidate: one for one in lines}
    assert (found["a"].psnr_db, found["a"].images, found["a"].rank) == (30.0, 1, 1)
    assert (found["b"].psnr_db, found["b"].failed, found["b"].rank) == (29.0, 1, 2)
    assert found["a"].difference_db == 1.0
    assert found["b"].difference_db is None
    assert (found["c"].psnr_db, found["c"].rank, found["c"].seconds_ratio) == (None, None, None)
    assert found[NOISY].psnr_db == 20.0
    assert left_out == ["1 × left out of the means: an image at one noise and seed that not every method has done."]


def test_spread_is_over_images_and_apart_from_it_over_seeds() -> None:
    values = {("x", 0): 30.0, ("x", 1): 31.0, ("y", 0): 20.0, ("y", 1): 21.0}
    rows = [row("a", source, psnr, seed=seed) for (source, seed), psnr in values.items()]
    (_, found), _ = summarise(rows, candidates=["a"], noises=["gauss:25"], against="a")
    assert found.psnr_db == 25.5
    assert found.psnr_sd_images_db == pytest.approx(np.std([30.5, 20.5], ddof=1))
    assert found.psnr_sd_seeds_db == pytest.approx(np.std([25.0, 26.0], ddof=1))
    assert found.seconds_ratio == 1.0


def test_the_spread_of_differences_is_over_images_too() -> None:
    gaps = {("x", 0): 1.0, ("x", 1): 3.0, ("y", 0): 2.0, ("y", 1): 5.0}
    rows = [row("a", source, 20.0, seed=seed) for source, seed in gaps]
    rows += [row("b", source, 20.0 + gap, seed=seed) for (source, seed), gap in gaps.items()]
    lines, _ = summarise(rows, candidates=["a", "b"], noises=["gauss:25"], against="a")
    found = lines[-1]
    assert found.difference_db == pytest.approx(2.75)
    assert found.difference_sd_images_db == pytest.approx(np.std([2.0, 3.5], ddof=1))
    assert found.difference_sd_seeds_db == pytest.approx(np.std([1.5, 4.0], ddof=1))
    assert (found.pairs, found.images, found.seeds) == (4, 2, 2)
    told = to_markdown(lines, published={}, notes=[], against="a")
    assert "| +2.75 ± 1.06 | 1.768 | 1 |" in told
    assert "| 2 × 2 |" in told


NO_SCORES = dict.fromkeys(("psnr_noisy_db", "psnr_denoised_db", "ssim_noisy", "ssim_denoised", "data_range"))


def test_why_an_image_is_left_out_is_said() -> None:
    def unscored(name: str, note: str | None) -> Row:
        return row("a", name, 30.0) | NO_SCORES | {"note": note}

    rows = [
        unscored("alone", "a remark; not scored: there is no reference under this path; another"),
        unscored("cut", "not scored: the reference is (3, 4) uint8, the image (5, 6) uint8"),
        unscored("cut too", "not scored: the reference is (7, 8) uint8, the image (9, 9) uint8"),
        unscored("flat", None),
        row("a", "same", 30.0) | {"psnr_denoised_db": None, "ssim_denoised": None},
        row("a", "x", 30.0),
    ]
    _, left_out = summarise(rows, candidates=["a"], noises=["gauss:25"], against="a")
    not_scored = "left out of the means: an image that is not scored: "
    assert left_out == [
        f"2 × {not_scored}the reference is (3, 4) uint8, the image (5, 6) uint8, and the like.",
        f"1 × {not_scored}there is no reference under this path.",
        f"1 × {not_scored}the clean image has no finite data range above 0.",
        "1 × left out of the means: an image of which a result equals the clean one, so that its PSNR is infinite.",
    ]


def test_an_image_whose_noise_changed_nothing_counts_for_no_line() -> None:
    rows = [row(name, "x", psnr) for name, psnr in (("a", 30.0), ("b", 31.0))]
    rows += [row(name, "same", 40.0) | {"psnr_noisy_db": None} for name in ("a", "b")]
    lines, left_out = summarise(rows, candidates=["a", "b"], noises=["gauss:25"], against="a")
    assert [(one.psnr_db, one.images) for one in lines] == [(20.0, 1), (30.0, 1), (31.0, 1)]
    assert left_out == [
        "1 × left out of the means: an image whose noisy pixels equal the clean ones, so that their PSNR is infinite."
    ]


def test_a_method_that_gives_the_clean_image_alone_has_no_mean() -> None:
    rows = [row("a", "x", 30.0), row("b", "x", 31.0) | {"psnr_denoised_db": None}]
    lines, told = summarise(rows, candidates=["a", "b"], noises=["gauss:25"], against="a")
    assert [one.psnr_db for one in lines] == [20.0, 30.0, None]
    assert told == ["b has no mean PSNR at gauss:25: its results are the clean images."]


def test_images_too_small_for_ssim_are_said() -> None:
    small = {"ssim_noisy": None, "ssim_denoised": None}
    rows = [row(name, "x", 30.0) for name in ("a", "b")] + [row(name, "low", 30.0) | small for name in ("a", "b")]
    rows += [row("c", source, None) | NO_SCORES for source in ("x", "low")]
    lines, told = summarise(rows, candidates=["a", "b", "c"], noises=["gauss:25"], against="a")
    assert (lines[1].pairs, lines[1].ssim) == (2, 0.8)
    assert told == ["1 × left out of the means of SSIM, though n counts it: an image less than 11 pixels high or wide."]


PLACES = [(name, noise, seed) for seed in range(8) for noise in ("gauss:25", "poisson:30") for name in ("a", "b", "c")]


def test_what_is_missing_is_said() -> None:
    sources = [Source(name, "", Header("png", "YX", (9, 9), "uint8")) for name in ("x", "y")]

    def missing(cells: int, done: int, error: str | None = None) -> Missing:
        """Of so many cells and so many of their results, one cell after the other; the rest broke off, or was stopped."""
        made = [(place, source.name) for place in PLACES[:cells] for source in sources]
        rows = [row(name, source, 30.0, seed=seed) | {"noise": noise} for (name, noise, seed), source in made[:done]]
        for (name, noise, seed), source in made[done:] if error else ():
            rows.append(row(name, source, None, seed=seed) | {"noise": noise, "error_type": BROKEN})
        broken = {place: error for place, _ in made[done:]}
        asked = [Cell(*place, False, None, Path(), "", broken.get(place)) for place in PLACES[:cells]]
        return missing_of(asked, rows, sources, stopped=error is None)

    assert missing(3, 6) == Missing(0, "")
    assert missing(1, 1).sentence == (
        "Not complete, since it was stopped; 1 of 2 results are missing. The same command goes on with them."
    )
    for cells, done, said in (
        (6, 9, "3 of 12 results are missing: b at poisson:30 (1 of 2); c at poisson:30 (2 of 2)."),
        (12, 13, "11 of 24 results are missing, in 6 of 12 cells: seed 1."),
        (18, 13, "23 of 36 results are missing, in 12 of 18 cells: seeds 1, 2."),
        (48, 13, "83 of 96 results are missing, in 42 of 48 cells: 7 of 8 seeds."),
        (48, 1, "95 of 96 results are missing, in 48 of 48 cells."),
    ):
        assert said in missing(cells, done).sentence
        assert missing(cells, done).results == 2 * cells - done
    broken = missing(3, 5, "out of luck")
    assert "since 1 of 3 cells broke off (out of luck); 1 of 6 results are missing: c (1 of 2)." in broken.sentence


def test_one_failure_by_every_method_is_told_once() -> None:
    rows = [row(name, "cut", None, seed=seed) for name in ("a", "b") for seed in (0, 1)]
    rows += [row("a", "small", None, seed=seed) for seed in (0, 1)]
    rows += [row(name, "x", 30.0, seed=seed) for name in ("a", "b") for seed in (0, 1)]
    found = failures_of(rows)
    assert [(one.source, one.cells, one.where) for one in found] == [("cut", 4, "every method"), ("small", 2, "a")]


def test_equal_methods_share_a_rank() -> None:
    rows = [row(name, "x", psnr) for name, psnr in (("a", 30.0), ("b", 31.0), ("c", 31.0))]
    lines, _ = summarise(rows, candidates=["a", "b", "c"], noises=["gauss:25"], against="a")
    assert [one.rank for one in lines[1:]] == [3, 1, 1]


def test_a_method_that_did_nothing_is_a_dash_everywhere() -> None:
    lines, _ = summarise([row("a", "x", None)], candidates=["a"], noises=["gauss:25"], against="a")
    told = to_markdown(lines, published={}, notes=["as it is"], against="a")
    assert "| a | – | – |" in told
    assert "nan" not in told + to_csv(lines)
    assert plot(lines, ["a"]) is None


def test_the_markdown_marks_the_best_and_shows_what_was_published() -> None:
    rows = [row("a", "x", 30.0, seconds=2.0), row("b", "x", 31.0), row("c", "x", 29.0)]
    lines, _ = summarise(rows, candidates=["a", "b", "c"], noises=["gauss:25"], against="a")
    told = to_markdown(lines, published={"theirs": {"gauss:25": 29.07}}, notes=["a note"], against="a")
    assert "| b | **31.00 / 0.800** | 1 |" in told
    assert "| a | _30.00 / 0.800_ | 2 |" in told
    assert "| theirs | 29.07 | – |" in told
    assert "- a note" in told
    widths = {text.count("|") for text in told.splitlines() if text.startswith("|")}
    assert widths == {4, 9}


@pytest.mark.parametrize("seed", range(5))
def test_labels_cover_no_other_and_stay_inside(seed: int) -> None:
    rng = np.random.default_rng(seed)
    lines = [line(name, 30 + rng.normal(0, 0.3), 10 ** rng.normal(0, 0.2)) for name in NAMES]
    found = plot(lines, NAMES)
    assert found is not None
    boxes = []
    for point in found.points:
        label, wide = point["label"], 7.0 * len(point["name"])
        left = label["x"] if label["anchor"] == "start" else label["x"] - wide
        boxes.append((left, label["y"] - 11, left + wide, label["y"] + 3))
        assert left >= LEFT - 1
        assert left + wide <= WIDTH + 1
        assert 0 <= point["y"] <= HEIGHT
    assert not any(_cover(a, b) for a, b in itertools.combinations(boxes, 2))


def test_better_is_higher_and_slower_is_to_the_right() -> None:
    found = plot([line("a", 30, 1), line("b", 31, 10), line("c", 29, 100)], ["a", "b", "c"])
    assert found is not None
    a, b, c = found.points
    assert a["x"] < b["x"] < c["x"]
    assert b["y"] < a["y"] < c["y"]
    assert found.front == f"M {a['x']} {a['y']} H {b['x']} V {b['y']}", "c is slower and worse"
    assert {"1", "10", "100"} <= {label for _, label in found.x_ticks}


def test_no_line_joins_a_method_to_itself() -> None:
    found = plot([line("a", 31, 1), line("b", 30, 10)], ["a", "b"])
    assert found is not None
    assert found.front == ""


def test_one_method_alone_is_plotted() -> None:
    found = plot([line("a", 30, 1)], ["a"])
    assert found is not None
    assert len(found.points) == 1


def test_the_window_with_most_detail_is_found() -> None:
    rng = np.random.default_rng(0)
    image = np.zeros((90, 120, 3))
    image[50:80, 20:50] = rng.normal(size=(30, 30, 3))
    assert most_detailed(image, 30) == (50, 20)
    assert most_detailed(image[:10, :10], 30) == (0, 0)
    assert most_detailed(np.zeros((1, 5)), 3) == (0, 0)


HOSTILE = "<img src=x onerror=alert(1)>.png"


@pytest.fixture
def page(tmp_path: Path) -> Path:
    rows = [row(name, HOSTILE, 30.0 + i, seconds=1.0 + i) for i, name in enumerate(NAMES)]
    rows += [row("tv", "<script>alert(1)</script>.png", None)]
    protocol = {
        "methods": NAMES, "against": "zs-fit", "noise": [{"noise": "gauss:25", "clipped": False}], "images": 2,
        "software": "denoise-flows", "notes": ["<b>a note</b>"], "published": {"theirs": {"gauss:25": 29.07}},
    }  # fmt: skip

    provenance = {"config": 'input = "nowhere"\n', "protocol": json.dumps(protocol)}
    comparison.write(tmp_path / comparison.TABLE, rows, provenance)
    write_summary(tmp_path)
    return tmp_path / "comparison.html"


def test_text_is_escaped_and_a_missing_input_costs_no_page(page: Path) -> None:
    html = page.read_text()
    assert "<script>alert" not in html
    assert "<img src=x" not in html
    assert "<b>a note" not in html
    assert "theirs" in html
    assert "it broke" in html
    assert not (page.parent / "sheet.png").exists()


def test_only_a_line_that_is_drawn_is_explained(page: Path) -> None:
    assert "The dashed line" in page.read_text()
    rows, provenance = comparison.read(page.parent / comparison.TABLE)
    for one in rows:
        one["method_seconds"] = 100.0 - (one["psnr_denoised_db"] or 0)  # the better, the faster
    comparison.write(page.parent / comparison.TABLE, rows, provenance)
    write_summary(page.parent)
    html = page.read_text()
    assert html.count("<circle") == len(NAMES)
    assert "dashed line" not in html
    assert '<path class="front"' not in html


@pytest.mark.parametrize("width", [500, 1000, 1300, 1700])
def test_a_browser_shows_it_without_complaint(chromium: Any, page: Path, width: int) -> None:
    tab = chromium.new_page(viewport={"width": width, "height": 900})
    complaints: list[str] = []
    tab.on("console", lambda message: complaints.append(message.text))
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.on("dialog", lambda dialog: (complaints.append("a dialog opened"), dialog.dismiss()))
    tab.goto(page.as_uri())
    assert tab.locator("svg.plot circle").count() == len(NAMES)
    assert tab.locator("section#figures tbody tr").count() == 1 + len(NAMES) + 1
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    table = tab.locator("section#figures .scroll")
    assert width < 900 or table.evaluate("found => found.scrollWidth <= found.clientWidth"), "all columns are seen"
    assert complaints == []
    tab.close()
