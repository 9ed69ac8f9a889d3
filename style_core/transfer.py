"""Image style transfer by optimisation (Gatys, Ecker and Bethge, CVPR 2016; seed document 004)."""

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from style_core.losses import content_loss, gram_matrix, style_loss
from style_core.vgg import Features, check_names, extract, smallest_side


@dataclass(frozen=True)
class StylePreset:
    """What is minimised, and how.

    Attributes
    ----------
    style_layers, content_layers
        Names from :data:`style_core.vgg.LAYERS`. Either may be empty, not both.
    style_weight, content_weight
        Factors of the two losses, each summed over its layers.
    steps
        At most so many evaluations of the loss and its gradient.
    optimizer
        ``lbfgs`` or ``adam``.
    start
        ``content``, or ``noise``: uniform in [0, 1].
    """

    style_layers: tuple[str, ...]
    content_layers: tuple[str, ...]
    style_weight: float
    content_weight: float
    steps: int
    optimizer: Literal["lbfgs", "adam"]
    start: Literal["content", "noise"]

    def __post_init__(self) -> None:
        if not self.layers:
            raise ValueError("a preset needs at least one style or content layer")
        check_names(self.layers)
        if self.steps < 1:
            raise ValueError(f"steps is {self.steps}, expected 1 or more")
        if self.optimizer not in ("lbfgs", "adam"):
            raise ValueError(f"optimizer is {self.optimizer!r}, expected lbfgs or adam")
        if self.start not in ("content", "noise"):
            raise ValueError(f"start is {self.start!r}, expected content or noise")

    @property
    def layers(self) -> tuple[str, ...]:
        """All layers that must be loaded, each once."""
        return tuple(dict.fromkeys(self.style_layers + self.content_layers))


# The seed counts convolutions, before their ReLU: conv_1 … conv_5, of which conv_4 (conv2_2) also keeps the content.
SEED = StylePreset(
    style_layers=("conv1_1", "conv1_2", "conv2_1", "conv2_2", "conv3_1"),
    content_layers=("conv2_2",),
    style_weight=1e6,
    content_weight=1.0,
    steps=300,
    optimizer="lbfgs",
    start="content",
)


@dataclass(frozen=True)
class Step:
    """Where a transfer stands: ``step`` of ``steps``, and the weighted losses of the image so far."""

    step: int
    steps: int
    style_loss: float
    content_loss: float


@dataclass(frozen=True, eq=False)
class StyleTargets:
    """Gram matrices (1, C, C) of a style image by layer: all that a transfer needs of it."""

    grams: Mapping[str, Tensor]


def style_targets(
    style: Tensor, features: Features, preset: StylePreset, *, device: torch.device | str = "cpu"
) -> StyleTargets:
    """Gram matrices of a style image, computed once for any number of transfers.

    Parameters
    ----------
    style
        RGB in [0, 1] (3, H, W), of any size and orientation.
    features, preset, device
        As for :func:`transfer`.

    Raises
    ------
    ValueError
        When ``style`` is not such an image.
    """
    if not preset.style_layers:
        return StyleTargets({})
    image = _batch(style, "style", preset).to(device)
    with torch.no_grad():
        found = extract(features.to(device), image, preset.style_layers)
        return StyleTargets({name: gram_matrix(f) for name, f in found.items()})


def transfer(
    content: Tensor,
    style: Tensor | StyleTargets,
    features: Features,
    preset: StylePreset,
    *,
    on_step: Callable[[Step], None] | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Paint ``content`` in the manner of ``style``.

    Parameters
    ----------
    content
        RGB in [0, 1] (3, H, W).
    style
        RGB in [0, 1] (3, H', W'), of any size and orientation, or what :func:`style_targets` made of it with the same
        features and a preset of the same style layers.
    features
        The trained network, at least as deep as the preset's layers. Losses are in float32 also when it is in bfloat16.
    preset
        What is minimised, and how; :data:`SEED` for instance.
    on_step
        Called after every evaluation. What it raises ends the transfer and reaches the caller.
    seed
        Of the noise, where the preset starts from noise.
    device
        Where to compute.

    Returns
    -------
    Tensor
        RGB in [0, 1] (3, H, W), float32, on the CPU. On a CPU the same arguments and thread count give the same bytes.

    Raises
    ------
    ValueError
        When an image is not as described or too small for the preset's layers, or when ``features`` or the style
        targets lack a layer.
    """
    image = _batch(content, "content", preset).to(device)
    features = features.to(device)
    targets = style if isinstance(style, StyleTargets) else style_targets(style, features, preset, device=device)
    if missing := [name for name in preset.style_layers if name not in targets.grams]:
        raise ValueError(f"the style targets lack {', '.join(missing)}; compute them with this preset")
    grams = {name: targets.grams[name].to(device) for name in preset.style_layers}
    with torch.no_grad():
        contents = extract(features, image, preset.content_layers) if preset.content_layers else {}

    def losses(x: Tensor) -> tuple[Tensor, Tensor]:
        found = extract(features, x, preset.layers)
        style_losses = [style_loss(found[name], gram) for name, gram in grams.items()]
        content_losses = [content_loss(found[name], target) for name, target in contents.items()]
        zero = x.new_zeros(())
        return preset.style_weight * sum(style_losses, zero), preset.content_weight * sum(content_losses, zero)

    def evaluate(x: Tensor) -> _Point:
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            s, c = losses(x)
            (gradient,) = torch.autograd.grad(s + c, x)
        return _Point(x.detach(), s.item(), c.item(), gradient)

    def report(step: int, point: _Point) -> None:
        if on_step is not None:
            on_step(Step(step, preset.steps, point.style_loss, point.content_loss))

    if preset.start == "noise":
        noise = torch.rand(image.shape, generator=torch.Generator().manual_seed(seed))
        image = noise.to(device)
    minimize = _lbfgs if preset.optimizer == "lbfgs" else _adam
    return minimize(evaluate, image, preset.steps, report)[0].cpu()


@dataclass(frozen=True, eq=False)
class _Point:
    """An image (1, 3, H, W), its weighted losses, and the gradient of their sum."""

    x: Tensor
    style_loss: float
    content_loss: float
    gradient: Tensor

    @property
    def loss(self) -> float:
        return self.style_loss + self.content_loss


def _lbfgs(
    evaluate: Callable[[Tensor], _Point],
    x: Tensor,
    steps: int,
    report: Callable[[int, _Point], None],
    history: int = 100,
) -> Tensor:
    """L-BFGS within [0, 1] (Nocedal and Wright, algorithm 7.4, on the free pixels), at most ``steps`` evaluations.

    The seed calls ``torch.optim.LBFGS`` and clamps inside its closure. The optimizer then takes the move that it
    intended for the move that was made, and the wrong curvature throws it off: on half of the image pairs tried, the
    loss ended where it began or far above. Here the image is clamped after the step and the history records the move
    that was made; a step that raises the loss is shortened, so the loss never rises. History and number of evaluations
    are the seed's.
    """
    pairs: deque[tuple[Tensor, Tensor, Tensor]] = deque(maxlen=history)  # s, y, 1 / s·y
    point = evaluate(x)
    report(1, point)
    used = 1
    while used < steps:
        g = point.gradient.flatten()
        at = point.x.flatten()
        # A pixel at a bound that the gradient pushes further out does not take part in this step.
        free = ~(((at <= 0) & (g > 0)) | ((at >= 1) & (g < 0)))
        direction = -_inverse_hessian_times(pairs, g * free) * free
        if pairs and float(direction @ g) >= 0:
            pairs.clear()
            continue
        peak = float((g * free).abs().max())
        if peak == 0:
            break
        # Without a history the gradient has no scale: then at most one grey level in 255.
        longest = t = 1.0 if pairs else 1 / (255 * peak)
        accepted = False
        while not accepted and used < steps and t > 1e-4 * longest:
            trial = evaluate((at + t * direction).clamp_(0, 1).view_as(x))
            used += 1
            accepted = trial.loss <= point.loss  # false for NaN too
            if accepted:
                s = trial.x.flatten() - at
                y = trial.gradient.flatten() - g
                sy = s @ y
                if float(sy) > 1e-10 * float(s @ s):
                    pairs.append((s, y, 1 / sy))
                point = trial
            else:
                t *= 0.3
            report(used, point)
        if not accepted:
            if not pairs:
                break  # not even the gradient leads down: the loss is at the precision of the numbers
            pairs.clear()
    return point.x


def _inverse_hessian_times(pairs: deque[tuple[Tensor, Tensor, Tensor]], g: Tensor) -> Tensor:
    """The two-loop recursion."""
    if not pairs:
        return g
    q = g.clone()
    alphas = []
    for s, y, rho in reversed(pairs):
        alpha = rho * (s @ q)
        q -= alpha * y
        alphas.append(alpha)
    _, y, rho = pairs[-1]
    q /= rho * (y @ y)
    for (s, y, rho), alpha in zip(pairs, reversed(alphas), strict=True):
        q += (alpha - rho * (y @ q)) * s
    return q


def _adam(
    evaluate: Callable[[Tensor], _Point],
    x: Tensor,
    steps: int,
    report: Callable[[int, _Point], None],
    learning_rate: float = 0.02,
) -> Tensor:
    x = x.clone()
    optimizer = torch.optim.Adam([x], lr=learning_rate)
    for step in range(1, steps + 1):
        point = evaluate(x)
        report(step, point)
        x.grad = point.gradient
        optimizer.step()
        x.clamp_(0, 1)
    return x


def _batch(image: Tensor, role: str, preset: StylePreset) -> Tensor:
    """The image as (1, 3, H, W) in float32, or ValueError."""
    expected = f"expected the {role} image as RGB (3, H, W) with floating-point values in [0, 1]"
    if image.dim() != 3 or image.shape[0] != 3:
        hint = "; repeat a grey image to three channels, and drop an alpha channel" if image.dim() in (2, 3) else ""
        raise ValueError(f"{expected}, found shape {tuple(image.shape)}{hint}")
    if not image.is_floating_point():
        raise ValueError(f"{expected}, found {image.dtype}; divide by the largest value of its range")
    side = smallest_side(preset.layers)
    if min(image.shape[1:]) < side:
        raise ValueError(
            f"the {role} image is {image.shape[2]} × {image.shape[1]} pixels; "
            f"the preset's layers need at least {side} × {side}"
        )
    low, high = float(image.min()), float(image.max())
    # Resampling leaves [0, 1] by rounding errors; anything more is another range. NaN fails this too.
    if not (low >= -1e-3 and high <= 1 + 1e-3):
        raise ValueError(f"{expected}, found values from {low:g} to {high:g}")
    return image.detach().to(torch.float32).clamp(0, 1)[None]
