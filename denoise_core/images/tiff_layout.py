"""What one directory of a TIFF says of its pixels: size, samples, compression, strips or tiles."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from denoise_core.images.model import ImageError
from denoise_core.images.tiff_directories import Directory, Source

WIDTH, HEIGHT, SAMPLES = 256, 257, 277
STRIP_OFFSETS, STRIP_BYTES, TILE_OFFSETS, TILE_BYTES = 273, 279, 324, 325
NONE, JPEG, PACKBITS, LZMA = 1, 7, 32773, 34925
SEPARATED, YCBCR = 5, 6
# How much the densest codec can make of a byte; a file that needs more is refused before memory is asked for.
RATIOS = {NONE: 1, 5: 4096, 8: 1032, 32946: 1032, PACKBITS: 64, 50000: 65536, LZMA: 8192, JPEG: 4096}

_BITS, _COMPRESSION, _PHOTOMETRIC, _FILL_ORDER, _STRIP_ROWS, _PLANAR, _PREDICTOR = 258, 259, 262, 266, 278, 284, 317
_TILE_WIDTH, _TILE_HEIGHT, _EXTRA_SAMPLES, _SAMPLE_FORMAT, _JPEG_TABLES, _SUBSAMPLING = 322, 323, 338, 339, 347, 530
_INK_SET, _DEPTH = 332, 32997
_READ = (
    WIDTH, HEIGHT, SAMPLES, _BITS, _COMPRESSION, _PHOTOMETRIC, _FILL_ORDER, _STRIP_ROWS, _PLANAR, _PREDICTOR, _TILE_WIDTH,
    _TILE_HEIGHT, _EXTRA_SAMPLES, _SAMPLE_FORMAT, _JPEG_TABLES, _SUBSAMPLING, _INK_SET, _DEPTH,
)  # fmt: skip
_MIN_IS_WHITE, _MIN_IS_BLACK, _RGB = 0, 1, 2
_MOST_SAMPLES = 64
_MOST_TILE_PIXELS = 1 << 24
_MOST_TABLE_BYTES = 1 << 16

_COMPRESSIONS = {
    2: "CCITT", 3: "CCITT fax 3", 4: "CCITT fax 4", 6: "old-style JPEG", 9: "JBIG", 34661: "JBIG", 33003: "JPEG 2000",
    33004: "JPEG 2000", 33005: "JPEG 2000", 34712: "JPEG 2000", 34887: "LERC", 34892: "lossy JPEG",
    34926: "zstd (of a number before its own)", 34933: "PNG", 22610: "JPEG XR", 34934: "JPEG XR", 48124: "Jetraw", 50001: "WebP",
    50002: "JPEG XL", 52546: "JPEG XL",
}  # fmt: skip
_PHOTOMETRICS = {
    3: "palette colours", 4: "a transparency mask", 8: "CIELab colours", 9: "ICCLab colours",
    10: "ITULab colours", 32803: "a colour filter array (raw camera data)", 34892: "linear raw camera data",
}  # fmt: skip
# Names of the supported sample formats (4 says nothing), and bits by format.
_FORMATS = {1: "unsigned", 2: "signed", 3: "floating-point", 4: "unsigned", 5: "complex integer", 6: "complex"}
_DTYPES = {
    **{(1, bits): f"u{bits // 8}" for bits in (8, 16, 32)}, **{(4, bits): f"u{bits // 8}" for bits in (8, 16, 32)},
    **{(2, bits): f"i{bits // 8}" for bits in (8, 16, 32)}, **{(3, bits): f"f{bits // 8}" for bits in (16, 32, 64)},
}  # fmt: skip
_DTYPES_SUPPORTED = "integers of 8, 16 and 32 bits and floats of 16, 32 and 64 are supported"
_CODECS_SUPPORTED = "no compression, LZW, deflate, zstd, LZMA, PackBits and JPEG are supported"


@dataclass(frozen=True)
class Layout:
    """A directory, understood. Pages of a stack that are laid out alike share one."""

    width: int
    height: int
    samples: int
    colours: int  # samples but an alpha: 1, 3 or the 4 inks of CMYK, or the channels of what has no colours
    notes: tuple[str, ...]
    grey: bool
    dtype: np.dtype[Any]  # in the file's byte order
    compression: int
    photometric: int
    separate: bool
    predictor: int
    tiled: bool
    segment_width: int
    segment_height: int
    subsampling: tuple[int, int]
    tables: bytes | None

    @property
    def planes(self) -> int:
        """How often the image is stored: once, or once a sample."""
        return self.samples if self.separate else 1

    @property
    def segment_samples(self) -> int:
        """Samples a pixel in one strip or tile."""
        return 1 if self.separate else self.samples

    @property
    def alpha(self) -> bool:
        """Whether the last sample is one."""
        return self.samples > self.colours

    @property
    def native(self) -> np.dtype[Any]:
        """The dtype in this machine's byte order."""
        return self.dtype.newbyteorder("=")

    @property
    def row_bytes(self) -> int:
        """Of a row of a strip, uncompressed."""
        return self.segment_width * self.segment_samples * self.dtype.itemsize

    @property
    def bytes(self) -> int:
        """Of all samples, decoded."""
        return self.width * self.height * self.samples * self.dtype.itemsize

    @property
    def coded_bytes(self) -> int:
        """Of all strips or tiles, uncompressed."""
        return self.segment_count * self.segment_height * self.row_bytes

    @property
    def codes(self) -> tuple[int, int]:
        """The tags that list where the strips or tiles begin, and how many bytes they take."""
        return (TILE_OFFSETS, TILE_BYTES) if self.tiled else (STRIP_OFFSETS, STRIP_BYTES)

    @property
    def segment_count(self) -> int:
        """Of strips or tiles."""
        return self.planes * -(-self.height // self.segment_height) * -(-self.width // self.segment_width)

    def places(self) -> Iterator[tuple[int, int, int]]:
        """Plane, first row and first column of each segment, in the order of the file's tags."""
        rows, columns = range(0, self.height, self.segment_height), range(0, self.width, self.segment_width)
        return itertools.product(range(self.planes), rows, columns)

    def __str__(self) -> str:
        return f"{self.width} × {self.height} pixels of {self.samples} {self.native.name}"


def dimensions(source: Source, directory: Directory) -> tuple[int, int, int]:
    """Width, height and samples a pixel."""
    find = functools.partial(source.integers, directory)
    return _one(find(WIDTH)), _one(find(HEIGHT)), _one(find(SAMPLES), 1)


def signature(source: Source, directory: Directory) -> tuple[tuple[int, int, int, bytes], ...]:
    """What `read_layout` would read of a directory, the same for directories that are laid out alike."""
    tags = ((code, directory.tags[code]) for code in _READ if code in directory.tags)
    return tuple(
        (code, tag.type, tag.number, source.raw(tag) if tag.bytes <= _MOST_TABLE_BYTES else b"") for code, tag in tags
    )


def read_layout(source: Source, directory: Directory) -> Layout:
    """Understand a directory; raises ImageError for what is damaged or not supported."""
    find = functools.partial(source.integers, directory)
    width, height, samples = dimensions(source, directory)
    photometric = _one(find(_PHOTOMETRIC), _MIN_IS_BLACK)
    compression = _one(find(_COMPRESSION), NONE)
    planar = _one(find(_PLANAR), 1)
    predictor = _one(find(_PREDICTOR), 1)
    dtype = _dtype(source.order, find(_BITS) or (1,), find(_SAMPLE_FORMAT) or (1,), photometric)
    if photometric not in (_MIN_IS_WHITE, _MIN_IS_BLACK, _RGB, SEPARATED, YCBCR):
        what = _PHOTOMETRICS.get(photometric, f"photometric interpretation {photometric}")
        raise ImageError(f"a TIFF with {what}; grey, RGB and CMYK TIFF files are supported")
    if photometric == SEPARATED and _one(find(_INK_SET), 1) != 1:
        raise ImageError("a TIFF of other inks than those of CMYK; grey, RGB and CMYK TIFF files are supported")
    if photometric == SEPARATED and dtype.newbyteorder("=") not in (np.uint8, np.uint16):
        raise ImageError(f"a CMYK TIFF of {dtype.name} samples; uint8 and uint16 are supported there")
    if compression not in RATIOS:
        what = _COMPRESSIONS.get(compression, f"number {compression}")
        raise ImageError(f"a TIFF with {what} compression; {_CODECS_SUPPORTED}")
    if photometric == YCBCR and compression != JPEG:
        raise ImageError(
            "a TIFF with YCbCr colours outside JPEG compression; grey, RGB and CMYK TIFF files are supported"
        )
    if compression == JPEG and dtype != np.uint8:
        raise ImageError(f"a TIFF with JPEG-compressed {dtype.name} samples; uint8 is supported there")
    _check_predictor(predictor, compression, dtype)
    if _one(find(_FILL_ORDER), 1) != 1:
        raise ImageError("a TIFF with reversed bits (fill order 2); fill order 1 is supported")
    if _one(find(_DEPTH), 1) != 1:
        raise ImageError("a TIFF of volumes (image depth above 1); planes in directories of their own are supported")
    colours = _colours(samples, photometric, find(_EXTRA_SAMPLES))
    undeclared = samples > colours and find(_EXTRA_SAMPLES)[-1:] not in ((1,), (2,))
    if samples > 1 and planar not in (1, 2):
        raise ImageError(f"the TIFF is damaged: planar configuration {planar}, which does not exist")
    tiled = _TILE_WIDTH in directory.tags
    segment_width = _one(find(_TILE_WIDTH)) if tiled else width
    segment_height = _one(find(_TILE_HEIGHT)) if tiled else min(_one(find(_STRIP_ROWS), height), height)
    tile_pixels = segment_width * segment_height
    if not tile_pixels or (tiled and tile_pixels > max(_MOST_TILE_PIXELS, 4 * width * height)):
        raise ImageError(f"the TIFF is damaged: it has tiles or strips of {segment_width} × {segment_height} pixels")
    subsampling = (find(_SUBSAMPLING) or (2, 2))[:2]
    if photometric == YCBCR and (samples != 3 or subsampling not in ((1, 1), (2, 1), (1, 2), (2, 2))):
        raise ImageError(f"a TIFF with {samples} YCbCr samples at subsampling {subsampling}, which is not supported")
    inks = 4 if photometric == SEPARATED else 3
    if compression == JPEG and (samples, colours) not in ((1, 1), (inks, inks)) and planar != 2:
        raise ImageError("a TIFF with JPEG compression and alpha or channels; grey, RGB and CMYK are supported there")
    return Layout(
        width=width,
        height=height,
        samples=samples,
        colours=colours,
        notes=("the sample after the colours, of no declared meaning, is taken for alpha and stays",) * undeclared,
        grey=photometric in (_MIN_IS_WHITE, _MIN_IS_BLACK),
        dtype=dtype,
        compression=compression,
        photometric=photometric,
        separate=samples > 1 and planar == 2,
        predictor=predictor,
        tiled=tiled,
        segment_width=segment_width,
        segment_height=segment_height,
        subsampling=(subsampling[0], subsampling[-1]),
        tables=_tables(source, directory),
    )


def _colours(samples: int, photometric: int, extra: tuple[int, ...]) -> int:
    """How many of a pixel's samples are no alpha."""
    if photometric == SEPARATED:
        if samples != 4 and (samples != 5 or extra[-1:] not in ((1,), (2,))):
            raise ImageError(f"a TIFF of {samples} inks a pixel; the four of CMYK with at most an alpha are supported")
        return 4
    if photometric not in (_MIN_IS_WHITE, _MIN_IS_BLACK):
        if samples not in (3, 4):
            raise ImageError(f"a TIFF of {samples} RGB samples a pixel; RGB with at most an alpha is supported")
        return 3
    if not 0 < samples <= _MOST_SAMPLES:
        raise ImageError(f"a TIFF of {samples} samples a pixel; at most {_MOST_SAMPLES} are supported")
    is_alpha = samples > 1 and extra[-1:] in ((1,), (2,))
    return samples - is_alpha


def _check_predictor(predictor: int, compression: int, dtype: np.dtype[Any]) -> None:
    if predictor == 1:
        return
    known = predictor == 2 or (predictor == 3 and dtype.kind == "f")
    if not known or compression in (NONE, JPEG):
        raise ImageError(f"a TIFF with predictor {predictor} on compression {compression}, which is not supported")


def _tables(source: Source, directory: Directory) -> bytes | None:
    tag = directory.tags.get(_JPEG_TABLES)
    if tag is None:
        return None
    if tag.bytes > _MOST_TABLE_BYTES:
        raise ImageError(f"the TIFF is damaged: its JPEG tables take {tag.bytes:,} bytes")
    return source.raw(tag)


def _one(values: tuple[int, ...], default: int | None = None) -> int:
    if values:
        return values[0]
    if default is None:
        raise ImageError("the TIFF is damaged: it does not say its width and height")
    return default


def _dtype(order: str, bits: tuple[int, ...], formats: tuple[int, ...], photometric: int) -> np.dtype[Any]:
    if len(set(bits)) > 1 or len(set(formats)) > 1:
        raise ImageError(f"a TIFF whose samples differ in kind, with {bits[:4]} bits; {_DTYPES_SUPPORTED}")
    if photometric == 4 or bits[0] == 1:
        raise ImageError(f"a 1-bit TIFF, which is a mask and not a picture; {_DTYPES_SUPPORTED}")
    name = _DTYPES.get((formats[0], bits[0]))
    if name is None:
        kind = _FORMATS.get(formats[0], f"(format {formats[0]})")
        raise ImageError(f"a TIFF of {bits[0]}-bit {kind} samples; {_DTYPES_SUPPORTED}")
    return np.dtype(order + name)
