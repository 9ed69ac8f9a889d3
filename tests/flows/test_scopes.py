"""What one fit serves: image, stack or directory; the networks that are kept, and applied again."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

import flows.scopes
import tasks.denoise
import tasks.fit
from denoise_core.images import Header
from denoise_core.methods import zs_fit
from denoise_core.methods.zs_fit.fitting import Size
from denoise_core.methods.zs_fit.model import read_model, write_model
from flows.cli import main
from tasks import table
from tasks.faults import interrupt
from tasks.work import Source

pytestmark = pytest.mark.usefixtures("prefect_server")


def run(*arguments: object) -> int:
    return main(["run", *map(str, arguments)])


def rows_of(output: Path) -> dict[str, table.Row]:
    rows, _ = table.read(output / "results.parquet")
    return {row["source"]: row for row in rows}


def digests(output: Path) -> dict[str, str]:
    return {name: row["output_sha256"] for name, row in rows_of(output).items()}


@pytest.fixture(autouse=True)
def _short_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    fast = zs_fit.PRESETS["fast"]
    short = replace(fast.shared, size=Size(16, 3), steps=60)
    own = replace(fast.own, steps=40)
    quick = replace(fast, own=own, own_copies=1, refine=replace(fast.refine, steps=20), shared=short, shared_windows=6)
    monkeypatch.setitem(zs_fit.PRESETS, "fast", quick)


@pytest.fixture
def photos(tmp_path: Path, photo: np.ndarray) -> Path:
    """Five colour crops and one grey one, large enough for networks."""
    root = tmp_path / "photos"
    root.mkdir()
    for number, (top, left) in enumerate(((0, 0), (0, 250), (200, 100), (300, 300), (400, 0))):
        Image.fromarray(photo[top : top + 96, left : left + 96]).save(root / f"{number}.png")
    Image.fromarray(photo[60:156, 200:296, 1]).save(root / "grey.png")
    return root


def test_a_directory_gets_one_network_that_is_kept_and_serves_again(
    photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run(photos, out, "--noise", "gauss:25") == 0
    said = capfd.readouterr().err
    assert (
        "scope directory: there are 4 or more images of one kind to do: 1 of 1 channel(s) and 5 of 3 channel(s)" in said
    )
    assert "fitting one network for 5 images of 3 channel(s)" in said
    rows = rows_of(out)
    (model,) = (out / "models").glob("*.safetensors")
    about = json.loads(model.with_suffix(".json").read_text())
    assert set(about["sampled"]) == {f"{n}.png" for n in range(5)}
    assert {row["scope"] for name, row in rows.items() if name != "grey.png"} == {"directory"}
    assert {row["kept"] for name, row in rows.items() if name != "grey.png"} <= {
        "fitted",
        "model",
        "refined",
        "estimate",
    }
    assert {row["model_sha256"] for name, row in rows.items() if name != "grey.png"} == {about["file_sha256"]}
    assert (rows["grey.png"]["scope"], rows["grey.png"]["model_sha256"]) == ("image", None)
    for row in rows.values():
        assert row["psnr_denoised_db"] > row["psnr_noisy_db"] + 7

    # One more image: the network that is there serves it, and gives what it gave.
    changed = model.stat().st_mtime_ns
    (photos / "new.png").write_bytes((photos / "0.png").read_bytes())
    assert run(photos, out, "--noise", "gauss:25") == 0
    assert "the network of an earlier run serves images of 3 channel(s)" in capfd.readouterr().err
    assert model.stat().st_mtime_ns == changed
    assert rows_of(out)["new.png"]["scope"] == "directory"

    # Elsewhere, with --model: no fit at all.
    other = tmp_path / "other"
    assert run(photos, other, "--noise", "gauss:25", "--model", model) == 1
    there = rows_of(other)
    assert there["grey.png"]["status"] == "failed"
    assert "has 1 channels, and the model is for 3" in there["grey.png"]["error"]
    assert all(row["steps"] is None for row in there.values())
    assert there["0.png"]["psnr_denoised_db"] > rows["0.png"]["psnr_denoised_db"] - 0.2
    assert not (other / "models").exists()

    # The network is gone: what is done again is not done as the others were, and the run says so.
    shutil.rmtree(out / "models")
    (out / "images" / "0.png").unlink()
    assert run(photos, out, "--noise", "gauss:25") == 0
    said = capfd.readouterr().err
    assert "5 of the images that are done had a network which OUTPUT/models no longer holds" in said


def test_a_sample_depends_on_no_name() -> None:
    def sources(names: str) -> list[Source]:
        header = Header("png", "YXS", (64, 64, 3), "uint8")
        return [Source(name, hashlib.sha256(bytes([n])).hexdigest(), header) for n, name in enumerate(names)]

    drawn = [one.sha256 for one in tasks.fit.sample_of(sources("abcdefgh"), 5, seed=1)]
    assert [one.sha256 for one in tasks.fit.sample_of(sources("hgfedcba")[::-1], 5, seed=1)] == drawn
    assert [one.sha256 for one in tasks.fit.sample_of(sources("abcdefgh"), 5, seed=2)] != drawn


def test_chunks_slots_and_another_fit_change_no_byte(photos: Path, tmp_path: Path) -> None:
    for name, options in (("a", ["--chunk", "1", "--slots", "2"]), ("b", ["--chunk", "6", "--slots", "1"])):
        assert run(photos, tmp_path / name, "--noise", "gauss:25", *options) == 0
    assert digests(tmp_path / "a") == digests(tmp_path / "b")


def test_few_images_get_a_fit_each(photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for number in (2, 3, 4):
        (photos / f"{number}.png").unlink()
    assert run(photos, tmp_path / "out", "--noise", "gauss:25") == 0
    assert "scope image: there are fewer than 4 images of one kind to do" in capfd.readouterr().err
    assert {row["scope"] for row in rows_of(tmp_path / "out").values()} == {"image"}
    assert not (tmp_path / "out" / "models").exists()


def test_a_network_that_cannot_be_fitted_costs_no_image(
    photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fast = zs_fit.PRESETS["fast"]
    absurd = replace(fast, shared=replace(fast.shared, rate=1e6, kernel_rate=1e6))
    monkeypatch.setitem(zs_fit.PRESETS, "fast", absurd)
    assert run(photos, tmp_path / "out", "--noise", "gauss:25") == 0
    assert "each is done by itself: The fit's loss became" in capfd.readouterr().err
    assert {row["scope"] for row in rows_of(tmp_path / "out").values()} == {"image"}


def test_a_lasting_fault_of_the_fit_costs_no_image(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise MemoryError("can't allocate memory")

    monkeypatch.setattr(tasks.fit.fit_directory, "retry_delay_seconds", [0.0, 0.0, 0.0])
    monkeypatch.setattr(zs_fit, "fit_directory", broken)
    assert run(photos, tmp_path / "out", "--noise", "gauss:25") == 0
    assert {row["scope"] for row in rows_of(tmp_path / "out").values()} == {"image"}


@pytest.mark.parametrize("what", ["text", "missing", "empty folder"])
def test_a_model_that_is_none_is_one_sentence(
    photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], what: str
) -> None:
    model = tmp_path / "model.safetensors"
    if what == "text":
        model.write_text("weights")
    elif what == "empty folder":
        model.mkdir()
    for dry in ((), ("--dry-run",)):
        assert run(photos, tmp_path / "out", "--model", model, *dry) == 2
        said = capfd.readouterr().err.strip().splitlines()[-1]
        assert "--model" in said
        assert "Traceback" not in said


def test_a_stack_is_denoised_as_one_and_comes_back_as_it_was(tmp_path: Path, photo: np.ndarray) -> None:
    root = tmp_path / "stacks"
    root.mkdir()
    rng = np.random.default_rng(0)
    scene = np.repeat(photo[None, 100:196, 200:296, 1].astype(np.float64), 9, axis=0) * 60 + 3000
    noisy = (scene + rng.normal(0, 1500, scene.shape)).clip(0, 65535).astype(np.uint16)
    path = root / "series.tif"
    tifffile.imwrite(path, noisy, imagej=True, metadata={"axes": "TYX", "finterval": 0.5, "unit": "um"})
    (tmp_path / "clean").mkdir()
    reference = tmp_path / "clean" / "series.tif"
    tifffile.imwrite(reference, scene.astype(np.uint16), imagej=True, metadata={"axes": "TYX"})

    results = {}
    for scope in ("stack", "image"):
        out = tmp_path / scope
        assert run(root, out, "--reference", reference.parent, "--scope", scope) == 0
        (results[scope],) = rows_of(out).values()
        with tifffile.TiffFile(out / "images" / "series.tif") as tif, tifffile.TiffFile(path) as source:
            assert tif.series[0].axes == "TYX"
            assert tif.series[0].shape == noisy.shape
            assert tif.series[0].dtype == np.uint16
            assert tif.imagej_metadata == source.imagej_metadata
    assert results["stack"]["axes"] == "TYX"
    assert results["stack"]["shape"] == [9, 96, 96]
    assert (results["stack"]["frames_together"], results["image"]["frames_together"]) == (9, 1)
    assert results["stack"]["psnr_denoised_db"] > results["image"]["psnr_denoised_db"] + 2
    assert results["stack"]["ssim_denoised"] > results["image"]["ssim_denoised"]
    assert "T 5 of 9" in (tmp_path / "stack" / "report.html").read_text()


@pytest.mark.parametrize("method", ["nl-bayes", "zs-n2n", "nlm", "wavelet", "tv", "none"])
def test_every_method_takes_stacks(
    tmp_path: Path, photo: np.ndarray, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from denoise_core.methods import zs_n2n

    monkeypatch.setattr(zs_n2n, "FAST_STEPS", 100)
    (tmp_path / "in").mkdir()
    frames = np.stack([photo[:64, :64, 1]] * 3)
    tifffile.imwrite(tmp_path / "in" / "z.tif", frames, photometric="minisblack", metadata={"axes": "ZYX"})
    assert run(tmp_path / "in", tmp_path / "out", "--noise", "gauss:25", "--method", method) == 0
    (row,) = rows_of(tmp_path / "out").values()
    assert row["axes"] == "ZYX"
    assert row["method"] == method
    assert row["psnr_denoised_db"] >= row["psnr_noisy_db"] + (0 if method in ("none", "zs-n2n") else 3) - 0.1
    assert tifffile.imread(tmp_path / "out" / "images" / "z.tif").shape == (3, 64, 64)


def test_a_stop_during_the_fit_reports_and_the_next_run_goes_on(
    photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fit, undisturbed = zs_fit.fit_directory, tmp_path / "undisturbed"
    assert run(photos, undisturbed, "--noise", "gauss:25") == 0

    def stopped(*arguments: Any, **options: Any) -> Any:
        interrupt.set()
        return fit(*arguments, **options)

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(zs_fit, "fit_directory", stopped)
        assert run(photos, out, "--noise", "gauss:25") == 130
    assert "Traceback" not in capfd.readouterr().err
    assert (out / "results.parquet").is_file()
    assert (out / "report.html").is_file()
    assert run(photos, out, "--noise", "gauss:25") == 0
    assert digests(out) == digests(undisturbed)


def test_a_model_that_changes_while_the_run_goes_on_is_not_applied(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(photos, tmp_path / "out", "--noise", "gauss:25") == 0
    (model,) = (tmp_path / "out" / "models").glob("*.safetensors")
    given = flows.scopes.given

    def then_changed(path: Path) -> Any:
        found = given(path)
        fitted, _ = read_model(path)
        write_model(path, replace(fitted, weights=fitted.weights + 1), {})
        tasks.denoise.load_model.cache_clear()
        return found

    monkeypatch.setattr(flows.scopes, "given", then_changed)
    assert run(photos, tmp_path / "other", "--noise", "gauss:25", "--model", model) == 1
    assert "changed while the run went on" in rows_of(tmp_path / "other")["0.png"]["error"]
