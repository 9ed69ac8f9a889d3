"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
from collections.abc import Iterator
from io import BufferedRandom
from pathlib import Path

_SUFFIX = ".denoise-tmp"
_TOKEN_BYTES = 8
_TEMPORARY = re.compile(rf"\..*\.[0-9a-f]{{{2 * _TOKEN_BYTES}}}{re.escape(_SUFFIX)}", re.DOTALL)
_NAME_MAX = 255
# What file systems without a way to flush a folder answer; the file itself is flushed by then.
_CANNOT_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EPERM}


def write_atomic(path: Path, data: bytes) -> None:
    """Write `data` to `path`, whole or not at all: see `writing`."""
    with writing(path) as file:
        file.write(data)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[BufferedRandom]:
    """A file to write and to read that is at `path` once the block ends: readers see the old file or the whole new one.

    So they do after a power cut.
    Missing parent folders are made. The data go to a temporary file beside the path first; it is removed if anything
    goes wrong, an interrupt included, and `remove_stale_temporaries` finds it after a kill. Raises OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(_temporary_name(path.name))
    try:
        with temporary.open("x+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)  # noqa: PTH105 the tests, and the docstring, speak of os.replace
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    _sync_folder(path.parent)


def remove_stale_temporaries(folder: Path) -> int:
    """Delete what killed calls of `writing` left anywhere below `folder`; returns how many files.

    Links are neither followed nor deleted. Call it only while nothing else writes below the folder: a temporary in use
    looks no different. A missing folder holds none. Raises OSError where a file cannot be deleted.
    """
    removed = 0
    for where, _folders, names in os.walk(folder, followlinks=False):
        for name in names:
            path = Path(where, name)
            if _TEMPORARY.fullmatch(name) and path.is_file() and not path.is_symlink():
                path.unlink(missing_ok=True)
                removed += 1
    return removed


def _temporary_name(name: str) -> str:
    room = _NAME_MAX - len(f"..{_SUFFIX}") - 2 * _TOKEN_BYTES
    while len(os.fsencode(name)) > room:
        name = name[:-1]
    return f".{name}.{secrets.token_hex(_TOKEN_BYTES)}{_SUFFIX}"


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":  # pragma: no cover - a folder cannot be opened there
        return
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC:
            raise
