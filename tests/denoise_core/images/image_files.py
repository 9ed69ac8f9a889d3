"""Image files for the tests, made in memory by writers that the package does not use where there is one."""

from __future__ import annotations

import io
import itertools
import struct
import zlib
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import ImageCms

DATA = Path(__file__).resolve().parents[4] / "shared/data"
LIMIT = 10_000_000
ICC = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def picture(*shape: int, dtype: str = "uint8", seed: int = 0) -> NDArray[Any]:
    """Smooth waves with noise on them, over most of the dtype's range."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[: shape[0], : shape[1]].astype(float)
    waves = 0.5 + 0.4 * np.sin(x / 7 + seed) * np.cos(y / 11)
    if len(shape) == 3:
        waves = waves[..., None] * np.linspace(1, 0.6, shape[2])
    top = np.iinfo(dtype).max
    return np.clip(waves * top + generator.normal(0, 0.02 * top, shape), 0, top).astype(dtype)


def anything(dtype: Any, *shape: int, seed: int = 0) -> NDArray[Any]:
    """Random values from all over the dtype's range; floats around 0."""
    generator = np.random.default_rng(seed)
    kind = np.dtype(dtype)
    if kind.kind == "f":
        return generator.normal(0, 1000, shape).astype(kind)
    limits = np.iinfo(kind)
    return generator.integers(limits.min, limits.max, shape, kind, endpoint=True)


def inks(*shape: int, dtype: str = "uint8") -> NDArray[Any]:
    """CMYK (H, W, 4): a picture of which a part is printed in black."""
    colours = picture(*shape, 4, dtype=dtype)
    colours[..., 3] //= 3
    return colours


def cmyk_jpeg(pixels: NDArray[Any], *, ycck: bool = False, **options: Any) -> bytes:
    """A CMYK JPEG by Pillow, or stored as YCCK, which Pillow does not write."""
    if ycck:
        spaces = {"colorspace": "CMYK", "outcolorspace": "YCCK"}
        return bytes(imagecodecs.jpeg8_encode(255 - pixels, level=95, subsampling="444", **spaces))
    file = io.BytesIO()
    Pillow.frombytes("CMYK", pixels.shape[1::-1], pixels.tobytes()).save(file, "JPEG", quality=95, **options)
    return file.getvalue()


def cmyk_profile() -> bytes:
    """An ICC profile (version 2) of a press: a table from the 16 mixtures of full inks to Lab, on bluish paper."""

    def fixed(*values: float) -> bytes:
        return struct.pack(f">{len(values)}i", *(round(value * 65536) for value in values))

    mixtures = []
    for c, m, y, k in itertools.product((0, 1), repeat=4):
        lightness = 96 * (1 - 0.45 * c) * (1 - 0.5 * m) * (1 - 0.1 * y) * (1 - 0.9 * k)
        a, b = (2 - 35 * c + 70 * m - 5 * y) * (1 - k), (-8 - 45 * c - 5 * m + 90 * y) * (1 - k)
        mixtures += [lightness * 2.55, a + 128, b + 128]
    table, ramp = bytes(np.clip(np.rint(mixtures), 0, 255).astype(np.uint8)), bytes(range(256))
    white = fixed(0.9642, 1, 0.8249)
    lut = b"mft1\0\0\0\0" + bytes((4, 3, 2, 0)) + fixed(1, 0, 0, 0, 1, 0, 0, 0, 1) + ramp * 4 + table + ramp * 3
    tags = {
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", 5) + b"inks\0" + bytes(78),
        b"cprt": b"text\0\0\0\0none\0",
        b"wtpt": b"XYZ \0\0\0\0" + white,
        b"A2B0": lut,
    }
    index, body, at = struct.pack(">I", len(tags)), b"", 132 + 12 * len(tags)
    for name, value in tags.items():
        index += name + struct.pack(">II", at + len(body), len(value))
        body += value + bytes(-len(value) % 4)
    head = struct.pack(">I4xI", at + len(body), 0x02400000) + b"prtrCMYKLab " + bytes(12) + b"acsp" + bytes(28)
    return (head + white).ljust(128, b"\0") + index + body


def off_by_one(pixels: NDArray[Any]) -> NDArray[Any]:
    """Integers of which one is another: what is not the source's is coded anew."""
    other = pixels.copy()
    other.reshape(-1)[0] ^= 1
    return other


def chunk(kind: bytes, body: bytes = b"") -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_head(width: int, height: int, depth: int = 8, colour: int = 0, interlace: int = 0) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace))


def rows(samples: NDArray[Any], depth: int) -> bytes:
    """Unfiltered PNG rows of (H, W, S) samples at 1 to 16 bits."""
    out = []
    for row in samples:
        flat = row.reshape(-1)
        if depth == 16:
            body = flat.astype(">u2").tobytes()
        elif depth == 8:
            body = flat.astype(np.uint8).tobytes()
        else:
            bits = np.unpackbits(flat.astype(np.uint8)[:, None], axis=1)[:, 8 - depth :]
            body = np.packbits(bits.reshape(-1)).tobytes()
        out.append(b"\0" + body)
    return b"".join(out)


def png(
    samples: NDArray[Any],
    *,
    depth: int = 8,
    colour: int = 0,
    interlace: bool = False,
    before: bytes = b"",
    after: bytes = b"",
) -> bytes:
    """A PNG written by the letter of the standard, here so that libpng is not its own judge."""
    samples = samples.reshape(samples.shape[0], samples.shape[1], -1)
    if interlace:
        passes = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
        parts = [samples[y::dy, x::dx] for x, y, dx, dy in passes]
        raw = b"".join(rows(part, depth) for part in parts if part.size)
    else:
        raw = rows(samples, depth)
    coded = zlib.compress(raw)
    half = len(coded) // 2
    return b"".join(
        [
            png_head(samples.shape[1], samples.shape[0], depth, colour, int(interlace)),
            before,
            chunk(b"IDAT", coded[:half]),
            chunk(b"IDAT", coded[half:]),
            after,
            chunk(b"IEND"),
        ]
    )


def chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    found, at = [], 8
    while at < len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        found.append((kind, data[at + 8 : at + 8 + length]))
        at += 12 + length
    return found


def jpeg(pixels: NDArray[Any], mode: str | None = None, **options: Any) -> bytes:
    file = io.BytesIO()
    image = Pillow.fromarray(pixels)
    (image.convert(mode) if mode else image).save(file, "JPEG", **{"quality": 92, **options})
    return file.getvalue()


def tiff(pixels: NDArray[Any], **options: Any) -> bytes:
    """A TIFF by tifffile; `bigtiff`, `byteorder`, `imagej` and `ome` go to the file, the rest to its image."""
    file = io.BytesIO()
    names = ("bigtiff", "byteorder", "imagej", "ome")
    with tifffile.TiffWriter(file, **{name: options.pop(name) for name in names if name in options}) as writer:
        writer.write(pixels, **options)
    return file.getvalue()


PLACES = {"StripOffsets", "StripByteCounts", "TileOffsets", "TileByteCounts"}


def _listed(value: Any) -> Any:
    """Arrays as lists, so that they can be compared."""
    if isinstance(value, dict):
        return {key: _listed(each) for key, each in value.items()}
    return [_listed(each) for each in value] if isinstance(value, list | np.ndarray) else value


def facts(data: bytes) -> dict[str, Any]:
    """What tifffile says of a file, but where its pixels lie."""
    with tifffile.TiffFile(io.BytesIO(data)) as tif:
        series = tif.series[0]
        pages = [tifffile.TiffPage(tif, index=n) for n in range(len(tif.pages)) if tif.pages._seek(n)]
        return {
            "order": tif.byteorder,
            "big": tif.is_bigtiff,
            "series": len(tif.series),
            "axes": series.get_axes(squeeze=False),
            "shape": series.get_shape(squeeze=False),
            "kind": series.kind,
            "imagej": _listed(tif.imagej_metadata),
            "ome": tif.ome_metadata,
            "tags": [{t.name: repr(t.value) for t in p.tags.values() if t.name not in PLACES} for p in pages],
        }


def by_pillow(data: bytes) -> Pillow.Image:
    image = Pillow.open(io.BytesIO(data))
    image.load()
    return image
