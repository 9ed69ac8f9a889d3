"""Step: paint an image in the manner of the run's style. What was painted is kept, and an earlier run's is taken as it is."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from prefect import task

from denoise_core import __version__
from denoise_core.errors import DenoiseError
from denoise_core.images import as_stored, decode, encode, in_rgb, orientation, upright, write_atomic
from tasks import activity
from tasks.arrangement import arrange
from tasks.faults import stop_if_interrupted
from tasks.intensities import Intensities
from tasks.outputs import path_below
from tasks.settings import Settings, Style
from tasks.slots import hold_slot
from tasks.steps import STEP
from tasks.table import fill, text
from tasks.work import Work, guarded, open_below

if TYPE_CHECKING:
    import style_core
    from denoise_core.device import Device

FOLDER = "stylized"
MOST_STYLE_PIXELS = 100_000_000
MOST_STYLES = 16  # kept ready: a service has several flows at a time, and a flow may have several devices


@task(name="stylize", **STEP)
def stylize(work: Work, settings: Settings, *, step: str = "stylize") -> None:  # noqa: ARG001 - step names the task run
    """Paint ``noisy``, in a slot of the device unless an earlier run has painted it."""
    with guarded(work):
        if _take_kept(work, settings):
            return
    if work.failed:
        return
    with hold_slot(settings) as slot, guarded(work), activity.on(work.source.name):
        _paint(work, slot.settings)


def paint(work: Work, settings: Settings) -> None:
    """The same for a caller who holds the slot."""
    with guarded(work):
        if not _take_kept(work, settings):
            _paint(work, settings)


def _paint(work: Work, settings: Settings) -> None:
    import style_core

    if work.image is None or settings.style is None:
        raise RuntimeError("the image was not loaded")
    started = time.perf_counter()
    targets = targets_of(settings.style, settings.device)
    assert work.noisy is not None
    image, frames = work.image, np.clip(work.noisy, 0, 1)
    with open_below(settings.input, work.source.name) as file:
        turned = orientation(file)  # strokes go as they do in the style's image, where both are seen upright
    painted = np.empty_like(frames)
    style_loss = content_loss = 0.0
    steps = 0
    channels = frames.shape[3]
    colours = [slice(0, channels)] if channels in {1, 3} else [slice(c, c + 1) for c in range(channels)]
    parts = [(number, part) for number in range(len(frames)) for part in colours]
    for done, (number, part) in enumerate(parts):
        found = style_core.stylize(
            upright(frames[number, ..., part], turned),
            targets,
            keep_colours=settings.style.keep_colours,
            max_side=settings.style.max_side,
            seed=settings.seed,
            threads=settings.device.threads,
            on_step=functools.partial(_tell, work, done, len(parts)),
        )
        painted[number, ..., part] = as_stored(found.pixels, turned)
        steps += found.steps
        style_loss += found.style_loss / len(parts)
        content_loss += found.content_loss / len(parts)
    facts = {
        "style_loss": style_loss,
        "content_loss": content_loss,
        "style_steps": steps,
        "style_seconds": time.perf_counter() - started,
        "vgg_sha256": targets.weights_sha256,
    }
    pixels = work.stored(painted)
    if settings.keeps_stylized:
        # What goes on is what the file holds: a JPEG changes it a little.
        data = encode(image, pixels)
        write_atomic(_file(work, settings), data)
        write_atomic(
            _record(work, settings), json.dumps({**facts, "sha256": _sha256(data), "run_id": settings.run_id}).encode()
        )
        pixels = decode(data, max_pixels=settings.max_pixels).pixels
    _go_on_with(work, settings, pixels, facts)


def _take_kept(work: Work, settings: Settings) -> bool:
    """Go on with what an earlier try or run painted of the same image in the same manner; whether there is such."""
    if work.image is None:
        raise RuntimeError("the image was not loaded")
    if not settings.keeps_stylized:
        return False
    try:
        facts = json.loads(_record(work, settings).read_bytes())
        data = _file(work, settings).read_bytes()
        if facts["sha256"] != _sha256(data) or (settings.redo and facts["run_id"] != settings.run_id):
            return False
        kept: dict[str, Any] = {name: float(facts[name]) for name in ("style_loss", "content_loss", "style_seconds")}
        kept |= {"style_steps": int(facts["style_steps"]), "vgg_sha256": str(facts["vgg_sha256"])}
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return False
    _go_on_with(work, settings, decode(data, max_pixels=settings.max_pixels).pixels, kept)
    return True


def _go_on_with(work: Work, settings: Settings, pixels: np.ndarray, facts: dict[str, Any]) -> None:
    assert settings.style is not None
    assert work.intensities is not None
    work.noisy, work.noisy_is_source = work.intensities.filled(pixels), False
    stylized = text(_file(work, settings).relative_to(settings.output).as_posix()) if settings.keeps_stylized else None
    fill(work.row, style=names_of(settings.style), style_preset=preset_of(settings.style), stylized=stylized, **facts)


def names_of(style: Style) -> str:
    """The style images by name: "paint.jpg + ink.png"."""
    return " + ".join(text(path.name) for path in style.images)


def preset_of(style: Style) -> str:
    """The preset by name, and what of it was changed: "best with steps 50, content_layers relu3_1"."""
    changes = [
        f"{name} {' '.join(value) if isinstance(value, tuple) else f'{value:g}' if isinstance(value, float) else value}"
        for name, value in style.changes
    ]
    return " with ".join(filter(None, (style.preset, ", ".join(changes))))


def _file(work: Work, settings: Settings) -> Path:
    return path_below(settings.output / FOLDER, work.source.name)


def _record(work: Work, settings: Settings) -> Path:
    """Beside the runs, so that the folder of stylized images holds nothing else."""
    assert settings.style is not None
    assert work.intensities is not None
    arrangement = work.intensities.arrangement
    # What of the image is painted, upright, in what parts and on what scale.
    seen = f"upright {arrangement.axes} {arrangement.shape} {arrangement} {work.intensities.scales} {__version__}"
    key = f"{text(work.source.name)}\0{work.source.sha256}\0{settings.style.digest}\0{seen}"
    return path_below(settings.output / "runs", f"stylized/{_sha256(key.encode())}.json")


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def targets_of(style: Style, device: Device) -> style_core.StyleTargets:
    """The style made ready: read and computed once a process and device, for all images.

    Raises:
        DenoiseError, StyleError: a style image or the weights cannot be read, or are too small or too shallow.
    """
    with _looking:
        ready = _targets(style, device)
    return ready.made()


_looking = threading.Lock()


class _Ready:
    """A style's targets on a device, made by the first who asks; others wait for these alone."""

    def __init__(self, style: Style, device: Device) -> None:
        self._of = style, device
        self._lock = threading.Lock()
        self._made: style_core.StyleTargets | None = None

    def made(self) -> style_core.StyleTargets:
        with self._lock:
            if self._made is None:
                self._made = _make(*self._of)
            return self._made


@functools.lru_cache(maxsize=MOST_STYLES)
def _targets(style: Style, device: Device) -> _Ready:
    return _Ready(style, device)


def _make(style: Style, device: Device) -> style_core.StyleTargets:
    import torch

    import style_core

    return style_core.style_targets(
        images_of(style),
        features_of(style),
        _style_preset(style),
        scale=style.scale,
        dtype=torch.bfloat16 if device.precision == "bfloat16" else torch.float32,
        device=device.name,
        threads=device.threads,
    )


def _style_preset(style: Style) -> style_core.StylePreset:
    import style_core

    return replace(style_core.PRESETS[style.preset], **dict(style.changes))


@functools.lru_cache(maxsize=1)
def features_of(style: Style) -> style_core.Features:
    """The trained network, as deep as the style's layers; torchvision's is fetched where that was allowed.

    Raises:
        WeightsError: the file is not the expected one, not trained, or too shallow.
    """
    import style_core

    layers = _style_preset(style).layers
    if style.weights is None:
        return style_core.download_features(layers)
    return style_core.load_features(style.weights, layers, sha256=style.weights_sha256)


def images_of(style: Style) -> list[np.ndarray]:
    """The style images, each (H, W[, C]), alpha as its last channel.

    Raises:
        DenoiseError: one of them cannot be decoded, is a stack or too small; it is named.
    """
    import style_core

    found = []
    for path in style.images:
        try:
            pixels = _style_pixels(path)
            style_core.check_style(pixels, _style_preset(style))
        except (DenoiseError, style_core.StyleError) as error:
            raise DenoiseError(f"{path}: {error}") from error
        found.append(pixels)
    return found


def _style_pixels(path: Path) -> np.ndarray:
    """Upright; as they are where style_core knows their range, others on the unit scale, as an image that is painted is."""
    data = path.read_bytes()
    image = in_rgb(decode(data, max_pixels=MOST_STYLE_PIXELS))
    if image.axes not in ("YX", "YXS"):
        raise DenoiseError(f"this is a stack ({image.axes}); one image is needed")
    pixels, alpha = image.pixels, image.alpha
    if pixels.dtype not in (np.uint8, np.uint16) and not _of_unit_range(pixels):
        arrangement = arrange(image.header)
        _, planes = Intensities.of(pixels, arrangement, clean=True)
        pixels = arrangement.back(planes)
        if alpha is not None and alpha.dtype.kind in "ui":
            alpha = alpha / np.float32(np.iinfo(alpha.dtype).max)
    return upright(pixels if alpha is None else np.dstack([pixels, alpha]), orientation(io.BytesIO(data)))


def _of_unit_range(pixels: np.ndarray) -> bool:
    return pixels.dtype.kind == "f" and bool(pixels.min() >= 0 and pixels.max() <= 1)  # false for NaN too


def _tell(work: Work, frame: int, frames: int, step: style_core.Step) -> None:
    stop_if_interrupted()
    activity.report(work.source.name, (frame + step.step / step.steps) / frames)
