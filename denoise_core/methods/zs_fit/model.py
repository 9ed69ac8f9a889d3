"""A fitted network as a file: weights as safetensors, beside them a JSON document that says what they are."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from denoise_core import __version__
from denoise_core.errors import DenoiseError
from denoise_core.images import write_atomic
from denoise_core.methods.zs_fit.fitting import Fitted
from denoise_core.methods.zs_fit.network import Layout

FORMAT = "denoise-flows zs-fit 1"
MOST_BYTES = 256 * 1024 * 1024


class ModelError(DenoiseError):
    """A file that is no model of zs-fit, or not one for these images; one sentence without the path."""


def write_model(path: Path, fitted: Fitted, about: dict[str, Any]) -> str:
    """Write `fitted` to `path` and what is known of it to the .json beside; the SHA-256 (hex) of the weights' file.

    `about` is kept as it is in the document; it must be plain JSON.
    """
    layout = {"channels": fitted.layout.channels, "width": fitted.layout.width, "layers": fitted.layout.layers}
    facts = {
        "format": FORMAT,
        "layout": layout,
        "steps": fitted.steps,
        "loss": fitted.loss,
        "restarts": fitted.restarts,
        "checksum": _checksum(fitted.weights),
    }
    # One key, for safetensors keeps no order of keys: the same network is to be the same file.
    data = save({"weights": fitted.weights}, metadata={"denoise-flows": json.dumps(facts)})
    digest = hashlib.sha256(data).hexdigest()
    write_atomic(path, data)
    document = {**facts, "file_sha256": digest, "software_version": __version__, **about}
    write_atomic(path.with_suffix(".json"), json.dumps(document, indent=2).encode())
    return digest


def _checksum(weights: Tensor) -> str:
    return hashlib.sha256(weights.contiguous().numpy().tobytes()).hexdigest()


def read_model(path: Path) -> tuple[Fitted, str]:
    """The network in the file at `path`, and the file's SHA-256 (hex).

    Raises
    ------
    ModelError
        For anything else than a model that `write_model` wrote.
    OSError
        For a file that cannot be read.
    """
    if not path.is_file() or path.stat().st_size > MOST_BYTES:
        raise ModelError("no model of zs-fit: no regular file, or too large a one")
    data = path.read_bytes()
    try:
        weights = load(data)["weights"]
        length = int.from_bytes(data[:8], "little")
        about = json.loads(data[8 : 8 + length])["__metadata__"]["denoise-flows"]
        facts = json.loads(about)
        if facts["format"] != FORMAT:
            raise ModelError(f"no model that this version reads: its format is {str(facts['format'])[:80]!r}")
        layout = Layout(**facts["layout"])
        fitted = Fitted(layout, weights, int(facts["steps"]), float(facts["loss"]), int(facts["restarts"]))
    except (SafetensorError, KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        words = " ".join(str(error).split())[:120]
        raise ModelError(f"no model of zs-fit: {words or type(error).__name__}") from error
    if weights.ndim != 1 or str(weights.dtype) != "torch.float32" or weights.numel() != sum(layout.sizes):
        raise ModelError("no model of zs-fit: the weights do not fit its layout")
    if not bool(weights.isfinite().all()) or _checksum(weights) != facts.get("checksum"):
        raise ModelError("the model is damaged: its weights are not those that were written")
    return fitted, hashlib.sha256(data).hexdigest()
