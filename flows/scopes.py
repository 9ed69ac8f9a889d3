"""What one fit of zs-fit serves in a run, and the networks that its images get."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from denoise_core.errors import DenoiseError
from flows.config import OnExisting, RunConfig, Scope
from flows.errors import StartError
from tasks.denoise import load_model
from tasks.faults import interrupt, sentence
from tasks.fit import LEAST_IMAGES, by_kind, fit_directory, model_path
from tasks.scan import Scan
from tasks.settings import Settings
from tasks.work import Source


def resolve(config: RunConfig, found: Scan) -> tuple[str, str]:
    """The scope of a run, and why: what ``auto`` stands for depends on how many images of a kind there are to do."""
    if config.model is not None:
        return Scope.DIRECTORY.value, "a model was given"
    if config.scope is not Scope.AUTO:
        return config.scope.value, "as asked for"
    kinds = by_kind(found.todo)
    counts = " and ".join(f"{len(sources)} of {channels} channel(s)" for channels, sources in kinds.items())
    redo = config.on_existing is OnExisting.OVERWRITE
    if not redo and any(_is_model(model_path(config.output.resolve(), config.digest(), n)) for n in kinds):
        return Scope.DIRECTORY.value, "an earlier run left a network for images of this kind"
    if max(map(len, kinds.values()), default=0) >= LEAST_IMAGES:
        return Scope.DIRECTORY.value, f"there are {LEAST_IMAGES} or more images of one kind to do: {counts}"
    fewer = f"there are fewer than {LEAST_IMAGES} images of one kind to do: {counts}"
    stacks = any(source.header.frames > 1 for source in found.todo)
    return (Scope.STACK if stacks else Scope.IMAGE).value, fewer


def given(path: Path) -> tuple[tuple[int, Path], ...]:
    """The networks in a file or folder, by their channels.

    Raises:
        StartError: one of them is no network of zs-fit, or two are for images of as many channels.
    """
    models: dict[int, Path] = {}
    for file in sorted(path.glob("*.safetensors")) if path.is_dir() else [path]:
        try:
            fitted, _ = load_model(file, file.stat().st_mtime_ns)
        except (DenoiseError, OSError) as error:
            raise StartError(f"--model: {file}: {sentence(error)}") from None
        channels = fitted.layout.channels
        if channels in models:
            raise StartError(
                f"--model: {models[channels]} and {file} are both for {channels} channel(s); give one of them"
            )
        models[channels] = file
    return tuple(models.items())


def fit_models(settings: Settings, found: Scan, *, redo: bool, announce: Callable[[str], None]) -> Settings:
    """The settings with a network for every kind of image of which there are enough; those of an earlier run are kept.

    Where a network cannot be fitted, each image of that kind gets a fit of its own.
    """
    models = []
    for channels, sources in by_kind(found.todo).items():
        if interrupt.is_set():
            break
        path = model_path(settings.output, settings.config_digest, channels)
        if not redo and _is_model(path):
            announce(f"the network of an earlier run serves images of {channels} channel(s): {path.name}")
            models.append((channels, path))
        elif len(sources) >= LEAST_IMAGES or settings.scope_was_asked:
            announce(f"fitting one network for {len(sources)} images of {channels} channel(s)")
            fitted = _fit(sources, settings, channels, announce)
            if fitted is not None:
                models.append((channels, fitted))
    return replace(settings, models=tuple(models))


def _fit(sources: list[Source], settings: Settings, channels: int, announce: Callable[[str], None]) -> Path | None:
    state = fit_directory(sources, settings, channels=channels, images=len(sources), return_state=True)
    if interrupt.is_set():
        return None
    path: object = state.result(raise_on_failure=False)
    if isinstance(path, Path):
        return path
    why = sentence(path) if isinstance(path, BaseException) else "none of them has noise that it can be fitted to"
    announce(f"no network for images of {channels} channel(s), each gets its own: {why}")
    return None


def _is_model(path: Path) -> bool:
    try:
        load_model(path, path.stat().st_mtime_ns)
    except (DenoiseError, OSError):
        return False
    return True
