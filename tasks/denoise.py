"""Step: fit and apply the method, holding a slot of the device."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import psutil
from prefect import task

from denoise_core import methods
from denoise_core.errors import DenoiseError
from tasks import activity
from tasks.faults import stop_if_interrupted
from tasks.settings import Settings
from tasks.slots import hold_slot
from tasks.steps import STEP
from tasks.table import fill, now
from tasks.work import Work, guarded

if TYPE_CHECKING:
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
    with hold_slot(settings) as waited, guarded(work), activity.on(work.source.name):
        fill(work.row, slot_wait_seconds=waited)
        _denoise(work, settings)


def _denoise(work: Work, settings: Settings) -> None:
    if work.noisy is None or work.image is None:
        raise RuntimeError("the image was not loaded")
    height, width = work.noisy.shape[1:3]
    method = methods.METHODS[settings.method]
    if min(height, width) < method.min_size:
        raise ImageTooSmall(
            f"{height} × {width} pixels; {method.name} needs at least {method.min_size} × {method.min_size}"
        )
    if settings.method == "zs-n2n" and settings.device.name == "cpu":
        _check_memory(work.noisy.shape[1:], settings)
    started_at = now()
    if settings.method == "zs-fit":
        _zs_fit(work, settings)
    else:
        _each_frame(work, settings)
    fill(work.row, device=settings.device.name)
    if settings.method != "none":
        fill(work.row, fit_started_at=started_at, fit_finished_at=now())
    if work.row["steps"] is not None:
        fill(work.row, precision=settings.device.precision)


def _zs_fit(work: Work, settings: Settings) -> None:
    """One fit for all frames of the file, or the directory's network; `scope` image takes the frames one by one."""
    from denoise_core.methods import zs_fit

    assert work.noisy is not None
    channels = work.noisy.shape[3]
    path = settings.model(channels)
    if path is None and settings.given_model:
        kinds = " and ".join(str(number) for number, _, _ in settings.models)
        raise NoModel(f"the image has {channels} channels, and the model is for {kinds}")
    model, digest = (None, None) if path is None else (load_model(*path), path[1])
    frames = [work.noisy] if settings.scope != "image" else np.split(work.noisy, len(work.noisy))
    found = []
    for number, frame in enumerate(frames):
        found.append(
            zs_fit.denoise(
                frame,
                preset=settings.preset,
                seed=settings.seed,
                device=settings.device,
                on_step=functools.partial(_tell, work, number, len(frames)),
                model=model,
                fit_own=not settings.given_model,
            )
        )
    work.denoised = np.concatenate([result.pixels for result in found]) if len(found) > 1 else found[0].pixels
    # A stack done frame by frame: what most of its frames kept, and the first one's noise.
    kept = [result.kept for result in found]
    steps = sum(result.steps for result in found)
    noise = found[0].noise
    top = 1.0 if work.image is None else float(np.iinfo(work.image.pixels.dtype).max)
    scope = settings.scope
    if (scope == "stack" and len(work.noisy) == 1) or (scope == "directory" and path is None):
        scope = "stack" if len(work.noisy) > 1 else "image"
    fill(
        work.row,
        scope=scope,
        kept=max(sorted(set(kept)), key=kept.count),
        model_sha256=digest,
        frames_together=found[0].window,
        noise_gain=None if noise is None else noise.gain * top,
        noise_offset=None if noise is None else noise.offset * top**2,
        steps=steps or None,
        restarts=sum(result.restarts for result in found) if steps or any(r.restarts for r in found) else None,
        fit_seconds=sum(result.fit_seconds for result in found),
        denoise_seconds=sum(result.denoise_seconds for result in found),
    )


def _each_frame(work: Work, settings: Settings) -> None:
    """The methods of one image, on the frames one after another."""
    assert work.noisy is not None
    assert work.image is not None
    # Bytes are fitted on [0, 1] as published; deeper data seldom fill their type, so their own range is mapped there.
    eight_bit = work.image.pixels.dtype == np.uint8
    work.denoised = np.empty_like(work.noisy)
    steps = restarts = 0
    fit_seconds = denoise_seconds = 0.0
    for number, frame in enumerate(work.noisy):
        result = methods.denoise(
            frame,
            method=settings.method,
            preset=settings.preset,
            seed=settings.seed,
            device=settings.device,
            value_range=(0.0, 1.0) if eight_bit else methods.intensity_range(frame),
            on_step=functools.partial(_tell, work, number, len(work.noisy)),
        )
        work.denoised[number] = result.pixels
        steps, restarts = steps + result.steps, restarts + result.restarts
        fit_seconds, denoise_seconds = fit_seconds + result.fit_seconds, denoise_seconds + result.denoise_seconds
    fill(
        work.row,
        steps=steps or None,
        restarts=restarts if steps else None,
        fit_seconds=fit_seconds if steps else None,
        denoise_seconds=denoise_seconds,
    )


def _tell(work: Work, frame: int, frames: int, step: methods.Step) -> None:
    stop_if_interrupted()
    activity.report(work.source.name, (frame + step.step / step.steps) / frames)


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
    memory = psutil.virtual_memory()
    if need > memory.total:
        other = "use --preset fast, which takes far less" if settings.preset == "paper" else "cut the image up"
        raise ImageTooLarge(
            f"{shape[0]} × {shape[1]} pixels; preset {settings.preset} would take about {need / 1e9:.1f} GB of memory and "
            f"the machine has {memory.total / 1e9:.1f} GB; {other}"
        )
    if need > memory.available:
        raise MemoryError(f"the fit takes about {need / 1e9:.1f} GB and {memory.available / 1e9:.1f} GB are free")
