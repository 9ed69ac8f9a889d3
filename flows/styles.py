"""The style of a run: from its configuration, and whether it can be painted in."""

from __future__ import annotations

from pathlib import Path

from denoise_core.errors import DenoiseError
from flows.choices import DOWNLOAD
from flows.config import RunConfig, content
from flows.errors import StartError
from style_core.errors import StyleError
from tasks.faults import sentence
from tasks.settings import Style
from tasks.stylize import features_of, images_of, names_of, preset_of


def of(config: RunConfig) -> Style | None:
    """In whose manner the run paints, if it paints."""
    if not config.style:
        return None
    weights = None if config.vgg_weights == DOWNLOAD else Path(str(config.vgg_weights)).resolve()
    return Style(
        images=tuple(path.resolve() for path in config.style),
        preset=config.style_preset.value,
        changes=tuple(config.style_changes.items()),
        scale=config.style_scale,
        max_side=config.style_max_side,
        keep_colours=config.keep_colours,
        weights=weights,
        weights_sha256=None if weights is None else content(weights),
        digest=config.style_digest(),
    )


def check(style: Style, *, fetch: bool = True) -> None:
    """Read the style and the weights once, before any image; weights that must be fetched first only with ``fetch``.

    Raises:
        StartError: one of them cannot be used.
    """
    try:
        images_of(style)
    except (DenoiseError, OSError) as error:
        raise StartError(f"--style: {sentence(error)}") from error
    if to_fetch(style) and not fetch:
        return
    try:
        features_of(style)
    except (StyleError, OSError) as error:
        raise StartError(f"--vgg-weights: {sentence(error)}") from error


def to_fetch(style: Style) -> bool:
    """Whether the weights are torchvision's, and not here yet."""
    from style_core import download_path

    return style.weights is None and not download_path().is_file()


def told(style: Style) -> str:
    """What is painted, in words."""
    return f"painted in the manner of {names_of(style)}, preset {preset_of(style)}"
