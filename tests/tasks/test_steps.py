"""One image through the steps, without a flow: what happens to its intensities."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from scipy import ndimage

from denoise_core.device import Device
from denoise_core.images import Scale, bounds, read_header, with_tails
from denoise_core.methods.zs_fit.noise_level import estimate
from tasks.add_noise import add_noise
from tasks.arrangement import renamed
from tasks.denoise import denoise
from tasks.evaluate import evaluate
from tasks.faults import is_machine_fault
from tasks.load import load
from tasks.save import save
from tasks.settings import Settings
from tasks.table import DONE, Row
from tasks.work import Source, Work

CPU = Device("cpu", "float32", 1, "a test")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "in").mkdir()
    return Settings(
        input=tmp_path / "in",
        output=tmp_path / "out",
        method="nl-bayes",
        preset="fast",
        noise="none",
        clip_noise=False,
        reference=None,
        seed=0,
        device=CPU,
        slots=1,
        max_pixels=10_000_000,
        run_id="0001",
        config_digest="0" * 64,
        steps_are_seen=False,
        has_limits=False,
    )


def steps(settings: Settings, pixels: np.ndarray, axes: str | None = None, **metadata: Any) -> tuple[Row, np.ndarray]:
    """The row of an image, and the pixels of its output."""
    path = settings.input / "a.tif"
    tags = {"extratags": metadata.pop("extratags", ())}
    options = {"photometric": "minisblack", **tags} | ({"metadata": metadata} if metadata else {})
    tifffile.imwrite(path, pixels, **options)
    header = renamed(read_header(path, max_pixels=settings.max_pixels), axes)
    digest, clean = (
        None if folder is None else hashlib.sha256((folder / path.name).read_bytes()).hexdigest()
        for folder in (settings.input, settings.reference)
    )
    work = Work(Source(path.name, str(digest), header, clean, settings.channels), settings)
    load.fn(work, settings)
    if settings.noise != "none":
        add_noise.fn(work, settings)
    for step in (denoise.fn, evaluate.fn, save.fn):
        if not work.failed:
            step(work, *([] if step is evaluate.fn else [settings]))
    assert work.row["status"] == DONE, work.row["error"]
    return work.row, tifffile.imread(settings.images / "a.tif")


def ramp(height: int = 96, width: int = 128) -> np.ndarray:
    """True intensities from 0 to 1 along the rows."""
    return np.broadcast_to(np.linspace(0, 1, width), (height, width)).copy()


def slope_and_offset(truth: np.ndarray, result: np.ndarray) -> tuple[float, float]:
    slope, offset = np.polyfit(truth.ravel(), result.ravel().astype(float), 1)
    return float(slope), float(offset)


RANGES = {
    "uint8": (20, 220),
    "int8": (-100, 90),
    "uint16": (300, 4000),
    "int16": (-500, 9000),
    "uint32": (70_000, 900_000),
    "int32": (-4e6, 9e6),
    "float16": (-3, 60),
    "float32": (-0.01, 0.12),
    "float64": (-1e-9, 5e-8),
}


@pytest.mark.parametrize("dtype", RANGES)
def test_intensities_stay_quantitative(settings: Settings, dtype: str) -> None:
    """The slope of what comes out against the true intensities is 1, and there is no offset."""
    low, high = RANGES[dtype]
    truth = low + (high - low) * ramp()
    noisy = truth + np.random.default_rng(0).normal(0, 0.02 * (high - low), truth.shape)
    source = (np.rint(noisy) if np.dtype(dtype).kind in "ui" else noisy).astype(dtype)
    row, result = steps(settings, source)
    slope, offset = slope_and_offset(truth, result)
    assert result.dtype == source.dtype
    assert slope == pytest.approx(1, abs=0.005)
    assert abs(offset - (1 - slope) * (low + high) / 2) < 0.002 * (high - low)
    assert np.std(result.astype(float) - truth) < 0.5 * np.std(source.astype(float) - truth)
    assert row["flags"] is None
    assert row["sigma_estimate"] == pytest.approx(0.02 * (high - low), rel=0.1)
    assert row["mean_noisy"] == pytest.approx(source.mean(dtype=float), rel=1e-4, abs=1e-4 * (high - low))


@pytest.mark.parametrize("dtype", RANGES)
def test_without_a_method_nothing_changes(settings: Settings, dtype: str) -> None:
    low, high = RANGES[dtype]
    source = (low + (high - low) * np.random.default_rng(0).random((3, 2, 20, 30))).astype(dtype)
    row, result = steps(replace(settings, method="none"), source, axes="ZCYX")
    assert np.array_equal(result, source)
    assert row["denoised_as"] == "Z frames; C separate"
    assert len(row["value_low"]) == len(row["value_high"]) == 2


def test_channels_are_scaled_and_denoised_each_by_itself(settings: Settings) -> None:
    """A bright channel does not hide the noise of a faint one."""
    generator = np.random.default_rng(0)
    truth = np.stack([10 + 50 * ramp(), 5000 + 40_000 * ramp()[:, ::-1]])
    noisy = truth + generator.normal(0, 1, truth.shape) * [[[2]], [[600]]]
    row, result = steps(settings, noisy.astype(np.float32), axes="CYX")
    for channel in range(2):
        before, after = (np.std(x[channel] - truth[channel]) for x in (noisy, result))
        assert after < 0.4 * before
    assert row["value_high"][1] > 100 * row["value_high"][0]
    assert row["denoised_as"] == "C separate"
    alone, single = steps(settings, noisy[0].astype(np.float32))
    assert np.array_equal(single, result[0])
    assert alone["value_high"] == row["value_high"][:1]


def test_joint_channels_are_one_stack(settings: Settings) -> None:
    noisy = (ramp() * 200 + np.random.default_rng(0).normal(0, 5, (3, 96, 128)) + 20).astype(np.uint8)
    row, result = steps(replace(settings, channels="joint"), noisy, axes="CYX")
    apart, _ = steps(settings, noisy, axes="CYX")
    assert (row["denoised_as"], apart["denoised_as"]) == ("C joint", "C separate")
    truth = ramp() * 200 + 20
    assert np.std(result - truth) < 0.5 * np.std(noisy - truth)


@pytest.mark.parametrize("method", ["none", "nl-bayes"])
def test_pixels_that_are_no_numbers_stay(settings: Settings, method: str) -> None:
    truth = 100 + 900 * ramp()
    noisy = (truth + np.random.default_rng(0).normal(0, 20, truth.shape)).astype(np.float32)
    noisy[:, :40] = np.nan
    noisy[5, 60], noisy[7, 70] = np.inf, -np.inf
    row, result = steps(replace(settings, method=method), noisy)
    holes = ~np.isfinite(noisy)
    assert np.array_equal(result[holes], noisy[holes], equal_nan=True)
    assert np.isfinite(result[~holes]).all()
    assert "3,842 values that are NaN or infinite stay as they are" in row["note"]
    assert row["mean_noisy"] == pytest.approx(noisy[~holes].mean(), rel=1e-5)
    if method == "nl-bayes":
        assert np.std((result - truth)[~holes]) < 0.4 * np.std((noisy - truth)[~holes])
        assert row["sigma_estimate"] == pytest.approx(20, rel=0.1)
        assert row["flags"] is None


def test_images_with_pixels_that_are_no_numbers_are_scored(settings: Settings) -> None:
    truth = (100 + 900 * ramp()).astype(np.float32)
    noisy = (truth + np.random.default_rng(0).normal(0, 20, truth.shape)).astype(np.float32)
    noisy[10:12, 20:24] = np.nan
    clean = settings.input.parent / "clean"
    clean.mkdir()
    tifffile.imwrite(clean / "a.tif", truth)
    row, _ = steps(replace(settings, reference=clean), noisy)
    assert row["psnr_denoised_db"] > row["psnr_noisy_db"] + 6


@pytest.mark.parametrize("method", ["nl-bayes", "zs-fit"])
def test_the_noise_that_is_told_is_what_the_method_found(settings: Settings, method: str) -> None:
    """Strokes of one pixel are no noise, which differences of neighbours take them for."""
    strokes = np.where(np.random.default_rng(1).random((128, 128)) < 0.3, 100, 1000)
    strokes[:, ::4] = strokes[::3] = 1000
    strokes[:, 64:] = 1000
    row, _ = steps(
        replace(settings, method=method),
        (strokes + np.random.default_rng(0).normal(0, 40, strokes.shape)).astype(np.float32),
    )
    found = np.sqrt(row["noise_gain"] * row["mean_noisy"] + row["noise_offset"]) if method == "zs-fit" else 40
    assert row["sigma_estimate"] == pytest.approx(found, rel=1e-3 if method == "zs-fit" else 0.1)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32"])
def test_the_noise_model_is_in_the_intensities_of_the_file(settings: Settings, dtype: str) -> None:
    low, high = RANGES[dtype]
    truth = low + (high - low) * ramp(60, 200)  # too low for a network, so that nothing is fitted
    sigma = 0.03 * (high - low) * (0.3 + ramp(60, 200)) ** 0.5
    noisy = truth + sigma * np.random.default_rng(0).normal(0, 1, truth.shape)
    row, _ = steps(replace(settings, method="zs-fit"), (np.rint(noisy) if dtype != "float32" else noisy).astype(dtype))
    assert row["kept"] == "estimate"
    for part in (0.3, 0.8):
        variance = (0.03 * (high - low)) ** 2 * (0.3 + part)
        found = row["noise_gain"] * (low + part * (high - low)) + row["noise_offset"]
        assert found == pytest.approx(variance, rel=0.25)


def test_an_image_without_any_number(settings: Settings) -> None:
    row, result = steps(settings, np.full((20, 20), np.nan, np.float32))
    assert np.isnan(result).all()
    assert row["mean_noisy"] is None


@pytest.mark.parametrize("bad", ["hot", "saturated"])
def test_hot_and_saturated_pixels_poison_nothing(settings: Settings, bad: str) -> None:
    """A thousandth of the pixels is hot, or a spot has run into the end of the range: the rest comes out as without."""
    generator = np.random.default_rng(0)
    side = np.arange(400)
    truth = 400 + 200 * np.sin(side / 19)[:, None] * np.cos(side / 23)
    noisy = np.rint(truth + generator.normal(0, 15, truth.shape)).astype(np.uint16)
    marked = noisy.copy()
    if bad == "hot":
        places = generator.random(noisy.shape) < 0.001
        marked[places] = 60_000
    else:
        places = np.hypot(*np.mgrid[-200:200, -200:200]) < 10
        marked[places] = 4095  # a camera of 12 bits
    _, plain = steps(settings, noisy)
    _, result = steps(settings, marked)
    levels = [estimate(pixels.astype(np.float32)[..., None]) for pixels in (noisy, marked)]
    sigmas = [level.sigma(400) for level in levels if level is not None]
    assert sigmas[1] == pytest.approx(sigmas[0], rel=0.05)
    assert sigmas[1] == pytest.approx(15, rel=0.07)
    far = ~ndimage.binary_dilation(places, iterations=12)
    assert far.mean() > 0.5
    difference = result[far].astype(float) - plain[far]
    assert np.sqrt(np.mean(difference**2)) < 0.15 * 15
    assert np.array_equal(result[places] > 3000, np.ones(places.sum(), bool))


def test_a_mean_that_moved_is_flagged(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    import tasks.denoise as module

    noisy = np.random.default_rng(0).normal(1000, 20, (2, 64, 64)).astype(np.uint16)
    untouched, _ = steps(settings, noisy, axes="CYX")
    assert untouched["flags"] is None
    each_frame = module.each_frame

    def shifted(work: Work, settings: Settings, planes: Any, put: Any) -> None:
        def put_shifted(numbers: Any, found: Any) -> None:
            put(numbers, found + np.float32(5 / 65535) * (numbers[0] == 1))

        each_frame(work, settings, planes, put_shifted)

    monkeypatch.setattr(module, "each_frame", shifted)
    row, _ = steps(settings, noisy, axes="CYX")
    assert row["flags"].startswith("mean of C 2 of 2 moved by +")
    assert "C 1 of 2" not in row["flags"]


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32", "uint32"])
def test_scores_of_every_type(settings: Settings, dtype: str) -> None:
    """The clean image's own range counts where the type has none that images fill."""
    low, high = RANGES[dtype]
    clean = (low + (high - low) * ramp()).astype(dtype)
    row, result = steps(replace(settings, noise="gauss:25"), clean)
    top = (
        float(np.ptp(clean.astype(float)))
        if dtype in ("float32", "uint32")
        else float(np.iinfo(dtype).max) - np.iinfo(dtype).min
    )
    assert row["data_range"] == pytest.approx(top, rel=1e-6)
    assert row["psnr_noisy_db"] == pytest.approx(20 * np.log10(255 / 25), abs=0.15)
    error = np.mean((result.astype(float) - clean.astype(float)) ** 2)
    assert row["psnr_denoised_db"] == pytest.approx(10 * np.log10(top**2 / error), abs=0.01)
    assert 0.5 < row["ssim_denoised"] <= 1


def test_the_file_says_what_was_done(settings: Settings) -> None:
    steps(settings, np.zeros((20, 20), np.uint8))
    with tifffile.TiffFile(settings.images / "a.tif") as tif:
        assert tif.pages[0].software.endswith("(nl-bayes fast)")  # type: ignore[union-attr]


@pytest.mark.parametrize("crop", [None, 16])
def test_an_image_that_memory_cannot_hold_is_not_read(
    settings: Settings, crop: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """16 bytes a sample of uint16; of an image that is cropped 4, since the rest is not worked on."""
    path = settings.input / "a.tif"
    tifffile.imwrite(path, np.arange(64 * 64, dtype=np.uint16).reshape(64, 64))
    work = Work(Source("a.tif", "", read_header(path, max_pixels=settings.max_pixels)), replace(settings, crop=crop))
    need = 64 * 64 * (16 if crop is None else 4)
    for there, words in ((need - 1, "4,096 samples of uint16 take about"), (need, "the file changed")):
        monkeypatch.setattr(bounds, "machine_bytes", lambda there=there: there)
        load.fn(work, replace(settings, crop=crop))
        assert words in str(work.row["error"])


def test_a_reference_that_is_mostly_a_hole_is_not_read(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "clean").mkdir()
    tifffile.imwrite(tmp_path / "clean" / "a.tif", np.zeros((16, 16), np.uint8))
    os.truncate(tmp_path / "clean" / "a.tif", 1 << 32)
    tifffile.imwrite(settings.input / "a.tif", np.zeros((16, 16), np.uint8))
    found = (settings.input / "a.tif").read_bytes()
    header = read_header(settings.input / "a.tif", max_pixels=1000)
    work = Work(Source("a.tif", hashlib.sha256(found).hexdigest(), header, "known"), settings)
    load.fn(work, replace(settings, reference=tmp_path / "clean"))
    assert "not scored: the reference is a file of 4,294,967,296 bytes" in str(work.row["note"])


@pytest.mark.parametrize("there", ["nothing", "an empty mount point", "another file", "a pipe"])
def test_a_reference_share_that_vanishes_is_a_fault_of_the_machine(
    settings: Settings, tmp_path: Path, there: str
) -> None:
    """Where only the file is gone, or something else than a file is in its place, the image goes without a score."""
    clean = tmp_path / "clean"
    if there != "nothing":
        clean.mkdir()
    if there == "another file":
        (clean / "b.tif").touch()
    if there == "a pipe":
        os.mkfifo(clean / "a.tif")
    tifffile.imwrite(settings.input / "a.tif", np.zeros((16, 16), np.uint8))
    found = (settings.input / "a.tif").read_bytes()
    header = read_header(settings.input / "a.tif", max_pixels=1000)
    work = Work(Source("a.tif", hashlib.sha256(found).hexdigest(), header, "known"), settings)
    if there in ("another file", "a pipe"):
        load.fn(work, replace(settings, reference=clean))
        assert work.row["note"] == "not scored: there is no reference under this path"
        return
    with pytest.raises(OSError, match="vanished") as fault:
        load.fn(work, replace(settings, reference=clean))
    assert is_machine_fault(fault.value)


@pytest.mark.parametrize("method", ["none", "nl-bayes", "wavelet"])
@pytest.mark.parametrize(
    ("dtype", "giant"), [("float64", 1e300), ("float64", -1.79e308), ("float32", 3e38), ("int32", 2**31 - 1)]
)
def test_giants_are_left_alone_and_poison_nothing(settings: Settings, dtype: str, giant: float, method: str) -> None:
    """The rest comes out as where such pixels are NaN."""
    settings = replace(settings, method=method)
    noisy = (500 + 100 * ramp() + np.random.default_rng(0).normal(0, 8, (96, 128))).astype(dtype)
    places = np.zeros(noisy.shape, bool)
    places[20, 30:32] = places[70, 5] = True
    marked = noisy.copy()
    marked[places] = giant
    row, result = steps(settings, marked)
    assert row["note"] == "3 values that are too far from all others to compute with stay as they are"
    assert np.array_equal(result[places], marked[places])
    assert row["mean_denoised"] == pytest.approx(550, abs=2)
    if method == "none":
        assert np.array_equal(result, marked)
        return
    plain = noisy.astype("float64" if dtype == "int32" else dtype)
    plain[places] = np.nan
    _, expected = steps(settings, plain)
    difference = result[~places].astype(float) - expected[~places]
    assert np.sqrt(np.mean(difference**2)) < (0.4 if dtype == "int32" else 0.02)  # integers are rounded
    truth = 500 + 100 * ramp()
    assert np.std((result - truth)[~places]) < 0.5 * 8


@pytest.mark.parametrize("method", ["none", "nl-bayes"])
def test_an_image_of_giants_alone_stays_as_it_is(settings: Settings, method: str) -> None:
    pixels = np.full((32, 32), 1.79e308)
    pixels[::2] *= -1
    row, result = steps(replace(settings, method=method), pixels)
    assert np.array_equal(result, pixels)
    assert str(row["note"]).startswith("1,024 values that are too far from all others")


def bead() -> np.ndarray:
    """One simulated bead on nothing: its 99.9th percentile is next to nothing, too."""
    y, x = np.mgrid[:256, :256]
    found: np.ndarray = np.exp(-((y - 70.0) ** 2 + (x - 80.0) ** 2) / 0.72)
    return found


def test_a_clean_image_that_is_mostly_empty_has_noise_added_to_its_signal(settings: Settings) -> None:
    clean = bead()
    assert np.percentile(clean, 99.9) < 1e-12
    row, result = steps(replace(settings, noise="gauss:25"), clean)
    assert row["note"] is None
    assert (row["value_low"], row["value_high"]) == ([0], [1])
    assert np.count_nonzero(result == clean) < clean.size / 100
    assert 15 < row["psnr_noisy_db"] < 25, "a noise of 25/255 of the range"


@pytest.mark.parametrize("method", ["nl-bayes", "wavelet"])
def test_the_signal_of_a_mostly_empty_image_is_denoised(settings: Settings, method: str) -> None:
    """What is around it is the rounding of some arithmetic; a giant beside it stays one."""
    rng = np.random.default_rng(0)
    noisy = (bead() + rng.normal(0, 1e-8, (256, 256))).astype(np.float32)
    noisy[3, 4] = 1e30
    row, result = steps(replace(settings, method=method), noisy)
    assert row["note"] == "1 values that are too far from all others to compute with stay as they are"
    assert result[3, 4] == np.float32(1e30)
    assert (row["value_low"], row["value_high"]) == ([noisy.min()], [1])
    assert np.count_nonzero(result != noisy) > noisy.size / 2


def test_signal_counts_without_a_gap_before_it() -> None:
    scale, tails = Scale(0, 1e-9), 1e-9 * 900.0 ** np.arange(1, 4)
    assert with_tails(tails, scale) == Scale(0, tails[-1])
    assert with_tails(-tails, scale) == Scale(-tails[-1], 1e-9)
    assert with_tails(np.append(tails, 2000 * tails[-1]), scale) == Scale(0, tails[-1]), "a broken pixel"
    assert with_tails(tails[1:], scale) == scale
    assert with_tails(tails[:2], scale) == scale, "within a million widths"


def test_giants_beside_a_reference_hinder_no_score(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "clean").mkdir()
    truth = 500 + 100 * ramp()
    noisy = truth + np.random.default_rng(0).normal(0, 8, truth.shape)
    tifffile.imwrite(tmp_path / "clean" / "a.tif", truth, photometric="minisblack")
    noisy[20, 30] = 1e300
    row, _ = steps(replace(settings, reference=tmp_path / "clean"), noisy)
    assert row["psnr_denoised_db"] > row["psnr_noisy_db"] + 6


@pytest.mark.parametrize("dtype", ["int16", "float32"])
def test_values_without_photons_stay_and_are_noted(settings: Settings, dtype: str) -> None:
    settings = replace(settings, method="none", noise="poisson:30", crop=64)
    clean = np.rint(100 * ramp(64, 64) - 20).astype(dtype)
    around = np.full((128, 128), 1000, dtype)  # which is cut off, and decides no peak
    around[32:96, 32:96] = clean
    around[32] = np.nan if dtype == "float32" else -20
    clean = around[32:96, 32:96]
    row, result = steps(settings, around)
    below = int(np.count_nonzero(clean < 0))
    assert f"{below:,} values below 0 have no photons and got no Poisson noise" in row["note"]
    assert result[clean <= 0] == pytest.approx(clean[clean <= 0], abs=1e-5)
    lit = np.isfinite(clean) & (clean > 0)
    peak = 32767 if dtype == "int16" else 80
    scaled = (result[lit].astype(float) - clean[lit]) ** 2 / (clean[lit].astype(float) * peak / 30)
    assert scaled.mean() == pytest.approx(
        1, abs=0.2 if dtype == "float32" else 0.5
    )  # few photons of int16: a long tail


@pytest.mark.parametrize("kind", ["poisson:30", "poisson-gauss:30/5"])
@pytest.mark.parametrize(("dtype", "value"), [("float32", -3), ("float32", 0), ("int32", 0), ("int16", -3)])
def test_an_image_without_photons_is_a_failed_row(settings: Settings, dtype: str, value: int, kind: str) -> None:
    pixels = np.full((32, 32), value, dtype)
    pixels[3:9] -= 1
    with pytest.raises(AssertionError, match="no value of the image is above 0: add gauss noise instead"):
        steps(replace(settings, noise=kind, method="none"), pixels)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16"])
def test_a_black_image_of_a_type_with_a_range_has_no_photon_noise(settings: Settings, dtype: str) -> None:
    row, result = steps(replace(settings, noise="poisson:30", method="none"), np.zeros((32, 32), dtype))
    assert row["note"] is None
    assert not result.any()


@pytest.mark.parametrize("dtype", ["int16", "float32", "uint32"])
def test_noise_is_clipped_to_the_range_of_the_type_or_of_the_image(settings: Settings, dtype: str) -> None:
    low, high = RANGES[dtype]
    clean = (low + (high - low) * ramp()).astype(dtype)
    for kind in ("gauss:50", "poisson:5"):
        _, result = steps(replace(settings, noise=kind, method="none", clip_noise=True), clean)
        limits = (-32768, 32767) if dtype == "int16" else (clean.min(), clean.max())
        assert result.max() == pytest.approx(limits[1])
        assert result.min() >= limits[0]
        _, free = steps(replace(settings, noise=kind, method="none"), clean)
        assert (free.max() > limits[1]) == (dtype != "int16")


@pytest.mark.parametrize("method", ["none", "nl-bayes"])
def test_what_only_other_pixels_lose_is_noted_with_them(settings: Settings, method: str) -> None:
    pixels = np.random.default_rng(0).normal(1000, 20, (32, 32)).astype(np.uint16)
    tags = [(281, "H", 1, 1100, True)]
    row, _ = steps(replace(settings, method=method), pixels, extratags=tags)
    assert ("MaxSampleValue" in str(row["note"])) == (method != "none")
