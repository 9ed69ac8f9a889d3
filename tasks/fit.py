"""Step: one network for all images of a kind, fitted before the chunks begin and kept in OUTPUT/models."""

from __future__ import annotations

import functools
import hashlib
import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from prefect import task

from tasks import activity
from tasks.add_noise import add_noise
from tasks.blocks import in_blocks, some_frames
from tasks.faults import stop_if_interrupted
from tasks.in_work import noted
from tasks.load import load
from tasks.settings import Settings
from tasks.slots import hold_slot
from tasks.steps import CHUNK, ending_cancelled
from tasks.stylize import paint
from tasks.table import text
from tasks.work import Source, Work
from tasks.worker import serving

if TYPE_CHECKING:
    from denoise_core.methods import Pixels, Step

log = logging.getLogger("tasks")

LEAST_IMAGES = 4
"""As many images of one kind make a directory worth a network of its own."""
MOST_IMAGES = {"fast": 24, "best": 96}
"""A larger directory is sampled."""


def by_kind(sources: Sequence[Source]) -> dict[int, list[Source]]:
    """The sources by what one network can serve: their number of joint channels. Their noise levels may differ."""
    kinds: dict[int, list[Source]] = {}
    for source in sources:
        kinds.setdefault(source.arrangement.channels, []).append(source)
    return dict(sorted(kinds.items()))


def sample_of(sources: Sequence[Source], most: int, seed: int) -> list[Source]:
    """At most ``most`` of the sources, drawn by the seed and each one's content: names and order of the files decide nothing."""

    def draw(source: Source) -> tuple[str, str]:
        return hashlib.sha256(f"{seed}\0{source.sha256}".encode()).hexdigest(), source.name

    return sorted(sources, key=draw)[:most]


def model_path(output: Path, config_digest: str, channels: int) -> Path:
    """Where the network for images of so many channels is kept; another configuration has another file."""
    return output / "models" / f"{channels}-channel-{config_digest[:12]}.safetensors"


@task(name="fit", **{**CHUNK, "task_run_name": "fit {images} images of {channels} channel(s)"})
@ending_cancelled
def fit_directory(
    chosen: Sequence[Source], settings: Settings, *, channels: int, images: int
) -> tuple[Path, str] | None:
    """Fit one network to the chosen of so many images and write it: its file and SHA-256.

    ``None`` where none of them can be fitted to.

    Raises:
        FitDiverged: the fit ended worse than the noisy images, twice.
    """
    from denoise_core.methods import zs_fit
    from denoise_core.methods.zs_fit.model import write_model

    log.info("fitting one network to %d of %d images of %d channel(s)", len(chosen), images, channels)
    name = f"the network for {images} images"
    with serving(settings), hold_slot(settings) as slot, activity.on(name):
        started = time.perf_counter()
        # All threads of the run's slots: no image is being fitted meanwhile.
        device = slot.settings.device
        if device.name == "cpu":
            device = replace(device, threads=device.threads * settings.slots)
        fitted = zs_fit.fit_directory(
            [functools.partial(_noisy, *each, slot.settings) for each in _stacks(chosen, MOST_IMAGES[settings.preset])],
            preset=settings.preset,
            seed=settings.seed,
            device=device,
            on_step=functools.partial(_tell, name),
        )
        seconds = time.perf_counter() - started
    if fitted is None:
        return None
    path = model_path(settings.output, settings.config_digest, channels)
    about = {
        "preset": settings.preset,
        "seed": settings.seed,
        "noise": settings.noise,
        "config_digest": settings.config_digest,
        "run_id": settings.run_id,
        "fit_seconds": seconds,
        "threads": device.threads,
        "images": images,
        "sampled": {text(source.name): source.sha256 for source in chosen},
    }
    return path, write_model(path, fitted, about)


def _stacks(chosen: Sequence[Source], most: int) -> list[tuple[Source, int]]:
    """Stacks of the chosen, by their numbers: of each image at least one, of all together no more than ``most`` if that is."""
    share = max(1, most // max(1, len(chosen)))
    found = []
    for source in chosen:
        stacks = source.arrangement.stacks
        evenly = np.linspace(0, stacks - 1, min(stacks, share)).round().astype(int).tolist()
        found += [(source, number) for number in evenly]
    return found


def _noisy(source: Source, stack: int, settings: Settings) -> Pixels | None:
    """A stack's noisy pixels (F, H, W, C) as the chunk will see them; ``None`` for an image that cannot be read.

    Of a stack that is done in blocks, some frames.
    """
    stop_if_interrupted()
    work = Work(source, settings)
    with noted(source, settings):
        if in_blocks(source, settings):
            return some_frames(work, settings, stack)
        load.fn(work, settings)
        if settings.style is not None and not work.failed:
            paint(work, settings)
        if settings.noise != "none" and not work.failed:
            add_noise.fn(work, settings)
    return None if work.failed or work.noisy is None else work.noisy[source.arrangement.stack(stack)]


def _tell(name: str, step: Step) -> None:
    stop_if_interrupted()
    activity.report(name, step.step / step.steps)
