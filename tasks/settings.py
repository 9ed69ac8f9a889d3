"""What the steps of a run need to know, as plain data that travels to any thread or process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from denoise_core.device import Device


@dataclass(frozen=True)
class Style:
    """In whose manner images are painted, and how; ``digest`` stands for all that decides the result."""

    images: tuple[Path, ...]
    preset: str
    changes: tuple[tuple[str, Any], ...]  # fields of style_core.StylePreset that have another value
    scale: float
    max_side: int | None
    keep_colours: bool
    weights: Path | None  # None: torchvision's, which may be fetched
    weights_sha256: str | None  # what the file must have
    digest: str


@dataclass(frozen=True)
class Settings:
    """A run's configuration with everything resolved: no ``auto``, absolute paths, the digest that resume compares."""

    input: Path
    output: Path
    method: str
    preset: str
    noise: str
    clip_noise: bool
    reference: Path | None
    seed: int
    device: Device
    slots: int  # of each device
    max_pixels: int
    run_id: str
    config_digest: str
    steps_are_seen: bool  # each step of each image is a task run of its own
    has_limits: bool  # a real Prefect server has a global concurrency limit for each device
    crop: int | None = None  # side of the centre that is taken of each image, pixels
    scope: str = "image"  # or stack or directory: what one fit serves
    models: tuple[tuple[int, Path, str], ...] = ()  # networks of zs-fit to apply: channels, file and its SHA-256
    style: Style | None = None  # to be painted in first
    saves_noisy: bool = False
    redo: bool = False  # nothing of earlier runs is taken as done
    axes: str | None = None  # what the axes of the images are, whatever the files say
    channels: str = "auto"  # or joint or separate
    given_model: bool = False  # the models were given by the user, and images are not fitted to
    other_devices: tuple[Device, ...] = ()  # like `device`: a fit runs on whichever is free
    elsewhere: bool = False  # chunks run in other processes than the flow

    @property
    def devices(self) -> tuple[Device, ...]:
        """All that a fit may run on."""
        return (self.device, *self.other_devices)

    @property
    def fits_at_once(self) -> int:
        """How many fits the slots of all devices admit."""
        return self.slots * len(self.devices)

    def model(self, channels: int) -> tuple[Path, str] | None:
        """The file of the network for images of so many channels, and its SHA-256."""
        return next((found[1:] for found in self.models if found[0] == channels), None)

    @property
    def keeps_stylized(self) -> bool:
        """Whether what was painted is kept beside the result: it is the result, where nothing more is done to it."""
        return self.style is not None and not (self.method == "none" and self.noise == "none")

    @property
    def images(self) -> Path:
        """Where the denoised tree is written."""
        return self.output / "images"

    @property
    def run_folder(self) -> Path:
        """Where this run keeps its configuration, log and ledger."""
        return self.output / "runs" / self.run_id
