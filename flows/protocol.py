"""How a comparison was made, as it is written beside its table."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from denoise_core import __version__
from denoise_core.device import Device
from denoise_core.images import own_scale
from flows.compare_config import CompareConfig
from flows.denoise_directory import share
from tasks.comparison import is_cropped
from tasks.published import beside
from tasks.scan import Scan
from tasks.table import Row
from tasks.work import Source


def protocol_of(config: CompareConfig, found: Scan, device: Device, rows: Sequence[Row]) -> dict[str, Any]:
    """How the comparison was made, as plain JSON; ``notes`` says it in sentences, ``rows`` what was measured."""
    threads = {}
    for candidate in config.methods:
        one, slots = share(device, config.cell(candidate, config.noises[0], config.seed))
        used = {row["threads"] for row in rows if row["candidate"] == candidate and row["threads"] is not None}
        threads[candidate] = _in_words(sorted(used) or [one.threads], min(slots, max(1, len(found.todo))))
    clipped = [noise for noise in config.noises if config.clips(noise)]
    crop = "whole images"
    if config.crop is not None:
        cropped = sum(is_cropped(source, config.crop) for source in found.todo)
        crop = f"centre crops of {config.crop} × {config.crop} pixels"
        small = sum(min(_sides(source)) < config.crop for source in found.todo)
        if small:
            crop += f" at the most: {small} are smaller, and {len(found.todo) - cropped} are whole"
    noise = "The images have noise of their own and are scored against --reference."
    if config.noise:
        cut = "none of it clipped" if not clipped else f"clipped to the value range: {', '.join(clipped)}"
        noise = (
            f"Noise added to the clean images: {', '.join(config.noise)}; {cut}. It is drawn from the seed and the "
            "image's path: the same for every method."
        )
    last = config.seed + config.seeds - 1
    seeds = f"Seed {config.seed}" if config.seeds == 1 else f"Seeds {config.seed} to {last}"
    alike = {what: [name for name in threads if threads[name] == what] for what in threads.values()}
    how = "; ".join(what if len(alike) == 1 else f"{', '.join(names)}: {what}" for what, names in alike.items())
    return {
        "protocol": config.protocol.value,
        "software": f"denoise-flows {__version__}",
        "images": len(found.todo),
        "crop": config.crop,
        "axes": config.axes,
        "channels": config.channels.value,
        "noise": [{"noise": noise, "clipped": config.clips(noise)} for noise in config.noises],
        "seeds": list(range(config.seed, last + 1)),
        "methods": list(config.methods),
        "against": config.compared_with,
        "device": device.name,
        "precision": device.precision,
        "threads": threads,
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "packages": {name: version(name) for name in ("torch", "numpy", "scikit-image", "PyWavelets")},
        "published": beside(
            [source.name for source in found.todo],
            [source.header.shape for source in found.todo],
            config.noises,
            crop=config.crop,
            clips=config.clips,
        ),
        "notes": [
            f"{len(found.todo)} images of {config.input.resolve().name}, {crop}.",
            *_arranged(config),
            noise,
            f"{seeds} for noise and fits. Every fit's last iterate: no clean image takes part in any choice.",
            "The noise level is told to no method.",
            _scoring(found.todo),
            "Means are over the images that every method has done; ± is the standard deviation over images.",
            "Seconds an image: fit and application on the wall, without reading, scoring, writing and waiting; of a "
            "network for the whole directory, the image's share of its fit. Measured when it was done, one method at a time: "
            f"{device.name}, {device.precision}; {how}.",
        ],
    }


def _scoring(sources: Sequence[Source]) -> str:
    """How PSNR and SSIM are taken of these images."""
    own = "rounded to the data type and clipped to its range, which is the data range"
    ranges = {own_scale(source.header.dtype) is not None for source in sources}
    if False in ranges:
        wide = "the data range is from the least to the greatest value of each clean image"
        own = f"{own}; of floating-point and 32-bit images {wide}" if True in ranges else wide
    written = "as they are written"
    if any(source.header.container == "jpeg" for source in sources):
        written += " (into a JPEG file: before it is compressed)"
    return (
        f"PSNR and SSIM of the pixels {written}, {own}; PSNR over all pixels and channels, SSIM with a Gaussian window "
        "(σ 1.5), mean over channels. Noisy images are scored unrounded."
    )


def _arranged(config: CompareConfig) -> list[str]:
    """What was said of the axes, where something was."""
    axes = [] if config.axes is None else [f"The images' axes are taken for {config.axes}."]
    channels = {
        "joint": "All channels are denoised together.",
        "separate": "Each channel and colour is denoised by itself.",
    }
    return [*axes, *(text for value, text in channels.items() if config.channels == value)]


def _sides(source: Source) -> tuple[int, int]:
    """Height and width, pixels."""
    shape = dict(zip(source.header.axes, source.header.shape, strict=True))
    return shape["Y"], shape["X"]


def _in_words(threads: Sequence[int], fits: int) -> str:
    """So many threads a fit (some fits of an earlier run may have had more or fewer), and how many fits at once."""
    number = " or ".join(map(str, threads))
    at_once = "one at a time" if fits == 1 else f"up to {fits} at once"
    return f"{number} thread{'s' * (number != '1')} a fit, {at_once}"
