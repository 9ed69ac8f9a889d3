from __future__ import annotations

import errno
import os
import stat
import threading
from pathlib import Path

import pytest

from denoise_core.images import remove_stale_temporaries, write_atomic


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_writes_makes_parents_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "c.png"
    write_atomic(path, b"one")
    write_atomic(path, b"two")
    assert path.read_bytes() == b"two"
    assert names(tmp_path) == ["a", "a/b", "a/b/c.png"]
    reference = tmp_path / "reference"
    reference.write_bytes(b"")
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(reference.stat().st_mode)


@pytest.mark.parametrize(
    "name", ["x" * 255, "µ" * 127 + ".", "😀" * 63 + "png", "a\nb <script>.tif", "\udcff\udcfe.png"]
)
def test_any_name_that_a_folder_can_hold(tmp_path: Path, name: str) -> None:
    write_atomic(tmp_path / name, b"data")
    assert names(tmp_path) == [name]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "no space"), KeyboardInterrupt(), MemoryError()])
@pytest.mark.parametrize("step", ["replace", "fsync"])
def test_nothing_is_left_of_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, step: str
) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"old")

    def fail(*_arguments: object) -> None:
        assert [name for name in names(tmp_path) if name.endswith(".denoise-tmp")]
        raise error

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(type(error)):
        write_atomic(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a.png"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_real_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.open

    def full(path: Path, mode: str = "r", **options: object) -> object:
        if mode == "x+b":
            path.symlink_to("/dev/full")
            return real(path, "w+b")
        return real(path, mode, **options)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomic(tmp_path / "a.png", b"new")
    assert names(tmp_path) == []


def test_a_folder_in_the_way_is_an_error_and_stays(tmp_path: Path) -> None:
    (tmp_path / "a.png" / "inside").mkdir(parents=True)
    with pytest.raises(OSError, match=r"a\.png"):
        write_atomic(tmp_path / "a.png", b"new")
    assert names(tmp_path) == ["a.png", "a.png/inside"]


def test_a_folder_that_cannot_be_flushed_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.fsync

    def fsync(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "not for folders")
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    write_atomic(tmp_path / "a.png", b"new")
    assert (tmp_path / "a.png").read_bytes() == b"new"


def test_writers_of_one_path_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    contents = [bytes([n]) * 100_000 for n in range(8)]
    threads = [threading.Thread(target=write_atomic, args=(path, content)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_bytes() in contents
    assert names(tmp_path) == ["a.png"]


def test_leftovers_are_found_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    left = []
    for folder in (inside, inside / "deep" / "er", outside):
        monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        monkeypatch.setattr(Path, "unlink", lambda *_, **__: (_ for _ in ()).throw(OSError("killed")))
        with pytest.raises(KeyboardInterrupt):
            write_atomic(folder / "new\nline.png", b"half")
        monkeypatch.undo()
        left += list(folder.glob(".*"))
    assert len(left) == 3
    (inside / "link").symlink_to(outside)
    (inside / ".a.png.0123456789abcdef.denoise-tmp").symlink_to(left[2])
    for name in ("a.denoise-tmp", ".hidden.png", ".x.short.denoise-tmp", "image.png"):
        (inside / name).write_bytes(b"mine")
    before = names(inside)
    assert remove_stale_temporaries(inside) == 2
    gone = set(before) - set(names(inside))
    assert gone == {str(path.relative_to(inside)) for path in left[:2]}
    assert left[2].exists()
    assert remove_stale_temporaries(inside) == 0
    assert remove_stale_temporaries(tmp_path / "missing") == 0
