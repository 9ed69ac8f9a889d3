"""The directories of a TIFF 6.0 or BigTIFF as they stand in the file: their chain, their tags, where the values lie."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from denoise_core.images.model import ImageError

TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
INTEGERS = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}
MOST_DIRECTORIES = 100_000
SUB_IFDS = 330
TOO_LARGE = "the result is larger than 4 GB, which its TIFF kind cannot hold; BigTIFF can"
_MOST_TAGS = 4096
_MOST_VALUES = 64  # of a tag that describes samples: one for each


class Tag(NamedTuple):
    """One entry of a directory."""

    type: int
    number: int
    value_at: int
    entry_at: int
    inline: bytes = b""  # the values, where the entry has room for them

    @property
    def bytes(self) -> int:
        """Of its values, together."""
        return self.number * TYPE_BYTES[self.type]


@dataclass(frozen=True)
class Directory:
    """One directory; `link` is where the next one stands, 0 after the last."""

    start: int
    end: int
    tags: dict[int, Tag]
    link: int

    def values(self) -> Iterator[tuple[int, int, int]]:
        """Code, start and end of every tag's values that lie outside the directory."""
        for code, tag in self.tags.items():
            if not self.start <= tag.value_at < self.end:
                yield code, tag.value_at, tag.value_at + tag.bytes


@dataclass(frozen=True)
class Source:
    """An open TIFF of `size` bytes, its byte order ("<" or ">"), and whether it is a BigTIFF."""

    file: BinaryIO
    size: int
    order: str
    big: bool
    first: int

    @property
    def head_bytes(self) -> int:
        """Of the file's header."""
        return 16 if self.big else 8

    def read(self, at: int, count: int) -> bytes:
        """`count` bytes from byte `at`; raises ImageError where the file does not reach so far."""
        if count > self.size - at:
            raise ImageError(
                f"the TIFF is truncated: it needs {count:,} bytes at byte {at:,} and has {self.size:,} in all"
            )
        self.file.seek(at)
        return self.file.read(count)

    def chain(self) -> Iterator[Directory]:
        """All directories, one after another; raises ImageError for a chain without a sensible end."""
        seen: set[int] = set()
        link, held = self.first, 0
        while link:
            if link in seen:
                raise ImageError("the TIFF is damaged: its directories form a circle")
            if len(seen) >= MOST_DIRECTORIES:
                raise ImageError(f"the TIFF has more than {MOST_DIRECTORIES:,} directories, which is not supported")
            seen.add(link)
            directory = self.directory(link)
            held += directory.end - directory.start
            if held > self.size:
                raise ImageError("the TIFF is damaged: its directories overlap each other")
            yield directory
            link = directory.link
        if not seen:
            raise ImageError("the TIFF is damaged: it has no directory")

    def directory(self, start: int) -> Directory:
        """The directory at byte `start`, every value of its tags inside the file."""
        count_form, link_form, form = ("Q", "Q", "HHQ8s") if self.big else ("H", "I", "HHI4s")
        count_bytes, step = struct.calcsize(self.order + count_form), struct.calcsize(self.order + form)
        number = struct.unpack(self.order + count_form, self.read(start, count_bytes))[0]
        if not 0 < number <= _MOST_TAGS:
            raise ImageError(f"the TIFF is damaged: a directory of {number:,} tags")
        table = self.read(start + count_bytes, number * step + struct.calcsize(self.order + link_form))
        link = struct.unpack(self.order + link_form, table[number * step :])[0]
        inline = 8 if self.big else 4
        tags: dict[int, Tag] = {}
        entry_at = start + count_bytes
        for code, kind, count, value in struct.iter_unpack(self.order + form, table[: number * step]):
            if kind in TYPE_BYTES:
                taken = count * TYPE_BYTES[kind]
                if taken > inline:
                    value_at = struct.unpack(self.order + link_form, value)[0]
                    if value_at + taken > self.size:
                        raise ImageError(
                            f"the TIFF is truncated or damaged: the value of its tag {code} lies outside the file"
                        )
                    tags.setdefault(code, Tag(kind, count, value_at, entry_at))
                else:
                    tags.setdefault(code, Tag(kind, count, entry_at + step - inline, entry_at, value[:taken]))
            entry_at += step
        return Directory(start, start + count_bytes + len(table), tags, link)

    def refuse_tangles(self, pages: list[int], sub_directories: list[int]) -> None:
        """Raise ImageError where a sub-directory is reached twice: tifffile would walk what is below it over and over."""
        seen, left, held = set(pages), list(sub_directories), 0
        while left:
            start = left.pop()
            if start in seen:
                raise ImageError("the TIFF is damaged: its sub-directories form a circle, or are shared")
            seen.add(start)
            directory = self.directory(start)
            held += directory.end - directory.start
            if held > self.size:
                raise ImageError("the TIFF is damaged: its sub-directories overlap each other")
            left += self.integers(directory, SUB_IFDS, MOST_DIRECTORIES - len(seen) - len(left))

    def integers(self, directory: Directory, code: int, most: int = _MOST_VALUES) -> tuple[int, ...]:
        """The values of a tag, none if it is absent."""
        tag = directory.tags.get(code)
        if tag is None:
            return ()
        form = _integer(tag, code)
        if tag.number > most:
            raise ImageError(f"the TIFF is damaged: its tag {code} holds {tag.number:,} values")
        return struct.unpack(f"{self.order}{tag.number}{form}", self.raw(tag))

    def raw(self, tag: Tag) -> bytes:
        """The values of a tag as they stand in the file."""
        return tag.inline or self.read(tag.value_at, tag.bytes)


def open_source(file: BinaryIO) -> Source:
    """Read the header of an open TIFF; raises ImageError for one that is none."""
    size = file.seek(0, io.SEEK_END)
    source = Source(file, size, "<", big=False, first=0)
    head = source.read(0, 8)
    order = "<" if head[:2] == b"II" else ">"
    version = struct.unpack(order + "H", head[2:4])[0]
    if version not in (42, 43):
        raise ImageError(f"a TIFF of version {version}; versions 42 (TIFF) and 43 (BigTIFF) are supported")
    if version == 42:
        return Source(file, size, order, big=False, first=struct.unpack(order + "I", head[4:8])[0])
    if struct.unpack(order + "HH", head[4:8]) != (8, 0):
        raise ImageError("the BigTIFF is damaged: its offsets are not of 8 bytes")
    return Source(file, size, order, big=True, first=struct.unpack(order + "Q", source.read(8, 8))[0])


def numbers(source: Source, code: int, tag: Tag | None) -> NDArray[np.uint64]:
    """All values of a tag of integers, none if it is absent."""
    if tag is None:
        return np.empty(0, np.uint64)
    return np.frombuffer(source.raw(tag), source.order + _integer(tag, code), tag.number).astype(np.uint64)


def _integer(tag: Tag, code: int) -> str:
    if tag.type not in INTEGERS:
        raise ImageError(f"the TIFF is damaged: its tag {code} holds no integers")
    return INTEGERS[tag.type]


def set_integers(out: BinaryIO, source: Source, code: int, tag: Tag, values: list[int]) -> None:
    """Write a tag's values where they are, or as wider ones at the end of the file where they do not fit."""
    order, big = source.order, source.big
    if max(values) < 1 << (8 * TYPE_BYTES[tag.type]):
        put(out, tag.value_at, struct.pack(f"{order}{len(values)}{INTEGERS[tag.type]}", *values))
        return
    kind, inline, entry = (16, 8, "HHQ") if big else (4, 4, "HHI")
    end = out.seek(0, io.SEEK_END)
    if max(values) >= 1 << (8 * TYPE_BYTES[kind]) or (not big and end >= 1 << 32):
        raise ImageError(TOO_LARGE)
    data = struct.pack(f"{order}{len(values)}{INTEGERS[kind]}", *values)
    put(out, tag.entry_at, struct.pack(order + entry, code, kind, len(values)))
    value_at = tag.entry_at + struct.calcsize(order + entry)
    if len(data) <= inline:
        put(out, value_at, data)
        return
    at = end + end % 2
    put(out, value_at, struct.pack(order + entry[-1], at))
    put(out, at, data)  # the padding byte, if any, becomes zero


def put(out: BinaryIO, at: int, data: bytes | memoryview) -> None:
    """Write `data` at byte `at`."""
    out.seek(at)
    out.write(data)
