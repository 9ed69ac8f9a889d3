"""Which device computes, in which precision, with how many threads, and why."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from denoise_core.errors import DenoiseError

Precision = Literal["bfloat16", "float32"]


@dataclass(frozen=True)
class Device:
    """Where a fit runs: `name` as torch writes it, `precision` of the convolutions in a fit, `reason` for both.

    `memory` is that of a GPU, in bytes.
    """

    name: str
    precision: Precision
    threads: int
    reason: str
    memory: int = 0


def choose(device: str = "auto") -> Device:
    """Choose the device and its precision from what the machine says it is, never from a timing.

    A timing would make the same command give other bytes on a busy day.

    Parameters
    ----------
    device : {"auto", "cpu", "cuda", "cuda:N"}
        `auto` is the first CUDA device, or the CPU where there is none.

    Raises
    ------
    DenoiseError
        For an unknown name, and for a CUDA device that is not there.
    """
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "cpu" or (device == "auto" and count == 0):
        return _cpu("no CUDA device is present" if device == "auto" else "the CPU was asked for")
    kind, colon, number = device.partition(":")
    if device != "auto" and (kind != "cuda" or (colon and not (number.isascii() and number.isdigit()))):
        raise DenoiseError(f"Unknown device {device!r}: use auto, cpu, cuda or cuda:N, for example cuda:0.")
    index = int(number) if colon else 0
    if index >= count:
        found = ", ".join(f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(count)) or "no CUDA device"
        raise DenoiseError(f"Device {device} is not there: this machine has the CPU and {found}; use auto.")
    major, minor = torch.cuda.get_device_capability(index)
    chosen = f"{torch.cuda.get_device_name(index)}, compute capability {major}.{minor}"
    memory = torch.cuda.get_device_properties(index).total_memory
    if major >= 8:
        return Device(f"cuda:{index}", "bfloat16", cpu_threads(), f"{chosen}: has bfloat16 tensor cores", memory)
    return Device(f"cuda:{index}", "float32", cpu_threads(), f"{chosen}: bfloat16 needs 8.0 or later", memory)


def choose_all(device: str = "auto") -> tuple[Device, ...]:
    """Choose the devices that share the fits: one by one a fit each, whichever is free.

    Parameters
    ----------
    device : {"auto", "cpu", "cuda", "cuda:N", "cuda:N,cuda:M,…", "all"}
        Several are named with commas between; `all` is every CUDA device, or the CPU where there is none.

    Raises
    ------
    DenoiseError
        As :func:`choose`; and for devices that are unlike, since the result would depend on which one was free.
    """
    if device == "all":
        import torch

        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        device = ",".join(f"cuda:{index}" for index in range(count)) or "auto"
    chosen = tuple({one.name: one for one in map(choose, device.split(","))}.values())
    unlike = next((one for one in chosen if one.reason != chosen[0].reason), None)
    if unlike is not None:
        raise DenoiseError(
            f"{chosen[0].name} ({chosen[0].reason}) and {unlike.name} ({unlike.reason}) are unlike, and an image's result "
            "would depend on which one was free: name devices that are alike, for example --device cuda:0."
        )
    return chosen


def _cpu(why: str) -> Device:
    import torch

    if _processor_has("_is_amx_tile_supported"):
        return Device("cpu", "bfloat16", cpu_threads(), f"{why}; the processor has AMX matrix tiles")
    if _processor_has("_is_avx512_bf16_supported"):
        # Of Intel's, only AMX tiles are fast: these instructions took twice float32's time on a Sapphire Rapids without them.
        if _made_by_amd():
            return Device("cpu", "bfloat16", cpu_threads(), f"{why}; the processor is AMD's and has AVX512_BF16")
        return Device("cpu", "float32", cpu_threads(), f"{why}; without AMX its AVX512_BF16 is slower than float32")
    level = torch.backends.cpu.get_cpu_capability()
    return Device("cpu", "float32", cpu_threads(), f"{why}; the processor ({level}) has no fast bfloat16")


def _processor_has(probe: str) -> bool:
    import torch

    # torch's own probes have no public name; without one, float32 is the safe answer.
    ask = getattr(torch.cpu, probe, None)
    return bool(ask is not None and ask())


def _made_by_amd(described: Path = Path("/proc/cpuinfo")) -> bool:
    try:
        said = described.read_text(errors="replace")
    except OSError:
        said = os.environ.get("PROCESSOR_IDENTIFIER", "")  # Windows
    return "AuthenticAMD" in said


def cpu_threads() -> int:
    """How many threads to compute with: OMP_NUM_THREADS, or the cores that this process may use."""
    asked = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if asked.isascii() and asked.isdigit() and int(asked) > 0:
        return int(asked)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, _container_cores() or cores))


def _container_cores(limit: Path = Path("/sys/fs/cgroup/cpu.max")) -> int | None:
    """Cores that a container's quota grants, rounded up; more threads than that only wait for each other."""
    try:
        quota, period = limit.read_text().split()[:2]
        return None if quota == "max" else max(1, -(-int(quota) // int(period)))
    except (OSError, ValueError, ZeroDivisionError):
        return None


def make_deterministic(device: Device) -> None:
    """On a GPU, have cuDNN choose algorithms that give the same bytes for the same seed; on a CPU they do."""
    if device.name != "cpu":
        import torch

        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False
