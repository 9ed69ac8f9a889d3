"""What an image may ask for: no more pixels than the caller allows, no more memory than there is, for no fewer bytes of its file.

All of it is judged by headers, before memory is asked for.
"""

from __future__ import annotations

import functools
from pathlib import Path

import psutil

from denoise_core.images.model import Header, ImageError

SPARE = 256 << 20
"""Bytes that need no reason: so much may be decoded from any file, and so much may a file hold beside its image."""
DENSEST = 1032
"""Bytes that one byte of a file may become: deflate can do no more, and of other codecs none does it but for blank images."""

_CGROUPS = Path("/sys/fs/cgroup")


def check_held(held: int, need: int, *, densest: int = DENSEST) -> None:
    """Refuse `need` bytes of samples that would come from `held` bytes of a file; raises ImageError.

    `densest`: of a whole stack, whose planes may be blank, what its codec can make of a byte.
    """
    if need > max(SPARE, densest * held):
        raise ImageError(
            f"{held:,} bytes of the file cannot hold a picture of {need:,} bytes: but for blank ones none compresses "
            f"{densest:,} times"
        )


def check_used(size: int, used: int) -> None:
    """Refuse a file of `size` bytes whose image accounts for `used` of them and little more; raises ImageError.

    Directories, metadata and gaps may take as much as the pixels: frames can be smaller than what is noted of each.
    """
    if size > 2 * used + SPARE:
        raise ImageError(
            f"a file of {size:,} bytes, of which its image accounts for no more than {used:,}: what the others are is not known, "
            "and they are too many to be carried over"
        )


def check_memory(header: Header, *, floats: int = 0) -> None:
    """Refuse an image that cannot be in this machine's memory as it was and as it is written, both in the file's data type.

    `floats`: and so many times more as float32, for what is made of it in between. Raises ImageError.
    """
    samples = header.bytes // header.itemsize
    need, there = samples * (2 * header.itemsize + 4 * floats), machine_bytes()
    if need > there:
        raise ImageError(
            f"{samples:,} samples of {header.dtype} take about {need / 1e9:.1f} GB of memory to be worked on, "
            f"and this machine has {there / 1e9:.1f} GB"
        )


@functools.cache
def machine_bytes() -> int:
    """Of memory: the machine's, or what this process may have of it where a control group says less; asked once."""
    try:
        groups = Path("/proc/self/cgroup").read_text(encoding="ascii", errors="replace")
    except OSError:
        groups = ""  # no Linux
    return min([int(psutil.virtual_memory().total), *group_limits(groups, _CGROUPS)])


def group_limits(groups: str, root: Path) -> list[int]:
    """The limits in bytes of the control groups in `groups`, as /proc/self/cgroup names them, and of those around them.

    `root` is where they are mounted. In a container the names may be those outside of it: then only the outermost is there.
    """
    found = []
    for line in groups.splitlines():
        _, controllers, name = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        base, file = (root / "memory", "memory.limit_in_bytes") if controllers else (root, "memory.max")
        group = base / name.lstrip("/")
        for place in (group, *group.parents):
            if not place.is_relative_to(base):
                break
            try:
                found.append(int((place / file).read_text(encoding="ascii")))
            except (OSError, ValueError):
                continue  # not there, or "max"
    return found
