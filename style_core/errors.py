"""What goes wrong in style transfer through no fault of the calling code."""


class StyleError(Exception):
    """The trained weights cannot be used: not the expected file, layers missing, or not VGG-19's shapes."""
