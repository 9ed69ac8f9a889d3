"""What must hold before a run starts: checked in a moment, before anything heavy is imported."""

from __future__ import annotations

import importlib.util
import os
import tempfile
from pathlib import Path

from flows.choices import DOWNLOAD, OnExisting
from flows.config import RunConfig, content
from flows.errors import StartError

FOLDERS = ("images", "stylized", "noisy", "models", "runs")
"""What a run may make in OUTPUT."""


def check(
    config: RunConfig,
    *,
    writes: bool = True,
    waits: bool = False,
    method_option: str = "--method",
    compares: bool = False,
) -> None:
    """Raise :class:`StartError` with one sentence where the run cannot start; ``writes`` also tries the output.

    ``waits``: the run is for later, and the input may be empty as yet. ``method_option`` named the method.
    ``compares``: the output is that of a comparison, which no run may write into.
    """
    source, output = config.input, config.output
    for name, path in (
        ("INPUT", source),
        ("OUTPUT", output),
        ("--reference", config.reference),
        ("--model", config.model),
        *(("--style", image) for image in config.style),
        ("--vgg-weights", Path(config.vgg_weights) if config.vgg_weights else None),
    ):
        try:
            str(path.resolve() if path else "").encode("utf-8")
        except UnicodeEncodeError:
            raise StartError(f"{name}: the path {str(path)!a} is not valid UTF-8; rename or link it") from None
    if not source.exists():
        raise StartError(f"INPUT: there is no {source}")
    if not (source.is_dir() or source.is_file()):
        raise StartError(f"INPUT: {source} is neither a directory nor a file")
    if not os.access(source, os.R_OK):
        raise StartError(f"INPUT: {source} cannot be read")
    if source.is_dir() and not waits and not any(files for _, _, files in os.walk(source)):
        raise StartError(f"INPUT: {source} is empty")
    _check_reference(config)
    _check_model(config)
    _check_method(config.resolved_method, method_option)
    _check_engine(config.engine)
    _check_style(config)
    check_apart(source, output)
    if output.exists() and not output.is_dir():
        raise StartError(f"OUTPUT: {output} is a file; give a directory")
    if not compares and next(output.glob("cells/*-seed-*/*/runs"), None) is not None:
        raise StartError(f"OUTPUT: {output} is that of a comparison; give the run a folder of its own")
    if config.on_existing is OnExisting.ERROR and (output / "results.parquet").exists():
        raise StartError(f"OUTPUT: {output} has earlier results and --on-existing is error")
    if writes:
        _check_writable(output)
        if config.resolved_method != "none" or config.style:
            _check_locks()


def _check_reference(config: RunConfig) -> None:
    reference = config.reference
    if reference is None:
        return
    if not reference.exists():
        raise StartError(f"--reference: there is no {reference}")
    if config.input.is_dir() != reference.is_dir():
        wanted = "directory, as INPUT is" if config.input.is_dir() else "file, as INPUT is"
        raise StartError(f"--reference: {reference} is not a {wanted}")


def _check_model(config: RunConfig) -> None:
    """Whether there is a model to apply; it is read whole later, and only its presence is looked at here."""
    model = config.model
    if model is None:
        return
    if not model.exists():
        raise StartError(f"--model: there is no {model}")
    if model.is_dir() and not any(model.glob("*.safetensors")):
        raise StartError(f"--model: there is no .safetensors file in {model}")


def _check_style(config: RunConfig) -> None:
    for image in config.style:
        if not image.is_file():
            raise StartError(f"--style: there is no file {image}")
    if config.style and config.vgg_weights not in (None, DOWNLOAD):
        weights = Path(str(config.vgg_weights))
        if not weights.is_file():
            raise StartError(f"--vgg-weights: there is no file {weights}")
        if config.vgg_sha256 is not None and content(weights) != config.vgg_sha256.lower():
            raise StartError(f"--vgg-weights: the SHA-256 of {weights} is {content(weights)}, not that of --vgg-sha256")


def _check_method(method: str, option: str) -> None:
    from denoise_core.methods import MethodMissing, check_installed

    try:
        check_installed(method)
    except MethodMissing as missing:
        raise StartError(f"{option}: {missing}") from None


def _check_engine(engine: str) -> None:
    if engine.startswith("dask") and importlib.util.find_spec("prefect_dask") is None:
        raise StartError(f"--engine {engine} needs prefect-dask: pip install denoise-flows[dask]")


def check_apart(source: Path, output: Path) -> None:
    """Raise :class:`StartError` where the input and the output, or a folder that a run makes there, lie in one another."""
    source = source.resolve()
    for written in (output, *(output / name for name in FOLDERS)):
        target = written.resolve()
        if target == source:
            raise StartError(
                f"INPUT and OUTPUT are the same: {source}; the input is never written to, give another OUTPUT"
            )
        if source.is_dir() and target.is_relative_to(source):
            raise StartError(f"OUTPUT {target} lies inside INPUT {source}; give an OUTPUT beside it")
        if source.is_relative_to(target):
            raise StartError(f"INPUT {source} lies inside OUTPUT {target}; give an OUTPUT beside it")


def _check_writable(output: Path) -> None:
    folders = [output / name for name in FOLDERS]
    for folder in folders:
        if folder.exists() and not folder.is_dir():
            raise StartError(f"OUTPUT: {folder} is in the way: a folder is wanted there")
    for file in (output / "results.parquet", output / "report.html"):
        if file.is_dir():
            raise StartError(f"OUTPUT: the folder {file} is in the way: a file is wanted there")
    try:
        output.mkdir(parents=True, exist_ok=True)
        for folder in (output, *folders):
            if folder.exists():
                with tempfile.TemporaryFile(dir=folder):
                    pass
    except OSError as error:
        raise StartError(f"OUTPUT: {output} cannot be written to: {error.strerror}") from None


def _check_locks() -> None:
    from tasks.slots import lock_folder

    try:
        with tempfile.TemporaryFile(dir=lock_folder()):
            pass
    except OSError as error:
        raise StartError(
            f"the lock files of the device's slots cannot be written ({error.strerror}: {error.filename}); "
            "DENOISE_LOCK_DIR names another folder for them"
        ) from None
