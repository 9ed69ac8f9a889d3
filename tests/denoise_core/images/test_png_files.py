from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from image_files import ICC, LIMIT, by_pillow, chunk, chunks, off_by_one, picture, png, png_head

from denoise_core import images
from denoise_core.images import Header, ImageError

GREY, RGB, PALETTE, GREY_ALPHA, RGBA = 0, 2, 3, 4, 6


@pytest.mark.parametrize("interlace", [False, True])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize(("colour", "samples"), [(GREY, 1), (GREY_ALPHA, 2), (RGB, 3), (RGBA, 4)])
def test_every_kind_comes_back_as_it_was(
    tmp_path: Path, colour: int, samples: int, dtype: str, interlace: bool
) -> None:
    source = picture(37, 29, samples, dtype=dtype)
    depth = 8 * source.itemsize
    data = png(source, depth=depth, colour=colour, interlace=interlace)
    image = images.decode(data, max_pixels=LIMIT)
    colours = source[..., :3] if samples > 2 else source[..., 0]
    assert np.array_equal(image.pixels, colours)
    assert image.pixels.dtype == np.dtype(dtype)
    assert (image.alpha is not None) == (samples in (2, 4))
    if image.alpha is not None:
        assert np.array_equal(image.alpha, source[..., -1])
    assert image.notes == (("interlacing",) if interlace else ())

    path = tmp_path / "a.png"
    path.write_bytes(data)
    assert images.read_header(path, max_pixels=LIMIT) == image.header
    assert image.header == Header("png", "YXS" if samples > 2 else "YX", colours.shape, dtype)

    changed = image.pixels[::-1].copy()
    written = images.encode(image, changed)
    assert chunks(written)[0][1] == png_head(29, 37, depth, colour)[16:29]
    again = images.decode(written, max_pixels=LIMIT)
    assert np.array_equal(again.pixels, changed)
    if image.alpha is not None:
        assert again.alpha is not None
        assert np.array_equal(again.alpha, image.alpha)
    if depth == 8:
        assert np.array_equal(
            np.asarray(by_pillow(written)).reshape(37, 29, -1)[..., : 3 if samples > 2 else 1].squeeze(), changed
        )


@pytest.mark.parametrize("shape", [(1, 1), (1, 1, 3), (1, 9), (7, 1), (3, 5)])
@pytest.mark.parametrize("interlace", [False, True])
def test_tiny_images(shape: tuple[int, ...], interlace: bool) -> None:
    source = picture(*shape)
    image = images.decode(png(source, colour=RGB if len(shape) == 3 else GREY, interlace=interlace), max_pixels=LIMIT)
    assert np.array_equal(image.pixels, source)
    assert np.array_equal(images.decode(images.encode(image, source), max_pixels=LIMIT).pixels, source)


def test_ancillary_chunks_are_copied_on_their_side_of_the_pixels() -> None:
    before = [
        (b"gAMA", struct.pack(">I", 45455)),
        (b"cHRM", struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)),
        (b"iCCP", b"sRGB\0\0" + zlib.compress(ICC)),
        (b"bKGD", struct.pack(">3H", 1, 2, 3)),
        (b"sBIT", bytes([8, 8, 8])),
        (b"pHYs", struct.pack(">IIB", 11811, 11811, 1)),
        (b"tIME", struct.pack(">HBBBBB", 2024, 5, 6, 7, 8, 9)),
        (b"tEXt", b"Author\0somebody"),
        (b"zTXt", b"Comment\0\0" + zlib.compress(b"a long story " * 20)),
        (b"iTXt", b"Title\0\0\0de\0Titel\0" + "Zelle µ".encode()),
        (b"eXIf", b"MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"),
    ]
    after = [(b"tEXt", b"Software\0something")]
    data = png(
        picture(20, 30, 3),
        colour=RGB,
        before=b"".join(chunk(*c) for c in before),
        after=b"".join(chunk(*c) for c in after),
    )
    image = images.decode(data, max_pixels=LIMIT)
    assert image.notes == ()
    written = images.encode(image, image.pixels)
    found = [c for c in chunks(written) if c[0] not in (b"IHDR", b"IDAT", b"IEND")]
    assert found == before + after
    kinds = [kind for kind, _ in chunks(written)]
    assert kinds[0] == b"IHDR"
    assert kinds[-2:] == [b"tEXt", b"IEND"]
    ours, theirs = by_pillow(written), by_pillow(data)
    assert ours.info["icc_profile"] == ICC
    assert ours.info == theirs.info
    assert ours.getexif()[0x112] == 6


def test_a_private_chunk_that_is_not_safe_to_copy_is_named() -> None:
    data = png(picture(4, 4), before=chunk(b"prVT", b"1") + chunk(b"prVt", b"2"))
    image = images.decode(data, max_pixels=LIMIT)
    assert image.notes == ("private chunk prVT",)
    assert (b"prVt", b"2") in chunks(images.encode(image, image.pixels))


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
@pytest.mark.parametrize("interlace", [False, True])
@pytest.mark.parametrize("see_through", [False, True])
def test_a_palette_becomes_colours(depth: int, interlace: bool, see_through: bool) -> None:
    count = 2**depth
    generator = np.random.default_rng(depth)
    table = generator.integers(0, 256, (count, 3), dtype=np.uint8)
    index = generator.integers(0, count, (13, 11), dtype=np.uint8)
    opacity = bytes(range(0, 2 * (count // 2), 2)) if see_through else b""
    before = chunk(b"PLTE", table.tobytes()) + (chunk(b"tRNS", opacity) if see_through else b"") + chunk(b"bKGD", b"\0")
    data = png(index, depth=depth, colour=PALETTE, interlace=interlace, before=before)
    image = images.decode(data, max_pixels=LIMIT)
    assert np.array_equal(image.pixels, table[index])
    assert image.notes[0] == ("palette (becomes RGBA)" if see_through else "palette (becomes RGB)")
    assert "background colour" in image.notes
    expected = np.asarray(by_pillow(data).convert("RGBA" if see_through else "RGB")).copy()
    assert np.array_equal(expected[..., :3], image.pixels)
    expected[0, 0, 0] ^= 1
    written = images.encode(image, off_by_one(image.pixels))
    ours = by_pillow(written)
    assert ours.mode == ("RGBA" if see_through else "RGB")
    assert np.array_equal(np.asarray(ours), expected)
    assert not {b"PLTE", b"tRNS", b"bKGD"} & {kind for kind, _ in chunks(written)}


@pytest.mark.parametrize("depth", [2, 4])
def test_short_grey_becomes_8_bit(depth: int) -> None:
    top = 2**depth - 1
    levels = np.random.default_rng(0).integers(0, top + 1, (9, 10), dtype=np.uint8)
    image = images.decode(png(levels, depth=depth, before=chunk(b"tRNS", struct.pack(">H", 1))), max_pixels=LIMIT)
    assert np.array_equal(image.pixels, levels * (255 // top))
    assert image.alpha is not None
    assert np.array_equal(image.alpha == 0, levels == 1)
    assert image.notes[0] == f"{depth}-bit depth (becomes 8-bit)"


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("samples", [1, 3])
def test_a_colour_key_becomes_alpha(dtype: str, samples: int) -> None:
    source = picture(16, 16, samples, dtype=dtype)
    key = source[5, 6]
    before = chunk(b"tRNS", key.astype(">u2").tobytes())
    data = png(source, depth=8 * source.itemsize, colour=RGB if samples == 3 else GREY, before=before)
    image = images.decode(data, max_pixels=LIMIT)
    assert image.alpha is not None
    assert np.array_equal(image.alpha == 0, (source == key).all(axis=2))
    assert set(np.unique(image.alpha)) <= {0, np.iinfo(dtype).max}
    assert image.notes == ("transparent colour (becomes an alpha channel)",)


GOOD = png(picture(40, 40, 3), colour=RGB, before=chunk(b"tEXt", b"a\0b"))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (png(picture(8, 8) > 100, depth=1), "1-bit PNG, which is a mask"),
        (png(picture(8, 8), before=chunk(b"acTL", struct.pack(">II", 2, 0))), "animated PNG"),
        (png(picture(8, 8), before=chunk(b"CgBI", b"1234")), "CgBI"),
        (png(picture(8, 8), colour=PALETTE), "palette"),
        (png(picture(8, 8), colour=PALETTE, before=chunk(b"PLTE", bytes(9))), "palette of 3"),
        (png(picture(8, 8), before=chunk(b"tRNS", b"1")), "transparency"),
        (png_head(8, 8, 3) + chunk(b"IDAT", b"1") + chunk(b"IEND"), "3 bits does not exist"),
        (png_head(0, 8) + chunk(b"IDAT", b"1") + chunk(b"IEND"), "0 × 8"),
        (png_head(8, 8) + chunk(b"IEND"), "no pixel data"),
        (png_head(60_000, 60_000) + chunk(b"IDAT", b"1" * 99) + chunk(b"IEND"), "3,600,000,000"),
        (png_head(3000, 3000) + chunk(b"IDAT", b"1" * 99) + chunk(b"IEND"), "cannot hold"),
        (png_head(20, 20) + chunk(b"IDAT", zlib.compress(bytes(21 * 19))) + chunk(b"IEND"), "truncated"),
        (png_head(20, 20) + chunk(b"IDAT", zlib.compress(bytes(21 * 21))) + chunk(b"IEND"), "do not have"),
        (png_head(20, 20) + chunk(b"IDAT", zlib.compress(bytes([9]) * 21 * 20)) + chunk(b"IEND"), "damaged"),
        (png_head(20, 20) + chunk(b"IDAT", zlib.compress(bytes(21 * 20))[:-4]) + chunk(b"IEND"), "do not have"),
        (GOOD[:-12], "without its end mark"),
        (GOOD[: len(GOOD) // 2], "truncated"),
        (GOOD[:200] + bytes([GOOD[200] ^ 4]) + GOOD[201:], "checksum of its chunk IDAT"),
        (GOOD[:43] + bytes([GOOD[43] ^ 4]) + GOOD[44:], "checksum of its chunk tEXt"),
    ],
)
def test_what_is_refused(data: bytes, words: str) -> None:
    with pytest.raises(ImageError) as caught:
        images.decode(data, max_pixels=LIMIT)
    assert words in str(caught.value)


def test_bytes_after_the_end_do_no_harm() -> None:
    assert np.array_equal(images.decode(GOOD + b"tail", max_pixels=LIMIT).pixels, picture(40, 40, 3))


def test_bytes_after_the_end_are_named() -> None:
    image = images.decode(GOOD + b"tail", max_pixels=LIMIT)
    assert image.notes == ("data after the end of the image",)
    assert image.if_changed == ()
    assert images.encode(image, image.pixels) == GOOD
    assert images.decode(GOOD + bytes(100), max_pixels=LIMIT).notes == ()


def test_a_suggested_palette_comes_back_and_its_histogram_is_named() -> None:
    before = chunk(b"gAMA", struct.pack(">I", 45455)) + chunk(b"PLTE", bytes(range(48))) + chunk(b"bKGD", bytes(6))
    histogram = chunk(b"hIST", struct.pack(">16H", *range(16)))
    image = images.decode(png(picture(20, 30, 3), colour=RGB, before=before + histogram), max_pixels=LIMIT)
    assert image.notes == image.if_changed == ("palette histogram",)
    written = images.encode(image, off_by_one(image.pixels))
    assert before in written
    assert b"hIST" not in written
    assert np.array_equal(np.asarray(by_pillow(written)), off_by_one(image.pixels))


@pytest.mark.parametrize(
    "data",
    [
        png(
            picture(20, 30) // 16,
            depth=4,
            colour=PALETTE,
            before=chunk(b"PLTE", bytes(range(48))) + chunk(b"bKGD", b"\0"),
        ),
        png(picture(20, 30) // 64, depth=2, before=chunk(b"tRNS", b"\0\1")),
        png(picture(20, 30, 3), colour=RGB, interlace=True, before=chunk(b"prVT", b"1")),
    ],
)
def test_pixels_that_stay_come_back_as_they_were_stored(data: bytes) -> None:
    """Nothing is lost then, and all that is noted is lost only otherwise."""
    image = images.decode(data, max_pixels=LIMIT)
    assert image.notes == image.if_changed != ()
    assert images.encode(image, image.pixels) == data
    told = images.encode(image, image.pixels, software="denoise-flows 1")
    assert chunks(told)[-2:] == [(b"tEXt", b"Software\0denoise-flows 1"), (b"IEND", b"")]
    assert [c for c in chunks(told) if c[0] != b"tEXt"] == chunks(data)
    by_pillow(told)


def test_the_software_is_a_text() -> None:
    data = png(picture(20, 30), before=chunk(b"tEXt", b"Software\0a microscope"))
    image = images.decode(data, max_pixels=LIMIT)
    written = images.encode(image, image.pixels, software="denoise-flows 1")
    told = [body for kind, body in chunks(written) if kind == b"tEXt"]
    assert told == [b"Software\0a microscope", b"Software\0denoise-flows 1"]
    assert np.array_equal(np.asarray(by_pillow(written)), image.pixels)
