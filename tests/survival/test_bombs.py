"""Small files that ask for far more memory, time or disk than they are worth."""

from __future__ import annotations

import lzma
import struct
import subprocess
import sys
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import imagecodecs
import pytest

from denoise_core import images
from tests.denoise_core.images.image_files import chunk, chunks, picture, png, png_head, tiff

MAX_PIXELS = 500_000_000  # what `denoise run` takes by default
ZEROS = bytes(50_000_000)
GREEDY = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 1 << 28}]


def in_png(before: bytes) -> bytes:
    return png(picture(16, 16), before=before)


def inflating_png() -> bytes:
    """Pixel data that go on and on behind the image."""
    return png_head(64, 64) + chunk(b"IDAT", zlib.compress(ZEROS)) + chunk(b"IEND")


def inflating_tiff(code: str, coded: bytes) -> bytes:
    """One strip that inflates to far more than the image: the true strip's bytes are replaced, and their count."""
    data = bytearray(tiff(picture(64, 64), compression=code, rowsperstrip=64))
    count = struct.unpack_from("<I", data, 4)[0]
    for at in range(count + 2, len(data) - 12, 12):
        tag = struct.unpack_from("<H", data, at)[0]
        if tag == 273:
            struct.pack_into("<I", data, at + 8, len(data))
        if tag == 279:
            struct.pack_into("<HHII", data, at, 279, 4, 1, len(coded))
            break
    return bytes(data + coded)


def laughing_ome() -> bytes:
    """XML whose entities would grow to gigabytes."""
    entities = "".join(f'<!ENTITY e{n + 1} "{f"&e{n};" * 10}">' for n in range(9))
    xml = f'<?xml version="1.0"?><!DOCTYPE OME [<!ENTITY e0 "{"ha" * 50}">{entities}]><OME>&e9;</OME>'
    return tiff(picture(16, 16), description=xml, metadata=None)


def ladder(steps: int = 60) -> bytes:
    """Directories of two sub-directories each that are both the next one: 2^60 ways down."""
    shape = b'{"shape": [8, 8]}\0'
    room = 2 + 11 * 12 + 4 + 8
    pixels = 8 + steps * room
    out = bytearray(struct.pack("<2sHI", b"II", 42, 8))
    for n in range(steps):
        next_at = 8 + (n + 1) * room
        entries = [
            (256, 4, 1, 8), (257, 4, 1, 8), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1),
            (270, 2, len(shape), pixels + 64), (273, 4, 1, pixels), (277, 3, 1, 1), (278, 4, 1, 8), (279, 4, 1, 64),
            (330, 4, 2, next_at - 8) if n < steps - 1 else (339, 3, 1, 1),
        ]  # fmt: skip
        out += struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries) + bytes(4)
        out += struct.pack("<II", next_at, next_at)
    return bytes(out + bytes(64) + shape)


def bare_tiff(pixels: tuple[int, int, int], offsets: list[int], sizes: list[int], body: bytes, **tags: int) -> bytes:
    """A TIFF of one directory, by hand: height, width and samples of 64-bit floats in strips of so many rows each."""
    height, width, samples = pixels
    strips = len(offsets)
    values = [(258, [64] * samples), (273, offsets), (279, sizes), (339, [3] * samples)]
    single = {
        256: width, 257: height, 259: tags["compression"], 262: 1, 277: samples, 278: -(-height // strips), 284: 1,
    }  # fmt: skip
    at = 8 + len(body)
    out, entries = bytearray(struct.pack("<2sHI", b"II", 42, 0) + body), []
    for code, each in values:
        entries.append((code, 4, len(each), at if len(each) > 1 else each[0]))
        if len(each) > 1:
            out += struct.pack(f"<{len(each)}I", *each)
            at += 4 * len(each)
    entries += [(code, 4, 1, value) for code, value in single.items()]
    struct.pack_into("<I", out, 4, at)
    out += struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in sorted(entries))
    return bytes(out + bytes(4))


def honest_zstd(height: int = 10_000, width: int = 10_000, samples: int = 4) -> bytes:
    """One strip of zeros that is as large as the header says: 3.2 GB in 98 KB, by blocks that repeat a byte."""
    left = height * width * samples * 8
    coded = [b"\x28\xb5\x2f\xfd\xe0" + struct.pack("<Q", left)]
    while left:
        size = min(left, 1 << 17)
        left -= size
        coded.append(struct.pack("<I", (not left) | 1 << 1 | size << 3)[:3] + b"\0")
    body = b"".join(coded)
    return bare_tiff((height, width, samples), [8], [len(body)], body, compression=50000)


def one_strip_for_all(padding: int = 0) -> bytes:
    """8000 strips of a row each that are all the same one: 2 GB of an uncompressed image in 350 KB."""
    row = bytes(8000 * 4 * 8)
    strips = [8] * 8000
    return bare_tiff((8000, 8000, 4), strips, [len(row)] * 8000, row + bytes(padding), compression=1)


def honest_palette() -> bytes:
    """1 bit a pixel, and three bytes of colour for each: 972 MB in 40 KB."""
    rows = zlib.compressobj(9)
    coded = b"".join(rows.compress(bytes(1 + 18_000 // 8)) for _ in range(18_000)) + rows.flush()
    return png_head(18_000, 18_000, 1, 3) + chunk(b"PLTE", bytes(6)) + chunk(b"IDAT", coded) + chunk(b"IEND")


def scans_without_end(number: int, side: int) -> bytes:
    """A progressive JPEG that goes over all its blocks again and again, each time in a few bytes."""

    def segment(marker: int, body: bytes) -> bytes:
        return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body

    blocks = (side // 8) ** 2
    runs = "0" * (15 * -(-blocks // 16384))  # each the code of 2^14 blocks or more without a coefficient, and 14 bits
    runs += "1" * (-len(runs) % 8)
    again = int(runs, 2).to_bytes(len(runs) // 8, "big").replace(b"\xff", b"\xff\0")
    table = bytes([1]) + bytes(15)
    out = [
        b"\xff\xd8", segment(0xDB, b"\0" + bytes([1]) * 64),
        segment(0xC2, struct.pack(">BHHB", 8, side, side, 1) + bytes([1, 0x11, 0])),
        segment(0xC4, b"\0" + table + b"\0"), segment(0xC4, b"\x10" + table + b"\xe0"),
        segment(0xDA, bytes([1, 1, 0, 0, 0, 0])), bytes(blocks // 8),
    ]  # fmt: skip
    for n in range(number):
        out += [segment(0xDA, bytes([1, 1, 0, 1 + n % 63, 1 + n % 63, 0])), again]
    return b"".join([*out, b"\xff\xd9"])


def deep_ome() -> bytes:
    """Elements in each other, 200,000 deep."""
    xml = "<OME>" + "<a>" * 200_000 + "</a>" * 200_000 + "</OME>"
    return tiff(picture(16, 16), description=xml, metadata=None)


BOMBS: dict[str, tuple[Callable[[], bytes], str | None]] = {
    "a PNG of 60,000 × 60,000": (lambda: png_head(60_000, 60_000) + chunk(b"IDAT", b"x") + chunk(b"IEND"), "3,600"),
    "a PNG of 20,000 × 20,000 in few bytes": (
        lambda: png_head(20_000, 20_000) + chunk(b"IDAT", zlib.compress(ZEROS[:9999])) + chunk(b"IEND"),
        "cannot hold",
    ),
    "a PNG that inflates without end": (inflating_png, "do not have"),
    "a text that inflates": (lambda: in_png(chunk(b"zTXt", b"a\0\0" + zlib.compress(ZEROS))), None),
    "an international text that inflates": (
        lambda: in_png(chunk(b"iTXt", b"a\0\1\0\0\0" + zlib.compress(ZEROS))),
        None,
    ),
    "a colour profile that inflates": (lambda: in_png(chunk(b"iCCP", b"a\0\0" + zlib.compress(ZEROS))), None),
    "a deflate strip": (lambda: inflating_tiff("zlib", zlib.compress(ZEROS)), "strip 0"),
    "a zstd strip": (lambda: inflating_tiff("zstd", imagecodecs.zstd_encode(ZEROS)), "strip 0"),
    "an LZMA strip": (lambda: inflating_tiff("lzma", imagecodecs.lzma_encode(ZEROS)), None),  # nor of this
    "an LZMA strip that asks for a dictionary of gigabytes": (
        lambda: inflating_tiff("lzma", lzma.compress(bytes(9999), filters=GREEDY, format=lzma.FORMAT_XZ)),
        "strip 0",
    ),
    "an LZW strip": (lambda: inflating_tiff("lzw", imagecodecs.lzw_encode(ZEROS)), None),  # the rest is not unpacked
    "a PackBits strip": (lambda: inflating_tiff("packbits", b"\x81\0" * 100_000), "strip 0"),
    "a laughing OME": (laughing_ome, None),
    "a ladder of sub-directories": (ladder, "circle"),
    "a JPEG of 101 scans": (lambda: scans_without_end(100, 64), "at most 100 scans"),
    "a JPEG of 99 scans of many pixels": (
        lambda: scans_without_end(98, 11_008),
        "10,000,000,000 pixels in all of them",
    ),
    "a deep OME": (deep_ome, "nested more than 1000 deep"),
    "a zstd strip of an honest header": (honest_zstd, "none compresses 1,032 times"),
    "an uncompressed strip in 8000 places": (one_strip_for_all, "none compresses 1,032 times"),
    "the same in a file that is large": (lambda: one_strip_for_all(2_000_000), "none compresses 1,032 times"),
    "a palette PNG of an honest header": (honest_palette, "none compresses 1,032 times"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_costs_no_more_than_a_small_image(name: str, tmp_path: Path) -> None:
    """It is refused in a sentence, or what would grow is never unpacked; Python's memory stays small."""
    make, words = BOMBS[name]
    data = make()
    path = tmp_path / "bomb"
    path.write_bytes(data)
    images.decode(tiff(picture(16, 16), compression="zlib"), max_pixels=MAX_PIXELS)  # imports are not the bomb's
    images.decode(png(picture(16, 16)), max_pixels=MAX_PIXELS)
    tracemalloc.start()
    try:
        try:
            images.read_header(path, max_pixels=MAX_PIXELS)
            image = images.decode(data, max_pixels=MAX_PIXELS)
            assert words is None
            assert len(images.encode(image, image.pixels)) < len(data) + 1000
            if data[:4] == b"\x89PNG":
                assert [c for c in chunks(images.encode(image, image.pixels)) if c[0][0] & 0x20] == [
                    c for c in chunks(data) if c[0][0] & 0x20
                ], "carried as it is"
        except images.ImageError as error:
            assert words is not None, error
            assert words in str(error)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 20e6


CHILD = """
import resource, sys
from pathlib import Path
from denoise_core import images
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
small, bomb = sys.argv[1:]
images.decode(Path(small).read_bytes(), max_pixels=10**6)
before = peak()
try:
    images.decode(Path(bomb).read_bytes(), max_pixels=500_000_000)
except images.ImageError as error:
    print((peak() - before) // 1024, error)
"""


@pytest.mark.parametrize("make", [honest_zstd, honest_palette])
def test_the_whole_process_stays_small(make: Callable[[], bytes], tmp_path: Path) -> None:
    """What codecs take is not Python's memory: the peak of a process of its own, in MB."""
    small, bomb = tmp_path / "small", tmp_path / "bomb"
    small.write_bytes(tiff(picture(16, 16), compression="zstd"))
    bomb.write_bytes(make())
    command = [sys.executable, "-c", CHILD, str(small), str(bomb)]
    megabytes, _, words = subprocess.run(command, capture_output=True, text=True, check=True).stdout.partition(" ")
    assert "none compresses 1,032 times" in words
    assert int(megabytes) < 60


def test_as_many_scans_as_are_real_are_read() -> None:
    assert images.decode(scans_without_end(99, 64), max_pixels=MAX_PIXELS).pixels.shape == (64, 64)
