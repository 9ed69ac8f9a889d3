"""Zero-Shot Noise2Noise: a two-layer network fitted to one noisy image, without clean data.

Youssef Mansour and Reinhard Heckel, "Zero-Shot Noise2Noise: Efficient Image Denoising without any Data",
CVPR 2023, arXiv:2303.11253. In the paper's symbols: y the noisy image, D = (D1, D2) the pair downsampler, f the
network, which predicts the noise, so that y − f(y) is the denoised image.

`fit_paper` is the published fit. `fit_fast` has the same network and the same loss, on random crops; what
the network then finds in the image's eight turned and mirrored copies is averaged, as its crops were turned too.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from denoise_core.device import Device, make_deterministic
from denoise_core.methods import Denoised, FitDiverged, OnStep, Pixels, Step
from denoise_core.methods.turns import turn, turn_back

WIDTH = 48
RADIUS = 2  # of the receptive field: two 3×3 convolutions


class Network(nn.Module):
    """conv3×3 C→48, LeakyReLU 0.2, conv3×3 48→48, LeakyReLU 0.2, conv1×1 48→C: (B, C, H, W) to the noise in it."""

    def __init__(self, channels: int, generator: torch.Generator) -> None:
        super().__init__()
        self.conv1 = _conv(channels, WIDTH, 3, generator)
        self.conv2 = _conv(WIDTH, WIDTH, 3, generator)
        self.conv3 = _conv(WIDTH, channels, 1, generator)

    def forward(self, x: Tensor) -> Tensor:
        """The noise in x (B, C, H, W)."""
        x = F.leaky_relu(self.conv1(x), 0.2, inplace=True)
        x = F.leaky_relu(self.conv2(x), 0.2, inplace=True)
        noise: Tensor = self.conv3(x)
        return noise


def _conv(inside: int, outside: int, kernel: int, generator: torch.Generator) -> nn.Conv2d:
    """A convolution as nn.Conv2d initialises it, U(−b, b) with b = 1/√fan_in, but from its own generator.

    nn.Conv2d draws from the global one, which fits in other threads share.
    """
    conv = nn.Conv2d(inside, outside, kernel, padding=kernel // 2, device="meta").to_empty(device="cpu")
    bound = 1 / math.sqrt(inside * kernel**2)
    with torch.no_grad():
        conv.weight.uniform_(-bound, bound, generator=generator)
        assert conv.bias is not None
        conv.bias.uniform_(-bound, bound, generator=generator)
    return conv


def pair_downsample(y: Tensor) -> tuple[Tensor, Tensor]:
    """D1(y), D2(y): the means of the two diagonals of every 2×2 cell; (B, C, H, W) to (B, C, H//2, W//2) each."""
    y = y[..., : y.shape[-2] // 2 * 2, : y.shape[-1] // 2 * 2]
    a, b = y[..., 0::2, 0::2], y[..., 0::2, 1::2]
    c, d = y[..., 1::2, 0::2], y[..., 1::2, 1::2]
    return (b + c) / 2, (a + d) / 2


def loss(f: nn.Module, y: Tensor) -> Tensor:
    """Residual plus consistency loss, both symmetric (section 3.2); y (B, C, H, W) in the network's [0, 1]."""
    y1, y2 = pair_downsample(y)
    halves = torch.cat((y1, y2))  # one pass for both
    pred1, pred2 = (halves - f(halves)).chunk(2)
    residual = (F.mse_loss(pred1, y2) + F.mse_loss(pred2, y1)) / 2

    denoised1, denoised2 = pair_downsample(y - f(y))
    consistency = (F.mse_loss(pred1, denoised1) + F.mse_loss(pred2, denoised2)) / 2
    return residual + consistency


def fit_paper(
    f: nn.Module, y: Tensor, *, rate: float, generator: torch.Generator, device: Device, on_step: OnStep
) -> tuple[int, float]:
    """3000 steps of Adam on the whole image y (1, C, H, W), at 1e-3, halved every 1000; `rate` scales that."""
    del generator  # beyond its initial weights, the published fit draws nothing
    adam = torch.optim.Adam(f.parameters(), lr=1e-3 * rate, fused=True)
    schedule = torch.optim.lr_scheduler.StepLR(adam, step_size=1000, gamma=0.5)
    return _descend(f, lambda: y, adam, schedule, steps=3000, every=1, device=device, on_step=on_step)


# One crop a step and more steps gain more than the same pixels in larger batches (benchmarks/NOTES.md).
FAST_STEPS, FAST_CROP, FAST_RATE = 3000, 64, 4e-3


def fit_fast(
    f: nn.Module, y: Tensor, *, rate: float, generator: torch.Generator, device: Device, on_step: OnStep
) -> tuple[int, float]:
    """3000 steps of Adam, each on a random 64×64 crop of y, one cycle to 4e-3: the cost does not grow with the image."""
    adam = torch.optim.Adam(f.parameters(), lr=FAST_RATE * rate, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(adam, max_lr=FAST_RATE * rate, total_steps=FAST_STEPS)
    return _descend(
        f, lambda: random_crop(y, generator), adam, schedule, steps=FAST_STEPS, every=5, device=device, on_step=on_step
    )


def random_crop(y: Tensor, generator: torch.Generator) -> Tensor:
    """A random crop of y (1, C, H, W), at most 64×64 and of even sides, turned or mirrored at random."""
    height, width = y.shape[-2:]
    h, w = min(FAST_CROP, height // 2 * 2), min(FAST_CROP, width // 2 * 2)
    top = int(torch.randint(height - h + 1, (), generator=generator))
    left = int(torch.randint(width - w + 1, (), generator=generator))
    k = int(torch.randint(8, (), generator=generator))
    return turn(y[..., top : top + h, left : left + w], k).contiguous(memory_format=torch.channels_last)


def _descend(
    f: nn.Module,
    batch: Callable[[], Tensor],
    adam: torch.optim.Adam,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    *,
    steps: int,
    every: int,
    device: Device,
    on_step: OnStep,
) -> tuple[int, float]:
    """Run the fit; the number of steps done and the last loss read, which is not finite where the fit diverged."""
    read = 50  # the loss every 50 steps: reading it makes a GPU wait
    value = math.nan
    for step in range(1, steps + 1):
        with _precision(device):
            objective = loss(f, batch())
        adam.zero_grad()
        torch.autograd.backward(objective)
        adam.step()
        schedule.step()
        if step % read == 0 or step in {1, steps}:
            value = objective.item()
            if not math.isfinite(value):
                return step, value
            on_step(Step(step, steps, value))
        elif step % every == 0:
            on_step(Step(step, steps, None))
    if not all(bool(torch.isfinite(p).all()) for p in f.parameters()):
        value = math.nan
    return steps, value


def _precision(device: Device) -> AbstractContextManager[object]:
    """Convolutions in bfloat16 where the device is fast at it; weights, losses and Adam stay in float32."""
    kind = torch.device(device.name).type
    # autocast's cache of weights is shared by all threads and emptied by each: with it, a fit beside another one would
    # add its gradients up in another order, and the same seed would not give the same bytes.
    return torch.autocast(kind, dtype=torch.bfloat16, enabled=device.precision == "bfloat16", cache_enabled=False)


class _Fit(Protocol):
    def __call__(
        self, f: nn.Module, y: Tensor, *, rate: float, generator: torch.Generator, device: Device, on_step: OnStep
    ) -> tuple[int, float]: ...


FITS: dict[str, _Fit] = {"paper": fit_paper, "fast": fit_fast}
TURNS = {"paper": (0,), "fast": tuple(range(8))}
TILE = 256


def denoise(
    noisy: Pixels,
    *,
    preset: str,
    seed: int,
    device: Device,
    value_range: tuple[float, float],
    on_step: OnStep | None,
) -> Denoised:
    """Fit to `noisy`, (H, W) or (H, W, C), and apply; `denoise_core.methods.denoise` says how and checks first."""
    lo, hi = value_range
    # Made from (H, W, C), the tensor (1, C, H, W) is channels_last as it stands, which bfloat16 needs to be fast.
    y = torch.from_numpy(np.array(noisy, order="C")).reshape(*noisy.shape[:2], -1).permute(2, 0, 1).unsqueeze(0)
    y = y.to(device.name).sub_(lo).div_(hi - lo)

    started = time.perf_counter()
    f, steps, final_loss, restarts = fit(y, preset, seed, device, on_step or (lambda _: None))
    fitted = time.perf_counter()
    noise = apply(f, y, TURNS[preset]).mul_(hi - lo)
    pixels = noisy - noise[0].permute(1, 2, 0).numpy().reshape(noisy.shape)
    return Denoised(pixels, steps, final_loss, fitted - started, time.perf_counter() - fitted, restarts)


def fit(y: Tensor, preset: str, seed: int, device: Device, on_step: OnStep) -> tuple[nn.Module, int, float, int]:
    """The network fitted to y (1, C, H, W), its steps, its last loss, and how many starts were thrown away.

    Raises
    ------
    FitDiverged
        When the loss did not stay finite, nor from other weights at half the learning rate.
    """
    make_deterministic(device)
    value = math.nan
    for attempt in range(2):
        generator = torch.Generator().manual_seed(derived_seed(seed, attempt))
        f = Network(y.shape[1], generator).to(y.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        steps, value = FITS[preset](f, y, rate=0.5**attempt, generator=generator, device=device, on_step=on_step)
        if math.isfinite(value):
            return f, steps, value, attempt
    raise FitDiverged(f"The fit's loss became {value} from two starts: check the image's intensities and its range.")


def derived_seed(seed: int, attempt: int) -> int:
    """A seed for each start, unlike those of neighbouring seeds."""
    return int.from_bytes(hashlib.sha256(f"zs-n2n {seed} {attempt}".encode()).digest()[:8], "big")


def apply(f: nn.Module, y: Tensor, turns: tuple[int, ...] = (0,)) -> Tensor:
    """The noise f finds in y (1, C, H, W), averaged over `turns` of the image, on the CPU, in float32.

    Computed tile by tile with a margin of the receptive field's radius, which changes nothing but rounding: a tile's
    outer edge is padded with zeros only where the image's is.
    """
    height, width = y.shape[-2:]
    noise = torch.empty((1, height, width, y.shape[1])).permute(0, 3, 1, 2)
    with torch.inference_mode():
        for top in range(0, height, TILE):
            for left in range(0, width, TILE):
                bottom, right = min(top + TILE, height), min(left + TILE, width)
                above, before = min(RADIUS, top), min(RADIUS, left)
                tile = y[..., top - above : bottom + RADIUS, left - before : right + RADIUS]
                found = sum(turn_back(f(turn(tile, k)), k) for k in turns) / len(turns)
                assert isinstance(found, Tensor)
                noise[..., top:bottom, left:right] = found[
                    ..., above : above + bottom - top, before : before + right - left
                ].cpu()
    return noise


def fit_memory_bytes(shape: tuple[int, ...], preset: str, precision: str = "float32") -> int:
    """About how many bytes `denoise` takes at its peak for an image (H, W) or (H, W, C), beside the image itself.

    The whole-image fit keeps every layer's maps at full and at half size; the fit on crops keeps a few copies of the
    image. Coefficients from measured peaks (1 to 8 channels, 512² to 1024² pixels; on crops 3000²).
    """
    pixels, channels = math.prod(shape[:2]), math.prod(shape[2:])
    libraries = 50_000_000
    if preset == "paper":
        return libraries + pixels * ((480 if precision == "bfloat16" else 850) + 65 * channels)
    return libraries + pixels * 17 * channels
