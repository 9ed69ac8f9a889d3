"""What an image may ask for."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
import psutil
import pytest
from image_files import LIMIT, jpeg, picture, png, tiff

from denoise_core import images
from denoise_core.images import Header, ImageError, bounds, tiff_rooms
from denoise_core.images import tiff as tiff_container


@pytest.mark.parametrize("need", [bounds.SPARE, bounds.DENSEST * 1_000_000])
def test_samples_come_from_a_share_of_as_many_bytes(need: int) -> None:
    held = 1 if need == bounds.SPARE else 1_000_000
    bounds.check_held(held, need)
    with pytest.raises(ImageError, match="cannot hold a picture"):
        bounds.check_held(held, need + 1)


def test_samples_and_their_size_count_for_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """60 × 50 pixels of 4 doubles: 96,000 bytes, twice, and 48,000 for each copy as float32."""
    header = Header("tiff", "YXC", (60, 50, 4), "float64")
    monkeypatch.setattr(bounds, "machine_bytes", lambda: 2 * 96_000 + 3 * 48_000)
    bounds.check_memory(header, floats=3)
    with pytest.raises(ImageError, match=r"12,000 samples of float64 take about 0.0 GB of memory .* has 0.0 GB"):
        bounds.check_memory(header, floats=4)


@pytest.mark.parametrize(
    "data",
    [png(picture(24, 31, 3), colour=2), jpeg(picture(24, 31, 3)), tiff(picture(24, 31, 3), photometric="rgb")],
    ids=["png", "jpeg", "tiff"],
)
def test_what_does_not_fit_is_not_decoded(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    need = 2 * 24 * 31 * 3
    monkeypatch.setattr(bounds, "machine_bytes", lambda: need)
    assert images.decode(data, max_pixels=LIMIT).pixels.shape == (24, 31, 3)
    monkeypatch.setattr(bounds, "machine_bytes", lambda: need - 1)
    with pytest.raises(ImageError, match="of memory to be worked on"):
        images.decode(data, max_pixels=LIMIT)


def test_limits_of_control_groups(tmp_path: Path) -> None:
    """Version 2 and version 1, the group's own and one around it; in a container only the outermost is there."""
    inner = tmp_path / "machine.slice" / "job.scope"
    inner.mkdir(parents=True)
    (inner / "memory.max").write_text("max\n")
    (inner.parent / "memory.max").write_text("3000\n")
    assert bounds.group_limits("0::/machine.slice/job.scope\n", tmp_path) == [3000]
    (inner / "memory.max").write_text("2000\n")
    assert sorted(bounds.group_limits("0::/machine.slice/job.scope\n", tmp_path)) == [2000, 3000]
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text("1000\n")
    assert bounds.group_limits("5:cpu:/a\n4:hugetlb,memory:/docker/elsewhere\n", tmp_path) == [1000]
    assert bounds.group_limits("5:cpu:/a\n0::/gone\n", tmp_path) == []


def test_the_machine_has_no_more_than_it_has() -> None:
    assert 0 < bounds.machine_bytes() <= psutil.virtual_memory().total


LONG_STRIP = tiff(picture(24, 31), rowsperstrip=24).replace(struct.pack("<HHII", 279, 4, 1, 24 * 31), b"%s")


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.png", png(picture(24, 31))),
        ("a.jpg", jpeg(picture(24, 31))),
        ("a.tif", tiff(picture(24, 31))),
        ("long strip.tif", LONG_STRIP),
        ("a stack.tif", tiff(np.stack([picture(24, 31)] * 3), photometric="minisblack", compression="zlib")),
    ],
)
def test_a_file_that_is_mostly_something_else_is_not_read(name: str, data: bytes, tmp_path: Path) -> None:
    """Files with a hole at their end; of one it is said to be pixels."""
    path = tmp_path / name
    for size, refused in ((bounds.SPARE, False), (bounds.SPARE + (1 << 20), True)):
        path.write_bytes(data.replace(b"%s", struct.pack("<HHII", 279, 4, 1, size - 4096)))
        os.truncate(path, size)
        for by_plane in (False, True):
            if not refused:
                assert images.read_header(path, max_pixels=LIMIT, by_plane=by_plane).pixels % (24 * 31) == 0
                continue
            with pytest.raises(
                ImageError, match="a file of 269,484,032 bytes, of which its image accounts for no more than"
            ):
                images.read_header(path, max_pixels=LIMIT, by_plane=by_plane)


def test_pixels_and_as_many_bytes_beside_them_are_accepted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(bounds, "SPARE", 1000)
    monkeypatch.setattr(tiff_container, "SPARE", 1000)
    (tmp_path / "a.tif").write_bytes(tiff(picture(100, 100), metadata=None) + bytes(10_000))
    assert images.read_header(tmp_path / "a.tif", max_pixels=LIMIT).pixels == 10_000
    (tmp_path / "a.tif").write_bytes(tiff(picture(100, 100), metadata=None) + bytes(11_000))
    with pytest.raises(ImageError, match="no more than 10,000:"):
        images.read_header(tmp_path / "a.tif", max_pixels=LIMIT)


def test_layers_in_a_tag_are_accepted_and_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Photoshop keeps them in tag 37724; two tags with the same bytes count once."""
    monkeypatch.setattr(bounds, "SPARE", 1000)
    monkeypatch.setattr(tiff_container, "SPARE", 1000)
    layers = np.random.default_rng(0).bytes(100_000)
    data = tiff(picture(100, 100), metadata=None, extratags=[(37724, 7, len(layers), layers, True)])
    path = tmp_path / "a.tif"
    path.write_bytes(data)
    assert images.read_header(path, max_pixels=LIMIT).pixels == 10_000
    image = images.decode(data, max_pixels=LIMIT)
    assert layers in images.encode(image, 255 - image.pixels)
    twice = [(code, 7, len(layers), layers, True) for code in (37724, 37725)]
    data = tiff(picture(100, 100), metadata=None, extratags=twice)
    first, second = data.index(layers), data.rindex(layers)
    path.write_bytes(data.replace(struct.pack("<I", second), struct.pack("<I", first)) + bytes(30_000))
    with pytest.raises(ImageError, match="no more than 110,000:"):
        images.read_header(path, max_pixels=LIMIT)


def test_a_stack_of_blank_planes_is_read_and_a_plane_that_is_one_bomb_is_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """zstd makes more than 1,032 bytes of one where all are the same; a small stack stands for one of more than 256 MB."""
    blank, path = np.zeros((8, 256, 256), np.uint16), tmp_path / "a.tif"
    data = tiff(blank, photometric="minisblack", compression="zstd", rowsperstrip=256, metadata=None)
    path.write_bytes(data)
    for module in (bounds, tiff_rooms):
        monkeypatch.setattr(module, "SPARE", blank[0].nbytes)
    assert len(data) * bounds.DENSEST > blank.nbytes > 8 * 30 * bounds.DENSEST, "the strips alone are denser"
    assert images.read_header(path, max_pixels=LIMIT).pixels == blank.size
    assert not images.decode(data, max_pixels=LIMIT).pixels.any()
    for module in (bounds, tiff_rooms):
        monkeypatch.setattr(module, "SPARE", blank[0].nbytes - 1)
    with pytest.raises(ImageError, match="cannot hold a picture of 131,072 bytes: but for blank ones none"):
        images.decode(data, max_pixels=LIMIT)
