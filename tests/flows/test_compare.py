"""A whole comparison on small real images, against a real embedded Prefect server."""

from __future__ import annotations

import csv
import hashlib
import importlib.util
import itertools
import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import tifffile
from PIL import Image
from prefect.states import Failed

import flows.compare
import tasks.save
from denoise_core import metrics, noise
from denoise_core.device import choose
from denoise_core.methods import zs_n2n
from flows.cli import main
from flows.compare_config import CompareConfig
from flows.config_files import build
from flows.protocol import protocol_of
from tasks import comparison, ledger
from tasks.faults import interrupt

pytestmark = pytest.mark.usefixtures("prefect_server")

METHODS = "nlm,none"


def compare(*arguments: object) -> int:
    return main(["compare", *map(str, arguments)])


def rows_of(output: Path) -> list[dict[str, Any]]:
    rows, _ = comparison.read(output / comparison.TABLE)
    for row in rows:
        for name, value in row.items():
            assert not isinstance(value, float) or math.isfinite(value), (row["source"], name)
    return rows


def written(output: Path) -> int:
    """Rows that all cells have written to their ledgers."""
    cells = [path for path in (output / "cells").glob("*/*") if path.is_dir()]
    return sum(len(list(ledger.rows_of(run))) for cell in cells for run in ledger.run_folders(cell))


def stopping_at(number: int) -> Callable[..., bytes]:
    """What encodes, and at the image of this number has the user stop the run."""
    save, numbers = tasks.save.encode, itertools.count(1)

    def encode(*arguments: Any, **options: Any) -> bytes:
        if next(numbers) == number:
            interrupt.set()
        return save(*arguments, **options)

    return encode


@pytest.fixture
def photos(tmp_path: Path, photo: np.ndarray) -> Path:
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    Image.fromarray(photo[0:64, 180:250]).save(folder / "a.png")
    Image.fromarray(photo[60:130, 180:244]).save(folder / "sub" / "b.png")
    return folder


@pytest.mark.parametrize("link", ["cells", "cells/gauss-25-seed-0", "cells/gauss-25-seed-0/nlm"])
def test_no_cell_is_a_link_to_the_input_or_elsewhere(photos: Path, tmp_path: Path, link: str) -> None:
    out, outside = tmp_path / "out", tmp_path / "outside"
    outside.mkdir()
    (out / link).parent.mkdir(parents=True)
    for target in (photos, outside):
        (out / link).symlink_to(target)
        status = compare(photos, out, "--methods", "nlm", "--noise", "gauss:25")
        assert status == (0 if target == outside and link == "cells" else 2), "cells may lie on another disk"
        assert {str(path.relative_to(photos)) for path in photos.rglob("*")} == {"a.png", "sub", "sub/b.png"}
        assert any(outside.iterdir()) == (status == 0)
        (out / link).unlink()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, photo: np.ndarray, prefect_server: str) -> tuple[Path, Path]:
    """Input and output of one comparison that several tests look at."""
    root = tmp_path_factory.mktemp("compare")
    (root / "photos").mkdir()
    Image.fromarray(photo[0:64, 180:250]).save(root / "photos" / "a.png")
    Image.fromarray(photo[60:130, 180:244]).save(root / "photos" / "b.png")
    options = ["--noise", "gauss:25,poisson:30", "--crop", 48, "--seeds", 2, "--against", "nlm"]
    assert compare(root / "photos", root / "out", "--methods", METHODS, *options) == 0
    return root / "photos", root / "out"


def test_the_run_says_its_images_and_what_came_of_them(made: tuple[Path, Path]) -> None:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterName

    named = FlowRunFilter(name=FlowRunFilterName(like_="photos: 2 methods at gauss:25, poisson:30, 2 images"))
    with get_client(sync_client=True) as client:
        (found,) = client.read_flow_runs(flow_run_filter=named)
    assert found.state is not None
    assert found.state.message is not None
    assert found.state.message.startswith("16 results of 2 images in ")
    assert found.state.message.endswith("; 0 failed")
    assert {"comparison", "cpu"} <= set(found.tags)


def test_every_method_noise_seed_and_image_is_a_row(made: tuple[Path, Path]) -> None:
    _, out = made
    rows = rows_of(out)
    cells = {(row["source"], row["candidate"], row["noise"], row["seed"]) for row in rows}
    assert len(rows) == len(cells) == 2 * 2 * 2 * 2
    assert {row["status"] for row in rows} == {"done"}
    assert all(row["crop"] == 48 and row["shape"] == [48, 48, 3] and row["clip_noise"] is False for row in rows)
    for row in rows:
        assert row["method_seconds"] == pytest.approx((row["fit_seconds"] or 0) + row["denoise_seconds"])
        assert (out / row["output"]).is_file()
        if row["candidate"] == "none":
            assert row["psnr_denoised_db"] == pytest.approx(row["psnr_noisy_db"], abs=1)
        else:
            assert row["psnr_denoised_db"] > row["psnr_noisy_db"] + 3
    schema = pq.read_schema(out / "comparison.parquet")
    assert all(schema.field(name).metadata[b"description"] for name in schema.names)
    assert {b"denoise_flows.config", b"denoise_flows.protocol"} <= set(schema.metadata)


def test_all_methods_see_the_same_noise_added_after_the_crop(made: tuple[Path, Path]) -> None:
    source, out = made
    rows = rows_of(out)
    clean = np.asarray(Image.open(source / "a.png")).astype(np.float32)[8:56, 11:59] / np.float32(255)
    for kind in ("gauss:25", "poisson:30"):
        for seed in (0, 1):
            mine = [r for r in rows if (r["source"], r["noise"], r["seed"]) == ("a.png", kind, seed)]
            assert len({row["psnr_noisy_db"] for row in mine}) == 1
            noisy = noise.add(clean, noise.parse(kind), noise.rng(seed, "a.png"))
            expected = metrics.psnr(clean, noisy, data_range=1.0)
            assert mine[0]["psnr_noisy_db"] == pytest.approx(expected, abs=1e-3)
            for row in mine:
                result = np.asarray(Image.open(out / row["output"])).astype(np.float32) / np.float32(255)
                assert row["psnr_denoised_db"] == pytest.approx(metrics.psnr(clean, result, data_range=1.0), abs=1e-3)


def test_the_summary_is_the_mean_of_the_rows(made: tuple[Path, Path]) -> None:
    _, out = made
    rows = rows_of(out)
    with (out / "summary.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [line["candidate"] for line in lines[:3]] == ["noisy", *METHODS.split(",")]
    for line in lines:
        here = [r for r in rows if r["noise"] == line["noise"]]
        if line["candidate"] == "noisy":
            assert float(line["psnr_db"]) == pytest.approx(np.mean([r["psnr_noisy_db"] for r in here]))
            continue
        mine = [r for r in here if r["candidate"] == line["candidate"]]
        other = {(r["source"], r["seed"]): r["psnr_denoised_db"] for r in here if r["candidate"] == "nlm"}
        assert float(line["psnr_db"]) == pytest.approx(np.mean([r["psnr_denoised_db"] for r in mine]))
        taken = np.mean([r["method_seconds"] for r in mine])
        assert float(line["seconds"] or 0) == pytest.approx(taken)
        assert (line["candidate"] == "none") == (line["seconds"] == ""), "nothing takes no time"
        assert (int(line["pairs"]), int(line["images"]), int(line["seeds"])) == (4, 2, 2)
        if line["candidate"] != "nlm":
            gaps = [r["psnr_denoised_db"] - other[r["source"], r["seed"]] for r in mine]
            assert float(line["difference_db"]) == pytest.approx(np.mean(gaps))
        means = [float(o["psnr_db"]) for o in lines if o["noise"] == line["noise"] and o["rank"]]
        assert int(line["rank"]) == 1 + sum(mean > float(line["psnr_db"]) for mean in means)
    told = (out / "summary.md").read_text()
    assert "| nlm |" in told
    assert "centre crops of 48 × 48 pixels" in told
    protocol = json.loads((out / "protocol.json").read_text())
    assert protocol["seeds"] == [0, 1]
    assert protocol["published"] == {}


def test_the_page_and_the_sheet_show_every_method(made: tuple[Path, Path]) -> None:
    _, out = made
    page = (out / "comparison.html").read_text()
    for name in ("clean", "noisy", *METHODS.split(",")):
        assert f"<strong>{name}</strong>" in page
    assert page.count("<svg") == 2
    with Image.open(out / "sheet.png") as sheet:
        assert sheet.width == 8 + 4 * (2 * 48 + 8)
        assert np.asarray(sheet).std() > 10


def test_the_same_command_again_does_nothing_and_the_page_comes_from_the_table(
    made: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = made
    before, count = rows_of(out), written(out)
    page = (out / "comparison.html").read_bytes()
    options = ["--noise", "gauss:25,poisson:30", "--crop", 48, "--seeds", 2, "--against", "nlm", "--json"]
    assert compare(source, out, "--methods", METHODS, *options) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["done"], summary["already_done"], summary["cells"]) == (0, 16, 8)
    assert written(out) == count
    assert rows_of(out) == before
    for name in ("comparison.html", "sheet.png", "summary.md"):
        (out / name).unlink()
    assert main(["report", str(out)]) == 0
    assert (out / "comparison.html").read_bytes() == page
    assert (out / "sheet.png").is_file()


def test_only_what_is_new_is_done(photos: Path, tmp_path: Path, photo: np.ndarray) -> None:
    out = tmp_path / "out"
    assert compare(photos, out, "--methods", "nlm", "--noise", "gauss:25") == 0
    assert compare(photos, out, "--methods", "none,nlm", "--noise", "gauss:25,gauss:50") == 0
    assert written(out) == 2 * 4
    Image.fromarray(photo[200:230, 200:240]).save(photos / "new.png")
    assert compare(photos, out, "--methods", "nlm", "--noise", "gauss:25") == 0
    assert written(out) == 2 * 4 + 1
    assert {row["source"] for row in rows_of(out)} == {"a.png", "new.png", "sub/b.png"}
    assert compare(photos, out, "--methods", "nlm", "--noise", "gauss:25", "--on-existing", "overwrite") == 0
    assert written(out) == 2 * 4 + 1 + 3
    assert compare(photos, out, "--methods", "nlm", "--noise", "gauss:25", "--on-existing", "error") == 2


def test_images_that_share_a_fit_have_a_cell_of_their_own(
    tmp_path: Path, photo: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is done depends on the images alone, not on the order in which they came; nothing is lost by a stop, or by
    an image that comes and goes."""
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    for i in range(2):
        Image.fromarray(photo[80 * i : 80 * i + 64, 180:244, 1]).save(source / f"{i}.png")
    options = ["--methods", "zs-fit:directory,zs-fit:image", "--noise", "gauss:25", "--slots", 1]
    assert compare(source, out, *options) == 0
    Image.fromarray(photo[100:164, 180:244, 1]).save(source / "2.png")
    with monkeypatch.context() as patch:
        patch.setattr(tasks.save, "encode", stopping_at(2))
        assert compare(source, out, *options) == 130
    before = {row["source"]: row["created_at"] for row in rows_of(out) if row["candidate"] == "zs-fit:directory"}
    assert 0 < len(before) < 3
    assert compare(source, out, *options) == 0
    rows = {(row["candidate"], row["source"]): row for row in rows_of(out)}
    assert all(rows["zs-fit:directory", name]["created_at"] == at for name, at in before.items())
    assert compare(source, tmp_path / "anew", *options) == 0
    for row in rows_of(tmp_path / "anew"):
        other = rows[row["candidate"], row["source"]]
        assert (row["output_sha256"], row["model_sha256"]) == (other["output_sha256"], other["model_sha256"])
    assert written(out) == 2 + 3 + 2 + 1, "of the images with fits of their own only the new one"
    (source / "2.png").unlink()
    assert compare(source, out, *options) == 0
    assert written(out) == 2 + 3 + 2 + 1, "the cell of the two is still there"
    assert len(rows_of(out)) == 4


def test_what_is_not_in_the_table_is_said(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert compare(photos, out, "--methods", "nlm,tv", "--noise", "gauss:25") == 0
    assert "Not in this table" not in (out / "summary.md").read_text()
    assert compare(photos, out, "--methods", "none", "--noise", "gauss:25") == 0
    assert "left them in cells/: gauss-25-seed-0/nlm, gauss-25-seed-0/tv; name" in (out / "summary.md").read_text()
    for command in (["run"], ["run", "--dry-run"]):
        assert main([*command, str(photos), str(out), "--method", "none"]) == 2
        assert "is that of a comparison; give the run a folder of its own" in capsys.readouterr().err
    assert main(["run", str(photos), str(tmp_path / "run"), "--method", "none"]) == 0
    assert compare(photos, tmp_path / "run", "--methods", "none", "--noise", "gauss:25") == 2
    assert "is that of a run; give the comparison a folder of its own" in capsys.readouterr().err


def test_crops_that_were_not_made_are_not_claimed_and_drawn_levels_are_told(photos: Path, tmp_path: Path) -> None:
    """One image is 64 x 70, the other 70 x 64."""
    for crop, said, sides in (
        (66, "centre crops of 66 × 66 pixels at the most: 2 are smaller, and 0 are whole.", {66}),
        (70, "centre crops of 70 × 70 pixels at the most: 2 are smaller, and 2 are whole.", {None}),
        (48, "centre crops of 48 × 48 pixels.", {48}),
    ):
        out = tmp_path / str(crop)
        assert compare(photos, out, "--methods", "none", "--noise", "gauss:5-50", "--crop", crop) == 0
        assert said in (out / "summary.md").read_text()
        rows = rows_of(out)
        assert {row["crop"] for row in rows} == sides
        assert all(re.fullmatch(r"gauss:[\d.]+", row["noise_drawn"]) for row in rows)
        assert "| none |" in (out / "summary.md").read_text()
        lines = [line for line in (out / "summary.md").read_text().splitlines() if line.startswith("| none |")]
        assert lines[0].endswith("| – |"), "what does nothing takes no time"


def test_an_image_that_cannot_be_read_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    assert compare(tmp_path / "in", tmp_path / "out", "--methods", "none", "--noise", "gauss:25") == 2
    assert "that can be read: a.png (" in capsys.readouterr().err
    assert not (tmp_path / "out" / "cells").exists()


def test_stopped_and_gone_on_with(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stop in the middle of the second of four cells: a table of what is done, and nothing done twice."""
    out = tmp_path / "out"
    options = ["--methods", "none,nlm", "--noise", "gauss:25,poisson:30", "--slots", 1]
    with monkeypatch.context() as patch:
        patch.setattr(tasks.save, "encode", stopping_at(3))
        assert compare(photos, out, *options) == 130
    assert not interrupt.is_set()
    some = rows_of(out)
    assert 3 <= len(some) < 8
    assert compare(photos, out, *options) == 0
    rows = rows_of(out)
    assert len(rows) == written(out) == 8
    again = {(r["source"], r["candidate"], r["noise"]): r["created_at"] for r in rows}
    assert all(again[r["source"], r["candidate"], r["noise"]] == r["created_at"] for r in some)


def test_what_a_stop_left_undone_is_said_until_it_is_done(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """At the third of six images of three seeds; the one that is in work then may be finished."""
    out = tmp_path / "out"
    options = ["--methods", "nlm", "--noise", "gauss:25", "--seeds", 3, "--slots", 1]
    with monkeypatch.context() as patch:
        patch.setattr(tasks.save, "encode", stopping_at(3))
        assert compare(photos, out, *options) == 130
    missing = 6 - len(rows_of(out))
    assert 3 <= missing <= 4
    told = f"since it was stopped; {missing} of 6 results are missing: seed 1 ({missing - 2} of 2); seed 2 (2 of 2)."
    protocol = json.loads((out / comparison.PROTOCOL).read_text())
    assert protocol["missing_results"] == missing
    assert protocol["notes"][0].startswith(f"Not complete, {told}")
    for text in (
        (out / comparison.SUMMARY_MD).read_text(),
        (out / "comparison.html").read_text(),
        capsys.readouterr().err,
    ):
        assert told in text
    assert f"not complete: {missing} results missing" in (out / "comparison.html").read_text()
    assert compare(photos, out, *options) == 0
    assert json.loads((out / comparison.PROTOCOL).read_text())["missing_results"] == 0
    for name in (comparison.PROTOCOL, comparison.SUMMARY_MD, "comparison.html"):
        assert "ot complete" not in (out / name).read_text(), name


def test_what_a_broken_cell_left_undone_is_said(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where the run itself does not raise, but ends as failed."""
    run_into, options = flows.compare.run_into, ["--methods", "nlm,none", "--noise", "gauss:25"]

    def failing(config: Any, **options: Any) -> Any:
        return (
            Failed(message="the workers went away", data=0) if config.method == "nlm" else run_into(config, **options)
        )

    with monkeypatch.context() as patch:
        patch.setattr(flows.compare, "run_into", failing)
        assert compare(photos, tmp_path / "out", *options) == 1
    told = "since 1 of 2 cells broke off (the workers went away); 2 of 4 results are missing: nlm (2 of 2)."
    assert told in (tmp_path / "out" / comparison.SUMMARY_MD).read_text()
    assert "nlm at gauss:25 broke off: the workers went away" in capsys.readouterr().err
    assert compare(photos, tmp_path / "out", *options) == 0
    assert "ot complete" not in (tmp_path / "out" / comparison.SUMMARY_MD).read_text()


def test_a_stop_before_anything_is_done(photos: Path, tmp_path: Path) -> None:
    interrupt.set()
    try:
        assert compare(photos, tmp_path / "out", "--methods", "none", "--noise", "gauss:25") == 130
    finally:
        interrupt.clear()


def test_what_breaks_is_a_failed_row_and_the_others_go_on(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A damaged file, an image too small for one method, and a cell that breaks as a whole."""
    out = tmp_path / "out"
    (photos / "cut.png").write_bytes((photos / "a.png").read_bytes()[:300])
    Image.fromarray(np.arange(49, dtype=np.uint8).reshape(7, 7)).save(photos / "dot.png")
    run_into = flows.compare.run_into

    def breaking(config: Any, **options: Any) -> Any:
        if config.method == "tv":
            raise RuntimeError("the method is upset")
        return run_into(config, **options)

    monkeypatch.setattr(flows.compare, "run_into", breaking)
    assert compare(photos, out, "--methods", "tv,nlm,none", "--noise", "gauss:25", "--json") == 1
    summary = json.loads(capsys.readouterr().out)
    rows = {(row["source"], row["candidate"]): row for row in rows_of(out)}
    assert {row["error"] for key, row in rows.items() if key[1] == "tv" and key[0] != "cut.png"} == {
        "the method is upset"
    }
    assert {rows["cut.png", name]["status"] for name in ("tv", "nlm", "none")} == {"failed"}
    assert "at least 8" in rows["dot.png", "nlm"]["error"]
    assert rows["dot.png", "none"]["status"] == "done"
    assert rows["sub/b.png", "nlm"]["status"] == "done"
    assert summary["failed"] == sum(row["status"] == "failed" for row in rows.values()) == 3 + 3 + 1
    lines = {line["candidate"]: line for line in summary["lines"]}
    assert lines["nlm"]["images"] == lines["none"]["images"] == 2, "means over what both have done"
    assert lines["tv"]["psnr_db"] is None
    assert "the method is upset" in (out / "comparison.html").read_text()


def test_a_reference_stacks_deep_images_and_a_crop(
    tmp_path: Path, photo: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    """Noise of the images' own, of 16-bit stacks, against clean ones of the same names."""
    rng = np.random.default_rng(0)
    clean = np.stack([photo[i : 60 + i, 200:270, 1] for i in range(3)]).astype(np.uint16) * 100 + 1000
    noisy = np.clip(clean + rng.normal(0, 2000, clean.shape), 0, 65535).astype(np.uint16)
    for folder, stack in (("clean", clean), ("noisy", noisy)):
        (tmp_path / folder).mkdir()
        tifffile.imwrite(tmp_path / folder / "t.tif", stack, photometric="minisblack", metadata={"axes": "TYX"})
    options = ["--methods", "nlm,tv", "--reference", tmp_path / "clean", "--crop", 40]
    assert compare(tmp_path / "noisy", tmp_path / "out", *options) == 0
    assert "1 of 2: nlm at own noise, seed 0: 1 images" in capsys.readouterr().err
    rows = rows_of(tmp_path / "out")
    assert [row["candidate"] for row in rows] == ["nlm", "tv"]
    for row in rows:
        assert (row["noise"], row["shape"], row["data_range"]) == ("none", [3, 40, 40], 65535)
        assert row["psnr_denoised_db"] > row["psnr_noisy_db"] + 3
        assert tifffile.imread(tmp_path / "out" / row["output"]).shape == (3, 40, 40)
    assert "<strong>clean</strong>" in (tmp_path / "out" / "comparison.html").read_text()


@pytest.fixture
def noisy_and_clean(tmp_path: Path, photo: np.ndarray) -> tuple[Path, Path]:
    """Two images with noise, and a third without, each with a clean one of its name."""
    rng = np.random.default_rng(0)
    for folder in ("noisy", "clean"):
        (tmp_path / folder).mkdir()
    for name, top, sigma in (("a", 0, 20), ("b", 60, 20), ("same", 200, 0)):
        clean = photo[top : top + 64, 180:250]
        noisy = np.clip(clean + rng.normal(0, sigma, clean.shape), 0, 255).astype(np.uint8)
        Image.fromarray(clean).save(tmp_path / "clean" / f"{name}.png")
        Image.fromarray(noisy).save(tmp_path / "noisy" / f"{name}.png")
    return tmp_path / "noisy", tmp_path / "clean"


def test_an_image_equal_to_its_reference_costs_no_table(
    noisy_and_clean: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    noisy, clean = noisy_and_clean
    out = tmp_path / "out"
    assert compare(noisy, out, "--reference", clean, "--methods", "tv,nlm", "--json") == 0
    lines = json.loads(capsys.readouterr().out)["lines"]
    assert [(line["candidate"], line["images"]) for line in lines] == [("noisy", 2), ("tv", 2), ("nlm", 2)]
    for which, line in zip(("noisy", "denoised", "denoised"), lines, strict=True):
        mine = [
            row for row in rows_of(out) if row["candidate"] in {line["candidate"], "tv"} and row["source"] != "same.png"
        ]
        mine = [row for row in mine if which == "noisy" or row["candidate"] == line["candidate"]]
        assert line["psnr_db"] == pytest.approx(np.mean([row[f"psnr_{which}_db"] for row in mine]))
    told = (
        "1 × left out of the means: an image whose noisy pixels equal the clean ones, so that their PSNR is infinite."
    )
    assert told in (out / comparison.SUMMARY_MD).read_text()
    assert told in (out / "comparison.html").read_text()
    assert len(rows_of(out)) == 6
    assert main(["report", str(out)]) == 0


def test_noise_that_changes_no_image_is_a_table_of_dashes(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert compare(photos, out, "--noise", "salt-pepper:1e-6", "--methods", "tv,nlm", "--crop", 64) == 0
    summary = (out / comparison.SUMMARY_MD).read_text()
    assert "| noisy | – | – |\n| tv | – | – |" in summary
    assert "2 × left out of the means: an image whose noisy pixels equal the clean ones" in summary
    assert (out / "sheet.png").is_file()
    assert main(["report", str(out)]) == 0


def test_scores_against_earlier_references_do_not_come_back(
    noisy_and_clean: tuple[Path, Path], tmp_path: Path, photo: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The references change, and the run that scores against them is stopped at its second image."""
    noisy, clean = noisy_and_clean
    (noisy / "same.png").unlink()
    options = ["--reference", clean, "--methods", "nlm,tv", "--slots", 1]
    assert compare(noisy, tmp_path / "out", *options) == 0
    for number, path in enumerate(sorted(clean.iterdir())):
        Image.fromarray(photo[300 + number : 364 + number, 180:250]).save(path)
    with monkeypatch.context() as patch:
        patch.setattr(tasks.save, "encode", stopping_at(2))
        assert compare(noisy, tmp_path / "out", *options) == 130
    now = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in clean.iterdir()}
    rows = rows_of(tmp_path / "out")
    assert 0 < len(rows) < 4
    assert all(row["reference_sha256"] == now[row["source"]] for row in rows)
    assert compare(noisy, tmp_path / "out", *options) == 0
    assert len(rows_of(tmp_path / "out")) == 4


def test_why_a_reference_was_not_used_is_said(noisy_and_clean: tuple[Path, Path], tmp_path: Path) -> None:
    """One reference is missing, one of another size, one no image."""
    noisy, clean = noisy_and_clean
    Image.open(clean / "a.png").save(noisy / "whole.png")
    Image.open(clean / "a.png").save(clean / "whole.png")
    (clean / "a.png").unlink()
    Image.open(clean / "b.png").crop((0, 0, 32, 32)).save(clean / "b.png")
    (clean / "same.png").write_text("no image")
    assert compare(noisy, tmp_path / "out", "--reference", clean, "--methods", "none") == 0
    page, summary = ((tmp_path / "out" / name).read_text() for name in ("comparison.html", comparison.SUMMARY_MD))
    for reason in (
        "there is no reference under this path",
        "the reference is (32, 32, 3) uint8, the image (64, 70, 3) uint8",
        "the reference is not an image of a known kind",
    ):
        for text in (page, summary):
            assert f"1 × left out of the means: an image that is not scored: {reason}" in text


def test_a_reference_of_no_image_is_said_at_the_start(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clean = tmp_path / "clean"
    clean.mkdir()
    Image.open(photos / "a.png").save(clean / "other.png")
    for dry in ([], ["--dry-run"]):
        assert compare(photos, tmp_path / "out", "--reference", clean, "--methods", "none", *dry) == 2
        told = capsys.readouterr().err.splitlines()[-1]
        assert told == f"denoise: --reference: no image of {photos} has a file under its name in {clean}"
    assert not (tmp_path / "out" / "cells").exists()
    (clean / "other.png").rename(clean / "a.png")
    assert compare(photos, tmp_path / "out", "--reference", clean, "--methods", "none") == 0


def test_images_too_low_for_ssim_are_said(photos: Path, tmp_path: Path, photo: np.ndarray) -> None:
    Image.fromarray(photo[100:110, 180:250]).save(photos / "low.png")
    assert compare(photos, tmp_path / "out", "--methods", "nlm,none", "--noise", "gauss:25") == 0
    told = "1 × left out of the means of SSIM, though n counts it: an image less than 11 pixels high or wide."
    assert told in (tmp_path / "out" / comparison.SUMMARY_MD).read_text()


def test_axes_and_channels_are_those_of_a_run(tmp_path: Path, photo: np.ndarray) -> None:
    """Planes without axes, taken for channels: together as `denoise run` takes them, and not as by themselves."""
    planes = np.moveaxis(photo[0:48, 180:240], -1, 0)
    (tmp_path / "in").mkdir()
    tifffile.imwrite(tmp_path / "in" / "t.tif", planes, photometric="minisblack")
    common = ["--noise", "gauss:25", "--axes", "CYX"]
    made = {}
    for channels in ("joint", "separate"):
        out = tmp_path / channels
        assert compare(tmp_path / "in", out, "--methods", "nl-bayes", *common, "--channels", channels) == 0
        (row,) = rows_of(out)
        made[channels] = tifffile.imread(out / row["output"])
        notes = json.loads((out / comparison.PROTOCOL).read_text())["notes"]
        assert "The images' axes are taken for CYX." in notes
        assert ("All channels are denoised together." in notes) == (channels == "joint")
        assert ("Each channel and colour is denoised by itself." in notes) == (channels == "separate")
    run = ["run", tmp_path / "in", tmp_path / "run", "--method", "nl-bayes", *common, "--channels", "joint"]
    assert main([*map(str, run)]) == 0
    assert np.array_equal(made["joint"], tifffile.imread(tmp_path / "run" / "images" / "t.tif"))
    assert not np.array_equal(made["joint"], made["separate"])


def test_a_file_with_other_axes_than_those_said_is_a_failed_row(photos: Path, tmp_path: Path) -> None:
    assert compare(photos, tmp_path / "out", "--methods", "none", "--noise", "gauss:25", "--axes", "TYX") == 2
    tifffile.imwrite(photos / "t.tif", np.full((3, 40, 40), 90, np.uint8), photometric="minisblack")
    assert compare(photos, tmp_path / "out", "--methods", "none", "--noise", "gauss:25", "--axes", "TYX") == 1
    errors = {row["source"]: row["error"] for row in rows_of(tmp_path / "out")}
    assert errors["t.tif"] is None
    assert "--axes TYX does not fit" in errors["a.png"]


def test_the_protocol_says_which_pixels_are_scored_by_which_range(tmp_path: Path, photo: np.ndarray) -> None:
    grey, folder = photo[0:64, 180:250, 1], tmp_path / "in"
    folder.mkdir()
    given = {"input": folder, "output": tmp_path / "out", "methods": "none", "noise": "gauss:25"}
    config = build(given, CompareConfig)

    def scoring() -> str:
        notes = protocol_of(config, flows.compare.look(config), choose("cpu"), [])["notes"]
        return next(str(note) for note in notes if note.startswith("PSNR"))

    Image.fromarray(grey).save(folder / "a.png")
    whole = "as they are written, rounded to the data type and clipped to its range, which is the data range"
    assert f"{whole}; PSNR over" in scoring()
    tifffile.imwrite(folder / "b.tif", grey.astype(np.float32) * 3)
    assert f"{whole}; of floating-point and 32-bit images the data range is from the least" in scoring()
    (folder / "a.png").unlink()
    assert "as they are written, the data range is from the least" in scoring()
    Image.fromarray(grey).save(folder / "c.jpg", quality=50)
    assert "(into a JPEG file: before it is compressed)" in scoring()


def test_a_directory_s_fit_is_shared_out_among_its_images(tmp_path: Path, photo: np.ndarray) -> None:
    (tmp_path / "in").mkdir()
    for i in range(2):
        Image.fromarray(photo[80 * i : 80 * i + 64, 180:244, 1]).save(tmp_path / "in" / f"{i}.png")
    options = ["--methods", "zs-fit:directory,nlm", "--noise", "gauss:25", "--against", "nlm"]
    assert compare(tmp_path / "in", tmp_path / "out", *options) == 0
    rows = {(row["candidate"], row["source"]): row for row in rows_of(tmp_path / "out")}
    shares = [rows["zs-fit:directory", f"{i}.png"]["shared_fit_seconds"] for i in range(2)]
    assert shares[0] == shares[1] > 0
    about = json.loads(next((tmp_path / "out").glob("cells/*/zs-fit-directory-*/models/*.json")).read_text())
    assert shares[0] == pytest.approx(about["fit_seconds"] / 2)
    row = rows["zs-fit:directory", "0.png"]
    assert row["method_seconds"] == pytest.approx(row["fit_seconds"] + row["denoise_seconds"] + shares[0])
    assert rows["nlm", "0.png"]["shared_fit_seconds"] is None


def test_the_published_figures_stand_beside_kodak_by_the_published_protocol(
    tmp_path: Path, photo: np.ndarray, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(zs_n2n, "FAST_STEPS", 10)
    (tmp_path / "kodak").mkdir()
    picture = Image.fromarray(np.tile(photo, (2, 2, 1))[:512, :768])
    for i in range(1, 25):
        picture.save(tmp_path / "kodak" / f"kodim{i:02d}.png", compress_level=1)
    options = ["--methods", "none", "--protocol", "zsn2n-paper"]
    assert compare(tmp_path / "kodak", tmp_path / "out", *options, "--dry-run", "--json") == 0
    planned = json.loads(capsys.readouterr().out)
    assert [cell["to_do"] for cell in planned["cells"]] == [24] * 6
    assert not (tmp_path / "out").exists()

    def published(**options: object) -> list[dict[str, float]]:
        given = {"input": tmp_path / "kodak", "output": tmp_path / "out", "methods": "none"}
        config = build({**given, **options}, CompareConfig)
        return list(protocol_of(config, flows.compare.look(config), choose("cpu"), [])["published"].values())

    assert published(protocol="zsn2n-paper") == [{"gauss:25": 29.07, "gauss:50": 24.81, "poisson:50": 29.45}]
    assert published(noise="gauss:25,poisson:50", crop=256) == [{"poisson:50": 29.45}]
    assert 31.82 in [figures["gauss:25"] for figures in published(noise="gauss:25")]
    shutil.copy(tmp_path / "kodak" / "kodim01.png", tmp_path / "kodak" / "other.png")
    assert published(protocol="zsn2n-paper") == []


def test_worker_processes_give_the_same_table(made: tuple[Path, Path], tmp_path: Path) -> None:
    source, out = made
    again = tmp_path / "again"
    options = ["--noise", "gauss:25", "--crop", 48, "--methods", "nlm", "--engine", "processes", "--chunk", 1]
    assert compare(source, again, *options) == 0
    here = [row for row in rows_of(out) if (row["candidate"], row["noise"], row["seed"]) == ("nlm", "gauss:25", 0)]
    there = rows_of(again)
    alike = ("source", "output_sha256", "psnr_denoised_db", "ssim_denoised", "config_digest")
    assert [[row[name] for name in alike] for row in there] == [[row[name] for name in alike] for row in here]
    log = next((again / "cells").glob("*/nlm/runs/*/config.toml")).read_text(encoding="utf-8")
    assert 'engine = "processes"' in log


def test_a_cluster_that_is_not_there_is_said_before_anything_is_done(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare(photos, tmp_path / "out", "--noise", "gauss:25", "--engine", "dask:tcp://127.0.0.1:9") == 2
    assert "--engine dask:tcp://127.0.0.1:9: the workers report to Prefect as well" in capsys.readouterr().err
    assert not list((tmp_path / "out").rglob("*.parquet"))


def test_failed_images_fail_a_strict_comparison_in_prefect(photos: Path, tmp_path: Path) -> None:
    from flows.compare_config import CompareConfig
    from flows.config_files import build

    (photos / "broken.png").write_bytes((photos / "a.png").read_bytes()[:200])
    given = {"input": photos, "output": tmp_path / "out", "methods": "none", "noise": "gauss:25"}
    verdicts = {}
    for name, options in {"lenient": {}, "share": {"max_failed": 0.4}, "few": {"max_failed": 0.3}}.items():
        verdicts[name] = flows.compare.compare(build({**given, **options}, CompareConfig), return_state=True)
    strict = flows.compare.compare(build({**given, "strict": True}, CompareConfig), return_state=True)
    assert [verdicts[name].is_completed() for name in ("lenient", "share", "few")] == [True, True, False]
    assert strict.is_failed()
    assert strict.message is not None
    assert strict.message.startswith("1 of 3 results failed, and --strict allows none: ")


def test_a_method_whose_library_is_not_installed(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "bm3d" else find(name, *a))
    assert compare(photos, tmp_path / "out", "--methods", "none,bm3d", "--noise", "gauss:25") == 2
    assert "--methods: the method bm3d needs" in capsys.readouterr().err


def test_dry_run_writes_nothing(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (photos / "broken.png").write_bytes(b"")
    assert compare(photos, tmp_path / "out", "--methods", "none,nlm", "--noise", "gauss:25", "--dry-run") == 0
    said = capsys.readouterr().out
    assert "2 cells of 2 images: 4 to do, 0 done already" in said
    assert "broken.png" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--methods", "bm4d", "--noise", "gauss:25"], "--methods"),
        (["--methods", "nlm"], "--noise"),
        (["--noise", "gauss:25", "--unheard-of"], "--unheard-of"),
        (["--noise", "gauss:25", "--config", "nowhere.toml"], "--config"),
        (["--noise", "gauss:25", "--device", "cuda:99"], "cuda"),
        (["--noise", "gauss:25", "--reference", "."], "--noise scores against the input and --reference"),
        (
            ["--protocol", "zsn2n-paper", "--reference", "."],
            "--protocol zsn2n-paper scores against the input and --ref",
        ),
    ],
)
def test_a_bad_option(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    try:
        status = compare(photos, tmp_path / "out", *options)
    except SystemExit as end:
        status = int(end.code or 0)
    told = capsys.readouterr()
    assert status == 2
    assert told.err.count("\n") == 1, told.err
    assert said in told.err


@pytest.mark.parametrize(
    ("name", "folder"), [("cells", False), ("comparison.parquet", True), ("comparison.html", True), ("sheet.png", True)]
)
def test_something_in_the_way(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, folder: bool
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).mkdir() if folder else (tmp_path / "out" / name).touch()
    assert compare(photos, tmp_path / "out", "--methods", "none", "--noise", "gauss:25") == 2
    assert "in the way" in capsys.readouterr().err


def test_input_and_output_within_each_other(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare(photos, photos / "out", "--methods", "none", "--noise", "gauss:25") == 2
    assert "inside INPUT" in capsys.readouterr().err
    assert not (photos / "out").exists()


def test_the_protocol_says_the_threads_that_were_used(
    tmp_path: Path, photo: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    (tmp_path / "photos").mkdir()
    Image.fromarray(photo[0:40, 180:228, 1]).save(tmp_path / "photos" / "a.png")
    out = tmp_path / "out"
    assert compare(tmp_path / "photos", out, "--methods", "zs-fit:image,nlm", "--noise", "gauss:25") == 0
    protocol = json.loads((out / "protocol.json").read_text())
    assert {row["candidate"]: row["threads"] for row in rows_of(out)} == {"zs-fit:image": 2, "nlm": 1}
    assert protocol["threads"] == {
        "zs-fit:image": "2 threads a fit, one at a time",
        "nlm": "1 thread a fit, one at a time",
    }
    assert "zs-fit:image: 2 threads a fit, one at a time; nlm: 1 thread a fit" in protocol["notes"][-1]
    for name in "bcd":
        Image.fromarray(photo[40:80, 180:228, 1]).save(tmp_path / "photos" / f"{name}.png")
    assert compare(tmp_path / "photos", out, "--methods", "zs-fit:image,nlm", "--noise", "gauss:25") == 0
    protocol = json.loads((out / "protocol.json").read_text())
    assert protocol["threads"] == {
        "zs-fit:image": "1 or 2 threads a fit, up to 2 at once",
        "nlm": "1 thread a fit, up to 2 at once",
    }
