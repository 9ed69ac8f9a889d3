"""The flow on real images, against a real embedded Prefect server."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import shutil
import socket
import struct
import threading
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import tifffile
from PIL import Image
from prefect import task

import flows.denoise_directory
import tasks.chunk
import tasks.denoise
import tasks.report
import tasks.save
import tasks.scan
from denoise_core import methods
from denoise_core.methods import zs_n2n
from flows.cli import main
from flows.config import RunConfig
from tasks import ledger, table
from tasks.faults import interrupt

pytestmark = pytest.mark.usefixtures("prefect_server")


def run(*arguments: object) -> int:
    return main(["run", *map(str, arguments)])


def rows_of(output: Path) -> dict[str, table.Row]:
    rows, _ = table.read(output / "results.parquet")
    for row in rows:
        for name, value in row.items():
            assert not isinstance(value, float) or math.isfinite(value), (row["source"], name)
    return {row["source"]: row for row in rows}


def files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def digests(output: Path) -> dict[str, tuple[str, str]]:
    return {name: (row["status"], row["output_sha256"]) for name, row in rows_of(output).items()}


def fits(output: Path) -> int:
    """Rows that all runs into this output have written to their ledgers."""
    return sum(len(list(ledger.rows_of(folder))) for folder in ledger.run_folders(output))


@pytest.fixture(autouse=True)
def _short_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zs_n2n, "FAST_STEPS", 600)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pauses between retries."""
    monkeypatch.setattr(tasks.chunk.process_chunk, "retry_delay_seconds", [0.0, 0.0, 0.0])


@pytest.mark.parametrize("method", ["zs-fit", "zs-n2n"])
def test_the_main_job(tree: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], method: str) -> None:
    """A tree in, the same tree out, less noise, and every promise of the table."""
    (tree / "broken.png").write_bytes((tree / "rgb.png").read_bytes()[:200])
    (tree / "notes.txt").write_text("not an image")
    before = {p: p.read_bytes() for p in tree.rglob("*") if p.is_file()}
    out = tmp_path / "out"

    options = [] if method == "zs-fit" else ["--method", method]
    assert run(tree, out, "--noise", "gauss:25", "--chunk", 2, *options) == 1, "one image is broken"

    said = capfd.readouterr()
    assert "4 done, 1 failed, 1 not images" in said.out
    assert "broken.png" in said.err
    for trouble in ("Traceback", "Warning", "warning", "Error"):
        assert trouble not in said.out + said.err
    assert files(out / "images") == ["deep.tif", "photo.jpg", "rgb.png", "sub/grey.png"]
    assert {p: p.read_bytes() for p in tree.rglob("*") if p.is_file()} == before, "the input is never written to"

    rows = rows_of(out)
    assert {name: row["status"] for name, row in rows.items()} == {
        "broken.png": "failed", "deep.tif": "done", "notes.txt": "skipped", "photo.jpg": "done", "rgb.png": "done",
        "sub/grey.png": "done",
    }  # fmt: skip
    for name, row in rows.items():
        if row["status"] != "done":
            assert row["error"]
            assert row["output"] is None
            continue
        assert row["psnr_denoised_db"] > row["psnr_noisy_db"] + 1.5, name
        assert row["ssim_denoised"] > row["ssim_noisy"], name
        assert row["error"] is None
        assert row["method"] == method
        assert row["scope"] == "image"
        assert row["kept"] == ("estimate" if method == "zs-fit" else None), "too small for a network"
        assert (row["steps"] or 0) == (0 if method == "zs-fit" else 600)
        assert row["denoise_seconds"] > 0
        assert row["seconds"] >= (row["fit_seconds"] or 0) + row["denoise_seconds"]
        assert abs(row["mean_denoised"] - row["mean_noisy"]) < 0.02 * row["data_range"]
    assert rows["rgb.png"]["sigma_estimate"] == pytest.approx(25, rel=0.3)
    assert rows["deep.tif"]["data_range"] == 65535
    assert rows["rgb.png"]["shape"] == [40, 48, 3]

    denoised = tifffile.imread(out / "images" / "deep.tif")
    assert denoised.dtype == np.uint16
    assert denoised.shape == (40, 40)
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "broken.png" in page
    assert "data:image/png" in page
    (run_folder,) = ledger.run_folders(out)
    assert json.loads((run_folder / "environment.json").read_text())["packages"]["torch"]
    assert 'noise = "gauss:25"' in (run_folder / "config.toml").read_text()
    assert pq.read_schema(out / "results.parquet").metadata[b"denoise_flows.run_id"].decode() == run_folder.name


def test_a_second_run_does_nothing_for_what_is_done(
    tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run(tree, out, "--method", "none") == 0
    first, written = digests(out), {p: p.stat().st_mtime_ns for p in (out / "images").rglob("*.*")}
    assert run(tree, out, "--method", "none") == 0
    assert "0 done, 4 done earlier, 0 failed" in capsys.readouterr().out
    assert fits(out) == 4
    assert digests(out) == first
    assert {p: p.stat().st_mtime_ns for p in (out / "images").rglob("*.*")} == written


def test_only_what_changed_is_done_again(tree: Path, tmp_path: Path, photo: np.ndarray) -> None:
    """Three files more, one changed in place, one gone and ten touched: exactly four are done."""
    out = tmp_path / "out"
    for n in range(12):
        Image.fromarray(photo[n : n + 20, 200:220]).save(tree / f"many {n}.png")
    run(tree, out, "--method", "none")
    changed = tree / "deep.tif"
    stamp = changed.stat()
    data = bytearray(changed.read_bytes())
    data[-1] ^= 1  # same size, and soon the same time
    changed.write_bytes(data)
    os.utime(changed, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    for n in range(3):
        Image.fromarray(photo[n : n + 20, :20]).save(tree / f"new {n}.png")
    for n in range(10):
        os.utime(tree / f"many {n}.png")
    (tree / "rgb.png").unlink()
    assert run(tree, out, "--method", "none") == 0
    again = [row["source"] for row in ledger.rows_of(ledger.run_folders(out)[-1])]
    assert sorted(again) == ["deep.tif", "new 0.png", "new 1.png", "new 2.png"]
    rows = rows_of(out)
    assert "no longer in the input" in rows["rgb.png"]["note"]
    assert rows["rgb.png"]["status"] == "done"
    assert all(rows[f"many {n}.png"]["note"] is None for n in range(12))


def test_an_output_that_is_gone_is_written_again(tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(tree, out, "--method", "none")
    (out / "images" / "sub" / "grey.png").unlink()
    assert run(tree, out, "--method", "none") == 0
    assert [row["source"] for row in ledger.rows_of(ledger.run_folders(out)[-1])] == ["sub/grey.png"]


def test_an_output_of_other_bytes_is_written_again_and_a_copied_one_is_not(tree: Path, tmp_path: Path) -> None:
    out, copied = tmp_path / "out", tmp_path / "copied"
    assert run(tree, out, "--method", "none") == 0
    good = digests(out)
    damaged = out / "images" / "rgb.png"
    content = bytearray(damaged.read_bytes())
    content[-20] ^= 1
    damaged.write_bytes(content)
    assert run(tree, out, "--method", "none") == 0
    assert fits(out) == 4 + 1
    assert hashlib.sha256(damaged.read_bytes()).hexdigest() == good["rgb.png"][1]
    shutil.copytree(out, copied, copy_function=shutil.copyfile)
    assert run(tree, copied, "--method", "none") == 0
    assert fits(copied) == 4 + 1
    assert digests(copied) == good


def test_another_configuration_and_overwrite_do_everything_again(tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(tree, out, "--method", "none")
    run(tree, out, "--method", "none", "--seed", 1)
    assert fits(out) == 8
    run(tree, out, "--method", "none", "--seed", 1, "--slots", 2, "--chunk", 1)
    assert fits(out) == 8, "what decides no result redoes nothing"
    run(tree, out, "--method", "none", "--seed", 1, "--on-existing", "overwrite")
    assert fits(out) == 12
    assert run(tree, out, "--method", "none", "--on-existing", "error") == 2


def test_the_chunk_size_does_not_matter(tree: Path, tmp_path: Path) -> None:
    tifffile.imwrite(tree / "floats.tif", tifffile.imread(tree / "deep.tif").astype(np.float32) / 65535)
    run(tree, tmp_path / "a", "--chunk", 1, "--noise", "poisson:30")
    run(tree, tmp_path / "b", "--chunk", 4, "--noise", "poisson:30")
    a, b = rows_of(tmp_path / "a"), rows_of(tmp_path / "b")
    assert {k: r["output_sha256"] for k, r in a.items()} == {k: r["output_sha256"] for k, r in b.items()}
    assert {k: r["psnr_denoised_db"] for k, r in a.items()} == {k: r["psnr_denoised_db"] for k, r in b.items()}


def test_reference(tree: Path, tmp_path: Path) -> None:
    clean = tmp_path / "clean"
    shutil.copytree(tree, clean)
    (clean / "rgb.png").unlink()
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(clean / "sub" / "grey.png")
    (clean / "photo.jpg").write_bytes(b"broken")
    assert run(tree, tmp_path / "out", "--method", "none", "--reference", clean) == 0
    rows = rows_of(tmp_path / "out")
    assert "no reference" in rows["rgb.png"]["note"]
    assert "not scored" in rows["sub/grey.png"]["note"]
    assert "not scored" in rows["photo.jpg"]["note"]
    assert rows["deep.tif"]["ssim_denoised"] == pytest.approx(1)
    assert rows["deep.tif"]["data_range"] == 65535
    assert rows["deep.tif"]["psnr_denoised_db"] is None, "identical images have no finite PSNR"
    assert all(rows[name]["psnr_noisy_db"] is None for name in ("rgb.png", "sub/grey.png"))


def test_scores_are_those_of_the_files_against_the_reference(tree: Path, tmp_path: Path) -> None:
    from skimage.metrics import peak_signal_noise_ratio

    clean, out = tmp_path / "clean", tmp_path / "out"
    shutil.copytree(tree, clean)
    reference = tifffile.imread(clean / "deep.tif")
    noise = np.random.default_rng(0).normal(0, 3000, reference.shape)
    noisy = np.clip(reference + noise, 0, 65535).astype(np.uint16)
    tifffile.imwrite(tree / "deep.tif", noisy)
    assert run(tree, out, "--reference", clean) == 0
    row = rows_of(out)["deep.tif"]
    denoised = tifffile.imread(out / "images" / "deep.tif")
    assert row["psnr_noisy_db"] == pytest.approx(peak_signal_noise_ratio(reference, noisy), abs=1e-3)
    assert row["psnr_denoised_db"] == pytest.approx(peak_signal_noise_ratio(reference, denoised), abs=1e-3)
    assert row["psnr_denoised_db"] > row["psnr_noisy_db"]


def test_without_a_clean_image_there_are_no_scores(tree: Path, tmp_path: Path) -> None:
    assert run(tree / "rgb.png", tmp_path / "out") == 0
    (row,) = rows_of(tmp_path / "out").values()
    scores = ("psnr_noisy_db", "psnr_denoised_db", "ssim_noisy", "ssim_denoised", "data_range")
    assert [row[name] for name in scores] == [None] * 5
    assert row["sigma_estimate"] > 0
    assert row["residual_autocorrelation"] is not None


def test_cmyk_is_denoised_in_its_inks(tmp_path: Path, photo: np.ndarray) -> None:
    root, out = tmp_path / "in", tmp_path / "out"
    root.mkdir()
    inks = np.asarray(Image.fromarray(photo[:64, 180:244]).convert("CMYK")).copy()
    inks[..., 3] = 60 + inks[..., 1] // 4
    Image.fromarray(inks, "CMYK").save(root / "a.jpg", quality=95, icc_profile=b"a profile of inks")
    tifffile.imwrite(root / "deep.tif", inks.astype(np.uint16) * 257, photometric="separated")
    assert run(root, out, "--noise", "gauss:20", "--method", "nl-bayes") == 0
    rows = rows_of(out)
    for name, row in rows.items():
        assert (row["shape"], row["denoised_as"], row["note"]) == ([64, 64, 4], "S joint", None)
        assert row["psnr_denoised_db"] > row["psnr_noisy_db"] + 3, name
    with Image.open(out / "images" / "a.jpg") as found:
        result = np.asarray(found)
    assert (found.mode, found.info["icc_profile"]) == ("CMYK", b"a profile of inks")
    clean = np.asarray(Image.open(root / "a.jpg")).astype(float)
    assert 10 * np.log10(255**2 / np.mean((result - clean) ** 2)) > rows["a.jpg"]["psnr_noisy_db"] + 3
    with tifffile.TiffFile(out / "images" / "deep.tif") as tif:
        assert tif.pages[0].photometric.name == "SEPARATED"
        assert tif.pages[0].asarray().shape == (64, 64, 4)
    page = (out / "report.html").read_text()
    assert "mean of 4 channels" not in page, "inks are shown as what they look like"
    assert page.count("display 0 … 255") == 1


def test_images_that_the_method_cannot_take(tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    Image.fromarray(np.full((1, 1), 7, np.uint8)).save(tree / "dot.png")
    Image.fromarray(np.full((16, 16, 3), 90, np.uint8)).save(tree / "flat.png")
    tifffile.imwrite(tree / "empty.tif", np.full((16, 16), np.nan, np.float32))
    tifffile.imwrite(tree / "complex.tif", np.ones((16, 16), np.complex64))
    assert run(tree, out) == 1
    rows = rows_of(out)
    assert "1 × 1 pixels" in rows["dot.png"]["error"]
    assert "64-bit complex samples" in rows["complex.tif"]["error"]
    told = "256 values that are NaN or infinite stay as they are; all its pixels have one value"
    assert rows["empty.tif"]["note"] == told
    assert np.isnan(tifffile.imread(out / "images" / "empty.tif")).all()
    assert rows["flat.png"]["status"] == "done"
    assert np.array_equal(np.asarray(Image.open(out / "images" / "flat.png")), np.full((16, 16, 3), 90))


def test_damaged_and_hostile_files_are_rows_and_the_others_finish(tree: Path, tmp_path: Path) -> None:
    whole = (tree / "rgb.png").read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0x10
    header = struct.pack(">II5B", 60_000, 60_000, 8, 2, 0, 0, 0)
    bomb = whole[:12] + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header)) + whole[33:]
    for name, data in {
        "zero": b"",
        "cut": whole[: len(whole) // 2],
        "flipped": flipped,
        "bomb": bomb,
        "text": b"hello\n",
    }.items():
        (tree / f"{name}.png").write_bytes(data)
    (tree / "loop.png").symlink_to(tree / "loop.png")
    (tree / "out.png").symlink_to("/etc/hostname")
    assert run(tree, tmp_path / "out", "--method", "none") == 1
    rows = rows_of(tmp_path / "out")
    told = {name: row["error"] for name, row in rows.items() if row["status"] == "failed"}
    assert set(told) == {f"{name}.png" for name in ("zero", "cut", "flipped", "bomb", "text", "loop", "out")}
    assert "empty" in told["zero.png"]
    assert "60000" in told["bomb.png"].replace(",", "")
    assert "plain text" in told["text.png"]
    assert "itself" in told["loop.png"]
    assert "out of the input" in told["out.png"]
    assert all(len(error) > 10 and "\n" not in error for error in told.values())
    assert files(tmp_path / "out" / "images") == ["deep.tif", "photo.jpg", "rgb.png", "sub/grey.png"]


def test_same_names_in_two_folders_and_hostile_names(tmp_path: Path, photo: np.ndarray) -> None:
    root, out = tmp_path / "in 🔬 'quoted\" \\", tmp_path / "out\n📷"
    names = ["a/x.png", "b/x.png", "with space.png", "line\nbreak.png", "🔬.png", "<script>alert(1)<", "=cmd|x.png"]
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photo[number : number + 16, 200:216]).save(root / name, format="PNG")
    assert run(root, out, "--method", "none") == 0
    for name in names:
        assert (out / "images" / name).read_bytes()
        assert np.array_equal(np.asarray(Image.open(out / "images" / name)), np.asarray(Image.open(root / name)))
    assert set(rows_of(out)) == set(names)
    assert "<script>alert(1)" not in (out / "report.html").read_text(encoding="utf-8")


def test_names_that_are_no_unicode_have_rows_of_their_own(tmp_path: Path, photo: np.ndarray) -> None:
    """One with a byte that is no UTF-8, and one whose name is how such a byte is told; a second run finds both done."""
    root, out, outside = tmp_path / "in", tmp_path / "out", tmp_path / "outside"
    names = [os.fsdecode(b"x\xff.png"), "x\\xff.png", os.fsdecode(b"d\xfe/x.png")]
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photo[40 * number : 40 * number + 32, 200:232]).save(root / name)
    for _ in range(2):
        assert run(root, out, "--method", "none", "--noise", "gauss:25") == 0
    found = rows_of(out)
    assert {table.name_of(name) for name in found} == set(names)
    assert {row["run_id"][:4] for row in found.values()} == {"0001"}
    assert all((out / table.name_of(row["output"])).is_file() for row in found.values())
    page = (out / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png") == len(names) * 4, "their pictures are found: clean, noisy, denoised, residual"
    outside.mkdir()
    shutil.rmtree(out / "images" / names[2].split("/")[0])
    (out / "images" / names[2].split("/")[0]).symlink_to(outside)
    assert run(root, out, "--method", "none", "--noise", "gauss:25") == 1
    (error,) = [row["error"] for row in rows_of(out).values() if row["status"] == "failed"]
    assert "d\\udcfe" in error, "a name that an error tells is no Unicode either"


def test_a_file_that_vanishes_and_one_that_changes(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = tasks.chunk.load.fn

    def late(work: Any, settings: Any) -> None:
        (tree / "rgb.png").unlink(missing_ok=True)
        (tree / "deep.tif").write_bytes(b"something else")
        (tree / "photo.jpg").unlink(missing_ok=True)
        if not (tree / "photo.jpg").exists():
            os.mkfifo(tree / "photo.jpg")
        real(work, settings)

    monkeypatch.setattr(tasks.chunk, "load", task(late))
    assert run(tree, tmp_path / "out", "--method", "none", "--chunk", 4) == 1
    rows = rows_of(tmp_path / "out")
    assert "vanished" in rows["rgb.png"]["error"]
    assert "changed" in rows["deep.tif"]["error"]
    assert "regular file" in rows["photo.jpg"]["error"], "a pipe must not hang the run"
    assert rows["sub/grey.png"]["status"] == "done"


@pytest.mark.usefixtures("quick")
def test_a_passing_fault_of_the_disk_is_retried(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, tries = tasks.save.write_atomic, []

    def flaky(path: Path, data: bytes) -> None:
        tries.append(path.name)
        if path.name == "photo.jpg" and tries.count("photo.jpg") < 3:
            raise OSError(errno.EIO, "Input/output error", str(path))
        real(path, data)

    monkeypatch.setattr(tasks.save, "write_atomic", flaky)
    assert run(tree, tmp_path / "out", "--method", "none", "--chunk", 4) == 0
    assert tries.count("photo.jpg") == 3
    assert all(tries.count(name) == 1 for name in ("deep.tif", "rgb.png", "grey.png")), (
        "done images are not written again"
    )
    assert fits(tmp_path / "out") == 4


@pytest.mark.usefixtures("quick")
def test_a_lasting_fault_fails_its_chunk_alone(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, tries = tasks.save.write_atomic, []

    def full(path: Path, data: bytes) -> None:
        if path.name == "photo.jpg":
            tries.append(path)
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        real(path, data)

    monkeypatch.setattr(tasks.save, "write_atomic", full)
    out = tmp_path / "out"
    assert run(tree, out, "--method", "none", "--chunk", 2) == 1  # chunks: deep.tif photo.jpg | rgb.png sub/grey.png
    assert len(tries) == 4
    rows = rows_of(out)
    assert rows["photo.jpg"]["status"] == "failed"
    assert "No space left" in rows["photo.jpg"]["error"]
    assert [rows[name]["status"] for name in ("deep.tif", "rgb.png", "sub/grey.png")] == ["done"] * 3
    monkeypatch.setattr(tasks.save, "write_atomic", real)
    assert run(tree, out, "--method", "none") == 0
    assert [row["source"] for row in ledger.rows_of(ledger.run_folders(out)[-1])] == ["photo.jpg"]


@pytest.mark.usefixtures("quick")
def test_a_disk_that_fails_for_every_image_fails_the_chunk_and_no_other(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = tasks.save.write_atomic

    def full(path: Path, data: bytes) -> None:
        if path.name in {"deep.tif", "photo.jpg"}:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        real(path, data)

    monkeypatch.setattr(tasks.save, "write_atomic", full)
    assert run(tree, tmp_path / "out", "--method", "none", "--chunk", 2) == 1
    statuses = {name: row["status"] for name, row in rows_of(tmp_path / "out").items()}
    assert statuses == {"deep.tif": "failed", "photo.jpg": "failed", "rgb.png": "done", "sub/grey.png": "done"}


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("failures", [1, 10**6])
def test_a_ledger_that_cannot_be_written(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failures: int
) -> None:
    """Passing, it costs another try; lasting, every image is a failed row all the same, and the exit status says so."""
    real, tries = ledger.Part.append, []

    def full(part: ledger.Part, row: table.Row) -> None:
        tries.append(row["source"])
        if len(tries) <= failures:
            raise OSError(errno.ENOSPC, "No space left on device", str(part.path))
        real(part, row)

    monkeypatch.setattr(ledger.Part, "append", full)
    status = run(tree, tmp_path / "out", "--method", "none", "--chunk", 4)
    statuses = [row["status"] for row in rows_of(tmp_path / "out").values()]
    assert (status, statuses) == ((0, ["done"] * 4) if failures == 1 else (1, ["failed"] * 4))


@pytest.mark.usefixtures("quick")
def test_a_file_that_the_disk_does_not_give(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = tasks.scan.read_header

    def bad_sector(path: Path, **options: Any) -> Any:
        if path.name == "rgb.png":
            raise OSError(errno.EIO, "Input/output error", str(path))
        return real(path, **options)

    monkeypatch.setattr(tasks.scan, "read_header", bad_sector)
    monkeypatch.setattr(tasks.scan, "_PAUSES", (0.0, 0.0))
    assert run(tree, tmp_path / "out", "--method", "none") == 1
    rows = rows_of(tmp_path / "out")
    assert "Input/output error" in rows["rgb.png"]["error"]
    assert sum(row["status"] == "done" for row in rows.values()) == 3


def test_out_of_memory_tries_the_image_again_by_itself(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, lock = methods.denoise, threading.Lock()
    tried: list[bytes] = []
    inside = 0
    beside: list[int] = []

    def method(noisy: np.ndarray, **options: Any) -> methods.Denoised:
        nonlocal inside
        with lock:
            inside += 1
            again = noisy.tobytes() in tried
            tried.append(noisy.tobytes())
        try:
            if not again:
                raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
            beside.append(tasks.chunk._company._many)
            return real(noisy, **options)
        finally:
            with lock:
                inside -= 1

    monkeypatch.setattr(tasks.denoise.methods, "denoise", method)
    assert run(tree, tmp_path / "out", "--method", "none", "--slots", 3) == 0
    assert beside == [0] * 4, "nothing else is in memory at the second try"
    assert fits(tmp_path / "out") == 4


@pytest.mark.parametrize(
    ("relative", "said"),
    [
        ({"input": Path("input")}, "INPUT: input is"),
        ({"output": Path("out")}, "OUTPUT: out is"),
        ({"reference": Path("clean")}, "--reference: clean is"),
        ({"model": Path("~/nets")}, "--model: ~/nets is"),
        ({"style": (Path("/a.png"), Path("b.png")), "vgg_weights": "/vgg.pth"}, "--style: b.png is"),
        ({"style": (Path("/a.png"),), "vgg_weights": "vgg.pth"}, "--vgg-weights: vgg.pth is"),
    ],
)
def test_a_run_of_a_deployment_refuses_relative_paths(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, relative: dict[str, Any], said: str
) -> None:
    """A worker deletes the folder that it runs in, and what was written there."""
    from flows.denoise_directory import denoise_directory

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PREFECT__RUNTIME__DEPLOYMENT__ID", "0")
    config = RunConfig(**{"input": tree, "output": tmp_path / "out", **relative})
    state = denoise_directory(config, return_state=True)
    assert state.is_failed()
    assert f"{said} a relative path; a run of a deployment needs an absolute one" in str(state.message)
    assert not (tmp_path / "out").exists()


def test_an_output_is_busy_while_a_run_has_its_lock(tmp_path: Path) -> None:
    from flows.denoise_directory import busy, only_run

    assert not busy(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with only_run(tmp_path / "out"):
        assert busy(tmp_path / "out")
    assert not busy(tmp_path / "out")


def test_an_interrupt_before_anything_is_done(tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    interrupt.set()
    try:
        assert run(tree, tmp_path / "out", "--method", "none") == 130
    finally:
        interrupt.clear()
    assert "interrupted" in capsys.readouterr().err
    assert run(tree, tmp_path / "out", "--method", "none") == 0


def test_many_images_run_their_steps_unseen_with_the_same_result(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(tree, tmp_path / "seen", "--method", "none", "--noise", "gauss:10") == 0
    monkeypatch.setattr(flows.denoise_directory, "MOST_SEEN_IMAGES", 0)
    assert run(tree, tmp_path / "unseen", "--method", "none", "--noise", "gauss:10") == 0
    assert digests(tmp_path / "seen") == digests(tmp_path / "unseen")


def test_a_damaged_file_does_not_pass_for_its_earlier_result(tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(tree, out, "--method", "none")
    (tree / "rgb.png").write_bytes(b"")
    assert run(tree, out, "--method", "none") == 1
    row = rows_of(out)["rgb.png"]
    assert row["status"] == "failed"
    assert "earlier run" in row["note"]


def test_a_new_reference_is_scored(tree: Path, tmp_path: Path) -> None:
    clean, out = tmp_path / "clean", tmp_path / "out"
    clean.mkdir()
    shutil.copy(tree / "rgb.png", clean)
    run(tree, out, "--method", "none", "--reference", clean)
    shutil.copy(tree / "deep.tif", clean)
    run(tree, out, "--method", "none", "--reference", clean)
    assert [row["source"] for row in ledger.rows_of(ledger.run_folders(out)[-1])] == ["deep.tif"]


def test_a_bug_in_a_method_fails_its_image_and_leaves_a_traceback_in_the_log(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    real = methods.denoise

    def buggy(noisy: np.ndarray, **options: Any) -> methods.Denoised:
        if noisy.shape[2] == 3:
            raise TypeError("unexpected number of wings")
        return real(noisy, **options)

    monkeypatch.setattr(tasks.denoise.methods, "denoise", buggy)
    assert run(tree, tmp_path / "out", "--method", "none") == 1
    rows = rows_of(tmp_path / "out")
    assert rows["rgb.png"]["error_type"] == "TypeError"
    assert rows["deep.tif"]["status"] == "done"
    said = capfd.readouterr()
    assert "Traceback" not in said.err + said.out
    (folder,) = ledger.run_folders(tmp_path / "out")
    assert "unexpected number of wings" in (folder / "log.txt").read_text()
    assert "Traceback" in (folder / "log.txt").read_text()


def test_json_is_the_only_thing_on_stdout(tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tree, tmp_path / "out", "--method", "none", "--json") == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["done"] == summary["images"] == 4
    assert summary["failed"] == 0
    assert Path(summary["report"]).is_file()


def test_options_from_a_file_and_the_command_line_over_them(tree: Path, tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('method = "none"\nseed = 5\nchunk = 1\n')
    assert run(tree, tmp_path / "out", "--config", file, "--seed", 6) == 0
    assert {row["seed"] for row in rows_of(tmp_path / "out").values()} == {6}
    assert {row["method"] for row in rows_of(tmp_path / "out").values()} == {"none"}
    again = ledger.run_folders(tmp_path / "out")[0] / "config.toml"
    assert main(["run", "--config", str(again)]) == 0, "what a run keeps of its configuration starts it again"
    assert fits(tmp_path / "out") == 4


def test_one_image(tree: Path, tmp_path: Path) -> None:
    assert run(tree / "sub" / "grey.png", tmp_path / "out", "--method", "none") == 0
    assert files(tmp_path / "out" / "images") == ["grey.png"]


def test_only_files_that_are_no_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "notes.txt").write_text("x")
    assert run(tmp_path / "in", tmp_path / "out") == 2
    assert "there is no image" in capsys.readouterr().err


def test_a_second_run_on_the_same_output_is_refused(
    tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from filelock import FileLock

    out = tmp_path / "out"
    (out / "runs").mkdir(parents=True)
    with FileLock(out / "runs" / ".lock"):
        assert run(tree, out, "--method", "none") == 2
    assert "another run" in capsys.readouterr().err
    assert run(tree, out, "--method", "none") == 0


def test_left_over_temporaries_are_cleared_away(tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(tree, out, "--method", "none")
    stray = out / "images" / ".rgb.png.0123456789abcdef.denoise-tmp"
    stray.write_bytes(b"half")
    run(tree, out, "--method", "none")
    assert not stray.exists()


def test_the_report_is_rendered_again_from_the_table(
    tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    run(tree, out, "--method", "none", "--noise", "gauss:25")
    before = (out / "report.html").read_bytes()
    (out / "report.html").unlink()
    capsys.readouterr()
    assert main(["report", str(out)]) == 0
    assert str(out / "report.html") in capsys.readouterr().out
    assert (out / "report.html").read_bytes() == before
    shutil.rmtree(tree)
    assert main(["report", str(out)]) == 0, "without the input the page has no pictures, and is there all the same"


def test_the_help_says_what_the_levels_of_noise_refer_to() -> None:
    noise, clip = (str(RunConfig.model_fields[name].description) for name in ("noise", "clip_noise"))
    for words in ("65535, of int16 too", "from its least to its greatest value", "intensity 0 has no photons"):
        assert words in noise
    assert "own range" in clip


def test_levels_drawn_from_a_range_are_in_the_table(tree: Path, tmp_path: Path) -> None:
    """Whatever the order, the chunks and the slots."""
    tifffile.imwrite(
        tree / "stack.tif", np.full((3, 40, 40), 30000, np.uint16), metadata={"axes": "TYX"}, photometric="minisblack"
    )
    (tree / "broken.png").write_text("x")
    for name, options in (("one", ["--chunk", 1]), ("two", ["--chunk", 5, "--slots", 2])):
        assert run(tree, tmp_path / name, "--method", "none", "--noise", "bernoulli:0.1-0.9", *options) == 1
    rows = rows_of(tmp_path / "one")
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    assert (rows["broken.png"]["noise_drawn"], rows["broken.png"]["corrupted_fraction"]) == (None, None)
    done = [row for row in rows.values() if row["status"] == "done"]
    assert {row["noise"] for row in done} == {"bernoulli:0.1-0.9"}
    assert len({row["noise_drawn"] for row in done}) == len(done) == 5
    for row in done:
        share = float(row["noise_drawn"].removeprefix("bernoulli:"))
        assert row["corrupted_fraction"] == pytest.approx(share, abs=5 * 0.5 / 40)
    frames = tifffile.imread(tmp_path / "one" / "images" / "stack.tif")
    assert set(np.unique(frames)) == {0, 30000}
    assert np.mean(frames == 0) == pytest.approx(rows["stack.tif"]["corrupted_fraction"])
    assert not np.array_equal(frames[0], frames[1])

    level = rows["rgb.png"]["noise_drawn"]
    assert run(tree / "rgb.png", tmp_path / "again", "--method", "none", "--noise", level) == 0
    again = rows_of(tmp_path / "again")["rgb.png"]
    assert again["output_sha256"] == rows["rgb.png"]["output_sha256"], "the drawn noise, written, is the same noise"
    assert run(tree / "rgb.png", tmp_path / "plain", "--method", "none") == 0
    plain = rows_of(tmp_path / "plain")["rgb.png"]
    assert (plain["noise"], plain["noise_drawn"], plain["corrupted_fraction"]) == ("none", None, None)


@pytest.mark.parametrize("damage", ["gone", "cut", "changed"])
def test_a_table_that_is_damaged_or_gone_is_made_again_from_the_ledger(
    tree: Path, tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run(tree, out, "--method", "none") == 0
    before, page = table.read(out / "results.parquet"), (out / "report.html").read_bytes()
    whole = (out / "results.parquet").read_bytes()
    (out / "results.parquet").unlink()
    if damage != "gone":
        broken = whole[:1000] if damage == "cut" else whole[:4] + bytes(400) + whole[404:]
        (out / "results.parquet").write_bytes(broken)
    capsys.readouterr()
    assert main(["report", str(out)]) == 0
    said = capsys.readouterr()
    assert said.out.strip() == str(out / "report.html")
    assert "made again from the ledger" in said.err
    assert table.read(out / "results.parquet") == before
    assert (out / "report.html").read_bytes() == page


@pytest.mark.parametrize("kind", ["text:0.25", "jpeg:10-90", "poisson-gauss:30/5", "poisson:30"])
def test_the_report_shows_the_noise_that_was_added(
    tree: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    make_panel = tasks.report.make_panel

    def seen(name: str, noisy: np.ndarray, denoised: np.ndarray, **options: Any) -> Any:
        shown[name] = noisy, denoised
        return make_panel(name, noisy, denoised, **options)

    monkeypatch.setattr(tasks.report, "make_panel", seen)
    tifffile.imwrite(tree / "floats.tif", tifffile.imread(tree / "deep.tif").astype(np.float32))
    colour = tree / "colours.tif"
    frames = np.stack([tifffile.imread(tree / "deep.tif")] * 3)
    tifffile.imwrite(colour, np.stack([frames, frames // 2, frames // 3], axis=-1), photometric="rgb")
    assert run(tree, tmp_path / "out", "--method", "none", "--noise", kind) == 0
    rows = rows_of(tmp_path / "out")
    assert set(shown) == set(rows) == {"colours.tif", "deep.tif", "floats.tif", "photo.jpg", "rgb.png", "sub/grey.png"}
    for name, (noisy, denoised) in shown.items():
        top = np.inf if name == "floats.tif" else rows[name]["data_range"]
        if name != "photo.jpg":  # which is written with losses
            assert np.abs(noisy.clip(0, top) - denoised).max() <= 0.51, name
        assert (rows[name]["corrupted_fraction"] is not None) == kind.startswith("text")


def test_artifacts_and_names_in_prefect(tree: Path, tmp_path: Path) -> None:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
    from prefect.client.schemas.sorting import FlowRunSort

    (tree / "bad.png").write_text("x")
    run(tree, tmp_path / "watched", "--method", "none", "--chunk", 2)
    with get_client(sync_client=True) as client:
        flow_run = client.read_flow_runs(limit=1, sort=FlowRunSort.START_TIME_DESC)[0]
        assert flow_run.name == "input: none, 5 images"
        assert set(flow_run.tags) == {"none", "cpu", f"host:{socket.gethostname()}", "denoise-flows"}
        assert flow_run.state is not None
        assert flow_run.state.is_completed()
        message = r"4 images done in \d+ s; 1 failed: bad\.png \(.*plain text.*\)"
        assert re.fullmatch(message, flow_run.state.message or "")
        only_this = FlowRunFilter(id=FlowRunFilterId(any_=[flow_run.id]))
        artifacts = {a.key: a for a in client.read_artifacts(flow_run_filter=only_this)}  # of all, only 200 are given
        expected = {"scan", "report", "chunk 1 of 2", "load rgb.png (chunk 2)", "save sub/grey.png (chunk 2)"}
        deadline = time.monotonic() + 120
        names: set[str] = set()
        while (
            not expected <= names and time.monotonic() < deadline
        ):  # the server records task runs from a queue of events
            names = {r.name for r in client.read_task_runs(flow_run_filter=only_this, limit=200)}
            time.sleep(0.1)
    assert set(artifacts) == {"progress-watched", "summary-watched", "report-watched"}
    assert artifacts["progress-watched"].data == 100
    assert json.loads(artifacts["summary-watched"].data)[0] == {"figure": "images", "done": 4, "failed": 1}
    assert "bad.png" in artifacts["report-watched"].data.replace("\\", "")
    assert expected <= names


def last_run() -> Any:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.sorting import FlowRunSort

    with get_client(sync_client=True) as client:
        return client.read_flow_runs(limit=1, sort=FlowRunSort.START_TIME_DESC)[0]


def logs_of(flow_run: Any, *, until: str) -> list[tuple[int, str]]:
    """What the server has of the run's log, once a line with ``until`` in it has arrived: levels and messages."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId
    from prefect.client.schemas.sorting import LogSort

    only_this = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[flow_run.id]))
    deadline = time.monotonic() + 120
    while True:
        with get_client(sync_client=True) as client:
            logs = client.read_logs(log_filter=only_this, sort=LogSort.TIMESTAMP_ASC, limit=200)
        if any(until in line.message for line in logs) or time.monotonic() > deadline:
            return [(line.level, line.message) for line in logs]
        time.sleep(0.1)


def test_the_server_logs_a_line_a_chunk_and_never_one_an_image(tree: Path, tmp_path: Path) -> None:
    torn = (tree / "rgb.png").read_bytes()[:-400]
    for number in range(46):
        content = torn if number % 5 == 0 else (tree / "rgb.png").read_bytes()
        (tree / f"{number:02}.png").write_bytes(content)
    (tree / "zz.tif").write_text("x")  # cannot even be scanned
    out = tmp_path / "out"
    assert run(tree, out, "--method", "none", "--chunk", 10) == 1
    lines = logs_of(last_run(), until="Finished in state Completed")
    chunks = [line for line in lines if line[1].startswith("chunk ")]
    assert len(chunks) == 5
    assert all((level == 30) == ("0 failed" not in said) for level, said in chunks)
    (first,) = (said for _, said in chunks if said.startswith("chunk 1 of 5"))
    assert first.startswith("chunk 1 of 5: 8 done, 2 failed: 00.png, 05.png (the PNG is truncated")
    assert any(said.startswith("cannot be read: zz.tif (") for _, said in lines)
    others = [said for _, said in lines if not said.startswith("chunk ")]
    assert len(others) <= 6, others
    run_folder = ledger.run_folders(out)[0]
    assert (run_folder / "log.txt").read_text().count("Traceback") == 10, "the run's own log has all of each"


@pytest.mark.parametrize(
    ("options", "state", "said"),
    [
        ((), "COMPLETED", "1 failed: bad.png ("),
        (("--strict",), "FAILED", "1 of 5 images failed, and --strict allows none: bad.png ("),
        (("--max-failed", 0.1), "FAILED", "1 of 5 images failed, more than --max-failed 0.1 allows: bad.png ("),
        (("--max-failed", 0.2), "COMPLETED", "1 failed: bad.png ("),
    ],
)
def test_how_many_may_fail(tree: Path, tmp_path: Path, options: tuple[object, ...], state: str, said: str) -> None:
    (tree / "bad.png").write_text("x")
    assert run(tree, tmp_path / "out", "--method", "none", *options) == 1, "the exit status is the same"
    flow_run = last_run()
    assert flow_run.state.type == state
    assert said in flow_run.state.message
    assert run(tree, tmp_path / "out", "--method", "none", *options) == 1
    assert last_run().name == "input: none, 1 of 5 images"


def test_nothing_is_printed_while_prefect_logs(tree: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run(tree, tmp_path / "out", "--method", "none", "--json")
    assert capfd.readouterr().err == ""


def test_axes_and_channels_can_be_said(tmp_path: Path, photo: np.ndarray) -> None:
    (tmp_path / "in").mkdir()
    stack = np.stack([photo[:40, :48, n] for n in range(3)]).astype(np.uint16) * 100
    tifffile.imwrite(tmp_path / "in" / "a.tif", stack, photometric="minisblack")
    tifffile.imwrite(tmp_path / "in" / "b.tif", stack, imagej=True, metadata={"axes": "CYX"})
    tifffile.imwrite(tmp_path / "in" / "c.tif", stack[0])

    def told(*options: str) -> list[tuple[str, str | None]]:
        output = tmp_path / "out"
        assert run(tmp_path / "in", output, "--method", "none", *options) == (1 if "--axes" in options else 0)
        rows = rows_of(output)
        assert not options or rows["c.tif"]["error_type"] in (None, "AxesMismatch")
        return [(rows[name]["axes"], rows[name]["denoised_as"]) for name in ("a.tif", "b.tif")]

    assert told() == [("QYX", "Q frames"), ("CYX", "C separate")]
    assert told("--channels", "joint") == [("QYX", "Q frames"), ("CYX", "C joint")]
    assert told("--axes", "ZYX") == [("ZYX", "Z frames"), ("ZYX", "Z frames")]
    assert told("--axes", "CYX", "--channels", "joint") == [("CYX", "C joint"), ("CYX", "C joint")]
    for name in ("a.tif", "b.tif"):
        assert np.array_equal(tifffile.imread(tmp_path / "out" / "images" / name), stack)


@pytest.mark.slow
def test_a_network_is_fitted_to_separate_channels(tmp_path: Path, photo: np.ndarray) -> None:
    (tmp_path / "in").mkdir()
    noise = np.random.default_rng(0).normal(0, 1500, (2, 64, 64, 3))
    for n in range(2):
        channels = np.moveaxis(photo[n * 64 : n * 64 + 64, 200:264].astype(float) * 100 + 8000 + noise[n], -1, 0)
        data = channels.astype(np.float32)
        tifffile.imwrite(tmp_path / "in" / f"{n}.tif", data, imagej=True, metadata={"axes": "CYX"})
    assert run(tmp_path / "in", tmp_path / "out", "--scope", "directory") == 0
    rows = rows_of(tmp_path / "out")
    assert {path.name.split("-")[0] for path in (tmp_path / "out" / "models").iterdir()} == {"1"}
    for row in rows.values():
        assert row["scope"] == "directory"
        assert row["denoised_as"] == "C separate"
        assert row["sigma_estimate"] == pytest.approx(1500, rel=0.3)
        assert len(row["value_low"]) == 3
    page = (tmp_path / "out" / "report.html").read_text()
    assert "C 2 of 3" in page
