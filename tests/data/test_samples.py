import hashlib
import os
import socket
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from data import samples
from data.samples import SAMPLES, write_samples


def read(path: Path) -> np.ndarray:
    if path.suffix == ".tif":
        return tifffile.imread(path)
    return imagecodecs.imread(path)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_samples(tmp_path_factory.mktemp("samples") / "new" / "folder")


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("the samples must not touch the network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


def test_every_sample_is_written_with_its_size_and_depth(written: list[Path]) -> None:
    assert len(written) == len(SAMPLES) >= 12
    for path, sample in zip(written, SAMPLES, strict=True):
        x = read(path)
        assert x.shape[:2] == (sample.height, sample.width), path
        assert x.dtype == (np.uint16 if sample.bits == 16 else np.uint8), path
        assert x.ndim == 2 or x.shape[2] == 3, path
        assert x.std() > 0.01 * np.iinfo(x.dtype).max, f"{path} is nearly constant"


def test_containers_vary(written: list[Path]) -> None:
    kinds = {(p.suffix, str(x.dtype), x.ndim) for p in written for x in [read(p)]}
    assert {(".png", "uint8", 2), (".png", "uint8", 3), (".tif", "uint16", 2), (".tif", "uint8", 2)} <= kinds
    assert (".jpg", "uint8", 3) in kinds
    assert len({p.parent for p in written}) >= 3
    assert len({read(p).shape[:2] for p in written}) >= 4


def test_8_bit_pixels_are_the_package_s_own(written: list[Path]) -> None:
    skimage_data = pytest.importorskip("skimage.data")
    x = skimage_data.chelsea()  # 300 × 451
    at = {s.path: p for p, s in zip(written, SAMPLES, strict=True)}
    np.testing.assert_array_equal(read(at["chelsea.png"]), x[22 : 22 + 256, 97 : 97 + 256])
    with Image.open(at["coffee.jpg"]) as jpeg:
        y = np.asarray(jpeg).astype(float)
    assert np.abs(y - skimage_data.coffee()[80:320, 140:460]).mean() < 2


def test_16_bit_pixels_are_block_means_with_real_depth(written: list[Path]) -> None:
    measure = pytest.importorskip("skimage.measure")
    skimage_data = pytest.importorskip("skimage.data")
    at = {s.path: p for p, s in zip(written, SAMPLES, strict=True)}
    mean = measure.block_reduce(skimage_data.retina()[:1408, :1408, 1].astype(float), (4, 4), np.mean)
    x = read(at["fundus/retina_green.tif"])
    np.testing.assert_allclose(x, 257 * mean[48 : 48 + 256, 48 : 48 + 256], atol=0.5)
    assert len(np.unique(x)) > 256
    mean = measure.block_reduce(skimage_data.hubble_deep_field().astype(float), (2, 2, 1), np.mean)
    np.testing.assert_allclose(read(at["hubble_deep_field.png"]), 257 * mean[90 : 90 + 256, 122 : 122 + 256], atol=0.5)


def test_readme_names_every_file_with_its_terms(written: list[Path]) -> None:
    text = (written[0].parent / "README.md").read_text(encoding="utf-8")
    for sample in SAMPLES:
        assert sample.author
        assert sample.terms
        (origin_row, pixels_row) = [line for line in text.splitlines() if line.startswith(f"| `{sample.path}` |")]
        assert sample.author in origin_row
        assert sample.terms in origin_row
        assert sample.source in pixels_row


@pytest.mark.usefixtures("no_network")
def test_twice_gives_the_same_bytes_without_a_network_and_leaves_other_files_alone(
    written: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    (tmp_path / "astronaut.png").write_bytes(b"half a file")
    again = write_samples(tmp_path)
    first = written[0].parent
    for path in again:
        other = first / path.relative_to(tmp_path)
        assert hashlib.sha256(path.read_bytes()).digest() == hashlib.sha256(other.read_bytes()).digest(), path
    assert (tmp_path / "mine.txt").read_text() == "mine"
    present = {p for p in tmp_path.rglob("*") if p.is_file()}
    assert present == {*again, tmp_path / "README.md", tmp_path / "mine.txt"}


def test_a_missing_source_is_named_and_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "_package_folder", lambda: tmp_path / "package")
    with pytest.raises(FileNotFoundError, match=r"astronaut\.png is missing.*Reinstall"):
        write_samples(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_another_size_of_source_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (64, 48)).save(tmp_path / "astronaut.png")
    monkeypatch.setattr(samples, "_package_folder", lambda: tmp_path)
    with pytest.raises(ValueError, match=r"48 × 64 pixels.*256 × 256"):
        write_samples(tmp_path / "out")


def test_a_file_in_the_folder_s_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "samples").write_text("a file")
    with pytest.raises(NotADirectoryError, match="is a file"):
        write_samples(tmp_path / "samples")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_an_unwritable_folder_is_an_os_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError):
        write_samples(tmp_path / "samples")
