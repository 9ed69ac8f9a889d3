"""Image files for the tests, made in memory by writers that the package does not use where there is one."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

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
