import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from skimage import data

from denoise_core.methods import nl_bayes as module
from denoise_core.methods.nl_bayes import ALIGN, FIRST, REACH, SECOND, Pass, nl_bayes
from tests.denoise_core.patches import noise, one_thread, rms  # noqa: F401 - a fixture

pytestmark = pytest.mark.usefixtures("one_thread")


def photograph(channels=3, height=128, width=128, top=60, left=180, sigma=25.0):
    """A crop in units of noise of strength `sigma`; other numbers of channels are frames of one grey scene."""
    crop = torch.from_numpy(data.astronaut()[top : top + height, left : left + width].astype(np.float32)).permute(
        2, 0, 1
    )
    scene = crop if channels == 3 else crop[1:2].expand(channels, -1, -1)
    return ((scene - 127) / sigma).contiguous()


def gain_db(clean, seed=0):
    """By how much the error falls. The noise's standard deviation is 1."""
    z = clean + noise(*clean.shape, seed=seed)
    return 20 * np.log10(rms(z - clean) / rms(nl_bayes(z) - clean))


def in_bands(z, height):
    bands = []
    for top in range(0, z.shape[1], height):
        bottom = min(z.shape[1], top + height)
        start = max(0, (top - REACH) // ALIGN * ALIGN)
        bands.append(nl_bayes(z[:, start : bottom + REACH])[:, top - start : bottom - start])
    return torch.cat(bands, 1)


# How good it is


@pytest.mark.parametrize(
    ("channels", "sigma", "least"), [(3, 25, 10.7), (3, 50, 13.4), (3, 10, 7.2), (3, 5, 4.6), (3, 1, 0.6), (1, 25, 8.9)]
)
def test_the_error_falls(channels, sigma, least):
    assert gain_db(photograph(channels, sigma=sigma)) > least


def test_frames_of_a_scene_help_each_other():
    one, five, eight = (gain_db(photograph(channels)) for channels in (1, 5, 8))
    assert five > one + 3
    assert eight > five + 0.5


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("level", [0, 100, -1e4])
def test_flat_areas_are_flat_and_keep_their_mean(channels, level):
    z = noise(channels, 96, 90) + level
    denoised = nl_bayes(z)
    assert rms(denoised - level) < 0.1
    assert (denoised - z).double().mean().item() == pytest.approx(0, abs=0.01)


def test_edges_between_flat_areas_stay():
    step = torch.zeros(1, 80, 80)
    step[..., 37:] = 20
    error = nl_bayes(step + noise(1, 80, 80)) - step
    assert rms(error) < 0.2
    assert error[..., 33:41].double().mean((0, 1)).abs().max().item() < 0.15


# Few values, many values, great values


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("size", [(1, 1), (1, 2), (2, 1), (1, 40), (40, 1), (3, 5), (6, 6), (7, 9), (13, 70), (71, 33)])
def test_every_size_is_denoised(channels, size):
    z = noise(channels, *size)
    denoised = nl_bayes(z)
    assert denoised.shape == z.shape
    assert denoised.dtype == torch.float32
    assert denoised.isfinite().all()
    assert rms(denoised) < max(1.01 * rms(z), 0.01)
    if min(size) > 10:
        assert rms(denoised) < 0.2


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
@pytest.mark.parametrize("value", [0.0, 1.0, -3.3, 500.0])
def test_a_constant_image_stays_as_it_is(channels, value):
    z = torch.full((channels, 37, 50), value)
    assert (nl_bayes(z) - z).abs().max().item() < 1e-3


@pytest.mark.parametrize("sigma", [0.5, 0.1, 0.02, 0.01])
def test_where_hardly_any_noise_is_nothing_is_lost(sigma):
    clean = photograph(sigma=sigma)
    z = clean + noise(*clean.shape)
    assert rms(nl_bayes(z) - clean) < rms(z - clean) + 1e-3


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("value", [1e4, -1e4, 1e8, 1e15])
def test_hot_pixels_do_not_spoil_what_is_around_them(channels, value):
    z = noise(channels, 90, 85)
    z[:, ::17, ::19] = value
    denoised = nl_bayes(z)
    hot = z == value
    assert denoised.isfinite().all()
    assert (denoised[hot] / value - 1).abs().max().item() < 1e-3
    assert rms(denoised[~hot]) < 0.3


def test_great_contrast_keeps_the_estimates_precise():
    clean = torch.linspace(-1e4, 1e4, 90).expand(3, 80, -1).clone()
    clean[:, 40:] *= -1
    assert rms(nl_bayes(clean + noise(3, 80, 90)) - clean) < 0.5


@pytest.mark.parametrize(
    "z",
    [
        torch.zeros(4, 4),
        torch.zeros(1, 3, 4, 4),
        torch.zeros(3, 4, 4, dtype=torch.float64),
        torch.zeros(3, 4, 4, dtype=torch.uint8),
        torch.zeros(3, 0, 4),
        torch.full((1, 4, 4), torch.nan),
        torch.full((1, 4, 4), torch.inf),
        torch.full((1, 4, 4), -2e15),
    ],
)
def test_what_is_no_image_is_refused(z):
    with pytest.raises(ValueError, match="Expected"):
        nl_bayes(z)


def test_settings_that_would_leave_pixels_out_are_refused():
    with pytest.raises(ValueError, match="left out"):
        Pass(step=5)


# The same bytes


@pytest.mark.parametrize(
    ("channels", "height", "width", "bands"),
    [
        (3, 331, 67, (64, 101)),
        (1, 395, 280, (128,)),
        (1, 322, 7, (64,)),
        (2, 257, 270, (192,)),
        (5, 200, 41, (64,)),
    ],
)
def test_bands_are_rows_of_the_whole(channels, height, width, bands):
    scene = photograph(3, height, width, top=20, left=100, sigma=20)
    z = torch.cat([scene, scene.flip(0)])[:channels] + noise(channels, height, width)
    whole = nl_bayes(z)
    for band in bands:
        assert torch.equal(in_bands(z, band), whole)


@pytest.mark.parametrize("sigma", [0.02, 1])
def test_bands_are_rows_of_the_whole_where_float32_does_not_do(sigma):
    z = photograph(3, 300, 75, top=20, sigma=sigma) + noise(3, 300, 75)
    z[:, ::37, ::41] = 1e4
    assert torch.equal(in_bands(z, ALIGN), nl_bayes(z))


def test_a_margin_covers_what_a_row_depends_on():
    z = photograph(1, 260, 50, top=20) + noise(1, 260, 50)
    other = z.clone()
    other[:, 150:] = 30 * noise(1, 110, 50, seed=1)
    same = (nl_bayes(z) == nl_bayes(other)).all(2)[0]
    assert same[: 150 - REACH].all()
    assert not same[150 - 30 : 150].all()


def test_the_same_bytes_alone_and_beside_others():
    images = [
        photograph(channels, 90, 75, left=left) + noise(channels, 90, 75) for channels in (1, 3) for left in (90, 200)
    ]
    alone = [nl_bayes(z) for z in images]
    with ThreadPoolExecutor(4) as pool:
        beside = list(pool.map(nl_bayes, images * 4))
    assert all(torch.equal(a, b) for a, b in zip(alone * 4, beside, strict=True))


def test_the_image_given_is_not_written_to():
    z = photograph() + noise(3, 128, 128)
    before = z.clone()
    nl_bayes(z)
    assert torch.equal(z, before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_same_bytes_again_and_what_a_cpu_gives():
    clean = photograph()
    z = clean + noise(3, 128, 128)
    first, again = (nl_bayes(z.cuda()).cpu() for _ in range(2))
    assert torch.equal(first, again)
    assert rms(first - clean) == pytest.approx(rms(nl_bayes(z) - clean), rel=0.01)


# Its parts, against plain readings


@pytest.mark.parametrize("settings", [FIRST, SECOND, Pass(patch=3, step=2, radius=5, similar=20, match=6, chroma=0)])
@pytest.mark.parametrize("size", [(44, 278), (90, 50), (9, 14)])
def test_groups_are_the_patches_nearest_to_their_reference(settings, size):
    p = settings
    guide = module._to_grid(photograph(3, *size, sigma=10) + noise(3, *size), p)
    before = (p.match - p.patch) // 2
    after = p.match - p.patch - before
    mirrored = np.pad(guide.double().numpy(), ((0, 0), (before, after), (before, after)), mode="reflect")
    mirrored[1:] *= p.chroma

    def compared(y, x):
        return mirrored[:, y : y + p.match, x : x + p.match]

    matcher = module._Matcher(guide, p)
    last = (guide.shape[1] - p.patch, guide.shape[2] - p.patch)
    references = 0
    for cell in matcher.cells():
        groups = torch.cat(list(matcher.groups(cell))).numpy()
        assert len(groups) == cell.rows * cell.columns
        references += len(groups)
        for i in range(0, len(groups), 29):
            row, column = divmod(i, cell.columns)
            top, left = (cell.row + row) * p.step, (cell.column + column) * p.step
            y, x = np.divmod(groups[i], cell.places[1])
            places = {(int(a) + cell.top, int(b) + cell.left) for a, b in zip(y, x, strict=True)}
            assert len(places) == groups.shape[1]
            assert (top, left) in places
            own = compared(top, left)
            distances = {
                (a, b): np.square(compared(a, b) - own).sum()
                for a in range(max(0, top - p.radius), min(last[0], top + p.radius) + 1)
                for b in range(max(0, left - p.radius), min(last[1], left + p.radius) + 1)
            }
            nearest = sorted(distances.values())[: len(places)]
            assert sorted(distances[place] for place in places) == pytest.approx(nearest, rel=1e-4, abs=1e-3)
    assert references == (last[0] // p.step + 1) * (last[1] // p.step + 1)
    assert last[0] % p.step == last[1] % p.step == 0


def group(patches, values, spread, seed):
    """Three groups of correlated patches, spread by so much more than the noise along some directions."""
    rng = np.random.default_rng(seed)
    scales = np.geomspace(spread, 0.01, values)
    draws = rng.normal(size=(3, patches, values)) * scales
    rotation, _ = np.linalg.qr(rng.normal(size=(values, values)))
    return (draws @ rotation + rng.normal(size=(3, 1, values)) * 5).astype(np.float32)


@pytest.mark.parametrize("spread", [1, 30, 3000, 1e5])
@pytest.mark.parametrize(("patches", "values"), [(32, 48), (32, 16), (9, 16), (32, 80)])
def test_the_second_estimate_is_the_best_linear_one(patches, values, spread):
    clean = group(patches, values, spread, 0)
    noisy = clean + np.random.default_rng(1).normal(size=clean.shape).astype(np.float32)
    weighted, weight = module._estimate_second(torch.from_numpy(noisy), torch.from_numpy(clean))
    for i in range(3):
        mean = clean[i].astype(np.float64).mean(0)
        covariance = np.cov(clean[i].astype(np.float64).T, bias=True)
        wiener = np.linalg.solve(covariance + np.eye(values), covariance)
        expected = mean + (noisy[i] - mean) @ wiener
        assert (weighted[i] / weight[i]).numpy() == pytest.approx(
            expected, abs=1e-2 if spread < 1000 else 1e-6 * spread
        )
        assert weight[i].item() == pytest.approx(1 / (1 + np.square(wiener).sum()), rel=1e-2)


@pytest.mark.parametrize("spread", [1, 30, 300, 1000])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_first_estimate_shrinks_each_direction_by_its_signal(channels, spread):
    noisy = np.concatenate([group(110, 16, spread, seed) for seed in range(channels)], 2)
    noisy += np.random.default_rng(9).normal(size=noisy.shape).astype(np.float32)
    weighted, weight = module._estimate_first(torch.from_numpy(noisy), channels, 1.5)
    for i in range(3):
        for c in range(channels):
            own = noisy[i, :, 16 * c : 16 * c + 16].astype(np.float64)
            values, vectors = np.linalg.eigh(np.cov(own.T, bias=True) - np.eye(16))
            shrinkage = (vectors * (values**2 / (values**2 + 1.5))) @ vectors.T
            expected = own.mean(0) + (own - own.mean(0)) @ shrinkage
            found = (weighted[i] / weight[i]).numpy()[:, 16 * c : 16 * c + 16]
            assert found == pytest.approx(expected, abs=3e-2)


def test_a_matrix_that_cannot_be_inverted_leaves_the_patches_as_they_are():
    group = torch.zeros(2, 9, 16)
    group[0, :, 0] = torch.linspace(-1, 1, 9) * 1e12
    weighted, weight = module._estimate_second(group, group)
    assert torch.allclose(weighted / weight[..., None], group)


def test_a_wide_image_takes_little_memory():
    script = """
import torch
from denoise_core.methods.nl_bayes import nl_bayes
torch.set_num_threads(1)
def most():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) / 1024
nl_bayes(torch.zeros(1, 20, 20))
z = torch.randn(1, 70, 10_000)
before = most()
nl_bayes(z)
print(most() - before)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    assert float(done.stdout) < 150
