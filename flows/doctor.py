"""What a run would use on this machine, and why."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path

import psutil

from denoise_core import __version__
from denoise_core.device import Device
from flows import running
from flows.choices import Preset
from flows.config import RunConfig
from flows.errors import StartError
from flows.server import prepare_environment, real_server
from tasks.prefect_api import shown
from tasks.slots import free_slots, lock_folder


def examine() -> dict[str, str]:
    """The facts, each as one line of text."""
    prepare_environment()
    import torch

    from denoise_core.device import choose

    device = choose("auto")
    gpus = [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]
    memory = psutil.virtual_memory()
    return {
        "denoise-flows": __version__,
        "python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        "packages": ", ".join(
            f"{name} {version(name)}" for name in ("torch", "torchvision", "prefect", "tifffile", "pyarrow")
        ),
        "device": f"{device.name}: {device.reason}",
        "precision": device.precision,
        "cores": f"{device.threads} of {os.cpu_count()} may be used",
        **{f"preset {preset}": _shared(device, preset) for preset in Preset},
        "GPUs": ", ".join(gpus) or "none that torch can use",
        "memory": f"{memory.available / 1e9:.1f} GB free of {memory.total / 1e9:.1f} GB",
        "slots": f"lock files in {lock_folder()}",
        "Prefect server": _server(),
        "Prefect home": os.environ["PREFECT_HOME"],
    }


def _shared(device: Device, preset: Preset) -> str:
    from flows.denoise_directory import share

    one, slots = share(device, RunConfig(input=Path(), output=Path(), preset=preset))
    threads = "one thread" if one.threads == 1 else f"{one.threads} threads"
    return f"{slots} at once, {threads} each; {free_slots(device, slots)} of {slots} slots free now"


def _server() -> str:
    try:
        with real_server() as real:
            if real is None:
                return (
                    "none is set (PREFECT_API_URL) and none runs here (`denoise server`); a run brings an embedded one"
                )
            folder = next((f", data in {one.folder}" for one in running.servers() if one.url == real.url), "")
            return f"{shown(real.url)} answers: {real.why}{folder}"
    except StartError as error:
        return f"{error}; a run would not start"
