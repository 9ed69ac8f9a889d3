"""The first step: what lies in the input, and what of it is still to be done."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from denoise_core.errors import DenoiseError
from denoise_core.images import ImageError, read_header, sniff, to_come
from tasks import ledger
from tasks.arrangement import renamed
from tasks.faults import is_machine_fault, sentence, stop_if_interrupted
from tasks.table import FAILED, SKIPPED, Row, fill, text
from tasks.work import Source

IMAGE_SUFFIXES = frozenset(
    """
    .png .jpg .jpeg .jpe .jfif .tif .tiff .btf .tf8 .gif .bmp .webp .jp2 .j2k .jxl .heic .avif .exr .hdr .pgm .ppm
    .pbm .pnm .tga .ico .svg .dng .cr2 .nef .arw .czi .nd2 .lif .lsm .oib .oif .vsi .ims .dcm .mrc .fits .h5 .hdf5
    """.split()
)
"""What a user takes for an image: such a file is done or fails, it is never passed over."""

_ZARR = frozenset({".zgroup", ".zarray", "zarr.json"})  # one of them in a folder: its files are chunks of one image
_BLOCK = 1 << 20
_PAUSES = (0.5, 2.0)  # seconds before a file that the disk would not give is asked for again


class LinkError(DenoiseError):
    """A symbolic link that leads nowhere, or out of the input."""


class NotAnImage(DenoiseError):
    """Something that is no image and does not look like one: it is passed over and named."""


class Scan:
    """The input's files, sorted by name: what is to do, what the ledger holds as done, and rows for what cannot be done.

    No dataclass: Prefect would walk through every row of one.
    """

    def __init__(self) -> None:
        self.todo: list[Source] = []
        self.done: list[Row] = []
        self.refused: list[Row] = []  # status failed or skipped, with the reason

    @property
    def images(self) -> int:
        """Files that are images or should be."""
        return len(self.todo) + len(self.done) + len([row for row in self.refused if row["status"] == FAILED])


def scan(
    root: Path,
    output: Path,
    *,
    max_pixels: int,
    config_digest: str,
    redo: bool = False,
    reference: Path | None = None,
    axes: str | None = None,
    channels: str = "auto",
    noisy: bool = False,
    in_rgb: bool = False,
) -> Scan:
    """List the images below ``root`` (or ``root`` itself): headers and digests only, no pixel is decoded.

    Args:
        root: a directory, or one image.
        output: where earlier runs left their ledger.
        max_pixels: an image with more pixels is refused.
        config_digest: see :meth:`flows.config.RunConfig.digest`.
        redo: take nothing as done.
        reference: where the clean images lie under the same names; a changed one makes its image one to do.
        axes: what the axes are, whatever the files say.
        channels: see :func:`tasks.arrangement.arrange`.
        in_rgb: CMYK images will be taken as RGB.
        noisy: an image whose noisy version was not kept, or is gone, is one to do.

    Raises:
        OSError: the input itself cannot be listed.
    """
    limits = _Limits(max_pixels, axes, channels, in_rgb)
    earlier = {} if redo else ledger.latest_rows(output)
    found = Scan()

    def look(entry: tuple[str, Path, DenoiseError | None]) -> Source | Row | None:
        stop_if_interrupted()
        name, path, refusal = entry
        return _row(name, refusal) if refusal is not None else _look(name, path, reference, limits)

    entries = sorted(_walk(root), key=lambda entry: entry[0]) if root.is_dir() else [(root.name, root, None)]
    with ledger.Checked(output) as checked, ThreadPoolExecutor(max_workers=4, thread_name_prefix="scan") as pool:
        for result in pool.map(look, entries):
            if isinstance(result, Source):
                row = earlier.get(text(result.name))
                done = ledger.is_done(
                    row,
                    source_sha256=result.sha256,
                    reference_sha256=result.reference_sha256,
                    config_digest=config_digest,
                    output=output,
                    noisy=noisy,
                    checked=checked,
                )
                if done and row is not None:
                    found.done.append(row)
                else:
                    found.todo.append(result)
            elif result is not None:
                found.refused.append(result)
    return found


class _Limits(NamedTuple):
    """What decides how a header is taken."""

    max_pixels: int
    axes: str | None
    channels: str
    in_rgb: bool


def _look(name: str, path: Path, reference: Path | None, limits: _Limits) -> Source | Row:
    """One regular file: a source to work on, or a row that says why not. A fault of the disk is tried again first."""
    for pause in _PAUSES:
        try:
            return _look_once(name, path, reference, limits)
        except OSError:
            time.sleep(pause)
    try:
        return _look_once(name, path, reference, limits)
    except OSError as error:
        return _row(name, error)


def _look_once(name: str, path: Path, reference: Path | None, limits: _Limits) -> Source | Row:
    try:
        with path.open("rb") as file:
            start = file.read(64)
            kind = sniff(start)
            if kind is None and path.suffix.lower() not in IMAGE_SUFFIXES:
                what = f"a {path.suffix} file" if path.suffix else "a file without an extension"
                return _row(name, NotAnImage(f"not an image: {what}"))
            header = read_header(path, max_pixels=limits.max_pixels, by_plane=True)
            header = renamed(header.in_rgb if limits.in_rgb else header, limits.axes)
            digest = hashlib.sha256(start)
            while block := file.read(_BLOCK):
                digest.update(block)
    except FileNotFoundError:
        return _row(name, DenoiseError("the file vanished while the run went on"))
    except Exception as error:
        if isinstance(error, OSError) and is_machine_fault(error):
            raise
        return _row(name, error)
    return Source(name, digest.hexdigest(), header, _reference_sha256(name, reference), limits.channels)


def _reference_sha256(name: str, reference: Path | None) -> str | None:
    if reference is None:
        return None
    try:
        with (reference / name if reference.is_dir() else reference).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (FileNotFoundError, IsADirectoryError):
        return None


def _row(name: str, reason: Exception) -> Row:
    status = SKIPPED if isinstance(reason, NotAnImage) else FAILED
    row: Row = {}
    fill(row, source=text(name), status=status, error_type=type(reason).__name__, error=sentence(reason))
    return row


def _walk(root: Path) -> Iterator[tuple[str, Path, DenoiseError | None]]:
    """Every file below ``root`` with its name below it; links that must not be followed come with an error.

    Hidden files and folders are passed over, and an OME-Zarr folder is one image, which is refused. A link to a file below
    ``root`` is an image like any other; a link to a folder is not followed, since it may lead round in a circle and what it
    shows lies elsewhere already.
    """
    real_root = root.resolve()
    folders = [""]
    while folders:
        folder = folders.pop()
        try:
            entries = list(os.scandir(root / folder))
        except OSError as error:
            if not folder or is_machine_fault(error):
                raise
            yield folder, root / folder, DenoiseError(f"the folder cannot be read: {sentence(error)}")
            continue
        if folder.endswith(".zarr") or _ZARR & {entry.name for entry in entries}:
            yield folder or root.name, root / folder, ImageError(to_come("ome-zarr"))
            continue
        for entry in entries:
            if entry.name.startswith("."):
                continue
            name = f"{folder}/{entry.name}" if folder else entry.name
            path = root / name
            if entry.is_symlink():
                yield name, path, _refuse_link(path, real_root)
            elif entry.is_dir(follow_symlinks=False):
                folders.append(name)
            elif entry.is_file(follow_symlinks=False):
                yield name, path, None
            else:
                yield name, path, NotAnImage("not an image: neither a file nor a folder")


def _refuse_link(path: Path, real_root: Path) -> DenoiseError | None:
    try:
        target = path.resolve(strict=True)
    except (OSError, RuntimeError):
        return LinkError("a symbolic link that leads nowhere or to itself")
    if not target.is_relative_to(real_root):
        return LinkError("a symbolic link that leads out of the input; it is not followed")
    if target.is_dir():
        return NotAnImage("a symbolic link to a folder of the input, whose images are done where they lie")
    return None
