"""What one fit of zs-fit serves in a run, and the networks that its images get."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from denoise_core.errors import DenoiseError
from flows.config import Scope
from flows.errors import StartError
from tasks.denoise import load_model
from tasks.faults import interrupt, sentence
from tasks.fit import LEAST_IMAGES, by_kind, fit_directory, model_path
from tasks.scan import Scan
from tasks.settings import Settings
from tasks.table import Row


def resolve(asked: Scope, found: Scan) -> tuple[str, str]:
    """The scope of a run, and why: what ``auto`` stands for depends on how many images of a kind the input has."""
    if asked is not Scope.AUTO:
        return asked.value, "as asked for"
    counts = _counts(found)
    most = max(counts.values(), default=0)
    kinds = " and ".join(f"{count} of {channels} channel(s)" for channels, count in counts.items())
    if most >= LEAST_IMAGES:
        return Scope.DIRECTORY.value, f"there are {LEAST_IMAGES} or more images of one kind: {kinds}"
    stacks = [source for source in found.todo if source.header.frames > 1]
    fewer = f"there are fewer than {LEAST_IMAGES} images of one kind: {kinds}"
    return Scope.STACK.value if stacks else Scope.IMAGE.value, fewer


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
    counts = _counts(found)
    for channels, sources in by_kind(found.todo).items():
        if interrupt.is_set():
            break
        path = model_path(settings, channels)
        if not redo and _is_model(path):
            announce(f"the network of an earlier run serves images of {channels} channel(s): {path.name}")
            models.append((channels, path))
        elif counts[channels] >= LEAST_IMAGES or settings.scope_was_asked:
            announce(f"fitting one network for {counts[channels]} images of {channels} channel(s)")
            fitted = _fit(sources, settings, channels, announce)
            if fitted is not None:
                models.append((channels, fitted))
    return replace(settings, models=tuple(models))


def _fit(sources: list, settings: Settings, channels: int, announce: Callable[[str], None]) -> Path | None:  # type: ignore[type-arg]
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


def _counts(found: Scan) -> dict[int, int]:
    """Images by their number of channels, those that are done included."""
    counts = {channels: len(sources) for channels, sources in by_kind(found.todo).items()}
    for row in found.done:
        channels = _channels(row)
        counts[channels] = counts.get(channels, 0) + 1
    return dict(sorted(counts.items()))


def _channels(row: Row) -> int:
    return int(row["shape"][-1]) if str(row["axes"]).endswith("S") else 1
