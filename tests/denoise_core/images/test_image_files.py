"""What holds for all containers: signatures, refusals, threads, damage."""

from __future__ import annotations

import io
import os
import random
import struct
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from image_files import DATA, LIMIT, chunk, chunks, jpeg, picture, png, tiff
from PIL import Image as Pillow

from denoise_core import images
from denoise_core.errors import DenoiseError
from denoise_core.images import Image, ImageError


def other(kind: str) -> bytes:
    file = io.BytesIO()
    Pillow.fromarray(picture(20, 20, 3)).save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (png(picture(8, 8)), "png"),
        (jpeg(picture(8, 8)), "jpeg"),
        (tiff(picture(8, 8)), "tiff"),
        (tiff(picture(8, 8), byteorder=">"), "tiff"),
        (tiff(picture(8, 8), bigtiff=True), "tiff"),
        (tiff(picture(8, 8), bigtiff=True, byteorder=">"), "tiff"),
        (other("GIF"), "gif"),
        (other("BMP"), "bmp"),
        (other("WEBP"), "webp"),
        (other("JPEG2000"), "jp2"),
        (other("PPM"), "pnm"),
        (other("PDF"), "pdf"),
        (b"ZISRAWFILE" + bytes(60), "czi"),
        (b"\xda\xce\xbe\x0a" + bytes(60), "nd2"),
        (b"\x70\0\0\0" + bytes(4) + b"\x2a" + bytes(60), "lif"),
        (b"\x70\0\0\0" + bytes(60), None),
        (b"\x89HDF\r\n\x1a\n" + bytes(60), "hdf5"),
        (b"PK\x03\x04" + bytes(60), "zip"),
        (b"", None),
        (b"hello", None),
        (b"BM is how this text begins", None),
        (bytes(64), None),
    ],
)
def test_signatures(data: bytes, name: str | None) -> None:
    assert images.sniff(data[:64]) == name
    if name not in ("png", "jpeg", "tiff"):
        with pytest.raises(ImageError) as caught:
            images.decode(data, max_pixels=LIMIT)
        assert "PNG, JPEG and TIFF are supported" in str(caught.value)
        assert name is None or name.upper() in str(caught.value)


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        (
            "a.czi",
            b"ZISRAWFILE" + bytes(600),
            "a CZI file, for which the extra denoise-flows[czi] is to come: until then export",
        ),
        ("a.nd2", b"\xda\xce\xbe\x0a" + bytes(600), "an ND2 file, for which the extra denoise-flows[nd2] is to come"),
        (
            "a.lif",
            b"\x70\0\0\0\x10\0\0\0\x2a" + bytes(600),
            "a LIF file, for which the extra denoise-flows[lif] is to come",
        ),
        ("a.tif", b"ZISRAWFILE" + bytes(600), "not a TIFF but a CZI file, for which the extra"),
        (
            "a.png",
            b"Dear reader, no picture",
            "not a PNG: it starts with 'Dear reader, no picture', which is plain text",
        ),
        ("a.TIF", "Zürich".encode("utf-16"), "not a TIFF: it starts with 'Zürich', which is plain text"),
        ("a.png", "µ".encode() * 400, "plain text"),
        ("a.jpg", other("GIF"), "not a JPEG but a GIF file"),
        ("a.dat", b"\x01\x02\x03\x80\x90", "01 02 03 80 90"),
        ("a.png", bytes(100), "zeros"),
        ("a.png", b"", "the file is empty"),
    ],
)
def test_files_that_are_not_what_their_name_says(tmp_path: Path, name: str, data: bytes, words: str) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(ImageError) as caught:
        images.read_header(path, max_pixels=LIMIT)
    assert words in str(caught.value)
    assert str(tmp_path) not in str(caught.value)


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        images.read_header(tmp_path / "gone.png", max_pixels=LIMIT)
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path, tmp_path / "pipe.png"):
        with pytest.raises(ImageError, match="not a regular file"):
            images.read_header(path, max_pixels=LIMIT)
    assert issubclass(ImageError, DenoiseError)


STACK = np.stack([picture(24, 31, seed=seed) for seed in range(3)])
FILES = {
    "png": png(picture(24, 31, 3), colour=2, before=chunk(b"tEXt", b"a\0b")),
    "png16": png(picture(24, 31, 4, dtype="uint16"), depth=16, colour=6, interlace=True),
    "palette": png(
        picture(24, 31) // 16, depth=4, colour=3, before=chunk(b"PLTE", bytes(48)) + chunk(b"tRNS", b"\0\1")
    ),
    "jpeg": jpeg(picture(40, 31, 3), comment=b"hello"),
    "progressive": jpeg(picture(40, 31), progressive=True),
    "tiff": tiff(picture(24, 31, dtype="uint16"), rowsperstrip=5, byteorder=">", description="text " * 9),
    "lzw": tiff(picture(24, 31, 3), photometric="rgb", compression="lzw", predictor=2, tile=(16, 16), bigtiff=True),
    "deflate": tiff(picture(24, 31, 4), photometric="rgb", compression="zlib", planarconfig="contig"),
    "packbits": tiff(picture(24, 31), compression="packbits"),
    "lzma": tiff(picture(24, 31), compression="lzma", predictor=2),
    "zstd": tiff(picture(24, 31), compression="zstd"),
    "jpeg in tiff": tiff(picture(24, 31, 3), photometric="ycbcr", compression="jpeg", subsampling=(2, 2)),
    "imagej": tiff(picture(24, 31, dtype="uint16"), imagej=True, resolution=(2, 2), metadata={"unit": "um"}),
    "ome": tiff(picture(24, 31), ome=True, metadata={"axes": "YX", "PhysicalSizeX": 0.5}),
    "stack": tiff(STACK, photometric="minisblack"),
    "lzw stack": tiff(STACK, photometric="minisblack", compression="lzw", tile=(16, 16), bigtiff=True, metadata=None),
    "imagej stack": tiff(STACK, imagej=True, metadata={"axes": "TYX"}),
    "imagej in a row": tiff(STACK, imagej=True, truncate=True, metadata={"axes": "ZYX"}),
    "ome stack": tiff(STACK, ome=True, compression="zlib", rowsperstrip=9, metadata={"axes": "TYX"}),
}


@pytest.mark.parametrize("kind", FILES)
def test_other_pixels_are_a_programming_error(kind: str) -> None:
    image = images.decode(FILES[kind], max_pixels=LIMIT)
    assert image.pixels.flags.c_contiguous
    for wrong in (image.pixels[1:], image.pixels.astype(np.float32)):
        with pytest.raises(ValueError, match="the image's are"):
            images.encode(image, wrong)
    most = image.header.pixels - 1
    with pytest.raises(ImageError, match=f"at most {most:,}"):
        images.decode(FILES[kind], max_pixels=most)


@pytest.mark.parametrize("kind", FILES)
def test_a_view_is_written_like_its_copy(kind: str) -> None:
    image = images.decode(FILES[kind], max_pixels=LIMIT)
    view = image.pixels[::-1, ::-1]
    assert images.encode(image, view) == images.encode(image, view.copy())


def mutant(data: bytes, generator: random.Random) -> bytes:
    """The file with a small accident: bits, bytes, a field near the front, a cut, a hole, a repeat, a true checksum."""
    out = bytearray(data)
    at = generator.randrange(len(out))
    match generator.randrange(7):
        case 0:
            for _ in range(generator.randint(1, 4)):
                out[generator.randrange(len(out))] ^= 1 << generator.randrange(8)
        case 1:
            del out[at:]
        case 2:
            field = generator.randrange(min(300, len(out) - 8))
            value = generator.choice([0, 1, 0x7FFFFFFF, 0xFFFFFFFF, 60_000, generator.getrandbits(32)])
            struct.pack_into(generator.choice("<>") + "I", out, field, value)
        case 3:
            del out[at : at + generator.randint(1, 40)]
        case 4:
            out[at:at] = out[at : at + generator.randint(1, 40)]
        case 5:
            field = generator.randrange(min(300, len(out) - 8))
            struct.pack_into(generator.choice("<>") + "H", out, field, generator.choice([0, 1, 2, 7, 255, 65535]))
        case _:
            if data[:4] == b"\x89PNG":  # damage that its checksum does not show
                parts = [(kind, bytearray(body)) for kind, body in chunks(data)]
                body = generator.choice([body for _, body in parts if body])
                body[generator.randrange(len(body))] ^= 1 << generator.randrange(8)
                return data[:8] + b"".join(chunk(kind, bytes(body)) for kind, body in parts)
            out[at] = generator.randrange(256)
    return bytes(out)


def survives(data: bytes, path: Path) -> bool:
    """Whether it decodes; anything but an image or an ImageError fails the test."""
    path.write_bytes(data)
    try:
        header = images.read_header(path, max_pixels=1 << 20)
    except ImageError as error:
        assert "\n" not in str(error)
        header = None
    try:
        image = images.decode(data, max_pixels=1 << 20)
    except ImageError as error:
        assert "\n" not in str(error)
        assert len(str(error)) < 400
        return False
    assert isinstance(image, Image)
    assert header == image.header
    written = images.encode(image, image.pixels)
    again = images.decode(written, max_pixels=1 << 20)
    assert again.pixels.shape == image.pixels.shape
    if image.container == "png":
        assert np.array_equal(again.pixels, image.pixels)
    return True


@pytest.mark.parametrize("kind", FILES)
def test_accidents(kind: str, tmp_path: Path) -> None:
    generator = random.Random(zlib.crc32(kind.encode()))
    outcomes = [survives(mutant(FILES[kind], generator), tmp_path / "a.png") for _ in range(40)]
    assert not all(outcomes)


@pytest.mark.slow
@pytest.mark.parametrize("kind", FILES)
def test_many_accidents(kind: str, tmp_path: Path) -> None:
    generator = random.Random(zlib.crc32(kind.encode()) + 1)
    for _ in range(1000):
        survives(mutant(FILES[kind], generator), tmp_path / "a.png")


@pytest.mark.parametrize("kind", FILES)
def test_every_cut_is_refused_or_harmless(kind: str) -> None:
    whole = images.decode(FILES[kind], max_pixels=LIMIT)
    for length in range(0, len(FILES[kind]), 17):
        try:
            image = images.decode(FILES[kind][:length], max_pixels=LIMIT)
        except ImageError:
            continue
        assert np.array_equal(image.pixels, whole.pixels), length


def test_threads_do_not_disturb_each_other() -> None:
    kinds = list(FILES) * 8
    alone = {
        kind: images.encode(image := images.decode(FILES[kind], max_pixels=LIMIT), image.pixels) for kind in set(kinds)
    }

    def work(kind: str) -> bool:
        image = images.decode(FILES[kind], max_pixels=LIMIT)
        return images.encode(image, image.pixels) == alone[kind]

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(work, kinds))


def test_importing_is_light_and_reading_is_silent(tmp_path: Path) -> None:
    generator = random.Random(5)
    for kind, data in FILES.items():
        (tmp_path / kind).write_bytes(data)
        for number in range(12):  # accidents, because libraries grumble about what they find odd
            (tmp_path / f"{kind} {number}").write_bytes(mutant(data, generator))
    code = """
import sys, pathlib
from denoise_core import images
assert not {"tifffile", "imagecodecs", "PIL", "torch"} & set(sys.modules)
for path in pathlib.Path(sys.argv[1]).iterdir():
    try:
        images.read_header(path, max_pixels=10**6)
        image = images.decode(path.read_bytes(), max_pixels=10**6)
        images.encode(image, image.pixels)
    except images.ImageError:
        pass
"""
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


KODAK = sorted((DATA / "kodak24").glob("*.png"))


@pytest.mark.skipif(not KODAK, reason="the shared data are not there")
def test_photographs() -> None:
    for path in KODAK[:3]:
        data = path.read_bytes()
        image = images.decode(data, max_pixels=LIMIT)
        assert np.array_equal(image.pixels, np.asarray(Pillow.open(path)))
        assert images.read_header(path, max_pixels=LIMIT) == image.header
        again = images.decode(images.encode(image, image.pixels), max_pixels=LIMIT)
        assert np.array_equal(again.pixels, image.pixels)
