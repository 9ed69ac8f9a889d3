import numpy as np
import pytest
import torch
from skimage import data

from denoise_core.methods import multiscale
from denoise_core.methods.multiscale import ALIGN, LOW_PASS, REACH, SMALLEST, band, estimate
from denoise_core.methods.nl_bayes import nl_bayes
from tests.denoise_core.patches import noise, one_thread, rms  # noqa: F401 - a fixture

pytestmark = pytest.mark.usefixtures("one_thread")


def photograph(channels=3, height=128, width=128, top=60, left=180, sigma=25.0):
    """A crop in units of noise of strength `sigma`."""
    crop = data.astronaut()[top : top + height, left : left + width, :channels].astype(np.float32)
    return ((torch.from_numpy(crop).permute(2, 0, 1) - 127) / sigma).contiguous()


@pytest.mark.parametrize(("sigma", "least"), [(10, 0.0), (25, 0.02), (50, 0.1), (100, 0.25)])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_stronger_the_noise_the_more_it_gains_over_one_scale(channels, sigma, least):
    gains = []
    for left in (20, 150, 280):
        clean = photograph(channels, 160, 160, 90, left, sigma)
        z = clean + noise(*clean.shape, seed=left)
        gains.append(20 * np.log10(rms(nl_bayes(z) - clean) / rms(estimate(z) - clean)))
    assert np.mean(gains) > least


def test_white_noise_stays_white_and_of_variance_one():
    taps = np.array(LOW_PASS)
    assert taps.tolist() == taps[::-1].tolist()
    with_itself = [np.dot(taps[: len(taps) - lag], taps[lag:]) for lag in range(0, len(taps), 2)]
    assert with_itself == pytest.approx([1, *[0] * 7], abs=1e-3)
    half = multiscale._halved(noise(1, 400, 600), slice(0, 200), 0, 400)
    assert half.shape == (1, 200, 300)
    assert half.var().item() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("size", [(9, 16), (16, 9), (7, 7), (1, 12)])
def test_a_plane_is_the_same_plane_at_half_its_size_and_back(size):
    height, width = size
    z = torch.full((2, height, width), 3.0)
    half = multiscale._halved(z, slice(0, -(-height // 2)), 0, height)
    assert half.numpy() == pytest.approx(6 * np.ones(half.shape), rel=1e-3)
    back = multiscale._doubled(half, slice(0, height), 0, (height, width))
    assert back.shape == z.shape
    assert back.numpy() == pytest.approx(z.numpy(), rel=1e-3)


def test_a_slope_stays_a_slope():
    y, x = torch.meshgrid(torch.arange(40.0), torch.arange(60.0), indexing="ij")
    z = (2 * y - 3 * x)[None]
    back = multiscale._doubled(multiscale._halved(z, slice(0, 20), 0, 40), slice(0, 40), 0, (40, 60))
    inside = (slice(None), slice(12, -12), slice(12, -12))
    assert back[inside].numpy() == pytest.approx(z[inside].numpy(), rel=1e-3, abs=0.01)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("level", [0, 100, -1e4])
def test_flat_areas_are_flatter_than_at_one_scale_and_keep_their_mean(channels, level):
    draws = [noise(channels, 96, 90, seed=seed) + level for seed in range(4)]
    denoised, at_one_scale = (torch.stack([method(z) for z in draws]) for method in (estimate, nl_bayes))
    assert rms(denoised - level) < 0.8 * rms(at_one_scale - level)
    for z, found in zip(draws, denoised, strict=True):
        assert (found - z).double().mean().item() == pytest.approx(0, abs=0.01)


@pytest.mark.parametrize("height", [6, 10, 30])
def test_spots_keep_what_one_scale_leaves_of_them(height: int) -> None:
    """Of squares of 2 × 2 pixels, its sum: coarser scales see a spot worse than the finest one does."""
    places = [(r, c) for r in (20, 70) for c in (20, 70)]
    spots = torch.zeros(1, 96, 96)
    for r, c in places:
        spots[0, r : r + 2, c : c + 2] = height
    left = []
    for method in (nl_bayes, estimate):
        more = (
            sum((method(noise(1, 96, 96, seed=i) + spots) - method(noise(1, 96, 96, seed=i)))[0] for i in range(2)) / 2
        )
        left.append(np.mean([more[r - 6 : r + 8, c - 6 : c + 8].sum().item() / (4 * height) for r, c in places]))
    assert left[1] > left[0] - 0.1


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("value", [1e3, 1e4, -1e4, 1e6, 1e8, 1e15])
def test_hot_pixels_do_not_spoil_what_is_around_them(channels, value):
    z = noise(channels, 90, 85)
    z[:, ::17, ::19] = value
    denoised = estimate(z)
    hot = z == value
    assert denoised.isfinite().all()
    assert (denoised[hot] / value - 1).abs().max().item() < 1e-3
    assert rms(denoised[~hot]) < 0.3


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (31, 32), (32, 32), (33, 70), (71, 33), (63, 65)])
def test_every_size_is_denoised(channels, size):
    z = noise(channels, *size)
    denoised = estimate(z)
    assert denoised.shape == z.shape
    assert denoised.dtype == torch.float32
    assert rms(denoised) < max(1.01 * rms(z), 0.01)
    if min(size) < SMALLEST:
        assert torch.equal(denoised, nl_bayes(z))


@pytest.mark.parametrize("value", [0.0, -3.3, 500.0])
def test_a_constant_image_stays_as_it_is(value):
    z = torch.full((2, 67, 50), value)
    assert (estimate(z) - z).abs().max().item() < 1e-3


@pytest.mark.parametrize(
    ("channels", "height", "width", "step"), [(3, 900, 67, 64), (1, 1031, 40, 333), (2, 777, 150, 101)]
)
def test_bands_are_rows_of_the_whole(channels, height, width, step):
    scene = photograph(3, 512, 512, 0, 0, 20).repeat(1, 3, 1)[:channels, :height, :width]
    z = scene + noise(channels, height, width)
    whole = estimate(z)
    for top in range(0, height, step):
        rows = slice(top, min(top + step, height))
        given = band(rows, height)
        assert given.start % ALIGN == 0
        found = estimate(z[:, given], slice(rows.start - given.start, rows.stop - given.start))
        assert torch.equal(found, whole[:, rows])


def test_a_margin_covers_what_a_row_depends_on():
    z = photograph(1, 512, 50, 0, 100) + noise(1, 512, 50)
    other = z.clone()
    other[:, 400:] = 30 * noise(1, 112, 50, seed=1)
    same = (estimate(z) == estimate(other)).all(2)[0]
    assert same[: 400 - REACH].all()
    assert not same[400 - 60 : 400].all()


def test_it_can_be_stopped():
    class Stop(Exception):
        pass

    def stop():
        raise Stop

    with pytest.raises(Stop):
        estimate(noise(1, 70, 70), on_cell=stop)
