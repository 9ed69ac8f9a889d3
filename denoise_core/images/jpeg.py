"""JPEG (ITU-T T.81) through libjpeg-turbo, every metadata segment copied as it stands.

libjpeg fills what is missing with grey and only warns. So the marker structure is walked here, and every picture is
decoded twice, the second time with other bytes where each run of coded data ends: pixels that differ were made up.
"""

from __future__ import annotations

import functools
import io
import re
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from denoise_core.images.bounds import check_held, check_memory, check_used
from denoise_core.images.levels import same_bits
from denoise_core.images.model import Header, Image, ImageError, check_size

QUALITY = 95

_EOI, _SOS, _DQT, _DNL, _DRI, _COM = 0xD9, 0xDA, 0xDB, 0xDC, 0xDD, 0xFE
_SUBSAMPLINGS = {(2, 1): "4:2:2", (2, 2): "4:2:0", (1, 2): "4:4:0", (4, 1): "4:1:1"}
_FRAMES = {0xC0: "baseline", 0xC1: "extended", 0xC2: "progressive"}
_ARITHMETIC = {0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF}
_LOSSLESS = {0xC3, 0xC5, 0xC6, 0xC7}
# A pixel takes part in at least one bit of each block; 32 × 32 pixels in 9 blocks is the sparsest sampling.
_PIXELS_A_BYTE = 1024
_MARKER_IN_SCAN = re.compile(rb"\xff+([^\x00\xff])")
_pillow_block = threading.Lock()
_FILLER = bytes((37 * i + 0x5B) % 251 for i in range(24))
_MOST_SEGMENTS = 100_000
# A progressive picture has about 10 scans, each of which goes over all pixels again: a few bytes can ask for hours.
_MOST_SCANS = 100
_SCANS_OF_LARGEST = 20  # over the largest picture that is accepted
_LARGE_PIXELS = 500_000_000  # so many pixels, all scans over them, take some seconds
_PROFILE = b"ICC_PROFILE\0"
_PROFILE_HEAD = len(_PROFILE) + 2  # and the part's number, and of how many


@dataclass(frozen=True)
class Carried:
    """The source file, and its metadata segments (APPn and COM), framed and ready to copy."""

    source: bytes  # without the index of images behind it, which are left out
    segments: bytes
    progressive: bool


@dataclass(frozen=True)
class Frame:
    """A JPEG's frame header."""

    width: int
    height: int
    components: int
    progressive: bool
    sampling: tuple[tuple[int, int], ...]  # across and down, of each component


@dataclass(frozen=True)
class _Stream:
    frame: Frame
    segments: list[tuple[int, bytes]]  # marker and body of each APPn and COM
    starts: list[int]  # where each of them begins
    tables: set[bytes]  # of quantisation
    restarts: bool
    ends: list[int]  # where each run of coded data ends
    end: int  # one past the end mark


def read_header(file: BinaryIO, *, max_pixels: int) -> Header:
    """The header of an open JPEG; reads segment headers up to the frame's and no more. Raises ImageError."""
    size = file.seek(0, io.SEEK_END)
    at = 2
    for _ in range(_MOST_SEGMENTS):
        file.seek(at)
        head = file.read(4)
        if len(head) < 4:
            break
        if head[0] != 0xFF:
            raise ImageError(f"the JPEG is damaged: there is no marker at byte {at:,}")
        if head[1] == 0xFF:
            at += 1
            continue
        if head[1] in (_SOS, _EOI):
            break
        length = int.from_bytes(head[2:], "big")
        if _is_frame(head[1]):
            frame = _frame(head[1], file.read(max(0, length - 2)))
            check_size(frame.width, frame.height, max_pixels)
            header = _header(frame, adobe=None)
            check_held(size, header.bytes)
            check_used(size, header.bytes)
            return header
        at += 2 + length
    raise ImageError("the JPEG is truncated: it has no image header")


def decode(data: bytes, *, max_pixels: int) -> Image:
    """Decode a JPEG; raises ImageError for what is damaged or not supported."""
    stream = _walk(data, max_pixels)
    header = _header(stream.frame, adobe=_adobe_transform(stream.segments))
    check_held(stream.end, header.bytes)
    check_memory(header)
    samples = decode_samples(data[: stream.end], max_pixels=max_pixels)
    notes = []
    if data[stream.end :].strip(b"\0\xff"):
        notes.append("data after the end of the image")
    inks = header.inks
    kept, source, done = [], [], 0
    for (marker, body), start in zip(stream.segments, stream.starts, strict=True):
        if marker == 0xE2 and body.startswith(b"MPF\0"):
            notes.append("index of further images")  # its offsets point to what is left out
            source.append(data[done:start])
            done = start + 4 + len(body)
        elif marker == 0xEE and body.startswith(b"Adobe") and (inks or _adobe_transform([(marker, body)]) != 1):
            pass  # says how the source stored its colours; the output stores them in the usual way
        else:
            kept.append(_segment(marker, body))
    return Image(
        container="jpeg",
        axes=header.axes,
        dtype="uint8",
        pixels=samples[..., 0] if samples.shape[2] == 1 else 255 - samples if inks else samples,
        alpha=None,
        notes=tuple(dict.fromkeys([*notes, *_if_coded(stream)])),
        if_changed=_if_coded(stream),
        carried=Carried(b"".join([*source, data[done : stream.end]]), b"".join(kept), stream.frame.progressive),
    )


def _if_coded(stream: _Stream) -> tuple[str, ...]:
    """What `encode` does not keep of how the picture was stored."""
    notes, frame = [], stream.frame
    if not stream.tables <= _tables_of_quality():
        notes.append(f"quality (becomes {QUALITY})")
    if len(set(frame.sampling)) > 1:
        (across, down), *others = frame.sampling
        known = _SUBSAMPLINGS.get((across, down), "") if set(others) == {(1, 1)} else ""
        notes.append(f"chroma subsampling {known}{known and ' '}(becomes 4:4:4)")
    if stream.restarts:
        notes.append("restart marks")
    return tuple(notes)


@functools.cache
def _tables_of_quality() -> frozenset[bytes]:
    """The quantisation tables that `encode` writes."""
    import imagecodecs

    plain = imagecodecs.jpeg8_encode(np.zeros((8, 8, 3), np.uint8), level=QUALITY)
    return frozenset(_walk(bytes(plain), 64).tables)


def encode(image: Image, pixels: NDArray[Any], software: str) -> bytes:
    """A JPEG of `pixels` at quality 95 and full chroma resolution, with the image's metadata segments and a comment.

    A progressive one stays so.

    Pixels that are the source's are not coded again: they would change. CMYK is stored as such, also where the source has it
    as YCCK, whose chroma the library would halve.
    """
    import imagecodecs

    carried = _carried(image)
    told = _segment(_COM, software.encode("latin-1")) if software else b""
    if carried.source and same_bits(pixels, image.pixels):
        after = _after_application(carried.source)
        return b"".join([carried.source[:after], told, carried.source[after:]])
    plain: bytes | bytearray
    common: dict[str, Any] = {"level": QUALITY, "subsampling": "444", "optimize": True}
    if image.header.inks:
        if carried.progressive:
            plain = _progressive(pixels, "CMYK")
        else:
            plain = imagecodecs.jpeg8_encode(255 - pixels, **common, colorspace="CMYK", outcolorspace="CMYK")
        after = _after_application(plain)  # the mark of Adobe: how it is stored
        return b"".join([plain[:2], carried.segments, plain[2:after], told, plain[after:]])
    if carried.progressive:
        plain = _progressive(pixels, "L" if pixels.ndim == 2 else "RGB")
    else:
        plain = imagecodecs.jpeg8_encode(np.ascontiguousarray(pixels), **common)
    return b"".join([plain[:2], carried.segments, told, plain[_after_application(plain) :]])


def _progressive(pixels: NDArray[np.uint8], mode: str) -> bytes:
    """By Pillow, since imagecodecs writes none."""
    from PIL import Image as Pillow
    from PIL import ImageFile

    file = io.BytesIO()
    image = Pillow.frombytes(mode, pixels.shape[1::-1], pixels.tobytes())
    with _pillow_block:
        before = ImageFile.MAXBLOCK
        # All of a progressive JPEG has to fit into one block, and Pillow's own does not have the room for noise.
        ImageFile.MAXBLOCK = max(before, 2 * pixels.size + 65536)
        try:
            image.save(file, "JPEG", quality=QUALITY, subsampling="4:4:4", progressive=True, optimize=True)
        finally:
            ImageFile.MAXBLOCK = before
    return file.getvalue()


def profile(image: Image) -> bytes | None:
    """The ICC profile of a decoded JPEG, from the segments that it was cut into."""
    parts = sorted(_profile_parts(_carried(image).segments), key=lambda body: body[len(_PROFILE)])
    return b"".join(body[_PROFILE_HEAD:] for body in parts) or None


def recoloured(image: Image, pixels: NDArray[np.uint8], note: str) -> Image:
    """The image with RGB (H, W, 3) in place of its CMYK, without its profile."""
    segments = _carried(image).segments
    for body in _profile_parts(segments):
        segments = segments.replace(_segment(0xE2, body), b"", 1)
    carried = replace(_carried(image), source=b"", segments=segments)
    return replace(image, pixels=pixels, notes=(*image.notes, note), if_changed=(), carried=carried)


def _profile_parts(segments: bytes) -> Iterator[bytes]:
    at = 0
    while at < len(segments):
        length = int.from_bytes(segments[at + 2 : at + 4], "big")
        body = segments[at + 4 : at + 2 + length]
        if segments[at + 1] == 0xE2 and body.startswith(_PROFILE) and len(body) > _PROFILE_HEAD:
            yield body
        at += 2 + length


def _carried(image: Image) -> Carried:
    if not isinstance(image.carried, Carried):
        raise TypeError("the image was not decoded from a JPEG")
    return image.carried


def _segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def _after_application(data: bytes | bytearray) -> int:
    """Where the application segments that a JPEG begins with end."""
    at = 2
    while data[at] == 0xFF and 0xE0 <= data[at + 1] <= 0xEF:
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return at


def decode_samples(data: bytes, *, max_pixels: int, tables: bytes | None = None, **colours: Any) -> NDArray[np.uint8]:
    """The samples (H, W, C) of a JPEG stream, or of one that leans on `tables` of a TIFF; raises ImageError.

    `colours` are `colorspace` and `outcolorspace` of imagecodecs.jpeg8_decode.
    """
    import imagecodecs

    stream = _walk(data, max_pixels)
    frame = stream.frame
    if len(data) * _PIXELS_A_BYTE < frame.width * frame.height:
        raise ImageError(
            f"the JPEG is damaged: {len(data):,} bytes cannot hold its {frame.width} × {frame.height} pixels"
        )

    def read(coded: bytes) -> NDArray[np.uint8]:
        try:
            samples: NDArray[np.uint8] = imagecodecs.jpeg8_decode(coded, tables=tables, **colours)
        except imagecodecs.Jpeg8Error as error:
            raise ImageError(f"the JPEG is damaged: {str(error).rstrip('.')}") from error
        return samples.reshape(frame.height, frame.width, -1)

    samples = read(data)
    pieces, begin = [], 0
    for end in stream.ends:
        pieces += [data[begin:end], _FILLER]
        begin = end
    again = read(b"".join([*pieces, data[begin:]]))
    if samples.dtype != np.uint8 or samples.shape[2] != frame.components:
        raise ImageError("the JPEG is damaged: its samples do not fit its header")
    if not np.array_equal(samples, again):
        raise ImageError("the JPEG is truncated or damaged: its data end before the image does")
    return samples


def _walk(data: bytes, max_pixels: int) -> _Stream:  # noqa: PLR0912 one branch a kind of marker
    """The marker structure of a whole stream, from its start mark to its end mark."""
    at = 2
    frame: Frame | None = None
    segments: list[tuple[int, bytes]] = []
    ends: list[int] = []
    starts: list[int] = []
    tables: set[bytes] = set()
    scans, restarts = 0, False
    for _ in range(_MOST_SEGMENTS):
        if at + 2 > len(data):
            raise ImageError(f"the JPEG is truncated: it ends after {len(data):,} bytes without its end mark")
        marker = data[at + 1]
        if data[at] != 0xFF or marker == 0:
            raise ImageError(f"the JPEG is damaged: there is no marker at byte {at:,}")
        if marker == 0xFF:
            at += 1
            continue
        if marker == _EOI:
            if frame is None or not ends:
                raise ImageError("the JPEG is damaged: it has no image")
            return _Stream(frame, segments, starts, tables, restarts, ends, at + 2)
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        body = data[at + 4 : at + 2 + length]
        if length < 2 or len(body) < length - 2:
            raise ImageError(f"the JPEG is truncated or damaged: its segment at byte {at:,} does not end")
        if _is_frame(marker):
            if frame is not None:
                raise ImageError("the JPEG is damaged: it has two image headers")
            frame = _frame(marker, body)
            check_size(frame.width, frame.height, max_pixels)
        elif marker == _COM or 0xE0 <= marker <= 0xEF:
            segments.append((marker, body))
            starts.append(at)
        elif marker == _DQT:
            tables |= _tables(body)
        elif marker == _DRI:
            restarts = any(body)
        elif marker == _DNL:
            raise ImageError("a JPEG that gives its height after its data, which is not supported")
        at += 2 + length
        if marker == _SOS:
            scans += 1
            _check_scans(scans, frame, max_pixels)
            for match in _MARKER_IN_SCAN.finditer(data, at):
                ends.append(match.start())
                if not 0xD0 <= match[1][0] <= 0xD7:
                    at = match.end() - 2
                    break
            else:
                raise ImageError(f"the JPEG is truncated: it ends after {len(data):,} bytes without its end mark")
    raise ImageError(f"the JPEG has more than {_MOST_SEGMENTS:,} segments")


def _tables(body: bytes) -> set[bytes]:
    """The quantisation tables of a segment, each of 64 values of one byte or of two."""
    found, at = set(), 0
    while at < len(body):
        size = 64 << (body[at] >> 4 != 0)
        found.add(body[at + 1 : at + 1 + size])
        at += 1 + size
    return found


def _check_scans(scans: int, frame: Frame | None, max_pixels: int) -> None:
    pixels = frame.width * frame.height if frame else 0
    most = _SCANS_OF_LARGEST * max(max_pixels, _LARGE_PIXELS)
    if scans > _MOST_SCANS or scans * pixels > most:
        raise ImageError(
            f"a JPEG of {scans:,} scans or more over {pixels:,} pixels; at most {_MOST_SCANS} scans, and "
            f"{most:,} pixels in all of them together, are supported"
        )


def _is_frame(marker: int) -> bool:
    return 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)


def _frame(marker: int, body: bytes) -> Frame:
    if len(body) < 6 or len(body) != 6 + 3 * body[5]:
        raise ImageError("the JPEG is damaged: its image header has the wrong length")
    depth, height, width, components = struct.unpack(">BHHB", body[:6])
    supported = "8-bit baseline and progressive JPEG is supported"
    if marker in _LOSSLESS:
        raise ImageError(f"a lossless or hierarchical JPEG; {supported}")
    if marker in _ARITHMETIC:
        raise ImageError(f"an arithmetic-coded JPEG; {supported}")
    if depth != 8:
        raise ImageError(f"a {depth}-bit JPEG; {supported}")
    if components not in (1, 3, 4):
        raise ImageError(f"a JPEG of {components} components; grey, RGB and CMYK JPEG are supported")
    sampling = tuple((body[at] >> 4, body[at] & 15) for at in range(7, len(body), 3))
    return Frame(width, height, components, marker == 0xC2, sampling)


def _header(frame: Frame, *, adobe: int | None) -> Header:
    if adobe == 2 and frame.components != 4:
        raise ImageError(f"the JPEG is damaged: it says that it is CMYK (YCCK) and has {frame.components} components")
    if frame.components == 1:
        return Header("jpeg", "YX", (frame.height, frame.width), "uint8")
    return Header("jpeg", "YXS", (frame.height, frame.width, frame.components), "uint8")


def _adobe_transform(segments: list[tuple[int, bytes]]) -> int | None:
    for marker, body in segments:
        if marker == 0xEE and body.startswith(b"Adobe") and len(body) >= 12:
            return body[11]
    return None
