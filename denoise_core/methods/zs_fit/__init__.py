"""zs-fit: a non-local estimate, and a small network fitted to the noisy images alone that improves on it.

1. The noise level is estimated blindly, and the image stabilised to noise of variance 1 (`noise_level`).
2. `nl_bayes` gives the non-local estimate; of the frames of a stack together, where that proves better.
3. A network that corrects it is fitted to recorrupted windows (`pairs`, `fit`): of one image, of the frames of a stack,
   or of the images of a directory.
4. What the fit is worth is measured on windows that it did not see, against noise that it did not see. The network is
   used only where it wins there; `Result.kept` says what was used.
5. The result is mapped back to the image's own intensities.

No clean image and no weights from elsewhere take part.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from denoise_core.device import Device
from denoise_core.methods import FitDiverged, OnStep, Pixels, Step
from denoise_core.methods.zs_fit.application import apply
from denoise_core.methods.zs_fit.fitting import Fitted, Plan, derived_seed, fit, in_threads
from denoise_core.methods.zs_fit.network import self_ensemble, unpack
from denoise_core.methods.zs_fit.noise_level import NoiseLevel
from denoise_core.methods.zs_fit.pairs import Pair, held_out_errors
from denoise_core.methods.zs_fit.prepared import prepare

MIN_SIZE = 8  # one patch of the noise estimate


@dataclass(frozen=True)
class Preset:
    """How much is spent: `copies` recorruptions of each of `windows` windows."""

    own: Plan  # on one image or stack
    own_windows: int
    own_copies: int
    shared: Plan  # on a directory
    shared_windows: int
    shared_copies: int
    refine: Plan  # of the directory's network, on one image; its layout is the directory's


PRESETS = {
    "fast": Preset(
        own=Plan(width=16, layers=3, steps=200, crops=4, rate=5e-4, kernel_rate=3e-3),
        own_windows=1,
        own_copies=2,
        shared=Plan(width=48, layers=5, steps=600, crops=4, rate=2e-3, kernel_rate=2e-2),
        shared_windows=24,
        shared_copies=2,
        refine=Plan(width=48, layers=5, steps=60, crops=4, rate=2e-4, kernel_rate=1e-3),
    ),
    "best": Preset(
        own=Plan(width=32, layers=4, steps=800, crops=8, rate=1e-3, kernel_rate=5e-3),
        own_windows=4,
        own_copies=3,
        shared=Plan(width=48, layers=8, steps=3000, crops=8, rate=2e-3, kernel_rate=2e-2),
        shared_windows=96,
        shared_copies=2,
        refine=Plan(width=48, layers=8, steps=200, crops=8, rate=3e-4, kernel_rate=2e-3),
    ),
}

ESTIMATE, FITTED, MODEL, REFINED, NOISY = "estimate", "fitted", "model", "refined", "noisy"


@dataclass(frozen=True)
class Result:
    """A denoised stack and what it took.

    `pixels` has the noisy one's shape and scale and is not clamped. `kept` is what it was made with: "estimate" (the
    non-local estimate alone), "fitted" (with a network of its own), "model" (with the directory's), "refined" (with the
    directory's, fitted further to this image), "noisy" (there was no noise to remove). `window` is how many frames were
    estimated together.
    """

    pixels: Pixels
    kept: str
    noise: NoiseLevel | None
    window: int
    steps: int
    restarts: int
    fit_seconds: float
    denoise_seconds: float


def denoise(
    noisy: Pixels,
    *,
    preset: str,
    seed: int,
    device: Device,
    on_step: OnStep,
    model: Fitted | None = None,
    fit_own: bool = True,
    together: bool = True,
) -> Result:
    """Denoise a stack of frames, or one image as a stack of one.

    Parameters
    ----------
    noisy : (F, H, W, C) float32
        On any scale, finite, H and W at least `MIN_SIZE`. The noise of all frames must be of one level.
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
    together : bool
        Whether neighbouring frames may be estimated together.

    Raises
    ------
    ValueError
        For a model of other channels.
    """
    channels = noisy.shape[3]
    if model is not None and model.layout.channels != channels:
        raise ValueError(f"The model is for images of {model.layout.channels} channels, and this one has {channels}.")
    started = time.perf_counter()
    noise, prepared = prepare(noisy, device)
    if prepared is None:
        return Result(noisy.copy(), NOISY, noise, 1, 0, 0, time.perf_counter() - started, 0.0)
    plans = PRESETS[preset]
    generator = torch.Generator().manual_seed(derived_seed("windows", seed, 0))
    share = _Share(on_step)
    window = prepared.best_window(generator) if together else 1
    kept, own, steps, restarts = ESTIMATE, None, 0, 0
    if (fit_own or model is not None) and prepared.can_be_fitted_to:
        number, copies = (plans.own_windows, plans.own_copies) if fit_own else (1, 1)
        pairs = prepared.pairs(number, copies, window=window, generator=generator, on_step=share.part(0, 0.2))
        kept, own, steps, restarts = _best(
            pairs, plans, model, fit_own=fit_own, seed=seed, device=device, on_step=share.part(0.2, 0.4)
        )
    fitted_at = time.perf_counter()
    show = share.part(0.4, 1.0)
    pixels = apply(
        noisy,
        prepared.stabiliser,
        own,
        window=window,
        device=device,
        on_share=lambda s: show(Step(round(100 * s), 100, None)),
    )
    done_at = time.perf_counter()
    return Result(pixels, kept, noise, window, steps, restarts, fitted_at - started, done_at - fitted_at)


def fit_directory(
    samples: Sequence[Callable[[], Pixels | None]], *, preset: str, seed: int, device: Device, on_step: OnStep
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
    each = max(1, plans.shared_windows // max(1, len(samples)))

    def windows_of(number: int) -> list[Pair]:
        noisy = samples[number]()
        prepared = None if noisy is None else prepare(noisy, device)[1]
        if prepared is None or not prepared.can_be_fitted_to:
            return []
        generator = torch.Generator().manual_seed(derived_seed("directory", seed, number))
        return prepared.pairs(each, plans.shared_copies, window=1, generator=generator, on_step=lambda _: None)

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
    return denoise(noisy, preset="fast", seed=0, device=device, on_step=on_step, fit_own=False, together=False)


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
    """What to use, by the held-out loss: its name, its network, steps and restarts of the fit.

    Whatever was fitted has to win by more than one standard error.
    """
    steps = restarts = 0
    candidates: list[tuple[str, Fitted | None]] = [(ESTIMATE, None)]
    if model is not None:
        candidates.append((MODEL, model))
    if fit_own:
        plan = (
            plans.own if model is None else replace(plans.refine, width=model.layout.width, layers=model.layout.layers)
        )
        try:
            own = fit(pairs, plan, seed=seed, device=device, on_step=on_step, start=model)
        except FitDiverged:
            restarts = 1
        else:
            steps, restarts = own.steps, own.restarts
            candidates.append((REFINED if model is not None else FITTED, own))
    name, network = candidates[0]
    errors = _held_out(pairs, network, device)
    for other_name, other in candidates[1:]:
        other_errors = _held_out(pairs, other, device)
        gain = errors - other_errors
        margin = float(gain.std()) / math.sqrt(gain.numel())
        if float(gain.mean()) > margin:
            name, network, errors = other_name, other, other_errors
    return name, network, steps, restarts


def _held_out(pairs: list[Pair], network: Fitted | None, device: Device) -> Tensor:
    """The squared errors of a network, or of the estimate alone, on what was kept from the fit; flat, over all pairs."""
    errors = []
    with torch.inference_mode():
        parameters = None
        if network is not None:
            dtype = torch.bfloat16 if device.precision == "bfloat16" else torch.float32
            parameters = unpack(network.layout, network.weights.to(device.name), dtype)
        for pair in pairs:
            result = pair.estimate
            if parameters is not None:
                result = self_ensemble(parameters, pair.source[None], pair.estimate[None])[0]
            errors.append(held_out_errors(pair, result))
    return torch.cat(errors)


class _Share:
    """Maps the progress of a part of the work to that of the whole."""

    def __init__(self, on_step: OnStep) -> None:
        self._on_step = on_step

    def part(self, first: float, last: float) -> Callable[[Step], None]:
        def show(step: Step) -> None:
            share = first + (last - first) * step.step / step.steps
            self._on_step(Step(round(1000 * share), 1000, step.loss))

        return show
