"""What ends a command before or after its work, as one sentence for the user."""

from denoise_core.errors import DenoiseError


class StartError(DenoiseError):
    """The command could not start: exit status 2."""


class OutputBusy(StartError):
    """Another run is writing to the output."""
