"""Every container, type and order of axes with other pixels: what its own readers say of it stays, the tag Software apart."""

from __future__ import annotations

import io

import numpy as np
import pytest
import tifffile
from image_files import LIMIT, anything, tiff
from ome_types import from_xml

from benchmarks.roundtrip import facts, made
from denoise_core import images

FILES = dict(made())
SOME = sorted(FILES)[::6]


def check(name: str) -> None:
    data = FILES[name]
    image = images.decode(data, max_pixels=LIMIT)
    other = anything(image.dtype, *image.pixels.shape)
    for pixels in (image.pixels, other):
        written = images.encode(image, pixels, software="denoise-flows 1")
        again = images.decode(written, max_pixels=LIMIT)
        assert again.header == image.header
        if pixels is image.pixels or "jp" not in name:
            assert np.array_equal(again.pixels, pixels)
        before, after = facts(data), facts(written)
        changed = {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
        assert changed <= {"Software"} | ({"mode", "transparency"} if "palette" in name else set())


@pytest.mark.parametrize("name", SOME)
def test_some(name: str) -> None:
    check(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(FILES.keys() - set(SOME)))
def test_all_others(name: str) -> None:
    check(name)


def test_an_independent_reader_sees_the_same_calibration() -> None:
    source = anything("uint16", 3, 2, 20, 30)
    metadata = {"axes": "ZCYX", "PhysicalSizeX": 0.108, "PhysicalSizeXUnit": "µm", "PhysicalSizeZ": 0.5}
    data = tiff(source, ome=True, compression="zlib", metadata=metadata | {"Channel": {"Name": ["DAPI", "GFP"]}})
    image = images.decode(data, max_pixels=LIMIT)
    written = images.encode(image, source[::-1], software="denoise-flows 1")
    found = []
    for each in (data, written):
        with tifffile.TiffFile(io.BytesIO(each)) as tif:
            assert tif.ome_metadata is not None
            found.append(from_xml(tif.ome_metadata))
    assert found[0] == found[1]
    pixels = found[1].images[0].pixels
    assert (pixels.physical_size_x, pixels.physical_size_z) == (0.108, 0.5)
    assert [channel.name for channel in pixels.channels] == ["DAPI", "GFP"]
    assert (pixels.size_z, pixels.size_c, pixels.size_x) == (3, 2, 30)
