"""What the directories of a TIFF are together: one image, or the frames of a stack in their order.

tifffile knows the many ways to say that (ImageJ, OME, its own, none) and is asked for axes, shape and order; what it is
lenient about (frames that are missing or unlike the first, files that speak of other files) is refused here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import logging
import math
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from denoise_core.images.model import Header, ImageError, check_size
from denoise_core.images.tiff_directories import MOST_DIRECTORIES, Directory, Source, Tag, open_source
from denoise_core.images.tiff_layout import (
    NONE,
    STRIP_BYTES,
    STRIP_OFFSETS,
    TILE_BYTES,
    TILE_OFFSETS,
    Layout,
    dimensions,
    read_layout,
)

_SUPPORTED = "one grey or RGB image (axes YX or YXS) and stacks of such along one axis T, Z, Q or I are supported"
_PLANES = ("YX", "YXS", "SYX")
_STACKS = {axis + plane for axis in "TZQI" for plane in _PLANES}
_DESCRIPTION, _SUB_IFDS = 270, 330
_LISTS = (STRIP_OFFSETS, STRIP_BYTES, TILE_OFFSETS, TILE_BYTES)
# A stack that ImageJ or tifffile began with the first directory and left at that; both then store bare planes in a row.
_IN_A_ROW = ("imagej", "shaped")
_MOST_PLANES = 16 * MOST_DIRECTORIES


@dataclass(frozen=True)
class Page:
    """Where one frame's strips or tiles are listed; a frame without a directory of its own begins at `start`."""

    layout: Layout
    offsets: Tag | None
    sizes: Tag | None
    start: int | None = None


@dataclass(frozen=True)
class Series:
    """The frames of a stack, or the one page of an image."""

    source: Source
    axis: str  # of the frames; "" for one image
    pages: list[Page]
    own: NDArray[np.int64]  # start and end of each directory and each list of strips or tiles
    shared: NDArray[np.int64]  # the same of the file's header and all other values

    @property
    def layout(self) -> Layout:
        """The first page's; size, samples and dtype are those of all."""
        return self.pages[0].layout

    @property
    def header(self) -> Header:
        """What the rest of the program sees."""
        layout = self.layout
        frames = (len(self.pages),) if self.axis else ()
        colours = ("YX", ()) if layout.colours == 1 else ("YXS", (3,))
        shape = (*frames, layout.height, layout.width, *colours[1])
        return Header("tiff", self.axis + colours[0], shape, layout.native.name)


@dataclass(frozen=True)
class _Survey:
    """A chain of directories at a first look."""

    first: Directory
    starts: list[int]
    sub_images: int
    smallest: int  # pixels of the smallest page


@dataclass(frozen=True)
class _Meaning:
    """What tifffile makes of it."""

    axis: str
    frames: int
    order: list[int]  # where each frame's directory stands
    in_a_row: bool


def read_series(file: BinaryIO, max_pixels: int) -> Series:
    """Understand the directories of an open TIFF; raises ImageError for what is damaged or not supported."""
    source = open_source(file)
    survey = _survey(source)
    width, height, samples = dimensions(source, survey.first)
    meaning = _meaning(source, survey, {"Y": height, "X": width, "S": samples})
    check_size(width, height, max_pixels, frames=meaning.frames)
    pages, own, shared = _pages(source, meaning)
    layout = pages[0].layout
    if meaning.axis and layout.alpha:
        raise ImageError(
            f"a stack with an alpha channel, {meaning.frames} frames of {layout}; stacks of grey or RGB are supported"
        )
    if meaning.in_a_row:
        pages = _in_a_row(source, survey.first, layout, meaning.frames)
    return Series(source, meaning.axis, pages, own, shared)


def _survey(source: Source) -> _Survey:
    """Walk the whole chain; what tifffile will read of it is bounded here."""
    first: Directory | None = None
    starts: list[int] = []
    listed = sub_images = smallest = 0
    for directory in source.chain():
        first = first or directory
        starts.append(directory.start)
        if _SUB_IFDS in directory.tags:
            sub_images += directory.tags[_SUB_IFDS].number
        listed += sum(directory.tags[code].number for code in _LISTS if code in directory.tags)
        if listed + sub_images > source.size:
            raise ImageError("the TIFF is damaged: it lists more strips or tiles than it has bytes")
        with contextlib.suppress(ImageError):
            width, height, _ = dimensions(source, directory)
            smallest = min(smallest or width * height, max(width * height, 1))
    if first is None:
        raise ImageError("the TIFF is damaged: it has no directory")
    return _Survey(first, starts, sub_images, max(smallest, 1))


def _meaning(source: Source, survey: _Survey, page: dict[str, int]) -> _Meaning:
    """Whether this is one image, or which stack of pages of the axes' lengths `page`; anything else is refused."""
    pages = len(survey.starts)
    ome = _Ome.read(source, survey)
    with _opened(source, ome.name if ome else "") as tif:
        first, number = _first_series(tif, pages)
        axes, shape = first.get_axes(squeeze=True), tuple(int(n) for n in first.get_shape(squeeze=True))
        found = f"with axes {axes} and shape {shape}"
        if len(first.levels) > 1:
            raise ImageError(f"a pyramid of {len(first.levels)} levels, the first {found}; {_SUPPORTED}")
        if survey.sub_images:
            raise ImageError(f"a TIFF with {survey.sub_images} sub-images (a pyramid or raw data); {_SUPPORTED}")
        _refuse_cut_imagej(tif, first, pages)
        if pages == number == 1 and math.prod(shape) == math.prod(page.values()):
            return _Meaning("", 1, survey.starts, in_a_row=False)
        if ome and ome.several_files:
            raise ImageError(f"{pages} pages of an OME-TIFF that is spread over several files; {_SUPPORTED}")
        if ome and first.kind != "ome":
            raise ImageError(f"the OME-TIFF is damaged: its XML does not fit its {pages} pages, {found}")
        if number > 1:
            raise ImageError(f"{number} images in one file, the first {found}; {_SUPPORTED}")
        if axes not in _STACKS:
            raise ImageError(_what_else(axes, shape, pages, found))
        frames = shape[0]
        in_a_row = pages == 1 and first.kind in _IN_A_ROW
        if pages != frames and not in_a_row:
            raise ImageError(
                f"a stack {found}, of which the file has {pages} pages; it must have a page for each frame"
            )
        order = survey.starts if in_a_row else _order(first, survey, found)
    if [page[axis] for axis in axes[1:]] != list(shape[1:]) or math.prod(shape[1:]) != math.prod(page.values()):
        raise ImageError(f"the TIFF is damaged: a stack {found}, whose pages are of another size")
    return _Meaning(axes[0], frames, order, in_a_row)


def _what_else(axes: str, shape: tuple[int, ...], pages: int, found: str) -> str:
    if len([n for n in shape if n > 1]) <= 2:
        return f"{pages} pages in one file, {found} in all; {_SUPPORTED}"
    frames = set(axes) - set("YXSC")
    kind = "a stack" if frames else "a multi-channel image"
    return f"{kind} {found}; {_SUPPORTED}"


# --- tifffile ---


class _Nameless:
    """A file as tifffile may see it: without a name, so that it does not look for others beside it."""

    def __init__(self, file: BinaryIO) -> None:
        self.seek, self.tell, self.read = file.seek, file.tell, file.read


@contextlib.contextmanager
def _opened(source: Source, name: str) -> Iterator[Any]:
    import tifffile

    # It logs what it finds odd in a file; what matters of that is checked here.
    logging.getLogger("tifffile").setLevel(logging.CRITICAL + 1)
    source.file.seek(0)
    file: Any = _Nameless(source.file)
    with tifffile.TiffFile(file, name=name or None, _multifile=False) as tif:
        yield tif


def _first_series(tif: Any, pages: int) -> tuple[Any, int]:
    """The first series and their number."""
    _refuse_wild_index(tif)
    try:
        series = tif.series
    except RuntimeError as error:
        if type(error) is not RuntimeError:
            raise
        raise ImageError(f"{pages} pages in one file that differ in size or kind; {_SUPPORTED}") from error
    if not series:
        raise ImageError("the TIFF is damaged: it has no readable image")
    return series[0], len(series)


def _refuse_wild_index(tif: Any) -> None:
    """Refuse a Micro-Manager index of more planes than a file can have; tifffile makes a list of them."""
    if tif.is_mmstack:
        index = tif.micromanager_metadata["IndexMap"][:, :4].astype(np.int64)
        planes = math.prod((index.max(axis=0) - index.min(axis=0) + 1).tolist())
        if planes > _MOST_PLANES:
            raise ImageError(f"the TIFF is damaged: its Micro-Manager index speaks of {planes:,} planes")


def _refuse_cut_imagej(tif: Any, first: Any, pages: int) -> None:
    """Refuse an ImageJ file that is too short for its stack; tifffile then takes the pages for all there is."""
    if first.kind not in ("uniform", "generic") or not tif.is_imagej:
        return
    said = {name: value for name, value in (tif.imagej_metadata or {}).items() if isinstance(value, int)}
    images = max(said.get("images", 1), math.prod(said.get(name, 1) for name in ("frames", "slices", "channels")))
    if images > pages:
        raise ImageError(
            f"the TIFF is truncated: its description says {images:,} images, and there is not room for so many"
        )


def _order(series: Any, survey: _Survey, found: str) -> list[int]:
    """Where the directory of each frame stands, in the order of the frames."""
    pages = itertools.islice(series, len(survey.starts) + 1)
    order = [page.offset for page in pages if page is not None]
    if sorted(order) != sorted(survey.starts):
        raise ImageError(f"the TIFF is damaged: a stack {found}, of which some frames are missing")
    return order


@dataclass(frozen=True)
class _Ome:
    """What of a file's OME-XML has to be known before tifffile reads it."""

    name: str  # that the file calls itself by
    several_files: bool

    @classmethod
    def read(cls, source: Source, survey: _Survey) -> _Ome | None:
        """None for a file without OME-XML; raises ImageError for one that promises far more planes than it has."""
        tag = survey.first.tags.get(_DESCRIPTION)
        if tag is None or b"OME>" not in (text := source.raw(tag).partition(b"\0")[0].strip())[-10:]:
            return None
        try:
            root = ElementTree.fromstring(_text(text))  # noqa: S314 expat bounds entities, and tifffile reads the same
        except ElementTree.ParseError:
            return cls("", several_files=False)  # tifffile makes no series of it either
        planes = 0
        files: dict[str | None, str] = {}
        for pixels in (pixels for image in _named(root, "Image") for pixels in _named(image, "Pixels")):
            sizes = [max(1, int(pixels.get(f"Size{axis}", 1))) for axis in "XYZCT"]
            planes += max(math.prod(sizes) // survey.smallest, math.prod(sizes[2:]))
            for data in _named(pixels, "TiffData"):
                planes += abs(int(data.get("PlaneCount", data.get("NumPlanes", 1 if "IFD" in data.attrib else 0))))
                files.update((uuid.text, uuid.get("FileName", "")) for uuid in _named(data, "UUID"))
        if planes > _MOST_PLANES:
            raise ImageError(f"an OME-TIFF of {planes:,} planes in {len(survey.starts)} pages; {_SUPPORTED}")
        several = len(files) > 1 or any(True for _ in _named(root, "BinaryOnly"))
        name = next(iter(files.values()), "")
        return cls(name if name.lower().endswith((".tif", ".tiff")) else "", several)


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data.decode("cp1252", "replace")


def _named(element: ElementTree.Element, name: str) -> Iterator[ElementTree.Element]:
    return (child for child in element if child.tag.endswith(name))


# --- the pages ---


def _pages(source: Source, meaning: _Meaning) -> tuple[list[Page], NDArray[np.int64], NDArray[np.int64]]:
    """The page of each directory, and where the file's structure lies; pages unlike the first are refused."""
    pages: list[Page] = []
    layouts: dict[Layout, Layout] = {}
    own, shared = array("q"), array("q", (0, source.head_bytes))
    for number, start in enumerate(meaning.order):
        directory = source.directory(start)
        layout = read_layout(source, directory)
        layout = layouts.setdefault(layout, layout)
        offsets, sizes = (directory.tags.get(code) for code in layout.codes)
        pages.append(Page(layout, offsets, sizes))
        _refuse_unlike(layout, pages[0].layout, number)
        own.extend((directory.start, directory.end))
        for code, begin, end in directory.values():
            (own if code in layout.codes else shared).extend((begin, end))
    return pages, _pairs(own), _pairs(shared)


def _refuse_unlike(layout: Layout, first: Layout, number: int) -> None:
    """Refuse a frame that is not stored as the first is; readers decode all frames as that."""
    if layout is first or dataclasses.replace(layout, tables=first.tables) == first:
        return
    if str(layout) != str(first):
        raise ImageError(f"a stack whose frames differ: frame 0 has {first}, frame {number} has {layout}; {_SUPPORTED}")
    raise ImageError(
        f"a stack whose frames are stored differently: the compression, colours or strips of frame {number} "
        f"are not those of frame 0; {_SUPPORTED}"
    )


def _pairs(flat: array[int]) -> NDArray[np.int64]:
    return np.frombuffer(flat, np.int64).reshape(-1, 2)


def _in_a_row(source: Source, directory: Directory, layout: Layout, frames: int) -> list[Page]:
    """Pages for planes that follow the first without directories of their own, each as one strip."""
    if layout.compression != NONE or layout.tiled:
        raise ImageError(
            f"a stack of {frames} frames in one directory, tiled or compressed; one of uncompressed strips is supported"
        )
    offsets = source.integers(directory, STRIP_OFFSETS, source.size)
    if len(offsets) != layout.segment_count or not offsets[0]:
        raise ImageError(
            f"the TIFF is damaged: it lists {len(offsets)} offsets for {layout.segment_count} strips, or some are missing"
        )
    rows = (plane * layout.height + y for plane, y, _ in layout.places())
    if any(at != offsets[0] + row * layout.row_bytes for at, row in zip(offsets, rows, strict=True)):
        raise ImageError("the TIFF is damaged: the strips of a stack in one directory do not follow each other")
    page_bytes = layout.planes * layout.height * layout.row_bytes
    end = offsets[0] + frames * page_bytes
    if end > source.size:
        raise ImageError(f"the TIFF is truncated: its pixel data end at byte {end:,} of {source.size:,}")
    whole = dataclasses.replace(layout, segment_height=layout.height)
    return [Page(whole, None, None, offsets[0] + number * page_bytes) for number in range(frames)]
