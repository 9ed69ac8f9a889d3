"""Where the files of an image go, and that no link below OUTPUT leads a write elsewhere."""

from __future__ import annotations

import os
from pathlib import Path

from denoise_core.errors import DenoiseError


class OutputLink(DenoiseError):
    """A link in the output that a file would be written through."""


def lies_below(top: Path, name: str) -> bool:
    """Whether a file of this name lies where it seems to, below a folder that may be a link itself.

    A link further down may lead into the input, or to where another image goes.
    """
    return os.path.realpath((top / name).parent) == os.fspath((Path(os.path.realpath(top)) / name).parent)


def path_below(top: Path, name: str) -> Path:
    """The path of a file to write below a folder of OUTPUT.

    Raises:
        OutputLink: a folder on the way is a link.
    """
    path = top / name
    if not lies_below(top, name):
        raise OutputLink(
            f"OUTPUT: {path.parent} leads to {os.path.realpath(path.parent)} by a link, which nothing is written through; "
            "remove the link"
        )
    return path
