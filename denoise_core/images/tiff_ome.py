"""What the OME-XML of a TIFF says of its planes, as far as it has to be known beside what tifffile reads of it.

Of an image that is spread over several files, each file is a stack of its own: the planes that it holds, along the axes
that they vary in.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from xml.etree import ElementTree
from xml.parsers import expat

from denoise_core.images.model import ImageError
from denoise_core.images.tiff_directories import MOST_DIRECTORIES, Directory, Source

MOST_PLANES = 16 * MOST_DIRECTORIES
_DESCRIPTION = 270
_MOST_DEPTH = 1000
_Place = tuple[int, ...]  # of a plane, along the axes of `Ome.axes`


@dataclass
class Ome:
    """The OME-XML of one file."""

    name: str = ""  # that the file calls itself by
    files: int = 0
    elsewhere: bool = False  # the metadata lie in another file
    axes: str = ""  # the slowest first
    places: dict[int, _Place] = field(default_factory=dict)  # of the planes of this file, by the number of the page

    @property
    def several_files(self) -> bool:
        """Whether this file is one of several that make an image."""
        return self.files > 1 or self.elsewhere

    @classmethod
    def read(cls, source: Source, first: Directory, pages: int, smallest: int) -> Ome | None:
        """None for a file without OME-XML; raises ImageError for one that promises far more planes than it has."""
        tag = first.tags.get(_DESCRIPTION)
        if tag is None or b"OME>" not in (text := source.raw(tag).partition(b"\0")[0].strip())[-10:]:
            return None
        _refuse_depths(text)
        try:
            root = ElementTree.fromstring(_text(text))  # noqa: S314 expat bounds entities, and tifffile reads the same
        except ElementTree.ParseError:
            return cls()  # tifffile makes no series of it either
        images = [(image, pixels) for image in _named(root, "Image") for pixels in _named(image, "Pixels")]
        _refuse_too_many([pixels for _, pixels in images], pages, smallest)
        data = [(pixels, block) for _, pixels in images for block in _named(pixels, "TiffData")]
        names = {uuid.text: uuid.get("FileName", "") for _, block in data for uuid in _named(block, "UUID")}
        name = next(iter(names.values()), "")
        found = cls(
            name if name.lower().endswith((".tif", ".tiff")) else "",
            len(names),
            elsewhere=any(True for _ in _named(root, "BinaryOnly")),
        )
        own = root.get("UUID")
        if found.files > 1 and own in names:
            mine = [(p, block) for p, block in data if any(uuid.text == own for uuid in _named(block, "UUID"))]
            found._place(mine)
        return found

    def _place(self, blocks: list[tuple[ElementTree.Element, ElementTree.Element]]) -> None:
        """Note the planes of this file's blocks of planes."""
        if len({id(pixels) for pixels, _ in blocks}) != 1:
            return  # several images, or none: `of_this_file` says so
        pixels = blocks[0][0]
        self.axes = pixels.get("DimensionOrder", "XYZCT")[:1:-1]
        samples = max((int(c.get("SamplesPerPixel", 1)) for c in _named(pixels, "Channel")), default=1)
        sizes = {axis: max(1, int(pixels.get(f"Size{axis}", 1))) for axis in "ZCT"}
        sizes["C"] = max(1, sizes["C"] // samples)
        order = list(itertools.product(*(range(sizes[axis]) for axis in self.axes)))
        index = {place: number for number, place in enumerate(order)}
        for _, block in blocks:
            page = int(block.get("IFD", 0))
            start = index[tuple(int(block.get(f"First{axis}", 0)) for axis in self.axes)]
            count = int(block.get("PlaneCount", 1 if "IFD" in block.attrib else len(order)))
            self.places.update((page + n, place) for n, place in enumerate(order[start : start + count]))

    def of_this_file(self, pages: int) -> tuple[str, tuple[int, ...], list[int]]:
        """Of a file of several: the axes that its planes vary in, their lengths, and the page of each plane in order.

        Where the metadata lie in another file, the pages are planes along an axis I, in their order. Raises ImageError
        where the metadata leave open what the pages are.
        """
        if pages == 1:
            return "", (), [0]
        if self.elsewhere:
            return "I", (pages,), list(range(pages))
        lengths = [sorted({place[n] for place in self.places.values()}) for n in range(len(self.axes))]
        full = sorted(self.places.values()) == list(itertools.product(*lengths))
        if sorted(self.places) != list(range(pages)) or not full:
            raise ImageError(
                f"{pages} pages of an OME-TIFF that is spread over several files, and its XML does not say what they are"
            )
        varied = [n for n, values in enumerate(lengths) if len(values) > 1]
        order = sorted(self.places, key=lambda page: self.places[page])
        return "".join(self.axes[n] for n in varied), tuple(len(lengths[n]) for n in varied), order


def _refuse_depths(text: bytes) -> None:
    """Refuse XML of elements in elements beyond what OME has, which takes seconds to walk and to let go of."""
    depth = 0

    def begins(_name: str, _attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > _MOST_DEPTH:
            raise ImageError(f"the OME-TIFF is damaged: its XML is nested more than {_MOST_DEPTH} deep")

    def ends(_name: str) -> None:
        nonlocal depth
        depth -= 1

    parser = expat.ParserCreate()
    parser.StartElementHandler, parser.EndElementHandler = begins, ends
    with contextlib.suppress(expat.ExpatError):  # what is no XML is no OME either
        parser.Parse(_text(text), True)


def _refuse_too_many(images: list[ElementTree.Element], pages: int, smallest: int) -> None:
    planes = 0
    for pixels in images:
        sizes = [max(1, int(pixels.get(f"Size{axis}", 1))) for axis in "XYZCT"]
        planes += max(math.prod(sizes) // smallest, math.prod(sizes[2:]))
        for data in _named(pixels, "TiffData"):
            planes += abs(int(data.get("PlaneCount", data.get("NumPlanes", 1 if "IFD" in data.attrib else 0))))
    if planes > MOST_PLANES:
        raise ImageError(f"an OME-TIFF of {planes:,} planes in {pages} pages; at most {MOST_PLANES:,} are supported")


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data.decode("cp1252", "replace")


def _named(element: ElementTree.Element, name: str) -> Iterator[ElementTree.Element]:
    return (child for child in element if child.tag.endswith(name))
