"""Neural style transfer (Gatys, Ecker and Bethge, 2015): images painted in the manner of others. No Prefect.

::

    preset = PRESETS["seed"]
    features = load_features(Path("vgg19.pth"), preset.layers)
    targets = style_targets([style], features, preset)
    painted = [stylize(content, targets).pixels for content in contents]

Importing this package imports no torch: that waits until something that computes is asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from style_core.errors import StyleError, WeightsError
from style_core.layers import LAYERS
from style_core.presets import PRESETS, StylePreset, presets_within

if TYPE_CHECKING:
    from style_core.images import Stylized, check_style, style_targets, stylize
    from style_core.painting import Step, StyleTargets, Transferred, transfer
    from style_core.vgg import Features, download_features, download_path, extract, load_features

__all__ = [
    "LAYERS",
    "PRESETS",
    "Features",
    "Step",
    "StyleError",
    "StylePreset",
    "StyleTargets",
    "Stylized",
    "Transferred",
    "WeightsError",
    "check_style",
    "download_features",
    "download_path",
    "extract",
    "load_features",
    "presets_within",
    "style_targets",
    "stylize",
    "transfer",
]

_MODULES = {
    "Features": "vgg",
    "Step": "painting",
    "StyleTargets": "painting",
    "Stylized": "images",
    "Transferred": "painting",
    "check_style": "images",
    "download_features": "vgg",
    "download_path": "vgg",
    "extract": "vgg",
    "load_features": "vgg",
    "style_targets": "images",
    "stylize": "images",
    "transfer": "painting",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
