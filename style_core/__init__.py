"""Neural style transfer on tensors (Gatys, Ecker and Bethge, 2015): one image painted in the manner of another.

::

    features = load_features(Path("vgg19.pth"), SEED.layers)
    stylized = transfer(content, style, features, SEED)
"""

from style_core.errors import StyleError
from style_core.losses import content_loss, gram_matrix, style_loss
from style_core.transfer import SEED, Step, StylePreset, StyleTargets, style_targets, transfer
from style_core.vgg import LAYERS, Features, extract, load_features

__all__ = [
    "LAYERS",
    "SEED",
    "Features",
    "Step",
    "StyleError",
    "StylePreset",
    "StyleTargets",
    "content_loss",
    "extract",
    "gram_matrix",
    "load_features",
    "style_loss",
    "style_targets",
    "transfer",
]
