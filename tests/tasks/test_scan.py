"""The scan: what is an image, what is done, what must not be followed."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from tasks import ledger
from tasks.faults import Interrupted, interrupt
from tasks.scan import Scan, scan
from tasks.work import read_below

MOST = 10**8


def look(root: Path, output: Path | None = None) -> Scan:
    return scan(root, output or root.parent / "out", max_pixels=MOST, config_digest="c")


def png(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(path)


def reasons(found: Scan) -> dict[str, tuple[str, str]]:
    return {row["source"]: (row["status"], row["error"]) for row in found.refused}


def test_names_of_every_kind_are_kept_apart_and_in_order(tmp_path: Path) -> None:
    names = [
        "a b.png",
        "a\nb.png",
        "b/x.png",
        "c/x.png",
        "<script>alert(1)</script>.png".replace("/", ""),
        "微🔬.png",
        "'\".png",
    ]
    for name in names:
        png(tmp_path / "in" / name)
    found = look(tmp_path / "in")
    assert [source.name for source in found.todo] == sorted(names)
    assert len({source.sha256 for source in found.todo}) == 1


def test_a_name_that_is_no_unicode(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    raw = os.fsencode(tmp_path / "in") + b"/caf\xe9.txt"
    try:
        Path(os.fsdecode(raw)).write_bytes(b"x")
    except OSError:
        pytest.skip("this file system takes only Unicode names")
    assert list(reasons(look(tmp_path / "in"))) == ["caf\\xe9.txt"]


@pytest.mark.parametrize(
    ("folder", "marker"),
    [("night/a.ome.zarr", ".zgroup"), ("a.zarr", "zarr.json"), ("a.zarr", None), ("no ending", ".zarray")],
)
def test_an_ome_zarr_is_one_row(folder: str, marker: str | None, tmp_path: Path) -> None:
    root = tmp_path / "in"
    for chunk in range(50):
        (root / folder / "0" / "c" / str(chunk)).mkdir(parents=True)
        (root / folder / "0" / "c" / str(chunk) / "0").write_bytes(b"chunk")
    if marker is not None:
        (root / folder / marker).write_text("{}")
    png(root / "b.png")
    found = look(root)
    assert [source.name for source in found.todo] == ["b.png"]
    (name, (status, error)), *others = reasons(found).items()
    assert (name, status, others) == (folder, "failed", [])
    assert error.startswith("an OME-Zarr image, a folder of chunks, for which the extra denoise-flows[zarr] is to come")
    if marker is not None:
        assert list(reasons(look(root / folder))) == [Path(folder).name]


def test_links_out_loops_and_folders(tmp_path: Path) -> None:
    root = tmp_path / "in"
    png(root / "real.png")
    png(tmp_path / "outside" / "secret.png")
    (root / "inside-link.png").symlink_to(root / "real.png")
    (root / "out.png").symlink_to(tmp_path / "outside" / "secret.png")
    (root / "out").symlink_to(tmp_path / "outside")
    (root / "loop").symlink_to(root)
    (root / "self.png").symlink_to(root / "self.png")
    found = look(root)
    assert [source.name for source in found.todo] == ["inside-link.png", "real.png"]
    told = reasons(found)
    assert told["out.png"][0] == told["out"][0] == told["self.png"][0] == "failed"
    assert "out of the input" in told["out.png"][1]
    assert "itself" in told["self.png"][1]
    assert told["loop"][0] == "skipped"


def test_what_is_no_image_is_skipped_and_what_should_be_one_fails(tmp_path: Path) -> None:
    root = tmp_path / "in"
    root.mkdir()
    (root / "notes.txt").write_text("hello")
    (root / "text.png").write_text("hello")
    (root / "empty.tif").touch()
    (root / "movie.gif").write_bytes(b"GIF89a" + bytes(20))
    (root / ".hidden").write_text("x")
    png(root / "noext.png")
    (root / "noext.png").rename(root / "noext")
    os.mkfifo(root / "pipe.png")
    found = look(root)
    assert [source.name for source in found.todo] == ["noext"]
    told = reasons(found)
    assert {name: status for name, (status, _) in told.items()} == {
        "notes.txt": "skipped", "text.png": "failed", "empty.tif": "failed", "movie.gif": "failed", "pipe.png": "skipped",
    }  # fmt: skip
    assert "empty" in told["empty.tif"][1]
    assert "GIF" in told["movie.gif"][1]


def test_one_file_as_input(tmp_path: Path) -> None:
    png(tmp_path / "one.png")
    found = look(tmp_path / "one.png")
    assert [source.name for source in found.todo] == ["one.png"]
    assert read_below(tmp_path / "one.png", "one.png") == (tmp_path / "one.png").read_bytes()


def test_an_interrupt_ends_the_scan(tree: Path) -> None:
    interrupt.set()
    try:
        with pytest.raises(Interrupted):
            look(tree)
    finally:
        interrupt.clear()


def test_inks_are_three_colours_where_they_will_be_painted(tmp_path: Path) -> None:
    root = tmp_path / "in"
    root.mkdir()
    Image.new("CMYK", (30, 20)).save(root / "a.jpg")
    for in_rgb, axes, shape in ((False, None, (20, 30, 4)), (True, None, (20, 30, 3)), (True, "YXC", (20, 30, 3))):
        found = scan(root, tmp_path / "out", max_pixels=10**6, config_digest="c", in_rgb=in_rgb, axes=axes)
        assert [source.header.shape for source in found.todo] == [shape]


def test_a_file_that_is_mostly_a_hole_is_a_failed_row(tmp_path: Path) -> None:
    """4 GB that take no room on the disk; neither its digest nor its pixels are asked for."""
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((64, 64), np.uint8))
    os.truncate(tmp_path / "a.tif", 1 << 32)
    found = scan(tmp_path, tmp_path / "out", max_pixels=10**6, config_digest="")
    assert [row["status"] for row in found.refused] == ["failed"]
    assert (
        "a file of 4,294,967,296 bytes, of which its image accounts for no more than 4,096:"
        in found.refused[0]["error"]
    )


def test_outputs_that_were_copied_are_read_by_the_first_scan_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    png(tmp_path / "in" / "a.png")
    out = tmp_path / "out"
    out.mkdir()
    (out / "a.png").write_bytes(b"12345")
    (source,) = look(tmp_path / "in", out).todo
    row = {"source": "a.png", "status": "done", "source_sha256": source.sha256, "config_digest": "c", "output": "a.png"}
    row |= {"output_bytes": 5, "output_sha256": hashlib.sha256(b"12345").hexdigest(), ledger.CHANGED_AT: 1}
    ledger.Part(out / "runs" / "0001-20261120T000000Z", 1).append(row)
    assert [r["source"] for r in look(tmp_path / "in", out).done] == ["a.png"]
    monkeypatch.setattr(hashlib, "file_digest", lambda *_: pytest.fail("it was read"))
    assert [r["source"] for r in look(tmp_path / "in", out).done] == ["a.png"]
