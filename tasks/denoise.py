"""Step: fit and apply the method, holding a slot of the device."""

from __future__ import annotations

import numpy as np
import psutil
from prefect import task

from denoise_core import methods
from denoise_core.errors import DenoiseError
from denoise_core.methods import zs_n2n
from tasks import activity
from tasks.faults import stop_if_interrupted
from tasks.settings import Settings
from tasks.slots import hold_slot
from tasks.steps import STEP
from tasks.table import fill, now
from tasks.work import Work, guarded


class ImageTooLarge(DenoiseError):
    """The method cannot take an image of this size on this machine."""


class ImageTooSmall(DenoiseError):
    """The method cannot take an image this small."""


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
    height, width = work.noisy.shape[:2]
    method = methods.METHODS[settings.method]
    if min(height, width) < method.min_size:
        raise ImageTooSmall(
            f"{height} × {width} pixels; {method.name} needs at least {method.min_size} × {method.min_size}"
        )
    if settings.method == "zs-n2n" and settings.device.name == "cpu":
        _check_memory(work.noisy.shape, settings)
    # Bytes are fitted on [0, 1] as published; deeper data seldom fill their type, so their own range is mapped there.
    eight_bit = work.image.pixels.dtype == np.uint8
    value_range = (0.0, 1.0) if eight_bit else methods.intensity_range(work.noisy)
    started_at = now()

    def on_step(step: methods.Step) -> None:
        stop_if_interrupted()
        activity.report(work.source.name, step.step / step.steps)

    result = methods.denoise(
        work.noisy,
        method=settings.method,
        preset=settings.preset,
        seed=settings.seed,
        device=settings.device,
        value_range=value_range,
        on_step=on_step,
    )
    work.denoised = result.pixels
    fitted = result.steps > 0
    fill(
        work.row,
        device=settings.device.name,
        precision=settings.device.precision if fitted else None,
        steps=result.steps if fitted else None,
        restarts=result.restarts if fitted else None,
        fit_started_at=started_at if fitted else None,
        fit_finished_at=now() if fitted else None,
        fit_seconds=result.fit_seconds if fitted else None,
        denoise_seconds=result.denoise_seconds,
    )


def _check_memory(shape: tuple[int, ...], settings: Settings) -> None:
    """Refuse what the kernel would kill the process for: for good if the machine is too small, else for the moment."""
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
