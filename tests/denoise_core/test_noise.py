"""Noise of every kind: as it is written, against its theory, and from seed and name alone."""

import hashlib
import io
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from benchmarks import corruptions
from denoise_core import noise
from denoise_core.noise import KINDS, Level, Noise

EXAMPLES = [kind.example for kind in KINDS.values()]
RANDOM = [one for one in EXAMPLES if one.partition(":")[0] not in ("jpeg", "none")]
HITTING = ["bernoulli:0.5", "impulse:0.3", "salt-pepper:0.1", "text:0.25"]


def ramp(shape=(256, 256)):
    return np.broadcast_to(np.linspace(0, 1, shape[1], dtype=np.float32), shape).copy()


def stack(frames=2, height=24, width=40, channels=3):
    return np.random.default_rng(0).random((frames, height, width, channels), dtype=np.float32)


def fixed(kind, *levels):
    return Noise(kind, tuple(Level(level, level) for level in levels))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("gauss:25", fixed("gauss", 25)),
        ("poisson:30", fixed("poisson", 30)),
        ("gauss:0.5", fixed("gauss", 0.5)),
        ("gauss:1e-05", fixed("gauss", 1e-5)),
        ("poisson-gauss:30/5", fixed("poisson-gauss", 30, 5)),
        ("poisson-gauss:5-50/5", Noise("poisson-gauss", (Level(5, 50), Level(5, 5)))),
        ("bernoulli:0-0.95", Noise("bernoulli", (Level(0, 0.95),))),
        ("gauss:1e-05-0.001", Noise("gauss", (Level(1e-5, 1e-3),))),
        ("jpeg:10-90", Noise("jpeg", (Level(10, 90),))),
        ("none", Noise("none")),
    ],
)
def test_what_is_written_is_read_and_written_again(text, expected):
    assert noise.parse(text) == expected
    assert str(expected) == text


def test_every_example_is_read_and_described():
    for name, kind in KINDS.items():
        for text in (kind.example, kind.range_example):
            assert noise.parse(text).kind == name
            assert str(noise.parse(text)) == text
        assert kind.example in str(kind)


@st.composite
def noises(draw):
    kind = draw(st.sampled_from(sorted(KINDS)))
    levels = []
    for parameter in KINDS[kind].parameters:
        if parameter.whole:
            one = st.integers(1, int(parameter.most)).map(float)
        else:
            one = st.floats(1e-9, parameter.most).map(lambda value: float(f"{value:g}"))
        low, high = sorted((draw(one), draw(one)))
        levels.append(Level(low, high))
    return Noise(kind, tuple(levels))


@given(noises())
def test_any_noise_is_read_as_it_is_written(spec):
    assert noise.parse(str(spec)) == spec
    assert noise.parse(f" {str(spec).replace(':', ' : ').replace('/', ' / ')} ") == spec


@given(noises(), st.integers(0, 2**32))
def test_a_drawn_level_is_in_its_range_and_is_read_as_it_is_written(spec, seed):
    drawn = spec.drawn(np.random.default_rng(seed))
    assert noise.parse(str(drawn)) == drawn
    for asked, got in zip(spec.levels, drawn.levels, strict=True):
        assert asked.low <= got.low == got.high <= asked.high


@given(st.text())
def test_whatever_is_written_is_noise_or_one_sentence(text):
    try:
        assert isinstance(noise.parse(text), Noise)
    except ValueError as error:
        assert str(error).count(repr(text)) >= 1


@pytest.mark.parametrize("text", ["", "salt:3", "none:3", "none:", "25", ":25", "laplace:3", "Gauss:25", "gauss 25"])
def test_an_unknown_kind_is_refused_with_every_kind_and_an_example(text):
    with pytest.raises(ValueError, match="Unknown noise") as raised:
        noise.parse(text)
    assert all(example in str(raised.value) for example in EXAMPLES)


@pytest.mark.parametrize(
    "text",
    ["gauss", "gauss:", "gauss:-1", "gauss:0", "gauss:nan", "gauss:inf", "poisson:x", "gauss:25:3", "gauss:1e300",
     "gauss:25,poisson:3", "gauss:1000010", "gauss:25/3", "gauss:50-5", "gauss:5-5", "gauss:0-0", "gauss:5--6", "gauss:-5-6",
     "gauss:5-", "gauss:2_5", "gauss:٢٥", "gauss:-", "gauss:5-6-7", "gauss:nan-5",
     "gauss:5-nan", "poisson-gauss:30",
     "poisson-gauss:30/",
     "poisson-gauss:30/5/2", "poisson-gauss:30/0", "bernoulli:1", "impulse:1.2", "salt-pepper:50", "text:0.95",
     "jpeg:0", "jpeg:101", "jpeg:30.5", "jpeg:0-50", "jpeg:1.5-50"],
)  # fmt: skip
def test_a_level_out_of_bounds_is_refused_with_the_bounds_and_an_example(text):
    kind = KINDS[text.partition(":")[0]]
    with pytest.raises(ValueError, match=re.escape(repr(text))) as raised:
        noise.parse(text)
    assert kind.example in str(raised.value)
    assert kind.range_example in str(raised.value)
    assert all(str(parameter) in str(raised.value) for parameter in kind.parameters)


@pytest.mark.parametrize("spec", corruptions.SPECS)
def test_every_statistic_of_a_noise_is_its_theorys(spec):
    off = [c for c in corruptions.checks(spec, frames=64, side=48) if not abs(c.deviation) < corruptions.MOST]
    assert not off, [(c.statistic, c.theory, c.measured, c.deviation) for c in off]


@pytest.mark.parametrize("spec", corruptions.RANGES)
def test_levels_are_drawn_uniformly_from_their_range(spec):
    off = [c for c in corruptions.range_checks(spec, images=1500) if not abs(c.deviation) < corruptions.MOST]
    assert not off, [(c.statistic, c.theory, c.measured, c.deviation) for c in off]


@pytest.mark.parametrize(
    ("spec", "other"),
    [("gauss:25", "gauss:25.5"), ("poisson:30", "poisson:31"), ("poisson-gauss:30/5", "poisson-gauss:30/8"),
     ("bernoulli:0.5", "bernoulli:0.51"), ("impulse:0.3", "salt-pepper:0.3"), ("salt-pepper:0.1", "impulse:0.1"),
     ("text:0.25", "text:0.26"), ("brown:25", "gauss:25"), ("jpeg:30", "jpeg:31")],
)  # fmt: skip
def test_the_statistics_tell_a_noise_from_its_neighbour(spec, other, monkeypatch):
    real = noise.corrupt
    monkeypatch.setattr(noise, "corrupt", lambda clean, _, rng: real(clean, noise.parse(other), rng))
    assert max(abs(check.deviation) for check in corruptions.checks(spec, frames=64, side=48)) > corruptions.MOST


def test_gauss_and_poisson_keep_their_streams():
    """What runs have written stays what a resumed run would write."""
    clean = np.broadcast_to(np.linspace(0, 1, 48, dtype=np.float32)[:, None], (2, 40, 48, 3))
    before = {
        "gauss:25": "3df567ca9e15cb60472dd7c278919bc672eb3e97431d3dee5add80887520f737",
        "gauss:0.5": "952e83747d3d425a95de46c97667827a16b9d5c266038f9dbac6b98440a0ed6d",
        "poisson:30": "764956101dd456de021fd126baa2aeb19b91ef02e155707667e0a404efc34338",
        "poisson:1000": "d083a1cd4125df30afbefba126be0f5f3f8cfab323c55f7cbfff6aa9fe587630",
    }
    for text, digest in before.items():
        noisy = noise.add(clean, noise.parse(text), noise.rng(3, "a/ö.png"))
        assert hashlib.sha256(noisy.tobytes()).hexdigest() == digest, text
    draws = noise.rng(3, "a/ö.png").standard_normal(clean.shape, dtype=np.float32)
    expected = clean + draws * np.float32(25 / 255)
    assert np.array_equal(noise.add(clean, noise.parse("gauss:25"), noise.rng(3, "a/ö.png")), expected)


def test_photons_are_counted():
    noisy = noise.add(ramp(), noise.parse("poisson:30"), noise.rng(0, "a")).astype(np.float64)
    assert np.allclose(noisy * 30, np.round(noisy * 30), atol=1e-3)


@pytest.mark.parametrize("text", ["gauss:50", "poisson:30", "poisson-gauss:30/5", "brown:50"])
def test_clipped_noise_stays_in_the_range_and_nothing_else_changes(text):
    clean, kind = ramp(), noise.parse(text)
    free = noise.add(clean, kind, noise.rng(3, "a"))
    clipped = noise.add(clean, kind, noise.rng(3, "a"), clip=True)
    assert free.max() > 1
    assert np.array_equal(clipped, free.clip(0, 1))


@pytest.mark.parametrize("text", EXAMPLES)
@pytest.mark.parametrize(
    "shape", [(9, 13), (9, 13, 1), (9, 13, 3), (9, 13, 4), (3, 9, 13, 2), (1, 1, 1, 1), (1, 1), (2, 1, 7, 3)]
)
def test_any_image_or_stack_is_taken_and_left_as_it_is(text, shape):
    clean = np.random.default_rng(1).random(shape, dtype=np.float32)
    before = clean.copy()
    clean.setflags(write=False)
    found = noise.corrupt(clean, noise.parse(text), noise.rng(0, "a"))
    assert np.array_equal(clean, before)
    assert found.pixels.shape == shape
    assert found.pixels.dtype == np.float32
    assert not np.shares_memory(found.pixels, clean)
    assert str(found.spec) == text
    if found.mask is not None:
        assert found.mask.dtype == np.bool_
        assert found.mask.shape == ((*shape[:-1], 1) if len(shape) > 2 else shape)


def test_an_array_that_is_no_image_is_refused():
    for shape in [(7,), (1, 2, 3, 4, 5)]:
        with pytest.raises(ValueError, match="F, H, W, C"):
            noise.corrupt(np.zeros(shape, np.float32), noise.parse("gauss:25"), noise.rng(0, "a"))


@pytest.mark.parametrize("text", HITTING)
def test_the_mask_is_where_pixels_were_hit(text):
    clean = stack(height=64, width=64) * np.float32(0.5) + np.float32(0.25)
    found = noise.corrupt(clean, noise.parse(text), noise.rng(0, "a"))
    assert found.mask is not None
    changed = (found.pixels != clean).any(axis=3, keepdims=True)
    assert np.array_equal(changed, found.mask)
    values = found.pixels[found.mask[..., 0]]
    if text.startswith("bernoulli"):
        assert not values.any()
    elif text.startswith("salt"):
        assert set(map(tuple, values)) == {(0, 0, 0), (1, 1, 1)}
    else:
        assert (values.std(axis=1) > 0).all(), "colours, not greys"
    assert ((found.pixels >= 0) & (found.pixels <= 1)).all()


@pytest.mark.parametrize("text", [one for one in EXAMPLES if one not in HITTING])
def test_noise_that_is_everywhere_has_no_mask(text):
    assert noise.corrupt(stack(), noise.parse(text), noise.rng(0, "a")).mask is None


def test_text_hits_every_part_of_an_image_alike():
    clean = np.zeros((256, 48, 48, 1), np.float32)
    mask = noise.corrupt(clean, noise.parse("text:0.25"), noise.rng(0, "a")).mask[..., 0]
    border = np.ones((48, 48), bool)
    border[6:-6, 6:-6] = False
    for part in (border, ~border, np.arange(48)[:, None] < 6, np.arange(48) < 6):
        shares = mask[:, np.broadcast_to(part, (48, 48))].mean(axis=1)
        assert shares.mean() == pytest.approx(0.25, abs=5 * shares.std() / 16)


def test_text_is_strokes_of_one_colour():
    found = noise.corrupt(np.zeros((1, 256, 256, 3), np.float32), noise.parse("text:0.25"), noise.rng(0, "a"))
    hit, pixels = found.mask[0, ..., 0], found.pixels[0]
    assert len(np.unique(pixels[hit], axis=0)) < 300
    both = hit[:, 1:] & hit[:, :-1]
    assert both.sum() > 0.5 * hit.sum(), "a quarter, of pixels hit by themselves"
    assert (pixels[:, 1:][both] == pixels[:, :-1][both]).all(axis=1).mean() > 0.6


def test_jpeg_is_what_a_jpeg_file_holds(photo):
    file = io.BytesIO()
    Image.fromarray(photo).save(file, "JPEG", quality=30)
    held = np.asarray(Image.open(file), dtype=np.float32) / 255
    clean = photo.astype(np.float32) / 255
    assert np.array_equal(noise.add(clean, noise.parse("jpeg:30"), noise.rng(0, "a")), held)
    four = np.concatenate([clean, clean[..., :1]], axis=2)
    by_channel = noise.add(four, noise.parse("jpeg:30"), noise.rng(0, "a"))
    for channel in range(4):
        alone = noise.add(four[..., channel], noise.parse("jpeg:30"), noise.rng(0, "a"))
        assert np.array_equal(by_channel[..., channel], alone)


def test_jpeg_refuses_what_no_jpeg_file_can_hold():
    with pytest.raises(ValueError, match="65500"):
        noise.add(np.zeros((1, 65501), np.float32), noise.parse("jpeg:30"), noise.rng(0, "a"))


@pytest.mark.parametrize("text", [*RANDOM, "gauss:5-50", "text:0.1-0.5"])
def test_seed_and_name_alone_decide(text):
    clean, parsed = stack(3, 48, 64), noise.parse(text)

    def made(seed, name):
        return noise.corrupt(clean, parsed, noise.rng(seed, name))

    names = [f"{i}/b.png" for i in range(8)]
    first = {name: made(0, name).pixels.tobytes() for name in names}
    with ThreadPoolExecutor(4) as pool:
        again = dict(zip(names[::-1], pool.map(lambda name: made(0, name).pixels.tobytes(), names[::-1]), strict=True))
    assert again == first
    assert len(set(first.values())) == len(names)
    one = made(0, "a/b.png")
    for seed, name in [(0, "b/b.png"), (1, "a/b.png"), (0, "a/b\udcff.png")]:
        other = made(seed, name)
        if one.mask is not None:
            correlated = np.corrcoef(one.mask.ravel(), other.mask.ravel())[0, 1]
        else:
            correlated = np.corrcoef((one.pixels - clean).ravel(), (other.pixels - clean).ravel())[0, 1]
        assert abs(correlated) < 0.12, "letters and correlated noise have few independent parts"


@pytest.mark.parametrize("text", [kind.range_example for name, kind in KINDS.items() if name != "none"])
def test_a_drawn_level_makes_what_the_same_level_written_makes(text):
    clean, parsed = stack(), noise.parse(text)
    drawn = noise.corrupt(clean, parsed, noise.rng(0, "a.png"))
    written = noise.corrupt(clean, noise.parse(str(drawn.spec)), noise.rng(0, "a.png"))
    assert written.spec == drawn.spec
    assert written.pixels.tobytes() == drawn.pixels.tobytes()
    levels = {str(parsed.drawn(noise.rng(0, f"{i}.png"))) for i in range(20)}
    assert len(levels) > 10


def test_seed_and_name_are_kept_apart():
    assert noise.rng(1, "1a").random() != noise.rng(11, "a").random()


def test_no_noise_is_a_copy():
    clean = ramp()
    noisy = noise.add(clean, noise.parse("none"), noise.rng(0, "a"))
    assert np.array_equal(noisy, clean)
    assert not np.shares_memory(noisy, clean)


@pytest.mark.parametrize("text", ["poisson:30", "poisson-gauss:30/5"])
@pytest.mark.parametrize("bad", [-0.5, np.nan])
def test_poisson_noise_refuses_negative_pixels(text, bad):
    clean = ramp()
    clean[3, 4] = bad
    with pytest.raises(ValueError, match="negative or NaN"):
        noise.add(clean, noise.parse(text), noise.rng(0, "a"))


@pytest.mark.parametrize("text", ["poisson:30", "poisson-gauss:30/5"])
def test_poisson_noise_refuses_what_is_no_number_wherever_photons_are(text):
    clean = ramp()
    clean[3, 4] = np.nan
    with pytest.raises(ValueError, match="negative or NaN"):
        noise.add(clean, noise.parse(text), noise.rng(0, "a"), photons=noise.Photons(-1.0, 1.0))


def test_photons_are_between_the_values_that_are_given_for_each_frame():
    clean = np.broadcast_to(np.float32([[0], [0.25], [0.5], [1]]), (3, 4, 20_000))[..., None].copy()
    ends = np.array([0.0, 0.25, 1.0]), np.array([1.0, 0.5, 1.0])
    photons = noise.Photons(*(end.reshape(3, 1, 1, 1) for end in ends))
    noisy = noise.add(clean, noise.parse("poisson:30"), noise.rng(0, "a"), photons=photons).astype(np.float64)
    one = np.array([1, 0.25, 0]) / 30  # photon, in values; the last frame has none
    above = np.maximum(clean[:, :, 0, 0] - ends[0][:, None], 0)
    assert noisy.var(axis=2)[..., 0] == pytest.approx(above * one[:, None], rel=0.06, abs=1e-9)
    assert np.array_equal(noisy[1, :2], clean[1, :2]), "nothing is added to what has no photons"
    assert np.array_equal(noisy[2], clean[2])
