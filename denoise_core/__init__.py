"""Images in, images out: reading and writing files, noise, denoising methods, metrics and diagnostics. No Prefect."""

__version__ = "0.1.0"
