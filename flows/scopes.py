"""What one fit of zs-fit serves in a run, and the networks that its images get."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from denoise_core.errors import DenoiseError
from flows.choices import OnExisting, Scope
from flows.config import RunConfig, content
from flows.engine import Engine, EngineLost, WorkerDied
from flows.errors import StartError
from tasks import activity
from tasks.faults import interrupt, sentence
from tasks.fit import LEAST_IMAGES, MOST_IMAGES, by_kind, fit_directory, model_path, sample_of
from tasks.scan import Scan
from tasks.settings import Settings
from tasks.work import Source

TOLD_SECONDS = 10.0


def resolve(config: RunConfig, found: Scan) -> tuple[str, str]:
    """The scope of a run, and why: what ``auto`` stands for depends on how many images of a kind there are to do."""
    if config.model is not None:
        return Scope.DIRECTORY.value, "a model was given"
    if config.scope is not Scope.AUTO:
        return config.scope.value, "as asked for"
    kinds = by_kind(found.todo)
    counts = " and ".join(f"{len(sources)} of {channels} channel(s)" for channels, sources in kinds.items())
    redo = config.on_existing is OnExisting.OVERWRITE
    if not redo and any(_model(model_path(config.output.resolve(), config.digest(), n), n) for n in kinds):
        return Scope.DIRECTORY.value, "an earlier run left a network for images of this kind"
    if max(map(len, kinds.values()), default=0) >= LEAST_IMAGES:
        return Scope.DIRECTORY.value, f"there are {LEAST_IMAGES} or more images of one kind to do: {counts}"
    fewer = f"there are fewer than {LEAST_IMAGES} images of one kind to do: {counts}"
    stacks = any(source.arrangement.frames > 1 for source in found.todo)
    return (Scope.STACK if stacks else Scope.IMAGE).value, fewer


def given(path: Path) -> tuple[tuple[int, Path, str], ...]:
    """The networks in a file or folder: channels, file and its SHA-256.

    Raises:
        StartError: one of them is no network of zs-fit, or two are for images of as many channels.
    """
    from denoise_core.methods.zs_fit.model import read_model

    models: dict[int, tuple[Path, str]] = {}
    for file in sorted(path.glob("*.safetensors")) if path.is_dir() else [path]:
        try:
            fitted, digest = read_model(file)
        except (DenoiseError, OSError) as error:
            raise StartError(f"--model: {file}: {sentence(error)}") from None
        channels = fitted.layout.channels
        if channels in models:
            first = models[channels][0]
            raise StartError(f"--model: {first} and {file} are both for {channels} channel(s); give one of them")
        models[channels] = file, digest
    return tuple((channels, *found) for channels, found in models.items())


def lost_networks(settings: Settings, found: Scan) -> str | None:
    """A sentence where images that are done had a network that is no longer there: the others will be done without it."""
    had = {row["model_sha256"] for row in found.done if row.get("model_sha256")}
    if settings.given_model or not had or not found.todo:
        return None
    files = model_path(settings.output, settings.config_digest, 1).parent.glob("*.safetensors")
    lost = had - {content(file) for file in files}
    if not lost:
        return None
    count = sum(row.get("model_sha256") in lost for row in found.done)
    return (
        f"{count} of the images that are done had a network which OUTPUT/models no longer holds: the others have another one, "
        "or none, and results may differ a little; --on-existing overwrite does all of them alike"
    )


def fit_models(
    settings: Settings,
    found: Scan,
    engine: Engine,
    *,
    asked: bool,
    redo: bool,
    announce: Callable[..., None],
    deadly: frozenset[Source] = frozenset(),
) -> Settings:
    """The settings with a network for every kind of image of which there are enough; those of an earlier run are kept.

    ``asked``: the scope was named, so that any number is enough. A fit whose worker process died is made again without the
    ``deadly`` images. Where a network cannot be fitted, each image of that kind gets a fit of its own.
    """
    models = []
    for channels, sources in by_kind(found.todo).items():
        if interrupt.is_set():
            break
        path = model_path(settings.output, settings.config_digest, channels)
        kept = None if redo else _model(path, channels)
        if kept is not None:
            announce(f"the network of an earlier run serves images of {channels} channel(s): {path.name}")
        elif len(sources) >= LEAST_IMAGES or asked:
            announce(f"fitting one network for {len(sources)} images of {channels} channel(s)")
            kept = _fit(sources, settings, engine, channels, announce=announce, deadly=deadly)
        if kept is not None:
            models.append((channels, *kept))
    return replace(settings, models=tuple(models))


def _fit(
    sources: list[Source],
    settings: Settings,
    engine: Engine,
    channels: int,
    *,
    announce: Callable[..., None],
    deadly: frozenset[Source] = frozenset(),
) -> tuple[Path, str] | None:
    """Fit in the background, and tell now and then how far it is."""
    chosen = sample_of(sources, MOST_IMAGES[settings.preset], settings.seed)
    own = replace(settings, elsewhere=engine.elsewhere)  # chunks may go elsewhere although the fit stays
    asked = {"chosen": chosen, "settings": own, "channels": channels, "images": len(sources)}
    outcome: object = None
    try:
        future = engine.submit(fit_directory, asked)
        told = time.monotonic()
        stopped = False
        while not engine.ended([future], 0.25):
            if interrupt.is_set() and not stopped:
                stopped = True
                engine.stop([future])
            elif time.monotonic() - told > TOLD_SECONDS and not stopped:
                told = time.monotonic()
                share, waiting = activity.glance()
                if waiting:
                    announce(f"waiting for {waiting}")
                else:
                    announce(f"fitting: {100 * share:.0f} %", logging.DEBUG)
        outcome = engine.outcome(future)
    except EngineLost as lost:
        outcome = lost
    if interrupt.is_set():
        return None
    if isinstance(outcome, tuple):
        return outcome
    rest = [source for source in sources if source not in deadly]
    if isinstance(outcome, WorkerDied) and 0 < len(rest) < len(sources):
        announce("the worker process of the fit died: it is made again without images that earlier runs died over")
        return _fit(rest, settings, engine, channels, announce=announce)
    why = (
        sentence(outcome) if isinstance(outcome, BaseException) else "none of them can be fitted to (the notes say why)"
    )
    announce(f"no network for images of {channels} channel(s), each is done by itself: {why}")
    return None


def _model(path: Path, channels: int) -> tuple[Path, str] | None:
    """The file and its SHA-256, if it holds a network for so many channels."""
    from denoise_core.methods.zs_fit.model import read_model

    try:
        fitted, digest = read_model(path)
    except (DenoiseError, OSError):
        return None
    return (path, digest) if fitted.layout.channels == channels else None
