import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from skimage import data

from benchmarks import baseline_zsn2n as plain
from denoise_core import methods, metrics, noise
from denoise_core.device import Device
from denoise_core.methods import FitDiverged, Step, zs_n2n

FLOAT = Device("cpu", "float32", torch.get_num_threads(), "test")
BFLOAT = Device("cpu", "bfloat16", torch.get_num_threads(), "test")


def photograph(size=64, top=60, left=180):
    return data.astronaut()[top : top + size, left : left + size].astype(np.float32) / 255


def noisy_photograph(size=64, sigma=25):
    return noise.add(photograph(size), noise.parse(f"gauss:{sigma}"), noise.rng(0, "astronaut"))


def tensor(image):
    return torch.from_numpy(image.copy()).permute(2, 0, 1).unsqueeze(0)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def same_weights(f, channels):
    """The plain reading's network with the weights of `f`."""
    model = plain.network(channels)
    with torch.no_grad():
        for mine, theirs in zip(f.parameters(), model.parameters(), strict=True):
            theirs.copy_(mine)
    return model


@pytest.fixture
def few_steps(monkeypatch):
    monkeypatch.setattr(zs_n2n, "FAST_STEPS", 12)


def quick(noisy, seed=0, device=FLOAT, **options):
    return methods.denoise(noisy, method="zs-n2n", preset="fast", seed=seed, device=device, **options)


# The published method, against an independent reading of it


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("size", [(2, 2), (2, 3), (3, 2), (31, 44), (64, 64), (63, 65)])
def test_the_loss_is_that_of_a_plain_reading(channels, size):
    y = torch.rand(1, channels, *size, generator=generator(1))
    f = zs_n2n.Network(channels, generator(2))
    model = same_weights(f, channels)
    assert zs_n2n.loss(f, y).item() == pytest.approx(plain.loss(model, y).item(), abs=1e-6)
    zs_n2n.loss(f, y).backward()
    plain.loss(model, y).backward()
    for mine, theirs in zip(f.parameters(), model.parameters(), strict=True):
        assert torch.allclose(mine.grad, theirs.grad, atol=1e-6, rtol=1e-4)


def test_the_network_has_the_published_number_of_parameters():
    assert sum(p.numel() for p in zs_n2n.Network(3, generator()).parameters()) == 22_275


def test_initial_weights_are_distributed_as_those_of_torch():
    layers = zs_n2n.Network(3, generator()).children()
    with torch.random.fork_rng(devices=[]):
        theirs = [layer for layer in plain.network(3) if isinstance(layer, torch.nn.Conv2d)]
    for mine, reference in zip(layers, theirs, strict=True):
        bound = 1 / np.sqrt(reference.weight[0].numel())
        for a, b in ((mine.weight, reference.weight), (mine.bias, reference.bias)):
            assert a.shape == b.shape
            assert max(a.abs().max(), b.abs().max()) <= bound
        if mine.weight.numel() > 1000:
            assert mine.weight.std().item() == pytest.approx(bound / np.sqrt(3), rel=0.05)
            assert mine.weight.std().item() == pytest.approx(reference.weight.std().item(), rel=0.05)
            assert mine.weight.abs().max().item() == pytest.approx(bound, rel=0.02)


@pytest.mark.parametrize(
    ("precision", "steps", "size"),
    [
        ("float32", 60, 64),
        ("bfloat16", 150, 48),
        pytest.param("bfloat16", 3000, 128, marks=pytest.mark.slow),
    ],
)
def test_the_paper_preset_is_as_good_as_a_plain_reading_after_the_same_steps(precision, steps, size):
    clean, y = photograph(size), tensor(noisy_photograph(size))
    torch_start = zs_n2n.Network(3, generator())
    model = same_weights(torch_start, 3)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.001)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1000, gamma=0.5)
    adam = torch.optim.Adam(torch_start.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.StepLR(adam, step_size=1000, gamma=0.5)
    device = Device("cpu", precision, 1, "test")
    zs_n2n._descend(
        torch_start, lambda: y, adam, schedule, steps=steps, every=1, device=device, on_step=lambda step: None
    )
    for _ in range(steps):
        optimizer.zero_grad()
        plain.loss(model, y).backward()
        optimizer.step()
        scheduler.step()
    with torch.no_grad():
        theirs = (y - model(y))[0].permute(1, 2, 0).numpy()
    mine = (y - zs_n2n.apply(torch_start, y))[0].permute(1, 2, 0).numpy()
    noisy = metrics.psnr(clean, noisy_photograph(size), data_range=1)
    expected = metrics.psnr(clean, theirs, data_range=1)
    assert expected > noisy + 3
    assert metrics.psnr(clean, mine, data_range=1) == pytest.approx(expected, abs=0.1)


def test_the_paper_preset_runs_the_published_schedule(monkeypatch):
    rates = []

    def record(f, batch, adam, schedule, *, steps, every, device, on_step):
        y = tensor(noisy_photograph(8))
        assert torch.equal(batch(), y)
        for _ in range(steps):
            rates.append(adam.param_groups[0]["lr"])
            adam.step()
            schedule.step()
        return steps, 0.0

    monkeypatch.setattr(zs_n2n, "_descend", record)
    methods.denoise(noisy_photograph(8), method="zs-n2n", preset="paper", seed=0, device=FLOAT)
    assert rates == pytest.approx([1e-3] * 1000 + [5e-4] * 1000 + [2.5e-4] * 1000)


# What every image gets back


@pytest.mark.parametrize("preset", ["fast", "paper"])
def test_a_noisy_photograph_comes_back_better(preset, monkeypatch):
    if preset == "fast":
        monkeypatch.setattr(zs_n2n, "FAST_STEPS", 200)
    else:
        descend = zs_n2n._descend
        monkeypatch.setattr(zs_n2n, "_descend", lambda *a, **k: descend(*a, **{**k, "steps": 200}))
    clean, noisy = photograph(64), noisy_photograph(64)
    found = methods.denoise(noisy, method="zs-n2n", preset=preset, seed=0, device=BFLOAT)
    before = metrics.psnr(clean, noisy, data_range=1)
    assert metrics.psnr(clean, found.pixels, data_range=1) > before + 4
    assert found.steps == 200
    assert np.isfinite(found.final_loss)
    assert found.restarts == 0
    assert found.fit_seconds > 0


@pytest.mark.parametrize(
    "shape", [(2, 2), (3, 2), (2, 2, 3), (5, 5), (1 + 64, 300), (70, 3, 4), (2, 700), (33, 65, 5), (64, 64, 1)]
)
def test_any_shape_from_2_by_2_comes_back_in_shape(shape, few_steps):
    noisy = np.random.default_rng(0).random(shape, dtype=np.float32)
    found = quick(noisy)
    assert found.pixels.shape == shape
    assert found.pixels.dtype == np.float32
    assert np.isfinite(found.pixels).all()
    assert not np.array_equal(found.pixels, noisy)


@pytest.mark.parametrize("make", [lambda x: x[::-1, ::-1], np.asfortranarray, lambda x: x.copy()])
def test_the_input_is_only_read_whatever_its_memory(make, few_steps):
    noisy = make(noisy_photograph(32))
    kept = noisy.copy()
    noisy.flags.writeable = False
    found = quick(noisy)
    assert np.array_equal(noisy, kept)
    assert np.array_equal(found.pixels, quick(kept).pixels)
    assert found.pixels.flags.writeable


def test_the_value_range_is_applied_and_undone(few_steps):
    noisy = noisy_photograph(32)
    lo, hi = 1000.0, 9000.0
    scaled = quick((noisy * (hi - lo) + lo).astype(np.float32), value_range=(lo, hi)).pixels
    assert (scaled - lo) / (hi - lo) == pytest.approx(quick(noisy).pixels, abs=1e-3)


def test_nothing_is_clamped(few_steps):
    noisy = noisy_photograph(32, sigma=80)
    found = quick(noisy).pixels
    assert found.min() < 0 or found.max() > 1


@pytest.mark.parametrize("preset", ["fast", "paper"])
@pytest.mark.parametrize("value", [0.0, 0.3, 65535.0, -7.25])
def test_a_constant_image_comes_back_exactly(preset, value):
    noisy = np.full((9, 7, 3), value, np.float32)
    noisy[..., 1] += 1
    found = methods.denoise(noisy, method="zs-n2n", preset=preset, seed=0, device=FLOAT)
    assert np.array_equal(found.pixels, noisy)
    assert (found.steps, found.final_loss) == (0, None)


def test_none_gives_the_pixels_back():
    noisy = np.random.default_rng(0).normal(size=(1, 1, 2)).astype(np.float32)
    found = methods.denoise(noisy, method="none", preset="fast", seed=0, device=FLOAT)
    assert np.array_equal(found.pixels, noisy)
    assert not np.shares_memory(found.pixels, noisy)


# Determinism


@pytest.mark.parametrize("device", [FLOAT, BFLOAT], ids=["float32", "bfloat16"])
def test_the_same_seed_gives_the_same_bytes_also_from_two_threads_at_once(device, few_steps):
    noisy = noisy_photograph(64)
    alone = quick(noisy, device=device).pixels.tobytes()
    before = torch.random.get_rng_state()
    start = threading.Barrier(2)

    def fit(seed):
        start.wait()
        return quick(noisy, seed=seed, device=device).pixels.tobytes()

    with ThreadPoolExecutor(2) as pool:
        same, other = pool.map(fit, [0, 1])
    assert same == alone
    assert other != alone
    assert torch.equal(torch.random.get_rng_state(), before)


def test_neighbouring_seeds_and_starts_have_unlike_weights():
    seeds = {zs_n2n.derived_seed(seed, attempt) for seed in (-1, 0, 1, 10, 2**70) for attempt in (0, 1, 11)}
    assert len(seeds) == 15


# Application in tiles


@pytest.mark.parametrize("tile", [3, 16, 50])
@pytest.mark.parametrize("turns", [(0,), tuple(range(8))])
def test_tiles_give_what_the_whole_image_gives(tile, turns, monkeypatch):
    f, y = zs_n2n.Network(2, generator()), torch.rand(1, 2, 53, 41, generator=generator(1))
    with torch.no_grad():
        whole = sum(zs_n2n.turn_back(f(zs_n2n.turn(y, k)), k) for k in turns) / len(turns)
    monkeypatch.setattr(zs_n2n, "TILE", tile)
    assert torch.allclose(zs_n2n.apply(f, y, turns), whole, atol=1e-6)


def test_the_turns_are_the_eight_symmetries_and_turning_back_undoes_them():
    x = torch.arange(6.0).reshape(1, 1, 2, 3)
    turned = [zs_n2n.turn(x, k) for k in range(8)]
    assert len({(tuple(t.shape), tuple(t.flatten().tolist())) for t in turned}) == 8
    for k, t in enumerate(turned):
        assert torch.equal(zs_n2n.turn_back(t, k), x)


def test_random_crops_reach_every_pixel_and_keep_even_sides():
    y = torch.arange(67 * 5.0).reshape(1, 1, 67, 5)
    seen, random = set(), generator()
    for _ in range(200):
        crop = zs_n2n.random_crop(y, random)
        assert sorted(crop.shape[-2:]) == [4, 64]
        seen.update(crop.flatten().tolist())
    assert seen == set(range(67 * 5))


# Memory


def test_the_memory_estimate_grows_as_the_fit_does():
    estimate = zs_n2n.fit_memory_bytes
    large, small = (4000, 4000, 3), (1000, 1000, 3)
    for preset in ("fast", "paper"):
        assert estimate(large, preset) > 8 * estimate(small, preset)
        assert estimate((*small[:2], 8), preset) > estimate(small, preset) > estimate(small[:2], preset)
    assert estimate(large, "paper") > 5 * estimate(large, "fast")
    assert estimate(large, "paper", "bfloat16") < estimate(large, "paper")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak as Linux reports it, in KiB")
@pytest.mark.parametrize(
    ("shape", "preset", "precision"),
    [
        ((512, 512, 3), "paper", "float32"),
        ((1024, 1024), "paper", "bfloat16"),
        ((700, 700, 8), "paper", "float32"),
        ((3000, 3000, 3), "fast", "float32"),
    ],
)
def test_the_memory_estimate_is_near_the_measured_peak(shape, preset, precision):
    measured = int(subprocess.check_output([sys.executable, "-c", PEAK, repr(shape), preset, precision], cwd=ROOT))
    assert 1 / 1.6 < zs_n2n.fit_memory_bytes(shape, preset, precision) / measured < 1.6


ROOT = Path(__file__).resolve().parents[2]
PEAK = """
import ast, sys
import numpy as np
from denoise_core import methods
from denoise_core.device import Device
from denoise_core.methods import zs_n2n
shape, preset, precision = ast.literal_eval(sys.argv[1]), *sys.argv[2:]
descend = zs_n2n._descend
zs_n2n._descend = lambda *a, **k: descend(*a, **{**k, "steps": 2})
def high_water():  # not ru_maxrss, which a process takes over from the one that started it
    status = open("/proc/self/status").read()
    return int(status.split("VmHWM:")[1].split()[0])
def peak(shape, preset):
    noisy = np.random.default_rng(0).random(shape, dtype=np.float32)
    before = high_water()
    methods.denoise(noisy, method="zs-n2n", preset=preset, seed=0, device=Device("cpu", precision, 1, ""))
    return (high_water() - before) * 1024
peak((16, 16), "fast")  # the libraries' own memory
print(peak(shape, preset))
"""


# Steps, cancelling, divergence


def test_steps_are_reported_often_and_losses_now_and_then(monkeypatch):
    monkeypatch.setattr(zs_n2n, "FAST_STEPS", 120)
    seen = []
    found = quick(noisy_photograph(16), on_step=seen.append)
    assert all(isinstance(step, Step) and step.steps == found.steps for step in seen)
    numbers = [step.step for step in seen]
    assert numbers == sorted(set(numbers))
    assert numbers[-1] == found.steps
    assert max(np.diff([0, *numbers])) <= 5
    losses = [step.loss for step in seen if step.loss is not None]
    assert 2 <= len(losses) < len(seen)
    assert losses[-1] == found.final_loss


@pytest.mark.parametrize("preset", ["fast", "paper"])
def test_whatever_on_step_raises_ends_the_fit_at_once(preset):
    calls = []

    def cancel(step):
        calls.append(step)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        methods.denoise(noisy_photograph(16), method="zs-n2n", preset=preset, seed=0, device=FLOAT, on_step=cancel)
    assert len(calls) == 1
    assert calls[0].step <= 5


def test_a_fit_that_diverges_starts_again_at_half_the_rate(monkeypatch, few_steps):
    descend, starts = zs_n2n._descend, []

    def once_broken(f, batch, adam, schedule, **options):
        starts.append(([p.clone() for p in f.parameters()], options))
        if len(starts) == 1:
            return descend(f, lambda: batch() * float("nan"), adam, schedule, **options)
        return descend(f, batch, adam, schedule, **options)

    monkeypatch.setattr(zs_n2n, "_descend", once_broken)
    found = quick(noisy_photograph(16))
    assert found.restarts == 1
    assert np.isfinite(found.pixels).all()
    assert not torch.equal(starts[0][0][0], starts[1][0][0])


@pytest.mark.parametrize("preset", ["fast", "paper"])
def test_the_second_start_has_half_the_learning_rate(preset, monkeypatch):
    rates = []

    def broken(f, batch, adam, schedule, **options):
        rates.append(adam.param_groups[0]["lr"])
        return 1, float("nan")

    monkeypatch.setattr(zs_n2n, "_descend", broken)
    with pytest.raises(FitDiverged, match="two starts"):
        methods.denoise(noisy_photograph(16), method="zs-n2n", preset=preset, seed=0, device=FLOAT)
    assert len(rates) == 2
    assert rates[1] == pytest.approx(rates[0] / 2)


def test_intensities_that_overflow_the_network_are_a_fit_that_diverged():
    noisy = np.random.default_rng(0).random((8, 8), dtype=np.float32) * np.float32(1e30)
    with pytest.raises(FitDiverged):
        quick(noisy)


# Arguments


def test_unfit_arguments_are_refused():
    good = np.random.default_rng(0).random((8, 8), dtype=np.float32)
    for bad in (np.nan, np.inf, -np.inf):
        image = good.copy()
        image[3, 3] = bad
        with pytest.raises(ValueError, match="NaN or infinite"):
            quick(image)
    for shape in ((1, 1), (1, 8), (8, 1, 3)):
        with pytest.raises(ValueError, match="at least 2×2"):
            quick(np.ones(shape, np.float32))
    for value_range in ((1.0, 0.0), (0.5, 0.5), (0.0, np.inf), (np.nan, 1.0), (0.0, 1e-300), (-3e38, 3e38)):
        with pytest.raises(ValueError, match="lo < hi"):
            quick(good, value_range=value_range)
    for image in (good.astype(np.float64), good[0], good[None, :, :, None], good[:0]):
        with pytest.raises(ValueError, match="float32 pixels"):
            quick(image)
    with pytest.raises(ValueError, match="zs-n2n, nl-bayes, zs-fit, nlm, wavelet, tv, bm3d, none"):
        methods.denoise(good, method="zsn2n", preset="fast", seed=0, device=FLOAT)
    with pytest.raises(ValueError, match="fast, paper"):
        methods.denoise(good, method="zs-n2n", preset="best", seed=0, device=FLOAT)


def test_the_registry_is_what_denoise_takes():
    assert set(methods.METHODS) == {"zs-n2n", "zs-fit", "nl-bayes", "nlm", "wavelet", "tv", "bm3d", "none"}
    for name, method in methods.METHODS.items():
        assert method.name == name
        assert method.presets
        assert method.min_size >= 1
        assert method.description
        assert method.source


# The intensity range


def test_hot_pixels_do_not_stretch_the_range():
    image = np.random.default_rng(0).normal(1000, 50, (300, 300)).astype(np.float32)
    lo, hi = methods.intensity_range(image)
    image[::60, ::60] = 65535
    image[7, 7] = 0
    hot = methods.intensity_range(image)
    assert hot == pytest.approx((lo, hi), abs=20)
    assert 800 < lo < 1000 < hi < 1200


@pytest.mark.parametrize("value", [0, 7, 65535])
def test_a_constant_image_has_a_range_around_it(value):
    lo, hi = methods.intensity_range(np.full((5, 5, 3), value, np.uint16))
    assert lo < value < hi


def test_a_mostly_empty_image_has_the_whole_range():
    image = np.zeros((200, 200), np.uint16)
    image[50, 50] = 900
    assert methods.intensity_range(image) == (0, 900)


def test_the_range_of_a_large_image_is_that_of_its_sample():
    image = np.random.default_rng(0).integers(0, 60000, (3000, 2000), dtype=np.uint16)
    assert methods.intensity_range(image) == pytest.approx(tuple(np.percentile(image, (0.1, 99.9))), abs=60)
    for bad in (np.zeros((0, 3)), np.array([[1.0, np.nan]])):
        with pytest.raises(ValueError, match="pixels"):
            methods.intensity_range(bad)


def test_a_range_that_no_number_can_be_the_width_of_is_called_that() -> None:
    image = np.full((8, 8), 1.79e308)
    image[::2] *= -1
    with pytest.raises(ValueError, match="values too large to compute with: there is no intensity range"):
        methods.intensity_range(image)
