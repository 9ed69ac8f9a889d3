"""`denoise stylize`, and `denoise run --style`: painted, noised, denoised, and scored against what was painted."""

from __future__ import annotations

import hashlib
import io
import json
import threading
import tomllib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

import style_core
import tasks.stylize
from denoise_core import metrics
from denoise_core.device import choose
from flows import styles
from flows.cli import main
from flows.config import RunConfig
from flows.config_files import build
from style_core.objective import Objective
from tasks import report, table
from tasks.report_page import display_range
from tests.weights import smooth

pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.fixture(autouse=True)
def _few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    short = {name: replace(preset, steps=4) for name, preset in style_core.PRESETS.items()}
    monkeypatch.setattr(style_core, "PRESETS", short)
    tasks.stylize._targets.cache_clear()


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """VGG-19's keys and shapes as far as conv3_1, and smooth seeded filters: not for pictures."""
    generator = torch.Generator().manual_seed(3)
    state = {}
    for place, (inside, outside) in {0: (3, 64), 2: (64, 64), 5: (64, 128), 7: (128, 128), 10: (128, 256)}.items():
        filters = smooth(torch.randn(outside, inside, 3, 3, generator=generator))
        state[f"features.{place}.weight"] = filters / (3 * inside**0.5)
        state[f"features.{place}.bias"] = 0.1 * torch.randn(outside, generator=generator)
    path = tmp_path_factory.mktemp("weights") / "vgg19.pth"
    torch.save(state, path)
    return path


@pytest.fixture
def paint(tmp_path: Path) -> Path:
    from skimage import data

    path = tmp_path / "paint.png"
    Image.fromarray(data.coffee()[100:180, 100:220]).save(path)
    return path


def rows_of(output: Path) -> dict[str, table.Row]:
    rows, _ = table.read(output / "results.parquet")
    return {row["source"]: row for row in rows}


def pixels(path: Path) -> np.ndarray:
    return tifffile.imread(path) if path.suffix == ".tif" else np.asarray(Image.open(path))


def test_the_whole_chain_gives_stylized_noisy_and_denoised_images(
    tree: Path, tmp_path: Path, paint: Path, weights: Path
) -> None:
    out = tmp_path / "out"
    options = ["--style", paint, "--vgg-weights", weights, "--noise", "gauss:25", "--method", "nl-bayes"]
    assert main(["run", *map(str, (tree, out, *options))]) == 0
    rows = rows_of(out)
    assert set(rows) == {"rgb.png", "sub/grey.png", "photo.jpg", "deep.tif"}
    for name, row in rows.items():
        kinds = [pixels(out / folder / name) for folder in ("stylized", "noisy", "images")]
        assert [(found.shape, found.dtype) for found in kinds] == [(kinds[0].shape, kinds[0].dtype)] * 3
        assert not np.array_equal(pixels(tree / name), kinds[0])
        assert (row["stylized"], row["noisy"]) == (f"stylized/{name}", f"noisy/{name}")
        assert (row["style"], row["style_preset"], row["style_steps"]) == ("paint.png", "seed", 4)
        assert row["style_loss"] > 0
        assert row["vgg_sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
        assert row["psnr_noisy_db"] == pytest.approx(20.17, abs=0.7)
    # The scores are those against the file that was written.
    stylized, denoised = (
        pixels(out / folder / "rgb.png").astype(np.float32) / 255 for folder in ("stylized", "images")
    )
    assert metrics.psnr(stylized, denoised, data_range=1.0) == pytest.approx(
        rows["rgb.png"]["psnr_denoised_db"], abs=1e-4
    )


def test_strokes_go_as_the_style_shows_them_however_both_are_stored(tmp_path: Path, paint: Path, weights: Path) -> None:
    """Content and style as they are, and both stored turned, with the tag that says so: the same painting, stored so."""
    from skimage import data

    whole = data.chelsea()[60:124, 100:196]
    for kind, tag, stored in (("upright", 1, whole), ("turned", 6, np.rot90(whole)), ("mirrored", 5, None)):
        said = Image.Exif()
        said[274] = tag
        (tmp_path / kind).mkdir()
        inside = np.ascontiguousarray(whole.transpose(1, 0, 2) if stored is None else stored)
        Image.fromarray(inside).save(tmp_path / kind / "cat.png", exif=said)
        style = tmp_path / f"{kind}-paint.png"
        with Image.open(paint) as image:
            Image.fromarray(np.rot90(np.asarray(image)) if tag == 6 else np.asarray(image)).save(
                style, exif=said if tag == 6 else Image.Exif()
            )
        run = [
            "stylize",
            *map(str, (tmp_path / kind, tmp_path / f"{kind}-out", "--style", style, "--vgg-weights", weights)),
        ]
        assert main(run) == 0
    painted = {kind: pixels(tmp_path / f"{kind}-out/images/cat.png") for kind in ("upright", "turned", "mirrored")}
    np.testing.assert_array_equal(painted["turned"], np.rot90(painted["upright"]))
    np.testing.assert_array_equal(painted["mirrored"], painted["upright"].transpose(1, 0, 2))


def test_what_was_painted_is_not_painted_again(
    tree: Path, tmp_path: Path, paint: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    common = ["run", *map(str, (tree, out, "--style", paint, "--vgg-weights", weights, "--noise", "gauss:25"))]
    assert main([*common, "--method", "none"]) == 0
    before = rows_of(out)
    painted: list[Any] = []
    stylize = style_core.stylize
    monkeypatch.setattr(style_core, "stylize", lambda *a, **k: painted.append(a) or stylize(*a, **k))
    assert main([*common, "--method", "nl-bayes"]) == 0
    assert painted == []
    for name, row in rows_of(out).items():
        assert [row[key] for key in ("style_loss", "content_loss", "psnr_noisy_db", "vgg_sha256")] == [
            before[name][key] for key in ("style_loss", "content_loss", "psnr_noisy_db", "vgg_sha256")
        ]
    (out / "stylized" / "rgb.png").write_bytes(b"something else")  # no longer what was painted
    digests = {name: row["output_sha256"] for name, row in rows_of(out).items()}
    assert (
        main([*common, "--method", "nl-bayes", "--crop", "500"]) == 0
    )  # as large as they are: another run, the same images
    assert len(painted) == 1
    assert {name: row["output_sha256"] for name, row in rows_of(out).items()} == digests
    assert main([*common, "--method", "nl-bayes", "--crop", "36"]) == 0
    assert len(painted) == 5
    assert main([*common, "--method", "nl-bayes", "--keep-colours"]) == 0  # another manner: all are
    assert len(painted) == 9
    assert main([*common, "--method", "nl-bayes", "--keep-colours", "--on-existing", "overwrite"]) == 0
    assert len(painted) == 13


def test_a_lost_stylized_or_noisy_image_is_made_again(
    tree: Path, tmp_path: Path, paint: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    options = ["--style", paint, "--vgg-weights", weights, "--noise", "gauss:25", "--method", "nl-bayes"]
    run = ["run", *map(str, (tree, out, *options)), "--json"]
    assert main(run) == 0
    lost = [out / "stylized" / "rgb.png", out / "noisy" / "deep.tif"]
    before = [path.read_bytes() for path in lost]
    for path in lost:
        path.unlink()
    capsys.readouterr()
    assert main([*run, "--dry-run"]) == 0
    assert json.loads(capsys.readouterr().out)["to_do"] == ["deep.tif", "rgb.png"]
    assert main(run) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["done"], summary["already_done"]) == (2, 2)
    assert [path.read_bytes() for path in lost] == before


def test_noisy_images_that_are_asked_for_later_are_written_later(
    tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    run = ["run", *map(str, (tree, out)), "--noise", "gauss:25", "--method", "none", "--json"]
    assert main(run) == 0
    assert not (out / "noisy").exists()
    for done in (4, 0):
        capsys.readouterr()
        assert main([*run, "--save-noisy"]) == 0
        assert json.loads(capsys.readouterr().out)["done"] == done
    assert {row["noisy"] for row in rows_of(out).values()} == {f"noisy/{name}" for name in rows_of(out)}
    assert all((out / "noisy" / name).is_file() for name in rows_of(out))
    capsys.readouterr()
    assert main(run) == 0
    assert json.loads(capsys.readouterr().out)["done"] == 0


def test_channels_that_are_no_colours_and_missing_values(
    tmp_path: Path, photo: np.ndarray, paint: Path, weights: Path
) -> None:
    root, out = tmp_path / "in", tmp_path / "out"
    root.mkdir()
    two = np.ascontiguousarray(photo[:40, :48, :2].transpose(2, 0, 1))
    tifffile.imwrite(root / "two.tif", two, photometric="minisblack", metadata={"axes": "CYX"})
    missing = photo[:40, :48, 0].astype(np.float32)
    missing[3, 5] = np.nan
    tifffile.imwrite(root / "missing.tif", missing)
    options = ["--style", paint, "--vgg-weights", weights, "--noise", "poisson:30", "--channels", "joint"]
    assert main(["run", *map(str, (root, out, *options, "--method", "nl-bayes"))]) == 0
    painted = pixels(out / "stylized" / "two.tif")
    assert all(not np.array_equal(a, b) for a, b in zip(painted, two, strict=True))
    assert np.isnan(pixels(out / "images" / "missing.tif")).sum() == 1


def test_the_directorys_network_is_fitted_to_painted_images(
    tmp_path: Path, photo: np.ndarray, paint: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from denoise_core.methods import zs_fit
    from denoise_core.methods.zs_fit.fitting import Size

    fast = zs_fit.PRESETS["fast"]
    quick = replace(
        fast, shared=replace(fast.shared, size=Size(16, 3), steps=20), shared_windows=4, own=replace(fast.own, steps=10)
    )
    monkeypatch.setitem(zs_fit.PRESETS, "fast", quick)
    fitted: list[np.ndarray] = []
    fit = zs_fit.fit_directory

    def seen(samples: Any, **options: Any) -> Any:
        fitted.extend(sample() for sample in samples)
        return fit(samples, **options)

    monkeypatch.setattr(zs_fit, "fit_directory", seen)
    root = tmp_path / "photos"
    root.mkdir()
    for n in range(4):
        Image.fromarray(photo[100 * n : 100 * n + 72, 200:280]).save(root / f"{n}.png")
    out = tmp_path / "out"
    assert main(["run", *map(str, (root, out, "--style", paint, "--vgg-weights", weights, "--noise", "gauss:25"))]) == 0
    assert len(fitted) == 4
    noisy = [pixels(out / "noisy" / f"{n}.png") for n in range(4)]
    written = [np.clip(np.rint(found[0] * 255), 0, 255) for found in fitted]
    assert sorted(found.sum() for found in noisy) == sorted(found.sum() for found in written)


def test_stylize_writes_the_painted_images_as_its_result(
    tree: Path, tmp_path: Path, paint: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    options = ["--style", paint, "--style", tree / "rgb.png", "--vgg-weights", weights, "--vgg-sha256", digest.upper()]
    assert main(["stylize", *map(str, (tree, out, *options)), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["done"] == 4
    rows = rows_of(out)
    assert rows["rgb.png"]["style"] == "paint.png + rgb.png"
    assert rows["rgb.png"]["stylized"] is None
    assert not (out / "stylized").exists()
    assert not np.array_equal(pixels(out / "images" / "rgb.png"), pixels(tree / "rgb.png"))
    assert main(["stylize", *map(str, (tree, out, *options)), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["already_done"] == 4


def test_layers_weights_steps_and_optimiser_are_those_of_the_options(
    tmp_path: Path, photo: np.ndarray, paint: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, out = tmp_path / "in", tmp_path / "out"
    root.mkdir()
    Image.fromarray(photo[:40, :48]).save(root / "a.png")
    used: list[style_core.StylePreset] = []
    stylize = style_core.stylize
    monkeypatch.setattr(style_core, "stylize", lambda p, t, **k: used.append(t.preset) or stylize(p, t, **k))
    common = ["stylize", *map(str, (root, out, "--style", paint, "--vgg-weights", weights)), "--style-preset", "best"]
    layers = ["--style-layers", "relu1_1, relu2_1", "--content-layers", "relu3_1"]
    assert main([*common, *layers]) == 0
    assert used[-1] == replace(
        style_core.PRESETS["best"], style_layers=("relu1_1", "relu2_1"), content_layers=("relu3_1",)
    )
    assert rows_of(out)["a.png"]["style_preset"] == "best with style_layers relu1_1 relu2_1, content_layers relu3_1"
    each = ["--style-weight", "3", "--content-weight", "0.5", "--style-steps", "2", "--style-optimiser", "lbfgs"]
    painted = [pixels(out / "images" / "a.png")]
    for n in range(0, len(each), 2):
        assert main([*common, *layers, *each[: n + 2]]) == 0
        assert len(used) == len(painted) + 1, f"{each[n]} is another manner, to be painted again"
        painted.append(pixels(out / "images" / "a.png"))
        assert not np.array_equal(painted[-1], painted[-2]), f"{each[n]} changes what is painted"
    changed = (used[-1].style_weight, used[-1].content_weight, used[-1].steps, used[-1].optimizer)
    assert changed == (3.0, 0.5, 2, "lbfgs")
    told = "style_weight 3, content_weight 0.5, steps 2, optimizer lbfgs"
    assert rows_of(out)["a.png"]["style_preset"].endswith(told)
    assert main([*common, *layers, *each]) == 0
    assert len(used) == len(painted)


def test_an_option_that_says_what_the_preset_says_changes_nothing(tmp_path: Path, paint: Path, weights: Path) -> None:
    plain: dict[str, Any] = {"input": tmp_path, "output": tmp_path / "o", "style": paint, "vgg_weights": str(weights)}
    seed = style_core.PRESETS["seed"]
    same = {"style_layers": list(seed.style_layers), "content_weight": seed.content_weight, "style_optimiser": "lbfgs"}
    assert build({**plain, **same}, RunConfig).style_digest() == build(plain, RunConfig).style_digest()
    assert (
        build({**plain, "style_optimiser": "adam"}, RunConfig).style_digest() != build(plain, RunConfig).style_digest()
    )


def test_the_seed_decides_no_painting(
    tmp_path: Path, paint: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for a preset that starts from noise, and what is added to the painting or taken from it."""

    def of(seed: int, **options: Any) -> RunConfig:
        paths = {"input": tmp_path, "output": tmp_path / "o", "style": paint, "vgg_weights": str(weights)}
        return build({**paths, "method": "none", **options, "seed": seed}, RunConfig)

    assert of(1).digest() == of(0).digest()
    for options in ({"noise": "gauss:25"}, {"method": "zs-fit"}):
        assert of(1, **options).style_digest() == of(0).style_digest()
        assert of(1, **options).digest() != of(0, **options).digest()
    from_noise = {name: replace(preset, start="noise") for name, preset in style_core.PRESETS.items()}
    monkeypatch.setattr(style_core, "PRESETS", from_noise)
    assert of(1).digest() != of(0).digest()


def test_photons_of_a_painting_are_of_its_intensities(
    tmp_path: Path, photo: np.ndarray, paint: Path, weights: Path
) -> None:
    """The peak is at the source's greatest value, 0 photons at intensity 0, not at its least value."""
    folder, out = tmp_path / "floats", tmp_path / "out"
    folder.mkdir()
    source = photo[80:144, 200:264, 0].astype(np.float32) + 300
    tifffile.imwrite(folder / "a.tif", source)
    options = ["--style", paint, "--vgg-weights", weights, "--noise", "poisson:30", "--method", "none"]
    assert main(["run", *map(str, (folder, out, *options))]) == 0
    painted, noisy = (tifffile.imread(out / name / "a.tif").astype(np.float64) for name in ("stylized", "noisy"))
    assert np.mean((noisy - painted) ** 2 / (painted * source.max() / 30)) == pytest.approx(1, abs=0.12)


def test_a_painting_that_breaks_down_is_the_images_own_error(
    tree: Path, tmp_path: Path, paint: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate = Objective.__call__

    def breaking(objective: Objective, image: torch.Tensor) -> Any:
        found = evaluate(objective, image)
        return replace(found, style_loss=float("nan")) if image.shape[2:] == (40, 48) else found

    monkeypatch.setattr(Objective, "__call__", breaking)
    options = ["--style", paint, "--vgg-weights", weights, "--style-optimiser", "adam"]
    assert main(["stylize", *map(str, (tree, tmp_path / "out", *options))]) == 1
    rows = rows_of(tmp_path / "out")
    assert rows["rgb.png"]["error"].startswith(
        "the painting broke down: its loss, nan, or the gradient is no finite number"
    )
    assert [rows[name]["status"] for name in sorted(rows)] == ["done", "done", "failed", "done"]


def test_alpha_and_stacks_come_back(tmp_path: Path, photo: np.ndarray, paint: Path, weights: Path) -> None:
    root = tmp_path / "in"
    root.mkdir()
    alpha = np.dstack([photo[:40, :48], np.arange(40 * 48, dtype=np.uint8).reshape(40, 48)])
    Image.fromarray(alpha).save(root / "alpha.png")
    tifffile.imwrite(root / "t.tif", photo[:80, :48, 1].reshape(2, 40, 48), metadata={"axes": "TYX"})
    out = tmp_path / "out"
    assert main(["stylize", *map(str, (root, out, "--style", paint, "--vgg-weights", weights))]) == 0
    assert np.array_equal(pixels(out / "images" / "alpha.png")[..., 3], alpha[..., 3])
    frames = pixels(out / "images" / "t.tif")
    assert frames.shape == (2, 40, 48)
    assert all(not np.array_equal(a, b) for a, b in zip(frames, pixels(root / "t.tif"), strict=True))


def test_cmyk_is_painted_and_written_as_rgb(
    tmp_path: Path, photo: np.ndarray, paint: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = tmp_path / "in", tmp_path / "out"
    root.mkdir()
    inks = np.asarray(Image.fromarray(photo[:40, :48]).convert("CMYK"))
    Image.fromarray(inks, "CMYK").save(root / "a.jpg", quality=95)
    tifffile.imwrite(root / "deep.tif", inks.astype(np.uint16) * 257, photometric="separated")
    Image.fromarray(photo[:40, :48]).save(root / "rgb.png")
    run = ["run", *map(str, (root, out, "--style", paint, "--vgg-weights", weights)), "--noise", "gauss:10"]
    assert main([*run, "--channels", "separate", "--method", "nl-bayes"]) == 0
    rows = rows_of(out)
    for name in ("a.jpg", "deep.tif"):
        assert "the inks of CMYK: they became RGB" in rows[name]["note"]
        assert (rows[name]["shape"], rows[name]["denoised_as"]) == ([40, 48, 3], "S separate")
        assert rows[name]["psnr_denoised_db"] > rows[name]["psnr_noisy_db"] + 1
        for folder in ("stylized", "noisy", "images"):
            found = pixels(out / folder / name)
            assert (found.shape, found.dtype) == ((40, 48, 3), rows[name]["dtype"])
    page = (out / "report.html").read_text()
    assert all(f': {name}"' in page for name in rows), "each has its strip of pictures"
    # The same colours are painted alike, in ink or in light.
    painted = {name: pixels(out / "stylized" / name) / (257 if name == "deep.tif" else 1) for name in rows}
    assert np.abs(painted["deep.tif"] - painted["rgb.png"]).mean() < 3
    assert np.abs(painted["a.jpg"] - painted["rgb.png"]).mean() < 6
    assert main(["stylize", *map(str, (root, tmp_path / "o", "--style", paint, "--vgg-weights", weights))]) == 0
    assert [pixels(tmp_path / "o" / "images" / name).shape for name in ("a.jpg", "deep.tif")] == [(40, 48, 3)] * 2


def test_a_style_in_cmyk_grey_or_16_bits_is_seen_as_it_looks(tmp_path: Path, paint: Path) -> None:
    image = Image.open(paint)
    image.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=98)
    seen = tasks.stylize._style_pixels(tmp_path / "cmyk.jpg")
    assert seen.shape == (80, 120, 3)
    assert np.abs(seen.astype(int) - np.asarray(image)).mean() < 4
    grey = np.asarray(image.convert("L"))
    tifffile.imwrite(tmp_path / "deep.tif", grey.astype(np.uint16) * 257)
    assert np.array_equal(tasks.stylize._style_pixels(tmp_path / "deep.tif"), grey.astype(np.uint16) * 257)


def test_a_style_of_any_data_type_is_seen_from_its_least_to_its_greatest_value(tmp_path: Path, paint: Path) -> None:
    file, grey = tmp_path / "style.tif", np.asarray(Image.open(paint).convert("L"))
    between = (grey - grey.min()) / np.float64(np.ptp(grey))
    for pixels, seen in (
        (grey.astype(np.float32) * 16, between),
        (grey.astype(np.uint32) * 1000, between),
        ((grey / 255).astype(np.float32), grey / 255),  # in [0, 1] already
        ((grey.astype(np.int16) - 128).astype(np.int8), grey / 255),
    ):
        tifffile.imwrite(file, pixels)
        found = tasks.stylize._style_pixels(file)
        assert found.dtype == np.float32
        assert np.abs(found - seen).max() < 1e-6, pixels.dtype
    broken = grey.astype(np.float32) * 16
    broken[3, 4] = np.nan
    alpha = np.full_like(grey, 255, np.uint32) * 2**24
    tifffile.imwrite(file, broken)
    assert np.isfinite(tasks.stylize._style_pixels(file)).all()
    tifffile.imwrite(
        file, np.dstack([grey, alpha]).astype(np.uint32), photometric="minisblack", extrasamples=["unassalpha"]
    )
    found = tasks.stylize._style_pixels(file)
    assert found[..., 1] == pytest.approx(255 / 256, abs=1e-3)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--style", "paint.png"], "--vgg-weights download"),
        (["--style", "missing.png", "--vgg-weights", "vgg19.pth"], "there is no file"),
        (["--style", "paint.png", "--vgg-weights", "missing.pth"], "there is no file"),
        (["--style", "paint.png", "--vgg-weights", "vgg19.pth", "--vgg-sha256", "0" * 64], "SHA-256"),
        (["--style", "paint.png", "--vgg-weights", "vgg19.pth", "--vgg-sha256", "abc"], "64 hexadecimal digits"),
        (["--style", "paint.png", "--vgg-weights", "text.pth"], "weights"),
        (
            ["--style", "paint.png", "--vgg-weights", "text.pth"],
            "--vgg-weights: {here}/text.pth: not a PyTorch weights file",
        ),
        (
            ["--style", "paint.png", "--vgg-weights", "cut.pth"],
            "--vgg-weights: {here}/cut.pth: not a PyTorch weights file",
        ),
        (
            ["--style", "paint.png", "--vgg-weights", "zero.pth"],
            "--vgg-weights: {here}/zero.pth: the filters of conv1_1 were",
        ),
        (
            ["--style", "paint.png", "--vgg-weights", "vgg19.pth", "--style-layers", "relu3_2"],
            "--vgg-weights: {weights}: ends before relu3_2",
        ),
        (
            ["--style", "paint.png", "--style", "cut.png", "--vgg-weights", "vgg19.pth"],
            "--style: {here}/cut.png: the PNG is truncated",
        ),
        (
            ["--style", "paint.png", "--style", "tiny.png", "--vgg-weights", "vgg19.pth"],
            "--style: {here}/tiny.png: the style image is 3 × 2 pixels; the preset's layers need at least 4 × 4",
        ),
        (["--style", "text.pth", "--vgg-weights", "vgg19.pth"], "--style"),
        (
            ["--style", "paint.png", "--vgg-weights", "vgg19.pth", "--style-preset", "gatys"],
            "ends before relu4_1, relu5_1, relu4_2; layers that work with this file: conv1_1, relu1_1, conv1_2, relu1_2, pool1, "
            "conv2_1, relu2_1, conv2_2, relu2_2, pool2, conv3_1, relu3_1. Presets that work with it: seed;",
        ),
        (["--style", "paint.png", "--vgg-weights", "vgg19.pth", "--style-layers", "relu3_2"], "ends before relu3_2"),
        (["--style", "paint.png", "--vgg-weights", "vgg19.pth", "--style-layers", "relu9_9"], "no layer 'relu9_9'"),
        (["--style", "paint.png", "--vgg-weights", "vgg19.pth", "--content-layers", ","], "no layer is named"),
        (["--style", "paint.png", "--vgg-weights", "vgg19.pth", "--style-optimiser", "sgd"], "'lbfgs' or 'adam'"),
        (
            ["--style", "paint.png", "--vgg-weights", "vgg19.pth", "--style-weight", "0", "--content-weight", "0"],
            "both 0",
        ),
        *(
            (["--style", "paint.png", "--vgg-weights", "vgg19.pth", option, value], f"{option}: {said}")
            for option, value, said in (
                ("--style-weight", "1e308", "'1e308': input should be less than or equal to 1000000000000"),
                ("--content-weight", "2e12", "'2e12': input should be less than or equal to 1000000000000"),
                ("--style-weight", "1e-300", "1e-300 is too little for the optimisers: give 0, or 1e-06 and more"),
                ("--content-weight", "9e-7", "9e-07 is too little for the optimisers: give 0, or 1e-06 and more"),
                ("--style-scale", "1e-9", "'1e-9': input should be greater than or equal to 0.01"),
            )
        ),
        (["--style-layers", "relu1_1"], "--style-layers needs --style"),
        (["--style-steps", "9"], "--style-steps needs --style"),
        (["--keep-colours"], "needs --style"),
        (["--vgg-weights", "vgg19.pth"], "needs --style"),
        (["--style", "paint.png", "--vgg-weights", "vgg19.pth", "--reference", "."], "--reference"),
    ],
)
def test_a_style_that_cannot_be_is_one_sentence(
    tree: Path,
    tmp_path: Path,
    paint: Path,
    weights: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    words: str,
) -> None:
    (tmp_path / "vgg19.pth").symlink_to(weights)
    (tmp_path / "text.pth").write_text("weights")
    (tmp_path / "cut.pth").write_bytes(weights.read_bytes()[:-1000])
    (tmp_path / "cut.png").write_bytes(paint.read_bytes()[:-1000])
    Image.new("RGB", (3, 2)).save(tmp_path / "tiny.png")
    state = torch.load(weights, weights_only=True)
    torch.save({key: torch.zeros_like(value) for key, value in state.items()}, tmp_path / "zero.pth")
    monkeypatch.chdir(tmp_path)
    words = words.replace("{here}", str(tmp_path)).replace("{weights}", str(weights))
    for dry in ((), ("--dry-run",)):
        assert main(["run", str(tree), str(tmp_path / "out"), *options, *dry]) == 2
        said = capfd.readouterr().err.strip().splitlines()[-1]
        assert words in said
        assert "Traceback" not in said


def test_a_dry_run_says_what_would_be_painted(
    tree: Path,
    tmp_path: Path,
    paint: Path,
    weights: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *_, **__: pytest.fail("something was fetched"))
    dry = [*map(str, (tree, tmp_path / "out", "--style", paint)), "--style-steps", "9", "--dry-run", "--vgg-weights"]
    assert main(["stylize", *dry, str(weights)]) == 0
    said = capsys.readouterr().out
    assert "4 to do" in said
    assert "painted in the manner of paint.png, preset seed with steps 9, on cpu" in said
    assert "fetched" not in said
    assert main(["run", *dry, str(weights), "--method", "nl-bayes"]) == 0
    assert "preset seed with steps 9, then nl-bayes on cpu" in capsys.readouterr().out
    assert main(["stylize", *dry, "download"]) == 0
    assert "torchvision's weights of VGG-19 would be fetched first" in capsys.readouterr().out
    for file, fetches in ((str(weights), False), ("download", True)):
        assert main(["stylize", *dry, file, "--json"]) == 0
        plan = json.loads(capsys.readouterr().out)
        assert (plan["style"], plan["style_preset"]) == ("paint.png", "seed with steps 9")
        assert plan["fetches_weights"] is fetches
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "torch").exists()


def a_style(paint: Path, weights: Path, **options: Any) -> tasks.stylize.Style:
    config = {"input": paint.parent, "output": paint.parent, "style": paint, "vgg_weights": str(weights), **options}
    found = styles.of(build(config, RunConfig))
    assert found is not None
    return found


def test_flows_with_other_styles_and_devices_keep_each_their_own(paint: Path, weights: Path) -> None:
    """As in a service that paints in several manners at a time, and in a run on several devices."""
    several = [a_style(paint, weights, style_scale=scale) for scale in (1, 0.5, 0.25)]
    devices = [choose("cpu"), replace(choose("cpu"), threads=1), replace(choose("cpu"), threads=2)]
    first = {(style, device): tasks.stylize.targets_of(style, device) for style in several for device in devices}
    assert len(set(map(id, first.values()))) == len(first) >= 6
    for (style, device), targets in first.items():
        assert tasks.stylize.targets_of(style, device) is targets


def test_a_style_that_is_being_made_ready_keeps_no_other_waiting(
    paint: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, quick = a_style(paint, weights), a_style(paint, weights, style_scale=0.5)
    make, begun, go_on = tasks.stylize._make, threading.Event(), threading.Event()
    made: list[tasks.stylize.Style] = []

    def making(style: tasks.stylize.Style, device: Any) -> Any:
        made.append(style)
        if style is slow:
            begun.set()
            assert go_on.wait(60)
        return make(style, device)

    monkeypatch.setattr(tasks.stylize, "_make", making)
    with ThreadPoolExecutor() as pool:
        waiting = [pool.submit(tasks.stylize.targets_of, slow, choose("cpu")) for _ in range(2)]
        assert begun.wait(60)
        assert pool.submit(tasks.stylize.targets_of, quick, choose("cpu")).result(60) is not None
        go_on.set()
        first, second = (future.result(60) for future in waiting)
    assert first is second
    assert made == [slow, quick]


def test_the_report_shows_the_noise_that_the_run_added_and_one_grey_scale(
    tmp_path: Path, photo: np.ndarray, paint: Path, weights: Path
) -> None:
    """Floats have no range of a type: the source's own decides, also of what was painted, whose range is another."""
    folder, out = tmp_path / "floats", tmp_path / "out"
    folder.mkdir()
    source = photo[80:144, 200:264, 0].astype(np.float32) * 40 - 1000
    tifffile.imwrite(folder / "a.tif", source)
    options = ["--style", paint, "--vgg-weights", weights, "--noise", "gauss:25", "--method", "nl-bayes"]
    assert main(["run", *map(str, (folder, out, *options))]) == 0
    stylized, noisy, denoised = (tifffile.imread(out / name / "a.tif") for name in ("stylized", "noisy", "images"))
    assert np.ptp(stylized) != pytest.approx(np.ptp(source), rel=0.01)

    rows, provenance = table.read(out / "results.parquet")
    (panel,) = report._panels(rows, out, tomllib.loads(provenance["config"]))
    low, high, _ = display_range(noisy.astype(np.float64), None)
    shown = {
        panel.original_png: source,
        panel.clean_png: stylized,
        panel.noisy_png: noisy,
        panel.denoised_png: denoised,
    }
    for png, expected in shown.items():
        assert png is not None
        grey = np.clip((expected.astype(np.float64) - low) / (high - low), 0, 1) * 255
        assert np.abs(np.asarray(Image.open(io.BytesIO(png))) - grey).max() < 1


@pytest.mark.parametrize("folder", ["noisy/sub", "stylized/sub", "runs/stylized"])
def test_no_link_is_written_through_beside_the_images(
    folder: str, tree: Path, tmp_path: Path, paint: Path, weights: Path
) -> None:
    out, outside = tmp_path / "out", tmp_path / "outside"
    outside.mkdir()
    (out / folder).parent.mkdir(parents=True)
    (out / folder).symlink_to(outside)
    options = ["--style", paint, "--vgg-weights", weights, "--noise", "gauss:25", "--method", "none"]
    assert main(["run", *map(str, (tree, out, *options))]) == 1
    assert list(outside.iterdir()) == []
    stopped = {name for name, row in rows_of(out).items() if row["error_type"] == "OutputLink"}
    assert stopped == ({"sub/grey.png"} if folder.endswith("sub") else set(rows_of(out)))
