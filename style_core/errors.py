"""What goes wrong in style transfer through no fault of the calling code."""


class StyleError(ValueError):
    """The weights or an image cannot be used: not the expected file, layers missing, too small, not the expected values."""


class WeightsError(StyleError):
    """It is the weights that cannot be used, not an image."""
