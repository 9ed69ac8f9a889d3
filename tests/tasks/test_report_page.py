import base64
import io
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tasks import report_page
from tasks.report_page import Panel, make_panel, render_page

COLUMNS = [
    (name, f"what {name} is")
    for name in [
        "source",
        "status",
        "error_type",
        "error",
        "shape",
        "dtype",
        "method",
        "preset",
        "scope",
        "noise",
        "device",
        "psnr_noisy_db",
        "psnr_denoised_db",
        "ssim_noisy",
        "ssim_denoised",
        "sigma_estimate",
        "residual_autocorrelation",
        "mean_noisy",
        "mean_denoised",
        "clipped_fraction",
        "seconds",
        "note",
        "created_at",
    ]
]
NASTY = [
    "<script>document.title='owned'</script>.png",
    '"><img src=x onerror="document.title=1">.png',
    "two\nlines.png",
    "micro🔬scope 👩\u200d🔬.tif",
    "back\u202egnp.png",
    "undecodable\udcff.png",
    "' onmouseover='alert(1).png",
]


def row(source: str, **values: Any) -> dict[str, Any]:
    return dict.fromkeys((name for name, _ in COLUMNS)) | {"source": source, "status": "done"} | values


def failed(source: str, error_type: str = "UnreadableImage", error: str = "the file is cut short") -> dict[str, Any]:
    return row(source, status="failed", error_type=error_type, error=error)


def page(rows: list[dict[str, Any]], panels: list[Panel] | None = None, **options: Any) -> str:
    provenance = {"run id": "r1", "version": "0.1.0"}
    return render_page(
        rows=rows,
        panels=panels or [],
        provenance=options.pop("provenance", provenance),
        config=options.pop("config", {"method": "zs-n2n", "noise": "gauss:25"}),
        columns=COLUMNS,
        title=options.pop("title", "Report"),
        **options,
    )


class Reader(HTMLParser):
    """An independent reading of the page: its tags, and the text of every tag by class."""

    VOID = frozenset({"meta", "link", "img", "input", "wbr", "br"})

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.rows: list[list[str]] = []
        self.text = ""
        self.feed(source)
        self.close()
        assert self.open == [], "unclosed tags"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in {"td", "th"}:
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "script" in self.open or "style" in self.open:
            return
        self.text += data
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data.strip()

    def column(self, label: str) -> list[str]:
        at = self.rows[0].index(label)
        return [r[at] for r in self.rows[1:]]


def pixels(png: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(png)) as image:
        return np.asarray(image)


@pytest.fixture(scope="module")
def photographs() -> dict[str, np.ndarray]:
    data = pytest.importorskip("skimage.data")
    return {"astronaut.png": data.astronaut(), "camera.png": data.camera(), "coins.tif": data.coins()}


def noisy_version(x: np.ndarray, sigma: float = 25) -> np.ndarray:
    return x + np.random.default_rng(0).normal(0, sigma, x.shape).astype(np.float32)


# --- comparison strips ---


def test_8_bit_pixels_are_shown_as_they_are(photographs: dict[str, np.ndarray]) -> None:
    x = photographs["astronaut.png"]
    panel = make_panel("a", x, x, clean=x, limits=(0, 255), why="sample", caption="", crop=100)
    np.testing.assert_array_equal(pixels(panel.noisy_png), x[206:306, 206:306])
    assert panel.clean_png == panel.denoised_png == panel.noisy_png
    assert np.ptp(pixels(panel.residual_png)) == 0
    assert "middle 100 × 100 px of 512 × 512" in panel.display
    assert "display 0 … 255" in panel.display


def test_residual_is_noisy_minus_denoised_at_the_stated_range(photographs: dict[str, np.ndarray]) -> None:
    x = photographs["camera.png"]
    y = noisy_version(x)
    panel = make_panel("a", y, x, clean=None, limits=(0, 255), why="", caption="")
    limit = float(re.search(r"residual ±([\d.]+) around grey", panel.display)[1])  # type: ignore[index]
    assert 60 < limit < 100  # 2.8 σ, rounded up
    expected = np.clip((y - x)[128:384, 128:384] / limit, -1, 1)
    np.testing.assert_allclose(pixels(panel.residual_png) / 127.5 - 1, expected, atol=1 / 127)
    assert panel.clean_png is None


def test_unsigned_pixels_do_not_wrap_in_the_residual() -> None:
    dark, bright = np.full((8, 8), 10, np.uint8), np.full((8, 8), 20, np.uint8)
    panel = make_panel("a", dark, bright, clean=None, limits=(0, 255), why="", caption="")
    assert pixels(panel.residual_png).max() < 10  # −10 at ±10 is black; wrapped, 246 would be white


def test_deep_images_share_one_stated_range(photographs: dict[str, np.ndarray]) -> None:
    # A camera's 12 bits in a 16-bit file: at 0 … 65535 it would be black.
    clean = photographs["camera.png"].astype(np.uint16) * 4 + 100
    noisy = noisy_version(clean, 40)
    panel = make_panel("a", noisy, clean, clean=clean, limits=(0, 65535), why="", caption="")
    shown = re.search(r"display ([\d,.]+) … ([\d,.]+) \(0.1 to 99.9 % of the noisy crop\)", panel.display)
    assert shown is not None
    low, high = (float(v.replace(",", "")) for v in shown.groups())
    assert (low, high) == pytest.approx(np.percentile(noisy[128:384, 128:384], [0.1, 99.9]), rel=2e-3, abs=0.5)
    expected = np.clip((clean[128:384, 128:384] - low) / (high - low), 0, 1) * 255
    for png in (panel.denoised_png, panel.clean_png):
        assert png is not None
        np.testing.assert_allclose(pixels(png), expected, atol=1)


def test_faint_deep_residuals_are_not_lost() -> None:
    y = np.random.default_rng(0).normal(300, 4, (64, 64))
    panel = make_panel("a", y, np.full_like(y, 300), clean=None, limits=(0, 65535), why="", caption="")
    assert pixels(panel.residual_png).std() > 30


@pytest.mark.parametrize("channels", [1, 2, 4, 5])
def test_other_channel_counts_are_shown_as_their_mean(channels: int) -> None:
    x = np.random.default_rng(0).integers(0, 256, (20, 30, channels), dtype=np.uint8)
    panel = make_panel("a", x, x, clean=None, limits=(0, 255), why="", caption="")
    np.testing.assert_allclose(pixels(panel.noisy_png), x.mean(axis=2), atol=0.5)
    assert ("mean of" in panel.display) == (channels != 1)


@pytest.mark.parametrize("value_max", [255, 65535])
@pytest.mark.parametrize("fill", [0.0, 7.0, np.nan, np.inf])
def test_constant_and_undefined_images_are_shown(fill: float, value_max: float) -> None:
    x = np.full((1, 1), fill, np.float32)
    panel = make_panel("a", x, x, clean=None, limits=(0, value_max), why="", caption="")
    assert pixels(panel.noisy_png).shape == (1, 1)
    assert "nan" not in panel.display
    assert "inf" not in panel.display


def test_unlike_shapes_are_refused() -> None:
    x = np.zeros((4, 4))
    with pytest.raises(ValueError, match=r"img: the clean image has shape \(4, 5\) and the noisy one \(4, 4\)"):
        make_panel("img", x, x, clean=np.zeros((4, 5)), limits=(0, 255), why="", caption="")
    with pytest.raises(ValueError, match="cannot be shown"):
        make_panel("img", np.zeros((0, 4)), np.zeros((0, 4)), clean=None, limits=(0, 255), why="", caption="")


# --- the page, read by a parser ---


def test_nothing_is_loaded_from_elsewhere(photographs: dict[str, np.ndarray]) -> None:
    x = photographs["coins.tif"]
    reader = Reader(page([row("a")], [make_panel("a", x, x, clean=x, limits=(0, 255), why="w", caption="c")]))
    for tag, attributes in reader.tags:
        for name in ("src", "href", "action", "srcset", "data"):
            if name in attributes:
                assert (attributes[name] or "").startswith("data:"), (tag, attributes)
        assert not any(name.startswith("on") or name == "style" for name in attributes)
    (policy,) = [a["content"] for t, a in reader.tags if t == "meta" and a.get("http-equiv")]
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    assert [t for t, _ in reader.tags].count("script") == 1


def test_pictures_inside_are_the_panel_s(photographs: dict[str, np.ndarray]) -> None:
    x = photographs["coins.tif"]
    panel = make_panel("a", noisy_version(x), x, clean=x, limits=(0, 255), why="w", caption="c", crop=64)
    images = [a for t, a in Reader(page([row("a")], [panel])).tags if t == "img"]
    inside = [base64.b64decode((a["src"] or "").partition(",")[2]) for a in images]
    assert inside == [panel.noisy_png, panel.denoised_png, panel.residual_png, panel.clean_png]
    assert {(a["width"], a["height"]) for a in images} == {("64", "64")}


@settings(deadline=None, max_examples=40, database=None)
@given(st.lists(st.text(min_size=1), min_size=1, max_size=4))
def test_any_text_stays_text(names: list[str]) -> None:
    panel = Panel(names[0], names[-1], names[0], b"0" * 24, b"1", b"2", None, names[-1])
    options = {"title": names[0], "config": {n: n for n in names}, "provenance": {n: n for n in names}}
    hostile = page([failed(n, n, n) for n in names] + [row(n, note=n, method=n) for n in names], [panel], **options)
    tame = page([failed("a", "a", "a") for _ in names] + [row("a", note="a", method="a") for _ in names], [panel])
    hostile.encode("utf-8")
    assert {t for t, _ in Reader(hostile).tags} <= {t for t, _ in Reader(tame).tags} | {"wbr", "p"}


@pytest.mark.parametrize("name", NASTY)
def test_names_are_escaped_and_legible(name: str) -> None:
    source = page([failed(name), row(name)])
    source.encode("utf-8")
    assert not re.search("[\u202a-\u202e\u2066-\u2069]", source)
    assert [t for t, _ in Reader(source).tags].count("script") == 1
    legible = name.replace("\n", r"\n").replace("\u202e", r"\u202e").replace("\udcff", r"\udcff")
    assert Reader(source).column("Image") == [legible, legible]


def test_counts_come_first_then_failures_then_the_table_then_provenance() -> None:
    rows = [row("a", psnr_noisy_db=20.0, psnr_denoised_db=29.5, seconds=4.0), failed("b"), row("c", status="skipped")]
    source = page(rows, wall_seconds=75)
    text = Reader(source).text
    order = ["20.00 → 29.50 dB", "Failed images", "the file is cut short", "Status", "Configuration", "Provenance"]
    places = [text.index(part) for part in order]
    assert places == sorted(places)
    shown = dict(re.findall(r"<dt>(\w+)</dt><dd><span class=\"value\">([^<]*)</span>", source))
    assert (shown["Images"], shown["Done"], shown["Failed"], shown["Skipped"]) == ("3", "1", "1", "1")
    assert shown["Time"] == "1 min 15 s"
    assert "+9.50 dB, 1 image" in text
    assert "zs-n2n · noise gauss:25" in text


def test_failures_are_grouped_with_each_file_and_its_sentence() -> None:
    rows = [failed("a"), failed("b", "UnsupportedImage", "found CMYK"), failed("c", error="is empty")]
    text = Reader(page(rows)).text
    order = [
        "UnreadableImage · 2 images",
        "the file is cut short",
        "is empty",
        "UnsupportedImage · 1 image",
        "found CMYK",
    ]
    places = [text.index(part) for part in order]
    assert places == sorted(places)


def test_a_common_failure_does_not_hide_a_rare_one() -> None:
    rows = [failed(f"{i}.png") for i in range(700)] + [failed("rare.png", "OutOfMemory", "needs 43 GB")]
    text = Reader(page(rows)).text
    assert "needs 43 GB" in text
    assert "UnreadableImage · 700 images" in text
    assert "200 more are not listed here" in text


def test_missing_and_infinite_values_are_a_dash() -> None:
    reader = Reader(page([row("a", psnr_denoised_db=float("inf"), seconds=1.0), row("b", psnr_denoised_db=31.005)]))
    assert reader.column("PSNR denoised (dB)") == ["–", "31.00"]
    assert reader.column("Time (s)") == ["1.0", "–"]
    assert "nan" not in reader.text.lower().split()
    assert "PSNR noisy (dB)" not in reader.rows[0]


@pytest.mark.parametrize("rows", [[], [failed("a"), failed("b")], [row("a"), row("b")], [row("a", status="skipped")]])
def test_runs_without_a_score_are_shown(rows: list[dict[str, Any]]) -> None:
    text = Reader(page(rows, config={}, provenance={})).text
    assert "Mean PSNR" not in text
    assert "None" not in text
    assert ("The run has no images." in text) == (not rows)


def test_a_long_table_keeps_the_rows_that_need_a_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_page, "MAX_TABLE_ROWS", 4)
    rows = [row(f"{i}", psnr_denoised_db=20.0 + i) for i in range(6)] + [row("s", status="skipped"), failed("f")]
    reader = Reader(page(rows))
    assert reader.column("Image") == ["0", "1", "2", "f"]
    assert "Of 8 rows 4 are shown" in reader.text


def test_what_all_rows_share_is_said_once() -> None:
    rows = [row("a", method="zs-n2n", noise="gauss:25"), row("b", method="zs-n2n", noise="poisson:30")]
    reader = Reader(page(rows))
    assert "Method" not in reader.rows[0]
    assert reader.column("Noise added") == ["gauss:25", "poisson:30"]


def test_every_shown_column_carries_its_description() -> None:
    source = page([row("a", seconds=2.0, sigma_estimate=3.0)])
    titles = [a["title"] for t, a in Reader(source).tags if t == "button" and "title" in a]
    assert titles == ["what source is", "what status is", "what sigma_estimate is", "what seconds is"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (0.012345, "0.01235"),
        (12.3, "12.30"),
        (41237.4, "41,237"),
        (-3.5, "−3.500"),
        (1e-300, "1.00e−300"),
    ],
)
def test_four_digits(value: float, text: str) -> None:
    assert report_page._four_digits(value) == text


# --- the page, in a browser ---


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory, photographs: dict[str, np.ndarray]) -> Path:
    rows, panels = [], []
    for i, (name, x) in enumerate(photographs.items()):
        y = noisy_version(x)
        # As text 9.5 sorts after 29.25, and "1,000", "−3" and "999" in no order at all.
        psnr, mean = [29.25, None, 9.5][i], [1000.0, -3.0, 999.0][i]
        values = {"psnr_noisy_db": 20.1, "psnr_denoised_db": psnr, "mean_noisy": mean}
        rows.append(row(name, shape=list(x.shape), dtype="uint8", **values))
        panels.append(make_panel(name, y, x, clean=x, limits=(0, 255), why="sample", caption="PSNR 20 → 29 dB"))
    rows += [failed(name, error=f"cannot read {name}") for name in NASTY]
    panels.append(make_panel(NASTY[0], x, x, clean=None, limits=(0, 255), why="worst", caption=NASTY[0]))
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(page(rows, panels, title="Report"), encoding="utf-8")
    return path


@pytest.fixture
def opened(chromium: Any, report: Path) -> Iterator[Any]:
    tab = chromium.new_page(viewport={"width": 1200, "height": 900})
    complaints: list[str] = []
    asked: list[str] = []
    tab.on("console", lambda message: complaints.append(message.text))
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.on("dialog", lambda dialog: (complaints.append("a dialog opened"), dialog.dismiss()))
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(report.as_uri())
    yield tab
    assert complaints == []
    assert [url for url in asked if not url.startswith("data:")] == [report.as_uri()]
    tab.close()


def first_column(tab: Any) -> list[str]:
    names: list[str] = tab.eval_on_selector_all(
        "#images tbody tr", "rows => rows.filter(r => !r.hidden).map(r => r.cells[0].textContent)"
    )
    return names


def test_browser_loads_everything_and_runs_no_file_name(opened: Any) -> None:
    assert opened.title() == "Report"
    assert opened.locator("#images tbody tr").count() == 3 + len(NASTY)
    sizes = opened.eval_on_selector_all(
        ".strip img", "images => images.map(i => [i.complete, i.naturalWidth, i.width])"
    )
    assert len(sizes) == 3 * 4 + 3
    assert all(complete and natural == shown == 256 for complete, natural, shown in sizes)
    assert opened.locator("#failures").inner_text().count("cannot read") == len(NASTY)


def test_browser_sorts_numbers_as_numbers_with_missing_ones_last(opened: Any) -> None:
    head = opened.locator("th", has_text="PSNR denoised")
    assert head.get_attribute("aria-sort") == "none"
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    assert first_column(opened)[:3] == ["coins.tif", "astronaut.png", "camera.png"]
    head.locator("button").focus()
    opened.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "descending"
    assert first_column(opened)[:3] == ["astronaut.png", "coins.tif", "camera.png"]
    opened.locator("th", has_text="Mean noisy").locator("button").click()
    assert first_column(opened)[:3] == ["camera.png", "coins.tif", "astronaut.png"]
    opened.locator("th", has_text="Status").locator("button").click()
    assert head.get_attribute("aria-sort") == "none"
    assert first_column(opened)[:3] == ["astronaut.png", "camera.png", "coins.tif"]


def test_browser_filters_rows(opened: Any) -> None:
    opened.get_by_label("Filter the table").fill("DONE tif")
    assert first_column(opened) == ["coins.tif"]
    assert opened.locator("#found").inner_text() == f"1 of {3 + len(NASTY)} rows"
    opened.get_by_label("Filter the table").fill("")
    assert len(first_column(opened)) == 3 + len(NASTY)


def test_browser_shows_200_percent_and_back(opened: Any) -> None:
    image, button = opened.locator(".strip img").first, opened.get_by_role("button", name="200 %")
    widths = []
    for _ in range(3):
        widths.append((image.bounding_box()["width"], button.get_attribute("aria-pressed")))
        button.click()
    assert widths == [(256, "false"), (512, "true"), (256, "false")]
    assert image.evaluate("i => getComputedStyle(i).imageRendering") == "pixelated"


def test_browser_s_policy_stops_injected_scripts(chromium: Any, report: Path, tmp_path: Path) -> None:
    # Were escaping ever to fail, the policy is the second wall.
    injected = tmp_path / "injected.html"
    hostile = "<script>document.title='owned'</script><img src='x' onerror=\"document.title='owned'\">"
    source = report.read_text(encoding="utf-8").replace("<main>", f"<main>{hostile}")
    injected.write_text(source, encoding="utf-8")
    tab = chromium.new_page()
    tab.goto(injected.as_uri())
    assert tab.title() == "Report"
    tab.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [800, 1600])
def test_browser_page_is_never_wider_than_the_window(chromium: Any, report: Path, width: int, scheme: str) -> None:
    tab = chromium.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    tab.goto(report.as_uri())
    tab.locator("#zoom").click()
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    background = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    brightness = sum(int(v) for v in re.findall(r"\d+", background)[:3]) / 3
    assert (brightness < 80) == (scheme == "dark")
    tab.close()
