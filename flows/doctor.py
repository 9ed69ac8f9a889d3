"""What a run would use on this machine, and why."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version

import psutil

from denoise_core import __version__
from flows.server import prepare_environment, set_url
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
        "threads": f"{device.threads} of {os.cpu_count()} cores",
        "GPUs": ", ".join(gpus) or "none that torch can use",
        "memory": f"{memory.available / 1e9:.1f} GB free of {memory.total / 1e9:.1f} GB",
        "slots": f"{free_slots(device.name, 1)} of 1 free on {device.name} (lock files in {lock_folder()})",
        "Prefect server": _server(),
        "Prefect home": os.environ["PREFECT_HOME"],
    }


def _server() -> str:
    import httpx

    url = set_url()
    if url is None:
        return "none is set (PREFECT_API_URL); a run brings an embedded one"
    try:
        answer = httpx.get(f"{url}/health", timeout=3.0)
    except httpx.HTTPError as error:
        return f"{url} does not answer ({error}); a run would not start"
    return f"{url} answers" if answer.status_code == httpx.codes.OK else f"{url} answers {answer.status_code}"
