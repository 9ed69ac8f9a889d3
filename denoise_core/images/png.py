"""PNG (W3C Portable Network Graphics, third edition): pixels through libpng, every other chunk copied as it stands.

libpng only ever sees IHDR, IDAT and IEND. Everything it is lenient about (checksums, missing rows, wrong metadata) is
checked here first, and the palette and the colour key are applied here, so that no sample is scaled twice.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from denoise_core.images.bounds import check_held, check_memory, check_used
from denoise_core.images.levels import same_bits
from denoise_core.images.model import Header, Image, ImageError, check_size, split_alpha, with_alpha

SIGNATURE = b"\x89PNG\r\n\x1a\n"

_GREY, _RGB, _PALETTE, _GREY_ALPHA, _RGBA = 0, 2, 3, 4, 6
_SAMPLES = {_GREY: 1, _RGB: 3, _PALETTE: 1, _GREY_ALPHA: 2, _RGBA: 4}
_DEPTHS = {_GREY: (1, 2, 4, 8, 16), _RGB: (8, 16), _PALETTE: (1, 2, 4, 8), _GREY_ALPHA: (8, 16), _RGBA: (8, 16)}
# x and y of the first pixel and the steps of each of the seven passes.
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_DEFLATE_RATIO = 1032
_MOST_CHUNKS = 100_000
_END_BYTES = 12  # of the end mark
# They describe the stored samples, and are dropped when those change their form.
_BOUND_TO_SAMPLES = {b"bKGD": "background colour", b"sBIT": "significant bits", b"pCAL": "pixel calibration"}
# Unsafe to copy by the letter of the standard, but true of any edit that keeps the samples' meaning.
_TRUE_OF_EDITS = frozenset(b"PLTE cHRM gAMA iCCP sRGB cICP mDCV cLLI tIME sPLT eXIf sCAL oFFs sTER".split())
_ANIMATION = {b"acTL", b"fcTL", b"fdAT"}


@dataclass(frozen=True)
class Carried:
    """The source file, and its ancillary chunks, framed and ready to copy, by the side of the pixels they stood on."""

    source: bytes
    before: bytes
    after: bytes


@dataclass(frozen=True)
class _Start:
    width: int
    height: int
    depth: int
    colour: int
    interlaced: bool

    @property
    def samples(self) -> int:
        return _SAMPLES[self.colour]

    @property
    def passes(self) -> list[_Pass]:
        """The passes that hold pixels: seven at most if interlaced, else one."""
        bits = self.depth * self.samples
        found = []
        for x, y, dx, dy in _ADAM7 if self.interlaced else ((0, 0, 1, 1),):
            columns, rows = -(-(self.width - x) // dx), -(-(self.height - y) // dy)
            if columns > 0 and rows > 0:
                found.append(_Pass(x, y, dx, dy, columns, rows, rows * (1 + (columns * bits + 7) // 8)))
        return found

    @property
    def raw_bytes(self) -> int:
        """Bytes of the filtered rows, before compression."""
        return sum(part.raw_bytes for part in self.passes)


class _Pass(NamedTuple):
    x: int
    y: int
    dx: int
    dy: int
    columns: int
    rows: int
    raw_bytes: int


class _Parts(NamedTuple):
    start: _Start
    palette: bytes | None
    transparency: bytes | None
    compressed: bytes
    others: list[tuple[bytes, bytes, bool]]  # kind, whole chunk, stands after the pixels
    end: int  # one past the end mark


def read_header(file: BinaryIO, *, max_pixels: int) -> Header:
    """The header of an open PNG; reads chunk headers up to the pixels and no more. Raises ImageError."""
    size = file.seek(0, io.SEEK_END)
    start, pixel_bytes = None, 0
    at = len(SIGNATURE)
    for _ in range(_MOST_CHUNKS):
        file.seek(at)
        head = file.read(8)
        if len(head) < 8:
            break
        length, kind = struct.unpack(">I4s", head)
        if start is None:
            start = _start(kind, file.read(length + 4) if length == 13 else b"", max_pixels)
        if kind in _ANIMATION:
            raise _animated()
        if kind == b"IDAT":
            pixel_bytes = min(length, size - at - 8)
            break
        at += 12 + length
    if start is None or not pixel_bytes:
        raise ImageError("the PNG is truncated: it has no pixel data")
    header = _header(start)
    check_held(size, header.bytes)
    check_used(size, start.raw_bytes)
    return header


def decode(data: bytes, *, max_pixels: int) -> Image:
    """Decode a PNG; raises ImageError for what is damaged or not supported."""
    parts = _parts(data, max_pixels)
    start, header = parts.start, _header(parts.start)
    check_held(len(parts.compressed), header.bytes)
    check_memory(header)
    _check_inflates(parts.compressed, start.raw_bytes)

    samples = _samples(start, parts.compressed)
    if samples.shape[2] != start.samples or samples.dtype.itemsize != max(1, start.depth // 8):
        raise ImageError("the PNG is damaged: its samples do not fit its header")

    samples, notes = _in_full(samples, start, parts.palette, parts.transparency)
    before, after, dropped = _carry(parts.others, samples_changed=bool(notes))
    if start.interlaced:
        notes.append("interlacing")
    if_changed = tuple(dict.fromkeys([*notes, *dropped]))
    behind = ("data after the end of the image",) if data[parts.end :].strip(b"\0") else ()
    pixels, alpha = split_alpha(samples, alpha=samples.shape[2] in (2, 4))
    return Image(
        container="png",
        axes=header.axes,
        dtype=header.dtype,
        pixels=pixels,
        alpha=alpha,
        notes=(*if_changed, *behind),
        if_changed=if_changed,
        carried=Carried(data[: parts.end], before, after),
    )


def _parts(data: bytes, max_pixels: int) -> _Parts:
    start: _Start | None = None
    palette: bytes | None = None
    transparency: bytes | None = None
    pixel_chunks: list[bytes] = []
    others: list[tuple[bytes, bytes, bool]] = []
    last, end = b"", len(SIGNATURE)
    for kind, body, chunk in _chunks(data):
        end += len(chunk)
        if start is None:
            start = _start(kind, chunk[8:], max_pixels)
        elif kind in _ANIMATION:
            raise _animated()
        elif kind == b"IDAT":
            if pixel_chunks and last != b"IDAT":
                raise ImageError("the PNG is damaged: its pixel data are not in one run")
            pixel_chunks.append(body)
        elif kind == b"PLTE":
            palette = body
            if start.colour in (_RGB, _RGBA):  # which colours to show where there are few
                others.append((kind, chunk, bool(pixel_chunks)))
        elif kind == b"tRNS":
            transparency = body
        elif kind != b"IEND":
            if not kind[0] & 0x20:
                raise ImageError(f"the PNG has a chunk {kind!r} that is needed to show it and is not supported")
            others.append((kind, chunk, bool(pixel_chunks)))
        last = kind
    if start is None or not pixel_chunks:
        raise ImageError("the PNG is truncated: it has no pixel data")
    return _Parts(start, palette, transparency, b"".join(pixel_chunks), others, end)


def _carry(others: list[tuple[bytes, bytes, bool]], *, samples_changed: bool) -> tuple[bytes, bytes, list[str]]:
    """The chunks that stay true of the output, before and after the pixels, and the names of those that do not."""
    notes: list[str] = []
    before: list[bytes] = []
    after: list[bytes] = []
    for kind, chunk, follows in others:
        if kind == b"hIST":
            notes.append("palette histogram")  # counts the source's pixels
        elif samples_changed and kind in _BOUND_TO_SAMPLES:
            notes.append(_BOUND_TO_SAMPLES[kind])
        elif kind in _BOUND_TO_SAMPLES or kind in _TRUE_OF_EDITS or kind[3] & 0x20:
            (after if follows else before).append(chunk)
        else:
            notes.append(f"private chunk {kind.decode('ascii')}")
    return b"".join(before), b"".join(after), notes


def encode(image: Image, pixels: NDArray[Any], software: str) -> bytes:
    """A PNG of `pixels` with the image's alpha and chunks, and one more of text, keyword Software.

    Pixels that are the source's stay as they were stored: a palette, interlacing, bits.
    """
    import imagecodecs

    carried = image.carried
    if not isinstance(carried, Carried):
        raise TypeError("the image was not decoded from a PNG")
    told = _chunk(b"tEXt", b"Software\0" + software.encode("latin-1")) if software else b""
    if carried.source and same_bits(pixels, image.pixels):
        return b"".join([carried.source[:-_END_BYTES], told, carried.source[-_END_BYTES:]])
    plain = imagecodecs.png_encode(with_alpha(image, pixels))
    start_ends = len(SIGNATURE) + 25
    end_begins = len(plain) - _END_BYTES
    return b"".join(
        [plain[:start_ends], carried.before, told, plain[start_ends:end_begins], carried.after, plain[end_begins:]]
    )


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes, bytes]]:
    """Kind, body and whole chunk of each, checksums verified, up to IEND."""
    at, count = len(SIGNATURE), 0
    while True:
        if at + 12 > len(data):
            raise ImageError(f"the PNG is truncated: it ends after {len(data):,} bytes without its end mark")
        length, kind = struct.unpack_from(">I4s", data, at)
        chunk = data[at : at + 12 + length]
        if not kind.isalpha():
            raise ImageError(f"the PNG is damaged: there is no chunk at byte {at:,}")
        if len(chunk) < 12 + length:
            raise ImageError(
                f"the PNG is truncated: its chunk {kind.decode('ascii')} lacks {12 + length - len(chunk):,} bytes"
            )
        if zlib.crc32(chunk[4:-4]) != int.from_bytes(chunk[-4:], "big"):
            raise ImageError(
                f"the PNG is damaged: the checksum of its chunk {kind.decode('ascii')} at byte {at:,} is wrong"
            )
        yield kind, chunk[8:-4], chunk
        if kind == b"IEND":
            return
        at += 12 + length
        count += 1
        if count > _MOST_CHUNKS:
            raise ImageError(f"the PNG has more than {_MOST_CHUNKS:,} chunks")


def _start(kind: bytes, rest: bytes, max_pixels: int) -> _Start:
    """The first chunk, from its kind and what follows it (body and checksum)."""
    if kind != b"IHDR" or len(rest) != 17 or zlib.crc32(kind + rest[:13]) != int.from_bytes(rest[13:], "big"):
        raise ImageError("the PNG is damaged: its first chunk is not a valid header")
    width, height, depth, colour, method, filtering, interlace = struct.unpack(">IIBBBBB", rest[:13])
    if depth not in _DEPTHS.get(colour, ()) or method or filtering or interlace > 1:
        raise ImageError(f"the PNG is damaged: colour type {colour} with {depth} bits does not exist")
    check_size(width, height, max_pixels)
    if colour == _GREY and depth == 1:
        raise ImageError("a 1-bit PNG, which is a mask and not a picture; 8 and 16 bits a sample are supported")
    return _Start(width, height, depth, colour, bool(interlace))


def _header(start: _Start) -> Header:
    grey = start.colour in (_GREY, _GREY_ALPHA)
    shape = (start.height, start.width) if grey else (start.height, start.width, 3)
    return Header("png", "YX" if grey else "YXS", shape, "uint16" if start.depth == 16 else "uint8")


def _animated() -> ImageError:
    return ImageError("an animated PNG; PNG files of a single image are supported")


def _check_inflates(compressed: bytes, expected: int) -> None:
    """Inflate without keeping, because libpng fills missing rows in silence."""
    if len(compressed) * _DEFLATE_RATIO < expected:
        raise ImageError(
            f"the PNG is damaged: {len(compressed):,} bytes of pixel data cannot hold the {expected:,} needed"
        )
    inflater, found, rest = zlib.decompressobj(), 0, compressed
    try:
        while rest and not inflater.eof and found <= expected:
            found += len(inflater.decompress(rest, 1 << 20))
            rest = inflater.unconsumed_tail
    except zlib.error as error:
        raise ImageError("the PNG is damaged: its pixel data do not decompress") from error
    if found != expected or not inflater.eof:
        word = "truncated" if found < expected else "damaged"
        raise ImageError(f"the PNG is {word}: its pixel data do not have the {expected:,} bytes that its header needs")


def _samples(start: _Start, compressed: bytes) -> NDArray[Any]:
    """Samples (H, W, S) as stored, short ones widened to 8 bits; `compressed` is known to hold what it should."""
    import imagecodecs

    # Palette indices travel through libpng as grey levels.
    colour = _GREY if start.colour == _PALETTE else start.colour

    def read(columns: int, rows: int, body: bytes) -> NDArray[Any]:
        begin = struct.pack(">IIBBBBB", columns, rows, start.depth, colour, 0, 0, 0)
        plain = SIGNATURE + _chunk(b"IHDR", begin) + _chunk(b"IDAT", body) + _chunk(b"IEND", b"")
        samples: NDArray[Any] = imagecodecs.png_decode(plain)
        return samples.reshape(rows, columns, -1)

    if not start.interlaced:
        return read(start.width, start.height, compressed)
    # Each pass is an image of its own. Given the whole, imagecodecs' libpng writes a warning to stderr.
    raw, at = zlib.decompress(compressed), 0
    samples = np.empty((start.height, start.width, start.samples), np.uint16 if start.depth == 16 else np.uint8)
    for part in start.passes:
        body = zlib.compress(raw[at : at + part.raw_bytes], 0)
        samples[part.y :: part.dy, part.x :: part.dx] = read(part.columns, part.rows, body)
        at += part.raw_bytes
    return samples


def _in_full(
    samples: NDArray[Any], start: _Start, palette: bytes | None, transparency: bytes | None
) -> tuple[NDArray[Any], list[str]]:
    """Palette, colour key and short grey levels resolved; also what of the stored form is thereby lost."""
    notes: list[str] = []
    if start.colour == _PALETTE:
        if not palette or len(palette) % 3 or len(palette) > 768:
            raise ImageError("the PNG is damaged: it needs a palette and has no valid one")
        table = np.frombuffer(palette, np.uint8).reshape(-1, 3)
        # libpng widens short samples to the full range: 15 becomes 255.
        index = samples[..., 0] // (255 // (2**start.depth - 1)) if start.depth < 8 else samples[..., 0]
        if int(index.max()) >= len(table):
            raise ImageError(f"the PNG is damaged: a pixel has colour {index.max()} of a palette of {len(table)}")
        if transparency:
            opacity = np.full(len(table), 255, np.uint8)
            opacity[: len(transparency)] = np.frombuffer(transparency, np.uint8)[: len(table)]
            table = np.column_stack([table, opacity])
            return table[index], ["palette (becomes RGBA)"]
        return table[index], ["palette (becomes RGB)"]
    if start.depth < 8:
        notes.append(f"{start.depth}-bit depth (becomes 8-bit)")
    if transparency is not None:
        if start.colour not in (_GREY, _RGB) or len(transparency) != 2 * start.samples:
            raise ImageError("the PNG is damaged: its transparency does not fit its colour type")
        key = np.frombuffer(transparency, ">u2") & (2**start.depth - 1)
        if start.depth < 8:
            key = key * (255 // (2**start.depth - 1))
        top = np.iinfo(samples.dtype).max
        opacity = np.where((samples == key).all(axis=2), 0, top).astype(samples.dtype)
        samples = np.dstack([samples, opacity])
        notes.append("transparent colour (becomes an alpha channel)")
    return samples, notes
