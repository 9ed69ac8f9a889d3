"""File kinds by their first bytes."""

from __future__ import annotations

from denoise_core.images.model import SUPPORTED

# Where, what, name. The first that fits wins, so longer signatures come before what they begin with.
_SIGNATURES: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\x89PNG\r\n\x1a\n", "png"),
    (0, b"\xff\xd8\xff", "jpeg"),
    (0, b"II\x2a\0", "tiff"),
    (0, b"MM\0\x2a", "tiff"),
    (0, b"II\x2b\0\x08\0\0\0", "tiff"),
    (0, b"MM\0\x2b\0\x08\0\0", "tiff"),
    (0, b"II\xbc\x01", "jpeg xr"),
    (0, b"GIF87a", "gif"),
    (0, b"GIF89a", "gif"),
    (8, b"WEBP", "webp"),
    (8, b"AVI ", "avi"),
    (8, b"WAVE", "wave audio"),
    (0, b"\0\0\0\x0cjP  \r\n\x87\n", "jp2"),
    (0, b"\xff\x4f\xff\x51", "jp2"),
    (0, b"\0\0\0\x0cJXL \r\n\x87\n", "jpeg xl"),
    (0, b"\xff\x0a", "jpeg xl"),
    (4, b"ftypavif", "avif"),
    (4, b"ftyphei", "heic"),
    (4, b"ftypmif1", "heic"),
    (4, b"ftyp", "mp4"),
    (0, b"ZISRAWFILE", "czi"),
    (0, b"\xda\xce\xbe\x0a", "nd2"),
    (0, b"\x89HDF\r\n\x1a\n", "hdf5"),
    (0, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "ole2 (oib, zvi or an office document)"),
    (0, b"\x93NUMPY", "npy"),
    (0, b"SIMPLE  =", "fits"),
    (0, b"\x76\x2f\x31\x01", "openexr"),
    (0, b"#?RADIANCE", "radiance hdr"),
    (0, b"8BPS", "psd"),
    (0, b"qoif", "qoi"),
    (0, b"DDS ", "dds"),
    (0, b"FORM", "iff"),
    (0, b"%PDF-", "pdf"),
    (0, b"%!PS", "postscript"),
    (0, b"\0\0\x01\0", "ico"),
    (128, b"DICM", "dicom"),
    (0, b"PK\x03\x04", "zip"),
    (0, b"PK\x05\x06", "zip"),
    (0, b"\x1f\x8b", "gzip"),
    (0, b"BZh", "bzip2"),
    (0, b"\xfd7zXZ\0", "xz"),
    (0, b"\x28\xb5\x2f\xfd", "zstandard"),
    (0, b"7z\xbc\xaf\x27\x1c", "7z"),
    (0, b"Rar!\x1a\x07", "rar"),
    (0, b"PAR1", "parquet"),
    (0, b"SQLite format 3\0", "sqlite"),
    (0, b"\x7fELF", "elf"),
)
_EXTRAS = {"czi": "czi", "nd2": "nd2", "lif": "lif", "ome-zarr": "zarr"}
_ITS_NAME_SAYS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".tif": "TIFF", ".tiff": "TIFF"}
_SHOWN = 24


def sniff(data: bytes) -> str | None:
    """The kind of file that begins with `data` (64 bytes suffice for images), None if unknown.

    "png", "jpeg" and "tiff" (BigTIFF included) are those that can be read; others are named so that an error can say
    what was found.
    """
    for at, mark, name in _SIGNATURES:
        if data[at : at + len(mark)] == mark:
            return name
    # These bytes alone begin many another file: ask for the rest of the header.
    if data[:4] == b"\x70\0\0\0" and data[8:9] == b"\x2a":
        return "lif"
    if data[:2] == b"BM" and data[6:10] == b"\0\0\0\0":
        return "bmp"
    if len(data) > 2 and data[:1] == b"P" and data[1:2] in b"1234567" and data[2:3].isspace():
        return "pnm"
    return None


def describe(head: bytes, suffix: str = "") -> str:
    """One sentence for a file that begins with `head` and cannot be read; `suffix` is its name's."""
    if not head:
        return f"the file is empty; {SUPPORTED}"
    claimed = _ITS_NAME_SAYS.get(suffix.lower())
    begin = f"not a {claimed}" if claimed else "not an image of a known kind"
    kind = sniff(head)
    if kind in _EXTRAS:
        return f"{begin} but {to_come(kind)}" if claimed else to_come(kind)
    if kind is not None:
        return (
            f"{begin} but {_an(kind)} {kind.upper()} file; {SUPPORTED}"
            if claimed
            else f"{_an(kind)} {kind.upper()} file; {SUPPORTED}"
        )
    text = _as_text(head)
    if text is not None:
        return f"{begin}: it starts with {text[:_SHOWN]!r}, which is plain text; {SUPPORTED}"
    if not any(head):
        return f"{begin}: it starts with zeros; {SUPPORTED}"
    return f"{begin}: it starts with the bytes {head[:8].hex(' ')}; {SUPPORTED}"


def to_come(kind: str) -> str:
    """One sentence for a format of microscopes that another version will read: "czi", "nd2", "lif" or "ome-zarr"."""
    what = "an OME-Zarr image, a folder of chunks" if kind == "ome-zarr" else f"{_an(kind)} {kind.upper()} file"
    return (
        f"{what}, for which the extra denoise-flows[{_EXTRAS[kind]}] is to come: until then export it as OME-TIFF; "
        f"{SUPPORTED}"
    )


def _an(word: str) -> str:
    return "an" if word[0] in "aeioxhn" else "a"


def _as_text(head: bytes) -> str | None:
    """The head as text, if it reads as such; a character cut in two at its end does not count against it."""
    encoding = "utf-16" if head[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8"
    for cut in range(4):
        try:
            text = head[: len(head) - cut].decode(encoding).lstrip("\ufeff")
        except UnicodeDecodeError:
            continue
        return text if text and all(c.isprintable() or c in "\t\r\n\f" for c in text) else None
    return None
