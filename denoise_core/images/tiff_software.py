"""The tag Software of a TIFF's first page: what was done is added to what it says."""

from __future__ import annotations

import io
import struct
from typing import BinaryIO

from denoise_core.images.model import ImageError
from denoise_core.images.tiff_directories import TOO_LARGE, Directory, Source, Tag, open_source, put

_SOFTWARE, _ASCII = 305, 2
# The index of these files says where each directory stands: none can move.
_INDEXED = (51123,)  # Micro-Manager
_LARGEST = (1 << 32) - (1 << 20)  # bytes of a source that may be told in; a result seldom is larger

_OFFSETS = 1 << 32  # bytes that offsets of 4 bytes reach
_FULL = "the tag Software says nothing of this: the file has as many bytes as a TIFF that is no BigTIFF can"


def untold(source: Source) -> tuple[str, ...]:
    """Why the tag of a file cannot tell what was done, as a note; nothing where it can."""
    if not source.big and source.size > _LARGEST:
        return (_FULL,)
    directory = source.directory(source.first)
    if _SOFTWARE not in directory.tags and any(code in directory.tags for code in _INDEXED):
        return ("the tag Software says nothing of this: the file has an index of where everything stands",)
    return ()


def add_software(out: BinaryIO, text: str) -> tuple[str, ...]:
    """Append `text` to the tag, or add the tag; every other tag and value stays. Nothing may be `untold` of the source.

    A directory without the tag has no room for it: it is written anew at the end of the file, and the file's header points
    there. Where no room is left for that nothing is written, and a note says so. Raises ImageError where the file itself has
    become larger than its offsets can say.
    """
    source = open_source(out)
    directory = source.directory(source.first)
    tag = directory.tags.get(_SOFTWARE)
    if not source.big and source.size > _OFFSETS:
        raise ImageError(TOO_LARGE)
    needed = len(text) + 4096 + (directory.end - directory.start) + (0 if tag is None else tag.bytes)
    if not source.big and source.size + needed >= _OFFSETS:
        return (_FULL,)
    if tag is None:
        _add_tag(out, source, directory, text)
        return ()
    before = source.raw(tag).partition(b"\0")[0]
    between = b"\n" if b"\n" in before else b"; "  # some programs keep lines of settings here
    _set_text(out, source, tag, before + between + text.encode("ascii") if before else text.encode("ascii"))
    return ()


def _set_text(out: BinaryIO, source: Source, tag: Tag, text: bytes) -> None:
    """Make the text a tag's value: at the end of the file, or in the entry if it fits."""
    kind, inline = ("HHQ", 8) if source.big else ("HHI", 4)
    data = text + b"\0"
    value = data.ljust(inline, b"\0")
    if len(data) > inline:
        at = _end(out)
        put(out, at, data)
        value = struct.pack(source.order + kind[-1], at)
    put(out, tag.entry_at, struct.pack(source.order + kind, _SOFTWARE, _ASCII, len(data)) + value)


def _add_tag(out: BinaryIO, source: Source, directory: Directory, text: str) -> None:
    """The directory once more at the end of the file, with an entry for the tag."""
    count_form, step, link_form = ("Q", 20, "Q") if source.big else ("H", 12, "I")
    head = struct.calcsize("<" + count_form)
    number = struct.unpack(source.order + count_form, source.read(directory.start, head))[0]
    entries = source.read(directory.start + head, number * step)
    each = [entries[at : at + step] for at in range(0, len(entries), step)]
    place = sum(struct.unpack(source.order + "H", entry[:2])[0] < _SOFTWARE for entry in each)
    each.insert(place, bytes(step))
    link = source.read(directory.start + head + number * step, struct.calcsize("<" + link_form))
    at = _end(out)
    put(out, at, struct.pack(source.order + count_form, number + 1) + b"".join(each) + link)
    put(out, 8 if source.big else 4, struct.pack(source.order + link_form, at))
    _set_text(out, source, Tag(_ASCII, 0, 0, at + head + place * step), text.encode("ascii"))


def _end(out: BinaryIO) -> int:
    """The end of the file, at an even byte."""
    end = out.seek(0, io.SEEK_END)
    if end % 2:
        put(out, end, b"\0")
    return end + end % 2
