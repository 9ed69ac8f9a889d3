"""Step: fit and apply the method, holding a slot of the device."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
from prefect import task

from denoise_core import methods
from denoise_core.errors import DenoiseError
from denoise_core.images import machine_bytes
from denoise_core.methods.frames import Gathered, Stack
from tasks import activity
from tasks.faults import stop_if_interrupted
from tasks.settings import Settings
from tasks.slots import hold_slot
from tasks.steps import STEP
from tasks.table import fill, now
from tasks.work import Work, guarded

if TYPE_CHECKING:
    from denoise_core.methods.zs_fit import Result
    from denoise_core.methods.zs_fit.fitting import Fitted


class ImageTooLarge(DenoiseError):
    """The method cannot take an image of this size on this machine."""


class ImageTooSmall(DenoiseError):
    """The method cannot take an image this small."""


class NoModel(DenoiseError):
    """The model that was given is for other images."""


@task(name="denoise", **STEP)
def denoise(work: Work, settings: Settings, *, step: str = "denoise") -> None:  # noqa: ARG001 - step names the task run
    """Set ``denoised``; the fit and its application hold a slot of the device."""
    if settings.method == "none":
        with guarded(work):
            _denoise(work, settings)
        return
    with hold_slot(settings) as slot, guarded(work), activity.on(work.source.name):
        fill(work.row, slot_wait_seconds=slot.waited)
        _denoise(work, slot.settings)


def _denoise(work: Work, settings: Settings) -> None:
    if work.noisy is None or work.image is None or work.intensities is None:
        raise RuntimeError("the image was not loaded")
    check_size(work.noisy.shape[1:], settings)
    whole = Gathered(work.noisy.shape)
    with timed(work, settings):
        if settings.method == "zs-fit":
            arrangement = work.intensities.arrangement
            stacks = [work.noisy[arrangement.stack(number)] for number in range(arrangement.stacks)]
            zs_fit(work, settings, stacks, whole.put)
        else:
            each_frame(work, settings, work.noisy, whole.put)
    work.denoised = whole.pixels


def check_size(shape: tuple[int, ...], settings: Settings) -> None:
    """Refuse an image (H, W, C) that the method cannot take."""
    height, width = shape[:2]
    method = methods.METHODS[settings.method]
    if min(height, width) < method.min_size:
        raise ImageTooSmall(
            f"{height} × {width} pixels; {method.name} needs at least {method.min_size} × {method.min_size}"
        )
    if settings.method == "zs-n2n" and settings.device.name == "cpu":
        _check_memory(shape, settings)


@contextmanager
def timed(work: Work, settings: Settings) -> Iterator[None]:
    """Around the method: the row tells when it ran, and on what."""
    started_at = now()
    yield
    fill(work.row, device=settings.device.name, threads=settings.device.threads)
    if settings.method != "none":
        fill(work.row, fit_started_at=started_at, fit_finished_at=now())
    if work.row["steps"] is not None:
        fill(work.row, precision=settings.device.precision)


PutPlanes = Callable[[Sequence[int], np.ndarray], None]
"""Takes denoised planes on the unit scale, by their numbers."""


def zs_fit(work: Work, settings: Settings, stacks: Sequence[Stack], put: PutPlanes) -> None:
    """One fit for all frames of a stack, or the directory's network; scope image takes each frame for an image."""
    from denoise_core.methods import zs_fit as method

    assert work.intensities is not None
    arrangement = work.intensities.arrangement
    channels = arrangement.channels
    path = settings.model(channels)
    if path is None and settings.given_model:
        kinds = " and ".join(str(number) for number, _, _ in settings.models)
        raise NoModel(f"the image has {channels} channels, and the model is for {kinds}")
    model, digest = (None, None) if path is None else (load_model(*path), path[1])

    def put_stack(first: int, frames: Sequence[int], pixels: np.ndarray) -> None:
        put([first + frame for frame in frames], pixels)

    results = [
        method.denoise(
            stack,
            preset=settings.preset,
            seed=settings.seed,
            device=settings.device,
            on_step=functools.partial(_tell, work, number, arrangement.stacks),
            model=model,
            fit_own=not settings.given_model,
            by_frame=settings.scope == "image",
            put=functools.partial(put_stack, number * arrangement.frames),
        )
        for number, stack in enumerate(stacks)
    ]
    work.noise_levels = {number: [result.noise] for number, result in enumerate(results) if result.noise is not None}
    for remark in dict.fromkeys(result.remark for result in results if result.remark is not None):
        work.remark(remark)
    scope = settings.scope
    if (scope == "stack" and arrangement.frames == 1) or (scope == "directory" and path is None):
        scope = "stack" if arrangement.frames > 1 else "image"
    fill(work.row, scope=scope, model_sha256=digest, **_told(work, results))


def _told(work: Work, results: list[Result]) -> dict[str, Any]:
    """What the row tells of the stacks of a file: what most of them kept, sums of their costs, means of their noise."""
    assert work.intensities is not None
    kept = [result.kept for result in results]
    windows = [result.window for result in results]
    gains, offsets = [], []
    for result, scale in zip(results, work.intensities.scales, strict=True):
        if result.noise is not None:
            gains.append(result.noise.gain * scale.width)
            offsets.append(result.noise.offset * scale.width * scale.width - gains[-1] * scale.low)
    steps, restarts = (sum(getattr(result, name) for result in results) for name in ("steps", "restarts"))
    return {
        "kept": max(sorted(set(kept)), key=kept.count),
        "frames_together": max(sorted(set(windows)), key=windows.count),
        "noise_gain": sum(gains) / len(gains) if gains else None,
        # The variance of the largest floats is beyond all floats.
        "noise_offset": sum(offsets) / len(offsets) if offsets and math.isfinite(sum(offsets)) else None,
        "steps": steps or None,
        "restarts": restarts if steps or restarts else None,
        "fit_seconds": sum(result.fit_seconds for result in results),
        "denoise_seconds": sum(result.denoise_seconds for result in results),
    }


def each_frame(work: Work, settings: Settings, planes: Iterable[np.ndarray], put: PutPlanes) -> None:
    """The methods of one image, on the frames one after another."""
    assert work.intensities is not None
    arrangement = work.intensities.arrangement
    number_of_planes = arrangement.stacks * arrangement.frames
    # Bytes are fitted on [0, 1] as published; deeper data seldom fill their type, so their own range is mapped there.
    eight_bit = work.intensities.dtype.itemsize == 1
    steps = restarts = 0
    fit_seconds = denoise_seconds = 0.0
    for number, frame in enumerate(planes):
        result = methods.denoise(
            frame,
            method=settings.method,
            preset=settings.preset,
            seed=settings.seed,
            device=settings.device,
            value_range=(0.0, 1.0) if eight_bit else methods.intensity_range(frame),
            on_step=functools.partial(_tell, work, number, number_of_planes),
        )
        put([number], result.pixels[None])
        if result.noise is not None:
            work.noise_levels.setdefault(number // arrangement.frames, []).append(result.noise)
        steps, restarts = steps + result.steps, restarts + result.restarts
        fit_seconds, denoise_seconds = fit_seconds + result.fit_seconds, denoise_seconds + result.denoise_seconds
    fill(
        work.row,
        steps=steps or None,
        restarts=restarts if steps else None,
        fit_seconds=fit_seconds if steps else None,
        denoise_seconds=denoise_seconds,
    )


def _tell(work: Work, part: int, parts: int, step: methods.Step) -> None:
    stop_if_interrupted()
    activity.report(work.source.name, (part + step.step / step.steps) / parts)


@functools.lru_cache(maxsize=4)
def load_model(path: Path, sha256: str) -> Fitted:
    """The network in a file, which must still be the one with this SHA-256; kept in memory."""
    from denoise_core.methods.zs_fit.model import read_model

    fitted, found = read_model(path)
    if found != sha256:
        raise NoModel(f"the model {path.name} changed while the run went on")
    return fitted


def _check_memory(shape: tuple[int, ...], settings: Settings) -> None:
    """Refuse what the kernel would kill the process for: for good if the machine is too small, else for the moment."""
    from denoise_core.methods import zs_n2n

    need = zs_n2n.fit_memory_bytes(shape, settings.preset, settings.device.precision)
    memory, there = psutil.virtual_memory(), machine_bytes()
    if need > there:
        other = "use --preset fast, which takes far less" if settings.preset == "paper" else "cut the image up"
        raise ImageTooLarge(
            f"{shape[0]} × {shape[1]} pixels; preset {settings.preset} would take about {need / 1e9:.1f} GB of memory and "
            f"the machine has {there / 1e9:.1f} GB; {other}"
        )
    if need > memory.available:
        raise MemoryError(f"the fit takes about {need / 1e9:.1f} GB and {memory.available / 1e9:.1f} GB are free")
