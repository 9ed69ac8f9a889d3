"""Corrupt files: real photographs in every container that is read, with accidents and malice done to them, by number.

`mutant(n)` is always the same file. Add to `seed_files` and the mutants are of the new kind too. `ordeal` reads each in a
child process that may die of it, and `python -m tests.survival.mutants 0 5000` does that and says what it cost.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import random
import re
import struct
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from skimage import data

from denoise_core import images
from tests.denoise_core.images.image_files import ICC, chunk, chunks, cmyk_jpeg, cmyk_profile, inks, jpeg, png, tiff

Bytes = bytearray
Mutation = Callable[[Bytes, random.Random], Bytes]

MAX_PIXELS = 500_000_000  # what `denoise run` takes by default
PATIENCE = 120.0  # seconds for one file, on however busy a machine
EXTREMES = (
    0,
    1,
    2,
    3,
    7,
    255,
    256,
    4095,
    22_000,
    32_767,
    65_535,
    65_536,
    1 << 20,
    (1 << 31) - 1,
    1 << 31,
    (1 << 32) - 1,
)
_TIFF_TYPES = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}
_SIZES = {256, 257, 258, 277, 278, 322, 323}
_PLACES = {273, 279, 324, 325}


@lru_cache
def seed_files() -> dict[str, bytes]:
    """Name (with its suffix) and bytes of small undamaged files, one a container, layout and codec."""
    colour: Any = data.astronaut()[:37, 200:245]
    grey = np.ascontiguousarray(colour[..., 1])
    deep = grey.astype(np.uint16) * 200 + 4000
    frames = np.stack([data.camera()[y : y + 24, 100:131] for y in (50, 150, 250)])
    with_alpha = np.dstack([colour, grey])
    exif = Image.Exif()
    exif[0x112] = 6
    profile = chunk(b"iCCP", b"sRGB\0\0" + zlib.compress(ICC)) + chunk(b"zTXt", b"a\0\0" + zlib.compress(b"b" * 999))
    palette = chunk(b"PLTE", bytes(range(48))) + chunk(b"tRNS", b"\0\1")
    rgb = {"photometric": "rgb"}
    layouts: dict[str, tuple[Any, dict[str, Any]]] = {
        "plain.tif": (deep, {"rowsperstrip": 5, "byteorder": ">", "description": "text " * 9}),
        "lzw.tif": (colour, {**rgb, "compression": "lzw", "predictor": 2, "tile": (16, 16), "bigtiff": True}),
        "deflate.tif": (with_alpha, {**rgb, "compression": "zlib", "extrasamples": ["unassalpha"]}),
        "planes.tif": (np.moveaxis(colour, 2, 0), {**rgb, "planarconfig": "separate", "rowsperstrip": 11}),
        "packbits.tif": (grey, {"compression": "packbits", "rowsperstrip": 8}),
        "zstd.tif": (deep, {"compression": "zstd", "predictor": 2, "rowsperstrip": 8}),
        "jpeg.tif": (colour, {"photometric": "ycbcr", "compression": "jpeg", "subsampling": (2, 2)}),
        "jpegtiles.tif": (colour, {**rgb, "compression": "jpeg", "tile": (16, 16)}),
        "imagej.tif": (deep, {"imagej": True, "resolution": (2, 2), "metadata": {"unit": "um"}}),
        "ome.tif": (grey, {"ome": True, "metadata": {"axes": "YX", "PhysicalSizeX": 0.5}}),
        "stack.tif": (frames, {"photometric": "minisblack"}),
        "tiles.tif": (frames, {"photometric": "minisblack", "compression": "lzw", "tile": (16, 16), "metadata": None}),
        "imagejstack.tif": (frames, {"imagej": True, "metadata": {"axes": "TYX"}}),
        "row.tif": (frames, {"imagej": True, "truncate": True, "metadata": {"axes": "ZYX"}}),
        "inks.tif": (inks(37, 45), {"photometric": "separated", "rowsperstrip": 9, "iccprofile": cmyk_profile()}),
        "deepinks.tif": (inks(37, 45, dtype="uint16"), {"photometric": "separated", "compression": "zlib", "predictor": 2}),
        "omestack.tif": (frames, {"ome": True, "compression": "zlib", "rowsperstrip": 9, "metadata": {"axes": "TYX"}}),
    }  # fmt: skip
    return {
        "rgb.png": png(colour, colour=2, before=profile),
        "deep.png": png(deep, depth=16, interlace=True),
        "alpha.png": png(with_alpha, colour=6),
        "palette.png": png(grey // 16, depth=4, colour=3, before=palette),
        "photo.jpg": jpeg(colour, exif=exif, icc_profile=ICC, comment=b"hello"),
        "progressive.jpg": jpeg(colour, progressive=True),
        "grey.jpg": jpeg(grey, restart_marker_blocks=2),
        "cmyk.jpg": cmyk_jpeg(inks(37, 45), exif=exif, icc_profile=cmyk_profile()),
        "ycck.jpg": cmyk_jpeg(inks(37, 45), ycck=True),
        **{name: tiff(pixels, **options) for name, (pixels, options) in layouts.items()},
    }


def mutant(number: int) -> tuple[str, bytes]:
    """A corrupt file and a name for it."""
    rng = random.Random(f"mutant {number}")
    name, whole = rng.choice(sorted(seed_files().items()))
    out = Bytes(whole)
    done = []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        mutation = rng.choice(MUTATIONS)
        out = mutation(out, rng) or Bytes(b"\0")
        done.append(mutation.__name__.strip("_"))
    return f"{number:06} {' '.join(done)} {name}", bytes(out)


def _flip_bits(out: Bytes, rng: random.Random) -> Bytes:
    for _ in range(rng.choice((1, 1, 4, 30))):
        out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    return out


def _cut(out: Bytes, rng: random.Random) -> Bytes:
    return out[: rng.randrange(len(out))]


def _take_out(out: Bytes, rng: random.Random) -> Bytes:
    at = rng.randrange(len(out))
    return out[:at] + out[at + rng.randint(1, 40) :]


def _repeat(out: Bytes, rng: random.Random) -> Bytes:
    at = rng.randrange(len(out))
    return out[:at] + out[at : at + rng.randint(1, 400)] * rng.choice((1, 1, 50)) + out[at:]


def _zeros(out: Bytes, rng: random.Random) -> Bytes:
    at, length = rng.randrange(len(out)), rng.randint(1, 400)
    return out[:at] + bytes(len(out[at : at + length])) + out[at + length :]


def _splice(out: Bytes, rng: random.Random) -> Bytes:
    """Begins as one file and goes on as another."""
    other = rng.choice(sorted(seed_files().items()))[1]
    return out[: rng.randrange(len(out))] + other[rng.randrange(len(other)) :]


def _text(out: Bytes, rng: random.Random) -> Bytes:
    """Other numbers in a description: what ImageJ or OME say of axes, planes and files."""
    found = [match.span() for match in re.finditer(rb'(?<=[="])\d+', out)]
    if not found:
        return _field(out, rng)
    begin, end = rng.choice(found)
    new = str(rng.choice((*EXTREMES, -1, 10**30))).encode()
    new = new if rng.random() < 0.5 else new[: end - begin].ljust(end - begin, b"9")  # of the same length: offsets hold
    return out[:begin] + new + out[end:]


def _field(out: Bytes, rng: random.Random) -> Bytes:
    return _header_field(out, rng, lambda code: code not in _PLACES)


def _huge(out: Bytes, rng: random.Random) -> Bytes:
    return _header_field(out, rng, lambda code: code in _SIZES)


def _misplaced(out: Bytes, rng: random.Random) -> Bytes:
    """Wrong offsets or sizes of strips or tiles, of chunks, of segments."""
    return _header_field(out, rng, lambda code: code in _PLACES)


def _header_field(out: Bytes, rng: random.Random, wanted: Callable[[int], bool]) -> Bytes:
    if out[:4] == b"\x89PNG":
        return _png_field(out, rng, size=wanted(256) and not wanted(305))
    if out[:2] == b"\xff\xd8":
        return _jpeg_field(out, rng, size=wanted(256) and not wanted(305))
    return _tiff_field(out, rng, wanted)


def _png_field(out: Bytes, rng: random.Random, *, size: bool) -> Bytes:
    """A field with a true checksum after it; the header's width and height, or any byte of any chunk."""
    try:
        parts = [(kind, Bytes(body)) for kind, body in chunks(bytes(out))]
    except (struct.error, OverflowError):
        return _flip_bits(out, rng)
    if size and parts and len(parts[0][1]) == 13:
        struct.pack_into(">I", parts[0][1], rng.choice((0, 4)), rng.choice(EXTREMES))
    elif bodies := [body for _, body in parts if body]:
        body = rng.choice(bodies)
        body[rng.randrange(len(body))] = rng.choice((0, 1, 3, 127, 255, rng.randrange(256)))
    if rng.random() < 0.2:
        rng.shuffle(parts)
    return Bytes(out[:8] + b"".join(chunk(kind, bytes(body)) for kind, body in parts))


def _jpeg_field(out: Bytes, rng: random.Random, *, size: bool) -> Bytes:
    """A byte of a segment: its length, sizes, tables; or the frame's height or width."""
    found, at = [], 2
    while at + 4 < len(out) and out[at] == 0xFF:
        length = int.from_bytes(out[at + 2 : at + 4], "big")
        found.append((out[at + 1], at, length))
        at += 2 + length
    frames = [entry for entry in found if 0xC0 <= entry[0] <= 0xC2]
    if size and frames and frames[0][1] + 9 <= len(out):
        struct.pack_into(">H", out, frames[0][1] + rng.choice((5, 7)), rng.choice(EXTREMES) & 0xFFFF)
    elif found:
        _, at, length = rng.choice(found)
        out[min(len(out) - 1, at + rng.randrange(2, 4 + min(length, 60)))] = rng.choice(
            (0, 1, 2, 255, rng.randrange(256))
        )
    return out


def _tiff_entries(out: Bytes) -> tuple[str, bool, list[tuple[int, int, int, int]], list[tuple[int, int]]]:
    """Byte order, whether BigTIFF, entries (code, type, count, where), and directories (start, where the link stands)."""
    order, big = ("<" if out[:2] == b"II" else ">"), out[2:4] in (b"\x2b\0", b"\0\x2b")
    word, count_form, step = ("Q", "Q", 20) if big else ("I", "H", 12)
    entries, directories = [], []
    try:
        at = struct.unpack_from(order + word, out, 8 if big else 4)[0]
        while at and len(directories) < 10 and at not in {start for start, _ in directories}:
            number = struct.unpack_from(order + count_form, out, at)[0]
            first = at + struct.calcsize(count_form)
            for n in range(min(number, 100)):
                code, kind, count = struct.unpack_from(order + "HH" + word, out, first + n * step)
                entries.append((code, kind, count, first + n * step))
            link_at = first + number * step
            link = struct.unpack_from(order + word, out, link_at)[0]
            directories.append((at, link_at))
            at = link
    except (struct.error, OverflowError):
        pass
    return order, big, entries, directories


def _tiff_field(out: Bytes, rng: random.Random, wanted: Callable[[int], bool]) -> Bytes:
    """Type, count or value of an entry that is wanted, the value also where it lies elsewhere."""
    order, big, entries, _ = _tiff_entries(out)
    entries = [entry for entry in entries if wanted(entry[0])]
    if not entries:
        return _flip_bits(out, rng)
    _, kind, count, at = rng.choice(entries)
    word, inline = ("Q", 8) if big else ("I", 4)
    value_at = at + 4 + inline
    form = order + _TIFF_TYPES.get(kind, "B")
    room = struct.calcsize(form)
    what = rng.random()
    try:
        if what < 0.12:
            struct.pack_into(order + "H", out, at + 2, rng.randrange(20))
        elif what < 0.24:
            struct.pack_into(order + word, out, at + 4, rng.choice(EXTREMES))
        else:
            if count * room > inline and rng.random() < 0.8:
                value_at = struct.unpack_from(order + word, out, value_at)[0]
            value_at += room * rng.randrange(min(max(count, 1), 50))
            old = struct.unpack_from(form, out, value_at)[0]
            new = rng.choice((*EXTREMES, old + 1, old - 1, old * 2, old // 2, len(out), len(out) - 1, 8, at))
            struct.pack_into(form, out, value_at, new % (1 << 8 * room))
    except (struct.error, OverflowError):
        return _flip_bits(out, rng)
    return out


def _circle(out: Bytes, rng: random.Random) -> Bytes:
    """A directory that leads back to itself or to one before it; sub-directories that are their own."""
    if out[:2] not in (b"II", b"MM"):
        return _repeat(out, rng)
    order, big, entries, directories = _tiff_entries(out)
    if not directories:
        return _flip_bits(out, rng)
    word = order + ("Q" if big else "I")
    start = rng.choice(directories)[0]
    if rng.random() < 0.6 or not entries:
        link_at = rng.choice(directories)[1]
        struct.pack_into(word, out, link_at, start)
    else:
        at = rng.choice(entries)[3]
        struct.pack_into(order + "HH", out, at, 330, rng.choice((4, 13, 18)))
        struct.pack_into(word, out, at + 4, 1)
        struct.pack_into(word, out, at + (12 if big else 8), start)
    return out


MUTATIONS: tuple[Mutation, ...] = (
    _flip_bits, _cut, _take_out, _repeat, _zeros, _splice, _text, _field, _field, _huge, _misplaced, _circle,
)  # fmt: skip


@dataclass(frozen=True)
class Verdict:
    """What a mutant did: `said` is the sentence it was refused with, None where it is an image."""

    name: str
    said: str | None
    seconds: float  # of processor time
    megabytes: float  # beyond what the process had before


def ordeal(numbers: range) -> tuple[list[Verdict], list[str]]:
    """Read the mutants as a run does, and write back those that are images; the verdicts, and what must not be.

    The file is read in a child process; one that dies or hangs is named, and another goes on after it.
    """
    verdicts: list[Verdict] = []
    problems: list[str] = []
    context = multiprocessing.get_context("spawn")
    left = numbers
    while left:
        ours, theirs = context.Pipe()
        child = context.Process(target=_read_all, args=(left, theirs))
        child.start()
        theirs.close()
        with contextlib.suppress(EOFError):
            while left:
                if not ours.poll(PATIENCE):
                    child.kill()
                    break
                verdict, problem = ours.recv()
                verdicts.append(verdict)
                problems += problem
                left = left[1:]
        child.join()
        if left:
            problems.append(f"{mutant(left[0])[0]}: the process ended with status {child.exitcode}")
            left = left[1:]
    return verdicts, problems


def _read_all(numbers: range, out: Connection) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "mutant")
        for number in numbers:
            name, corrupt = mutant(number)
            path.write_bytes(corrupt)
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak of memory is counted anew
            before, started = _status("VmRSS"), time.process_time()
            said, problems = _read(path, corrupt)
            megabytes = (_status("VmHWM") - before) / 1024
            out.send(
                (Verdict(name, said, time.process_time() - started, megabytes), [f"{name}: {p}" for p in problems])
            )


def _read(path: Path, corrupt: bytes) -> tuple[str | None, list[str]]:
    said, problems = None, []
    header = None
    try:
        with contextlib.suppress(images.ImageError):
            header = images.read_header(path, max_pixels=MAX_PIXELS)
        image = images.decode(corrupt, max_pixels=MAX_PIXELS)
        if image.header != header:
            problems.append("header and pixels tell different things")
        images.encode(image, image.pixels)
        if image.header.inks:
            rgb = images.in_rgb(image)
            images.encode(rgb, rgb.pixels)
    except images.ImageError as error:
        said = str(error)
        if not said or "\n" in said or len(said) > 400:
            problems.append(f"no sentence: {said!r}")
    except Exception as error:
        problems.append(f"{type(error).__name__}: {error}")
    return said, problems


def _status(field: str) -> int:
    """Of this process, in KiB."""
    found = re.search(rf"{field}:\s*(\d+)", Path("/proc/self/status").read_text(encoding="ascii"))
    return int(found[1]) if found else 0


def main() -> int:
    begin, end = map(int, sys.argv[1:])
    verdicts, problems = ordeal(range(begin, end))
    for one in problems:
        print(one)
    refused = sum(one.said is not None for one in verdicts)
    seconds, megabytes = (max(verdicts, key=lambda v: getattr(v, key)) for key in ("seconds", "megabytes"))
    print(f"{len(verdicts)} mutants: {refused} refused, {len(verdicts) - refused} images, {len(problems)} problems")
    print(f"slowest {seconds.seconds:.2f} s: {seconds.name}; largest {megabytes.megabytes:.0f} MB: {megabytes.name}")
    return len(problems) > 0


if __name__ == "__main__":
    sys.exit(main())
