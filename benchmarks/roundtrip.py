"""What comes back of a file: every container, type and order of axes through the command, and what its own readers then say.

python -m benchmarks.roundtrip [--data ../shared/data/tiff_variety] [--method nl-bayes]

Each file is made (or taken from --data), run through `denoise run` with --method none and with --method, and read again. With
none the pixels have to be identical; with a method the type, the shape and the axes. Both times every field of metadata has
to be what it was, as tifffile's parsers for TIFF, ImageJ and OME see it, and for OME-TIFF as ome-types does; the tag Software is
named, since it says what was done.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image as Pillow

from denoise_core import images
from flows.cli import main as denoise
from tasks import table

DTYPES = ("uint8", "uint16", "uint32", "int8", "int16", "int32", "float16", "float32", "float64")
LENGTHS = {"T": 2, "Z": 3, "C": 2, "Y": 40, "X": 48, "S": 3}
AXES = ("YX", "YXS", "TYX", "ZYX", "CYX", "TZYX", "ZCYX", "TCYX", "TZCYX", "ZYXS")
IMAGEJ_DTYPES = ("uint8", "uint16", "float32")
PLACES = frozenset({"StripOffsets", "StripByteCounts", "TileOffsets", "TileByteCounts"})
ICC = b"\0\0\0\x80test" + bytes(120)


def picture(axes: str, dtype: str) -> np.ndarray:
    """Smooth waves under noise, over a part of the type's range, each plane another."""
    shape = [LENGTHS[axis] for axis in axes]
    generator = np.random.default_rng(len(axes))
    y, x = (np.arange(LENGTHS[axis]).reshape([-1 if a == axis else 1 for a in axes]) for axis in "YX")
    planes = generator.random([1 if a in "YX" else n for a, n in zip(axes, shape, strict=True)])
    waves = 0.5 + 0.2 * np.sin(x / 7 + 6 * planes) * np.cos(y / 9) + generator.normal(0, 0.03, shape)
    if np.dtype(dtype).kind == "f":
        return (100 * waves).astype(dtype)
    limits = np.iinfo(dtype)
    return (limits.min + waves * (float(limits.max) - float(limits.min))).astype(dtype)


def tiff(pixels: np.ndarray, axes: str, **options: Any) -> bytes:
    """A TIFF with resolution, date, software and, where it may, an ICC profile and a tag of somebody's own."""
    kind = {name: options.pop(name) for name in ("imagej", "ome", "bigtiff", "byteorder") if name in options}
    metadata = options.pop("metadata", {}) | {"axes": axes}
    if not kind.get("imagej"):
        options |= {"photometric": "rgb" if axes.endswith("S") else "minisblack", "software": "a microscope"}
        options |= {"iccprofile": ICC, "extratags": [(65000, "B", 3, b"\1\2\3", True)]}
    file = io.BytesIO()
    with tifffile.TiffWriter(file, **kind) as writer:
        resolution = {"resolution": (12.5, 7.25), "datetime": "2024:05:06 07:08:09"}
        writer.write(pixels, metadata=metadata, **resolution, **options)
    return file.getvalue()


def made() -> Iterator[tuple[str, bytes]]:
    """Name and bytes of every kind of file."""
    for dtype in DTYPES:
        for axes in AXES:
            pixels = picture(axes, dtype)
            yield f"tiff {dtype} {axes}.tif", tiff(pixels, axes)
            if dtype != "float16":  # OME knows no such type
                physical = {"PhysicalSizeX": 0.108, "PhysicalSizeY": 0.11, "PhysicalSizeZ": 0.5, "TimeIncrement": 0.1}
                names = {"Channel": {"Name": ["DAPI", "GFP"]}} if "C" in axes else {}
                yield f"ome {dtype} {axes}.ome.tif", tiff(pixels, axes, ome=True, metadata=physical | names)
            if dtype in IMAGEJ_DTYPES and (dtype == "uint8" or not axes.endswith("S")):
                calibration = {"unit": "um", "spacing": 0.5, "finterval": 2.0, "min": 3.0, "max": 99.0}
                if axes not in ("YX", "YXS"):
                    planes = int(np.prod(pixels.shape[: axes.index("Y")]))
                    calibration["Labels"] = [f"plane {n}" for n in range(planes)]  # type: ignore[assignment]
                yield f"imagej {dtype} {axes}.tif", tiff(pixels, axes, imagej=True, metadata=calibration)
    for dtype in ("uint8", "uint16", "int16", "float32"):
        for order in "<>":
            for compression in ("none", "lzw", "zlib", "zstd", "packbits", "lzma"):
                for layout in ("strips", "tiles"):
                    options: dict[str, Any] = {"tile": (16, 32)} if layout == "tiles" else {"rowsperstrip": 7}
                    if compression != "none":
                        options["predictor"] = 3 if dtype == "float32" else 2
                    options["compression"] = None if compression == "none" else compression
                    name = f"{'bigtiff' if order == '>' else 'tiff'} {order} {compression} {layout} {dtype} TYX.tif"
                    yield (
                        name.replace("<", "little").replace(">", "big"),
                        tiff(picture("TYX", dtype), "TYX", byteorder=order, bigtiff=order == ">", **options),
                    )
    for axes in ("YX", "YXS"):
        yield f"jpeg in tiff uint8 {axes}.tif", tiff(picture(axes, "uint8"), axes, compression="jpeg")
    yield from _pillow()


def _pillow() -> Iterator[tuple[str, bytes]]:
    grey, colour = picture("YX", "uint8"), picture("YXS", "uint8")
    alpha = np.dstack([colour, grey])
    pillows = {
        "png uint8 YX.png": Pillow.fromarray(grey),
        "png uint16 YX.png": Pillow.fromarray(picture("YX", "uint16")),
        "png uint8 YXS.png": Pillow.fromarray(colour),
        "png uint8 alpha.png": Pillow.fromarray(alpha),
        "png palette.png": Pillow.fromarray(colour).quantize(64),
        "jpeg uint8 YX.jpg": Pillow.fromarray(grey),
        "jpeg uint8 YXS.jpg": Pillow.fromarray(colour),
    }
    exif = Pillow.Exif()
    exif[0x0110], exif[0x0132] = "a camera", "2024:05:06 07:08:09"
    for name, image in pillows.items():
        file = io.BytesIO()
        image.save(file, "JPEG" if name.endswith("jpg") else "PNG", dpi=(300, 150), icc_profile=ICC, exif=exif)
        yield name, file.getvalue()


def facts(data: bytes) -> dict[str, Any]:
    """Every field of metadata, by its name: tags of every page, and what the parsers of ImageJ and OME make of it."""
    if data[:2] not in (b"II", b"MM"):
        with Pillow.open(io.BytesIO(data)) as image:
            image.load()
            known = {key: image.info.get(key) for key in ("dpi", "icc_profile", "exif", "gamma", "transparency")}
            return {**known, "mode": image.mode, "size": image.size, "Software": image.info.get("Software")}
    with tifffile.TiffFile(io.BytesIO(data)) as tif:
        series = tif.series[0]
        found: dict[str, Any] = {
            "byte order": tif.byteorder,
            "BigTIFF": tif.is_bigtiff,
            "axes": series.axes,
            "shape": series.shape,
            "dtype": str(series.dtype),
            "ImageJ": repr(tif.imagej_metadata),
            "OME": tif.ome_metadata,
        }
        for number in range(len(tif.pages)):
            page = tifffile.TiffPage(tif, index=number) if tif.pages._seek(number) else None
            tags = {} if page is None else {tag.name: repr(tag.value) for tag in page.tags.values()}
            for name in tags.keys() - PLACES:
                first = name == "Software" and number == 0
                found["Software" if first else f"{name} of page {number}"] = tags[name]
    if found["OME"]:
        found |= _ome_types(found["OME"])
    return found


def _ome_types(xml: str) -> dict[str, Any]:
    """Calibration as ome-types reads it."""
    from ome_types import from_xml

    pixels = from_xml(xml).images[0].pixels
    sizes = {
        f"ome-types {axis}": (getattr(pixels, f"physical_size_{axis}"), getattr(pixels, f"physical_size_{axis}_unit"))
        for axis in "xyz"
    }
    return {
        **{name: str(size) for name, size in sizes.items()},
        "ome-types time": str((pixels.time_increment, pixels.time_increment_unit)),
        "ome-types channels": [channel.name for channel in pixels.channels],
        "ome-types order": str(pixels.dimension_order),
    }


def compare(before: bytes, after: bytes, row: table.Row, *, same_pixels: bool) -> tuple[str, str]:
    """Whether the pixels came back, and which fields did not, in words."""
    first, second = (images.decode(data, max_pixels=10**9) for data in (before, after))
    whole = first.header == second.header
    if same_pixels:
        whole = whole and np.array_equal(first.pixels, second.pixels, equal_nan=first.pixels.dtype.kind == "f")
    old, new = facts(before), facts(after)
    changed = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name) and name != "Software")
    told = "denoise-flows" in str(new.get("Software")) or (after[:2] == b"\xff\xd8" and b"denoise-flows" in after)
    noted = str(row["note"] or "")
    unnamed = [name for name in changed if not noted]
    parts = [f"not carried: {noted}"] if noted else []
    parts += [f"CHANGED: {', '.join(unnamed)}"] if unnamed else []
    parts += [] if told else ["NO SOFTWARE"]
    return ("yes" if whole else "NO"), "; ".join(parts) or "all fields identical, Software added"


def check(folder: Path, scratch: Path, method: str) -> list[tuple[str, str, str, str]]:
    """Name, kind of run, whether the pixels came back and what of the metadata, for each file of a folder."""
    found = []
    for how in ("none", method):
        output = scratch / f"{folder.name}-{how}"
        with contextlib.redirect_stdout(sys.stderr):
            denoise(["run", str(folder), str(output), "--method", how])
        rows, _ = table.read(output / "results.parquet")
        for row in rows:
            name = row["source"]
            if row["status"] != "done":
                found.append((name, how, "NO", f"{row['status']}: {row['error']}"))
                continue
            before, after = (folder / name).read_bytes(), (output / row["output"]).read_bytes()
            found.append((name, how, *compare(before, after, row, same_pixels=how == "none")))
    return sorted(found)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a folder of real files to check beside those that are made")
    parser.add_argument("--method", default="nl-bayes", help="beside none (default nl-bayes)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        (scratch / "made").mkdir()
        for name, data in made():
            (scratch / "made" / name).write_bytes(data)
        found = check(scratch / "made", scratch, options.method)
        if options.data is not None:
            found += check(options.data.resolve(), scratch, options.method)
    print("| file | method | pixels (none) or type, shape and axes | metadata |\n| --- | --- | --- | --- |")
    for line in found:
        print(f"| {' | '.join(line)} |")
    bad = [line for line in found if line[2] == "NO" or any(word in line[3] for word in ("CHANGED", "NO SOFTWARE"))]
    print(f"\n{len(found)} round trips, {len(bad)} not whole")
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
