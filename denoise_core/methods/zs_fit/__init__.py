"""zs-fit: a non-local estimate, and a small network fitted to the noisy images alone that improves on it.

1. The noise level is estimated blindly, and the image stabilised to noise of variance 1 (`noise_level`).
2. `multiscale`, `nl_bayes` at three scales, gives the non-local estimate; of the frames of a stack together, where that
   proves better.
3. A network that corrects it is fitted to recorrupted windows (`pairs`, `fit`): of one image, of the frames of a stack,
   or of the images of a directory.
4. What the fit is worth is measured on rows that no fit saw, against recorrupted copies of them. The network is used only
   where it wins there significantly; `Result.kept` says what was used.
5. The result is mapped back to the image's own intensities.

No clean image and no weights from elsewhere take part.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from denoise_core.device import Device
from denoise_core.methods import FitDiverged, OnStep, Pixels, Step
from denoise_core.methods.frames import Gathered, Put, Stack, blocks_of, chosen, in_memory
from denoise_core.methods.zs_fit.application import apply
from denoise_core.methods.zs_fit.channels import arrange
from denoise_core.methods.zs_fit.fitting import Fitted, Plan, Size, derived_seed, fit, in_threads
from denoise_core.methods.zs_fit.network import self_ensemble
from denoise_core.methods.zs_fit.noise_level import NoiseLevel
from denoise_core.methods.zs_fit.pairs import ALPHA, Pair, held_out_errors, share_passed, wins
from denoise_core.methods.zs_fit.prepared import alike, noise_of_frames, prepare, unlike


@dataclass(frozen=True)
class Preset:
    """How much is spent: `copies` recorruptions of each of `windows` windows."""

    own: Plan  # on one image or stack
    own_windows: int
    own_copies: int
    shared: Plan  # on a directory
    shared_windows: int
    shared_copies: int
    refine: Plan  # of the directory's network, on one image


PRESETS = {
    "fast": Preset(
        own=Plan(Size(16, 3), steps=200, crops=4, rate=5e-4, kernel_rate=3e-3),
        own_windows=4,
        own_copies=1,
        shared=Plan(Size(32, 4), steps=600, crops=4, rate=1e-3, kernel_rate=1e-2),
        shared_windows=24,
        shared_copies=2,
        refine=Plan(None, steps=60, crops=4, rate=2e-4, kernel_rate=1e-3),
    ),
    "best": Preset(
        own=Plan(Size(32, 4), steps=400, crops=4, rate=1e-3, kernel_rate=5e-3),
        own_windows=4,
        own_copies=3,
        shared=Plan(Size(64, 6), steps=1500, crops=4, rate=1e-3, kernel_rate=1e-2),
        shared_windows=96,
        shared_copies=3,
        refine=Plan(None, steps=100, crops=4, rate=3e-4, kernel_rate=2e-3),
    ),
}

NO_PIXELS = np.empty((0, 0, 0, 0), np.float32)
ESTIMATE, FITTED, MODEL, REFINED, NOISY = "estimate", "fitted", "model", "refined", "noisy"


@dataclass(frozen=True)
class Result:
    """A denoised stack and what it took.

    `pixels` has the noisy one's shape and scale and is not clamped; it has no frames where they were put elsewhere. `kept` is
    what it was made with: "estimate" (the non-local estimate alone), "fitted" (with a network of its own), "model" (with the
    directory's), "refined" (with the directory's, fitted further to this image), "noisy" (there was no noise to remove).
    `window` is how many frames were estimated together. `remark` says why nothing was removed, or no network was fitted.
    """

    pixels: Pixels
    kept: str
    noise: NoiseLevel | None
    window: int
    steps: int
    restarts: int
    fit_seconds: float
    denoise_seconds: float
    remark: str | None = None


def denoise(
    noisy: Stack,
    *,
    preset: str,
    seed: int,
    device: Device,
    on_step: OnStep,
    model: Fitted | None = None,
    fit_own: bool = True,
    by_frame: bool = False,
    put: Put | None = None,
) -> Result:
    """Denoise a stack of frames, or one image as a stack of one.

    Parameters
    ----------
    noisy : (F, H, W, C) float32, or Frames
        On any scale, finite, H and W at least 8. An array and Frames of the same pixels have the same result.
    preset : str
        "fast" or "best".
    seed : int
        The same seed gives the same bytes, whatever the thread count.
    device : Device
        From `denoise_core.device.choose`.
    on_step : callable
        Called every now and then; whatever it raises ends the work at once.
    model : Fitted, optional
        A network fitted elsewhere, for images of as many channels: used in place of one of its own.
    fit_own : bool
        Whether to fit to this image: its own network, or a given one further.
    by_frame : bool
        Take every frame for an image of its own, as is always done where the noise of the frames differs.
    put : callable, optional
        Is given the denoised frames as they are made, each once; the result's `pixels` are then of no frame.

    Raises
    ------
    ValueError
        For a model of other channels.
    """
    if model is not None and model.layout.channels != noisy.shape[3]:
        raise ValueError(f"The model is for {model.layout.channels} channels, and this image has {noisy.shape[3]}.")
    if put is None:
        whole = Gathered(noisy.shape)
        found = denoise(
            noisy, preset=preset, seed=seed, device=device, on_step=on_step, model=model, fit_own=fit_own, by_frame=by_frame,
            put=whole.put,
        )  # fmt: skip
        return replace(found, pixels=whole.pixels)
    channels = arrange(noisy)
    options = {"preset": preset, "seed": seed, "device": device, "fit_own": fit_own, "by_frame": by_frame}
    if channels is None:
        return _denoise(noisy, on_step, put, model=model, **options)  # type: ignore[arg-type]

    def put_back(frames: Sequence[int], found: Pixels) -> None:
        put(frames, channels.put_back(in_memory(noisy, frames), found))

    model = model if model is not None and model.layout.channels == len(channels.kept) else None
    return _denoise(channels.taken(noisy), on_step, put_back, model=model, **options)  # type: ignore[arg-type]


def _denoise(
    noisy: Stack,
    on_step: OnStep,
    put: Put,
    *,
    preset: str,
    seed: int,
    device: Device,
    model: Fitted | None,
    fit_own: bool,
    by_frame: bool,
) -> Result:
    """`denoise`, all channels alike."""
    started = time.perf_counter()

    def one(frames: Stack, tell: OnStep, put: Put) -> Result:
        return _denoise(
            frames, tell, put, preset=preset, seed=seed, device=device, model=model, fit_own=fit_own, by_frame=False
        )

    if by_frame and len(noisy) > 1:
        return _apart(noisy, [[i] for i in range(len(noisy))], on_step, put, one)
    odd = unlike(noisy)
    if odd:
        others = [i for i in range(len(noisy)) if i not in set(odd)]
        return _apart(noisy, [others, *([i] for i in odd)], on_step, put, one)
    levels = noise_of_frames(noisy)
    if len(noisy) > 1 and not alike(noisy, levels):
        return _apart(noisy, [[i] for i in range(len(noisy))], on_step, put, one)
    noise, prepared = prepare(noisy, levels, device)
    if prepared is None:
        why = "no noise that could be removed was found"
        if noise is None:
            why = "all its pixels have one value" if noisy.min() == noisy.max() else "too small to tell its noise"
        for frames in blocks_of(noisy):
            put(frames, in_memory(noisy, frames).copy())
        return Result(NO_PIXELS, NOISY, noise, 1, 0, 0, time.perf_counter() - started, 0.0, why)
    plans = PRESETS[preset]
    generator = torch.Generator().manual_seed(derived_seed("windows", seed, 0))
    share = _Share(on_step)
    window = prepared.best_window(generator, share.part(0, 0.05))
    kept, own, steps, restarts = ESTIMATE, None, 0, 0
    remark = prepared.not_fitted_to(window) if fit_own or model is not None else None
    if (fit_own or model is not None) and remark is None:
        number, copies = (plans.own_windows, plans.own_copies) if fit_own else (1, 1)
        pairs = prepared.pairs(number, copies, window=window, generator=generator, on_step=share.part(0.05, 0.2))
        if not prepared.are_as_modelled(pairs):
            remark = "its noise is not close enough to the model of photons"
        else:
            show = share.part(0.2, 0.4)
            kept, own, steps, restarts = _best(
                pairs, plans, model, fit_own=fit_own, seed=seed, device=device, on_step=show
            )
    fitted_at = time.perf_counter()
    show = share.part(0.4, 1.0)
    least, greatest = noisy.min(), noisy.max()
    blocks = apply(
        noisy,
        prepared.stabiliser,
        own,
        window=window,
        device=device,
        on_share=lambda s: show(Step(round(100 * s), 100, None)),
    )
    with contextlib.closing(blocks):
        for frames, pixels in blocks:
            before = in_memory(noisy, frames)
            np.clip(pixels, least, greatest, out=pixels)  # an average of noisy pixels lies between them
            flat = (before == before[:, :1, :1]).all(axis=(1, 2, 3))
            pixels[flat] = before[flat]  # a closed shutter, an overflow: neighbours have nothing to tell of it
            put(frames, pixels)
    done_at = time.perf_counter()
    if remark is not None:
        remark = f"no network: {remark}"
    return Result(NO_PIXELS, kept, noise, window, steps, restarts, fitted_at - started, done_at - fitted_at, remark)


def fit_directory(
    samples: Sequence[Callable[[], Stack | None]], *, preset: str, seed: int, device: Device, on_step: OnStep
) -> Fitted | None:
    """One network for all `samples`, each of which gives a stack (F, H, W, C) of as many channels, or None.

    They are asked for one after another, as many at a time as there are threads, and a few windows of each are kept.
    Images without noise, with cut-off noise, and smaller than `LEAST_SIDE` are left out; None where nothing is left.

    Raises
    ------
    FitDiverged
        When two fits ended worse than the noisy images.
    """
    plans = PRESETS[preset]
    share = _Share(on_step)
    each = -(-plans.shared_windows // max(1, len(samples)))

    def on_window(_: Step) -> None:
        show(Step(looked_at, len(samples), None))

    def windows_of(number: int) -> list[Pair]:
        noisy = samples[number]()
        channels = None if noisy is None else arrange(noisy)
        if noisy is not None and channels is not None:
            noisy = channels.taken(noisy) if len(channels.kept) == noisy.shape[3] else None
        prepared = None if noisy is None else prepare(noisy, noise_of_frames(noisy), device)[1]
        if prepared is None or prepared.not_fitted_to(1) is not None:
            return []
        generator = torch.Generator().manual_seed(derived_seed("directory", seed, number))
        found = prepared.pairs(each, plans.shared_copies, window=1, generator=generator, on_step=on_window)
        return found if prepared.are_as_modelled(found) else []

    looked_at = 0
    pairs: list[Pair] = []
    show = share.part(0, 0.6)
    with in_threads(device.threads if device.name == "cpu" else 1) as run:
        for looked_at, found in enumerate(run(windows_of, range(len(samples))), start=1):
            pairs += found
            show(Step(looked_at, len(samples), None))
    if not pairs:
        return None
    return fit(pairs, plans.shared, seed=seed, device=device, on_step=share.part(0.6, 1.0))


def estimate_only(noisy: Pixels, *, device: Device, on_step: OnStep) -> Result:
    """`denoise` without any network: the method nl-bayes; noisy (F, H, W, C), each frame by itself."""
    return denoise(noisy, preset="fast", seed=0, device=device, on_step=on_step, fit_own=False, by_frame=True)


def _apart(
    noisy: Stack,
    parts: Sequence[Sequence[int]],
    on_step: OnStep,
    put: Put,
    one: Callable[[Stack, OnStep, Put], Result],
) -> Result:
    """Parts of a stack's frames one after another, as one result: what most frames kept, the noise of the largest part."""
    share = _Share(on_step)
    found: list[Result] = []
    done = 0

    def put_part(part: Sequence[int], frames: Sequence[int], pixels: Pixels) -> None:
        put([part[frame] for frame in frames], pixels)

    for part in parts:
        tell = share.part(done / len(noisy), (done + len(part)) / len(noisy))
        # A frame by itself is looked at as often as need be.
        frames = in_memory(noisy, part) if len(part) == 1 else chosen(noisy, part)
        found.append(one(frames, tell, functools.partial(put_part, part)))
        done += len(part)
    kept = [result.kept for part, result in zip(parts, found, strict=True) for _ in part]
    largest = max(range(len(parts)), key=lambda number: (len(parts[number]), -abs(number - len(parts) // 2)))
    return Result(
        NO_PIXELS,
        max(sorted(set(kept)), key=kept.count),
        found[largest].noise,
        found[largest].window,
        sum(result.steps for result in found),
        sum(result.restarts for result in found),
        sum(result.fit_seconds for result in found),
        sum(result.denoise_seconds for result in found),
        found[largest].remark,
    )


def _best(
    pairs: list[Pair],
    plans: Preset,
    model: Fitted | None,
    *,
    fit_own: bool,
    seed: int,
    device: Device,
    on_step: OnStep,
) -> tuple[str, Fitted | None, int, int]:
    """What to use, by the held-out loss: its name, its network, and steps and restarts of the fits.

    Of the networks that win significantly over the estimate, the one with the least error; if none does, the estimate. A
    network that takes noise over with the wrong sign, which the best estimate never does, has found an error of the noise
    level, and nothing of the image.
    """
    steps = restarts = 0
    networks: dict[str, Fitted] = {}
    fits: dict[str, tuple[Plan, Fitted | None]] = {}
    if fit_own:
        fits[FITTED] = (plans.own, None)
    if model is not None:
        networks[MODEL] = model
        if fit_own:
            fits[REFINED] = (plans.refine, model)
    share = _Share(on_step)
    for number, (name, (plan, start)) in enumerate(fits.items()):
        show = share.part(number / len(fits), (number + 1) / len(fits))
        try:
            networks[name] = fit(pairs, plan, seed=seed, device=device, on_step=show, start=start, beside_others=True)
        except FitDiverged:
            restarts += 2
        else:
            steps, restarts = steps + networks[name].steps, restarts + networks[name].restarts

    def check() -> None:
        on_step(Step(1, 1, None))

    kept, (errors, _) = ESTIMATE, _held_out(pairs, None, device, check)
    least, passed = errors.mean(), share_passed(pairs)
    for name, network in networks.items():
        found, more = _held_out(pairs, network, device, check)
        if wins(found, errors) and found.mean() < least and passed + more >= 0:
            kept, least = name, found.mean()
    return kept, networks.get(kept), steps, restarts


def _held_out(
    pairs: list[Pair], network: Fitted | None, device: Device, check: Callable[[], None]
) -> tuple[Tensor, float]:
    """The errors of a network, or of the estimate alone, in blocks of what was kept from the fits, over all windows.

    Copies of a window tell of the same content: their mean is one of its errors, not several. And which share of the noise
    the network lets pass, less that of the estimate.
    """
    more: list[float] = []
    errors: dict[tuple[int, int, int], list[Tensor]] = {}
    with torch.inference_mode():
        parameters = None
        if network is not None:
            parameters = network.parameters(device)
        for pair in pairs:
            result = pair.estimate
            check()
            if parameters is not None:
                result = self_ensemble(parameters, pair.source[None], pair.estimate[None])[0]
            errors.setdefault(pair.place, []).append(held_out_errors(pair, result))
            more.append(float(((result - pair.estimate) * pair.noise / ALPHA)[:, pair.fitted :].mean()))
    return torch.cat([torch.stack(copies).mean(dim=0) for copies in errors.values()]), sum(more) / len(more)


class _Share:
    """Maps the progress of a part of the work to that of the whole."""

    def __init__(self, on_step: OnStep) -> None:
        self._on_step = on_step

    def part(self, first: float, last: float) -> Callable[[Step], None]:
        def show(step: Step) -> None:
            share = first + (last - first) * step.step / step.steps
            self._on_step(Step(round(1000 * share), 1000, step.loss))

        return show
