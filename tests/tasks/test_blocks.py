"""Stacks that are too large for memory: what is done in blocks is what would be done of the whole."""

from __future__ import annotations

import errno
import hashlib
import os
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
import tifffile

from benchmarks.roundtrip import facts
from denoise_core.device import Device
from denoise_core.images import ImageError, read_header
from denoise_core.images.tiff_planes import Copy
from denoise_core.methods.zs_fit import prepared
from tasks import blocks, chunk, fit, report
from tasks.settings import Settings
from tasks.table import COLUMNS, DONE, FAILED, Row
from tasks.work import Source, Work

VOLATILE = {"note", "fit_seconds", "denoise_seconds", "fit_started_at", "fit_finished_at", "slot_wait_seconds"}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "in").mkdir()
    return Settings(
        input=tmp_path / "in",
        output=tmp_path / "out",
        method="nl-bayes",
        preset="fast",
        noise="none",
        clip_noise=False,
        reference=None,
        seed=0,
        device=Device("cpu", "float32", 1, "a test"),
        slots=1,
        max_pixels=10_000_000,
        run_id="0001",
        config_digest="0" * 64,
        steps_are_seen=False,
        has_limits=False,
    )


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Blocks of two frames of 48 × 40 pixels, for every stack; and but a few pages are kept."""
    monkeypatch.setattr(blocks, "LEAST_SAMPLES", 0)
    monkeypatch.setattr(blocks, "BLOCK_SAMPLES", 2 * 48 * 40)
    monkeypatch.setattr(blocks, "_NEIGHBOURS", 5)


def scene(axes: str, dtype: str = "uint16", **lengths: int) -> np.ndarray:
    """Waves that move a little from plane to plane, under noise."""
    sizes = {"T": 5, "Z": 3, "C": 2, "Y": 48, "X": 40, "S": 3} | lengths
    at = np.ix_(*(range(sizes[axis]) for axis in axes))
    along = {axis: at[n] for n, axis in enumerate(axes)}
    moved = sum(along.get(axis, 0) * step for axis, step in zip("TZCS", (0.3, 1, 4, 2), strict=True))
    waves = 0.5 + 0.2 * np.sin((along["X"] + moved) / 5) * np.cos(along["Y"] / 9)
    pixels = waves + np.random.default_rng(0).normal(0, 0.04, waves.shape)
    if np.dtype(dtype).kind == "f":
        return (300 * pixels - 20).astype(dtype)
    limits = np.iinfo(dtype)
    return np.clip(limits.min + pixels * (float(limits.max) - float(limits.min)), limits.min, limits.max).astype(dtype)


def write(path: Path, pixels: np.ndarray, axes: str, **options: Any) -> None:
    kind = {name: options.pop(name) for name in ("imagej", "ome", "bigtiff", "byteorder") if name in options}
    metadata = options.pop("metadata", {}) | {"axes": axes}
    photometric = {"photometric": "rgb" if axes.endswith("S") else "minisblack"} if not kind.get("imagej") else {}
    with tifffile.TiffWriter(path, **kind) as writer:
        writer.write(pixels, metadata=metadata, resolution=(12.5, 7.25), **photometric, **options)


def done(settings: Settings, name: str = "a.tif") -> Row:
    """The row of a file that went through the steps of a chunk."""
    path = settings.input / name
    header = read_header(path, max_pixels=settings.max_pixels, by_plane=True)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    work = Work(Source(name, digest, header, channels=settings.channels), settings)
    chunk._steps(work, settings, seen=False)
    return work.row


def both(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> tuple[Row, bytes, Row, bytes]:
    """Row and file of `a.tif`, done in memory and in blocks."""
    found: list[Any] = []
    for least in (10**9, 0):
        monkeypatch.setattr(blocks, "LEAST_SAMPLES", least)
        row = done(settings)
        assert row["status"] == DONE, row["error"]
        assert ("some frames at a time" in str(row["note"])) == (least == 0)
        written = (settings.images / "a.tif").read_bytes()
        assert row["output_sha256"] == hashlib.sha256(written).hexdigest()
        assert row["output_bytes"] == len(written)
        assert sorted(path.name for path in settings.images.iterdir()) == ["a.tif"]
        found += [row, written]
    return tuple(found)  # type: ignore[return-value]


def same(one: Row, other: Row) -> None:
    """Rows that differ in nothing but times and the last bits of means."""
    assert one.keys() == other.keys()
    for name in one.keys() - VOLATILE - {"output_sha256", "output_bytes"}:
        if isinstance(one[name], float):
            assert other[name] == pytest.approx(one[name], rel=1e-6, abs=1e-9), name
        else:
            assert other[name] == one[name], name


KINDS: dict[str, tuple[np.ndarray, str, dict[str, Any]]] = {
    "plain": (scene("TYX"), "TYX", {"rowsperstrip": 7}),
    "deflate": (scene("TYX"), "TYX", {"compression": "zlib", "predictor": 2}),
    "tiles of colours": (scene("ZYXS", "uint8"), "ZYXS", {"tile": (16, 32), "compression": "lzw"}),
    "ImageJ in a row": (scene("TCYX"), "TCYX", {"imagej": True, "metadata": {"unit": "um", "finterval": 2.0}}),
    "OME": (scene("TCYX"), "TCYX", {"ome": True, "metadata": {"PhysicalSizeX": 0.1, "Channel": {"Name": ["a", "b"]}}}),
    "big and big-endian": (scene("TYX", "float32"), "TYX", {"bigtiff": True, "byteorder": ">", "compression": "zstd"}),
    "giants": (scene("TYX", "float64"), "TYX", {}),
    "mostly empty": (scene("TYX", "float64"), "TYX", {}),
    "32 bits": (scene("TZYX", "uint32", T=2) // 7, "TZYX", {}),
    "alpha": (scene("TYXS", "uint16", S=4), "TYXS", {"extrasamples": ("unassalpha",)}),
}


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("method", ["none", "nl-bayes"])
@pytest.mark.parametrize("kind", KINDS)
def test_blocks_give_what_the_whole_gives(
    kind: str, method: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels, axes, options = KINDS[kind]
    if kind == "mostly empty":
        pixels = 1e-9 * pixels
        pixels[0, 3, 4:8] = 1e-5, 1e-3, 0.1, 1
    if kind == "32 bits":
        pixels = pixels.copy()
        pixels[0, 0, 3, 4] = 4_000_000_000
    if kind == "big and big-endian":
        pixels = pixels.copy()
        pixels[1, 5:9, 6] = np.nan
    if kind == "giants":
        pixels = pixels.copy()
        pixels[0, 3, 4], pixels[2, 30, 9], pixels[3, 8, 8], pixels[4, 20, 20:23] = 1e300, -1.79e308, np.inf, 1e11
    write(settings.input / "a.tif", pixels, axes, **options)
    source = (settings.input / "a.tif").read_bytes()
    settings = replace(settings, method=method)
    whole, written, row, in_blocks = both(settings, monkeypatch)
    same(whole, row)
    assert in_blocks == written
    if kind == "mostly empty":
        assert row["value_high"] == [pixels.max()], "not the 99.9th percentile"
    if kind == "giants":
        for told in (whole["note"], row["note"]):
            assert "1 values that are NaN or infinite stay as they are; 5 values that are too far" in str(told)
    read = tifffile.imread(settings.images / "a.tif")
    assert np.array_equal(read, pixels, equal_nan=read.dtype.kind == "f") == (method == "none")
    before, after = facts(source), facts(in_blocks)
    assert {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)} == {"Software"}


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize(
    ("axes", "channels", "method"), [("TYX", "auto", "zs-fit"), ("TCYX", "joint", "zs-fit"), ("ZYX", "auto", "wavelet")]
)
def test_other_methods(
    axes: str, channels: str, method: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepared, "LONGEST", 1)  # long windows are not fitted to
    pixels = scene(axes, T=9, Z=2, Y=64, X=64)
    write(settings.input / "a.tif", pixels, axes, compression="zlib")
    scope = "stack" if method == "zs-fit" else "image"
    whole, written, row, in_blocks = both(replace(settings, method=method, scope=scope, channels=channels), monkeypatch)
    same(whole, row)
    assert in_blocks == written
    assert ((row["steps"] or 0) > 0) == (method == "zs-fit")


@pytest.mark.usefixtures("small_blocks")
def test_pages_that_did_not_change_are_not_coded_again(settings: Settings) -> None:
    """Constant frames among noisy ones, as JPEG, which would lose more each time."""
    pixels = scene("TYX", "uint8", T=4)
    pixels[1:3] = np.linspace(40, 90, 40).astype(np.uint8)
    write(settings.input / "a.tif", pixels, "TYX", compression="jpeg")
    row = done(settings)
    assert row["status"] == DONE, row["error"]
    with tifffile.TiffFile(settings.input / "a.tif") as one, tifffile.TiffFile(settings.images / "a.tif") as other:
        changed = [
            not np.array_equal(before.asarray(), after.asarray())
            for before, after in zip(one.pages, other.pages, strict=True)
        ]
        assert changed == [True, False, False, True]
        strips = [_strip(tif.filehandle, tif.pages[1]) for tif in (one, other)]
        assert strips[0] == strips[1]


def _strip(file: Any, page: Any) -> bytes:
    file.seek(page.dataoffsets[0])
    found: bytes = file.read(page.databytecounts[0])
    return found


@pytest.mark.usefixtures("small_blocks")
def test_the_levels_of_a_pyramid_are_made_again(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = scene("TYX")
    with tifffile.TiffWriter(settings.input / "a.tif", ome=True) as writer:
        options = {"photometric": "minisblack", "tile": (16, 16), "compression": "zlib"}
        writer.write(pixels, subifds=1, metadata={"axes": "TYX"}, **options)
        writer.write(pixels[:, ::2, ::2], subfiletype=1, **options)
    both(settings, monkeypatch)
    with tifffile.TiffFile(settings.images / "a.tif") as tif:
        full, half = (level.asarray().astype(float) for level in tif.series[0].levels)
        means = full.reshape(5, 24, 2, 20, 2).mean(axis=(2, 4))
        assert np.abs(half - means).max() <= 1


@pytest.mark.usefixtures("small_blocks")
def test_the_limit_holds_for_each_plane_where_the_file_has_room(settings: Settings) -> None:
    settings = replace(settings, max_pixels=48 * 40)
    write(settings.input / "a.tif", scene("TYX"), "TYX")
    assert done(settings)["status"] == DONE
    write(settings.input / "b.tif", scene("TYX", Y=49), "TYX")
    with pytest.raises(ImageError, match="49 = 1,960 pixels, and at most 1,920"):
        done(settings, "b.tif")
    write(settings.input / "c.tif", np.zeros((5, 300, 300), np.uint8), "TYX", compression="zstd")
    with pytest.raises(ImageError, match="5 × 300 × 300 = 450,000 pixels, and at most 90,000"):
        done(replace(settings, max_pixels=90_000), "c.tif")


def test_what_is_not_done_in_blocks_is_refused_before_it_is_read(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.load.read_below", lambda *_: pytest.fail("it was read"))
    write(settings.input / "a.tif", scene("TYX"), "TYX")
    row = done(replace(settings, max_pixels=48 * 40))
    assert row["status"] == FAILED
    assert "5 × 40 × 48 = 9,600 pixels, and at most 1,920 are allowed" in row["error"]


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("before", "the file changed"),
        ("meanwhile", "the file changed"),
        ("cut", "the TIFF is truncated"),
        ("gone", "vanished"),
    ],
)
def test_a_source_that_changes_leaves_nothing(
    change: str, words: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = settings.input / "a.tif"
    write(path, scene("TYX"), "TYX", compression="zlib")
    copy = blocks._copy

    def copied(file: BinaryIO, out: BinaryIO, sha256: str) -> None:
        if change == "before":
            path.write_bytes(path.read_bytes()[:-1] + b"x")
        copy(file, out, sha256)
        if change == "meanwhile":
            os.utime(path, (1, 1))
        if change == "cut":
            size = path.stat().st_size
            monkeypatch.setattr(blocks, "open_planes", _cutting(path, size))

    if change == "gone":
        header = read_header(path, max_pixels=10**6)
        (settings.input / "b.tif").write_bytes(b"another")
        path.unlink()
        work = Work(Source("a.tif", "0" * 64, header), settings)
        chunk._steps(work, settings, seen=False)
        row = work.row
    else:
        monkeypatch.setattr(blocks, "_copy", copied)
        row = done(settings)
    assert row["status"] == FAILED
    assert words in row["error"]
    assert not settings.images.exists() or not list(settings.images.iterdir())


def _cutting(path: Path, size: int) -> Any:
    """`open_planes`, and then half of the file is gone."""
    from denoise_core.images import open_planes

    def opened(file: BinaryIO, *, max_pixels: int) -> Any:
        found = open_planes(file, max_pixels=max_pixels)
        os.truncate(path, size // 2)
        return found

    return opened


@pytest.mark.usefixtures("small_blocks")
def test_a_full_disk_in_the_middle_is_the_machines_fault(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    write(settings.input / "a.tif", scene("TYX"), "TYX", compression="zlib")
    real, calls = Copy.put, 0

    def put(self: Copy, page: int, samples: np.ndarray | None) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(self, page, samples)

    monkeypatch.setattr(Copy, "put", put)
    with pytest.raises(OSError, match="No space left"):
        done(settings)
    assert list(settings.images.iterdir()) == []
    row = done(settings)
    assert row["status"] == DONE


@pytest.mark.usefixtures("small_blocks")
def test_a_directory_is_fitted_to_some_frames(settings: Settings) -> None:
    pixels = scene("TCYX", T=30)
    write(settings.input / "a.tif", pixels, "TCYX")
    path = settings.input / "a.tif"
    source = Source("a.tif", hashlib.sha256(path.read_bytes()).hexdigest(), read_header(path, max_pixels=10**6))
    found = fit._noisy(source, 1, settings)
    assert found is not None
    assert found.shape == (10, 48, 40, 1)
    assert np.array_equal(found[..., 0], (pixels[::3, 1] / np.float32(65535)).astype(np.float32))
    path.write_bytes(path.read_bytes()[:3000])
    assert fit._noisy(source, 1, settings) is None


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_memory_is_that_of_a_block_however_long_the_series(
    compression: str | None, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "_AT_ONCE", 1 << 16)
    settings, peaks = replace(settings, method="none"), []
    for frames in (10, 80, 160):
        # A strip a page: long lists of them are the one thing that grows.
        write(settings.input / "a.tif", scene("TYX", T=frames, Y=192, X=160), "TYX", compression=compression)
        tracemalloc.start()
        try:
            assert done(settings)["status"] == DONE
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    assert peaks[2] < peaks[1] + 80 * 4000, "a page's directory and no pixels"
    assert peaks[2] < 160 * 192 * 160 * 2 / 2


@pytest.mark.usefixtures("small_blocks")
def test_the_report_reads_one_plane_of_a_large_stack(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = scene("TYX", T=9, Z=2, Y=64, X=64)
    write(settings.input / "a.tif", pixels, "TYX", compression="zlib")
    row = done(settings)
    assert row["status"] == DONE
    row = {column.name: None for column in COLUMNS} | row  # as the table has it
    config = {"input": str(settings.input)}
    small = report._panel(row, "why", settings.output, config)
    monkeypatch.setattr(report, "LEAST_SAMPLES", 1)
    monkeypatch.setattr(report, "decode", None)  # nothing is read whole
    large = report._panel(row, "why", settings.output, config)
    assert small is not None
    assert "T 5 of 9" in small.caption
    assert large == small
    (settings.input / "a.tif").write_bytes(b"another")
    assert report._panel(row, "why", settings.output, config) is None


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("method", ["none", "nl-bayes"])
def test_what_only_other_pixels_lose_is_noted_with_them(method: str, settings: Settings) -> None:
    write(settings.input / "a.tif", scene("TYX"), "TYX", extratags=[(281, "H", 1, 60_000, False)])
    row = done(replace(settings, method=method))
    assert ("MaxSampleValue" in str(row["note"])) == (method != "none")
