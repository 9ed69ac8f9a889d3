"""The two distances of Gatys, Ecker and Bethge (2015): in what an image shows, and in how it is painted.

Both are means, as in the seed's code, where the paper's equations 1 and 4 are sums with factors 1/2 and 1/4: the
weights 1e6 and 1 belong to the means.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def gram_matrix(features: Tensor) -> Tensor:
    """Correlations between the channels of a layer: how often two filters answer together, wherever in the image.

    Parameters
    ----------
    features
        Activations of one layer (B, C, H, W).

    Returns
    -------
    Tensor
        (B, C, C), sums over the positions divided by C·H·W, so that images of any two sizes compare; at least float32.
    """
    _, C, H, W = features.shape
    # Sums over thousands of positions are taken in float32 also where the convolutions ran in bfloat16.
    f = features.flatten(2).to(torch.promote_types(features.dtype, torch.float32))  # (B, C, H·W)
    return f @ f.mT / (C * H * W)


def content_loss(features: Tensor, target: Tensor) -> Tensor:
    """Mean squared difference of two layers' activations (B, C, H, W) of the same shape."""
    dtype = torch.promote_types(features.dtype, torch.float32)
    return F.mse_loss(features.to(dtype), target.to(dtype))


def style_loss(features: Tensor, target_gram: Tensor) -> Tensor:
    """Mean squared difference of the Gram matrix of ``features`` (B, C, H, W) from ``target_gram`` (B, C, C)."""
    return F.mse_loss(gram_matrix(features), target_gram)
