"""The root of the package's exceptions: one `except DenoiseError` catches all that it raises on purpose."""


class DenoiseError(Exception):
    """Something that the caller can act on; the message says what was found, what was expected and what to do."""
