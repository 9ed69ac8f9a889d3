"""What the options of a run may be: methods and their presets, scopes, and the other named values."""

from __future__ import annotations

from enum import StrEnum

MOST_SLOTS = 64
LEAST_WEIGHT = 1e-6  # of a style or content loss that counts at all: Adam's ε, added to its gradients, is 1e-8


class MethodChoice(StrEnum):
    """What denoises."""

    AUTO = "auto"
    ZS_FIT = "zs-fit"
    NL_BAYES = "nl-bayes"
    ZS_N2N = "zs-n2n"
    NLM = "nlm"
    WAVELET = "wavelet"
    TV = "tv"
    BM3D = "bm3d"
    NONE = "none"


class Preset(StrEnum):
    """How a method is fitted."""

    FAST = "fast"
    PAPER = "paper"
    BEST = "best"


class Scope(StrEnum):
    """What one fit of zs-fit serves."""

    AUTO = "auto"
    IMAGE = "image"
    STACK = "stack"
    DIRECTORY = "directory"


class Channels(StrEnum):
    """Which channels of an image are denoised together."""

    AUTO = "auto"
    JOINT = "joint"
    SEPARATE = "separate"


class StylePresetChoice(StrEnum):
    """How a style is transferred; the names of :data:`style_core.PRESETS`."""

    SEED = "seed"
    GATYS = "gatys"
    BEST = "best"


class StyleOptimiser(StrEnum):
    """What paints; the optimisers of :class:`style_core.StylePreset`."""

    LBFGS = "lbfgs"
    ADAM = "adam"


OF_STYLE_PRESET = {
    "style_layers": "style_layers",
    "content_layers": "content_layers",
    "style_weight": "style_weight",
    "content_weight": "content_weight",
    "style_steps": "steps",
    "style_optimiser": "optimizer",
}
"""Options that take the place of what the preset says, and its fields in :class:`style_core.StylePreset`."""

DOWNLOAD = "download"
"""In place of a path for ``--vgg-weights``: torchvision's own file may be fetched."""

PRESETS = {
    MethodChoice.ZS_FIT: (Preset.FAST, Preset.BEST),
    MethodChoice.NL_BAYES: (Preset.FAST,),
    MethodChoice.ZS_N2N: (Preset.FAST, Preset.PAPER),
    MethodChoice.NLM: (Preset.FAST,),
    MethodChoice.WAVELET: (Preset.FAST,),
    MethodChoice.TV: (Preset.FAST,),
    MethodChoice.BM3D: (Preset.FAST,),
    MethodChoice.NONE: (Preset.FAST,),
}


class OnExisting(StrEnum):
    """What a run does where OUTPUT holds earlier results."""

    RESUME = "resume"
    OVERWRITE = "overwrite"
    ERROR = "error"
