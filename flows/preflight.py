"""What must hold before a run starts: checked in a moment, before anything heavy is imported."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from flows.config import OnExisting, RunConfig
from flows.errors import StartError


def check(config: RunConfig, *, writes: bool = True) -> None:
    """Raise :class:`StartError` with one sentence where the run cannot start; ``writes`` also tries the output."""
    source, output = config.input, config.output
    if not source.exists():
        raise StartError(f"INPUT: there is no {source}")
    if not (source.is_dir() or source.is_file()):
        raise StartError(f"INPUT: {source} is neither a directory nor a file")
    if not os.access(source, os.R_OK):
        raise StartError(f"INPUT: {source} cannot be read")
    if source.is_dir() and not any(files for _, _, files in os.walk(source)):
        raise StartError(f"INPUT: {source} is empty")
    if config.reference is not None and not config.reference.exists():
        raise StartError(f"--reference: there is no {config.reference}")
    if config.reference is not None and source.is_dir() != config.reference.is_dir():
        wanted = "directory, as INPUT is" if source.is_dir() else "file, as INPUT is"
        raise StartError(f"--reference: {config.reference} is not a {wanted}")
    for written in (output, output / "images", output / "runs"):
        _check_apart(source.resolve(), written)
    if output.exists() and not output.is_dir():
        raise StartError(f"OUTPUT: {output} is a file; give a directory")
    if config.on_existing is OnExisting.ERROR and (output / "results.parquet").exists():
        raise StartError(f"OUTPUT: {output} has earlier results and --on-existing is error")
    if writes:
        _check_writable(output)


def _check_apart(source: Path, written: Path) -> None:
    target = written.resolve()
    if target == source:
        raise StartError(f"INPUT and OUTPUT are the same: {source}; the input is never written to, give another OUTPUT")
    if source.is_dir() and target.is_relative_to(source):
        raise StartError(f"OUTPUT {target} lies inside INPUT {source}; give an OUTPUT beside it")
    if source.is_relative_to(target):
        raise StartError(f"INPUT {source} lies inside OUTPUT {target}; give an OUTPUT beside it")


def _check_writable(output: Path) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
        for folder in (output, output / "images", output / "runs"):
            if folder.exists():
                with tempfile.TemporaryFile(dir=folder):
                    pass
    except OSError as error:
        raise StartError(f"OUTPUT: {output} cannot be written to: {error.strerror}") from None
