import numpy as np
import pytest

from denoise_core import noise
from denoise_core.noise import Noise


def ramp(shape=(256, 256)):
    return np.broadcast_to(np.linspace(0, 1, shape[1], dtype=np.float32), shape).copy()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("gauss:25", Noise("gauss", 25.0)),
        ("poisson:30", Noise("poisson", 30.0)),
        ("gauss:0.5", Noise("gauss", 0.5)),
        ("none", Noise("none", None)),
    ],
)
def test_what_is_written_is_read_and_written_again(text, expected):
    assert noise.parse(text) == expected
    assert str(expected) == text
    assert noise.parse(str(expected)) == expected


@pytest.mark.parametrize(
    "text",
    ["", "gauss", "gauss:", "gauss:-1", "gauss:0", "gauss:nan", "gauss:inf", "poisson:x", "salt:3", "gauss:25:3",
     "none:3", "25", ":25", "gauss:1e300", "gauss:25,poisson:3"],
)  # fmt: skip
def test_anything_else_is_refused_with_the_kinds_and_an_example(text):
    with pytest.raises(ValueError, match=r"gauss:25.*poisson:30.*none"):
        noise.parse(text)


@pytest.mark.parametrize("sigma", [5, 25, 50])
def test_gaussian_noise_has_its_mean_its_deviation_and_no_memory(sigma):
    clean = ramp()
    noisy = noise.add(clean, noise.parse(f"gauss:{sigma}"), noise.rng(0, "a.png"))
    found = (noisy - clean).astype(np.float64)
    assert noisy.dtype == np.float32
    assert abs(found.mean()) < 5 * sigma / 255 / 256
    assert found.std() * 255 == pytest.approx(sigma, rel=0.02)
    assert abs(np.corrcoef(found[:, 1:].ravel(), found[:, :-1].ravel())[0, 1]) < 0.02
    assert abs(np.corrcoef(found[1:].ravel(), found[:-1].ravel())[0, 1]) < 0.02
    assert noisy.min() < 0
    assert noisy.max() > 1


@pytest.mark.parametrize("peak", [5, 30, 1000])
def test_poisson_noise_has_the_mean_of_the_clean_image_and_its_variance_over_the_peak(peak):
    clean = ramp((4096, 9))
    noisy = noise.add(clean, noise.parse(f"poisson:{peak}"), noise.rng(0, "a.png")).astype(np.float64)
    level = clean[0].astype(np.float64)
    assert noisy.mean(axis=0) == pytest.approx(level, abs=5 * np.sqrt(1 / peak / 4096))
    assert noisy.var(axis=0) == pytest.approx(level / peak, rel=0.15, abs=1e-12)
    assert np.allclose(noisy * peak, np.round(noisy * peak), atol=1e-3)


def test_clipped_noise_stays_in_the_range_and_nothing_else_changes():
    clean, kind = ramp(), noise.parse("gauss:50")
    free = noise.add(clean, kind, noise.rng(3, "a"))
    clipped = noise.add(clean, kind, noise.rng(3, "a"), clip=True)
    assert np.array_equal(clipped, free.clip(0, 1))


@pytest.mark.parametrize("kind", ["gauss:25", "poisson:30"])
def test_seed_and_name_alone_decide(kind):
    clean, parsed = ramp(), noise.parse(kind)
    first = noise.add(clean, parsed, noise.rng(0, "a/b.png"))
    assert first.tobytes() == noise.add(clean, parsed, noise.rng(0, "a/b.png")).tobytes()
    for other in (noise.rng(0, "b/b.png"), noise.rng(1, "a/b.png"), noise.rng(0, "a/b\udcff.png")):
        again = noise.add(clean, parsed, other)
        assert abs(np.corrcoef((first - clean).ravel(), (again - clean).ravel())[0, 1]) < 0.02


def test_seed_and_name_are_kept_apart():
    assert noise.rng(1, "1a").random() != noise.rng(11, "a").random()


def test_no_noise_is_a_copy():
    clean = ramp()
    noisy = noise.add(clean, noise.parse("none"), noise.rng(0, "a"))
    assert np.array_equal(noisy, clean)
    assert not np.shares_memory(noisy, clean)


def test_poisson_noise_refuses_negative_pixels():
    with pytest.raises(ValueError, match="negative"):
        noise.add(ramp() - 0.5, noise.parse("poisson:30"), noise.rng(0, "a"))
