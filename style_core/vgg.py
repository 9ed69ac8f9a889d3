"""The convolutions of VGG-19 (Simonyan and Zisserman, 2014, configuration E), trained by others, as plain data."""

import hashlib
import math
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from style_core.errors import WeightsError
from style_core.layers import LAYERS, PLACE, Layer, check_names, reached, up_to
from style_core.presets import presets_within

# torch.hub names files by so many digits of their SHA-256.
_LEAST_DIGITS = 8

# The name of torchvision's own file, vgg19-dcbb9e9d.pth: the start of its SHA-256.
_TORCHVISION = "dcbb9e9d"

_LEAST_ALIKE = 7  # standard deviations of what independent values give

# What torchvision's models expect: RGB in [0, 1], less the mean of ImageNet, over its standard deviation.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, eq=False)
class Features:
    """The trained convolutions from conv1_1 as far as they were asked for; frozen, so one serves many threads.

    Attributes
    ----------
    convolutions
        Weight (out, in, 3, 3) and bias (out,) of each convolution, in order.
    activation_scale
        What the file's activations were divided by; see :func:`load_features`.
    sha256
        Of the file, in hexadecimal.
    """

    convolutions: tuple[tuple[Tensor, Tensor], ...]
    activation_scale: float
    sha256: str

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers that can be extracted, from the image upwards."""
        return reached(len(self.convolutions))


def extract(features: Features, image: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
    """Activations of the named layers for an image.

    Parameters
    ----------
    features
        The trained network, in float32 on the CPU.
    image
        RGB in [0, 1] (B, 3, H, W), on the CPU; gradients flow through.
    layers
        Names from :data:`LAYERS`; ``conv…`` is before the ReLU and ``relu…`` after it.

    Returns
    -------
    dict[str, Tensor]
        (B, C, h, w) for each name, with h and w halved by every pool passed.

    Raises
    ------
    ValueError
        For a layer that does not exist, or that lies deeper than what ``features`` holds.
    """
    check_names(layers)
    if missing := [name for name in layers if name not in features.layers]:
        raise ValueError(
            f"the network was loaded as far as {features.layers[-1]}, and {', '.join(missing)} was asked for; "
            "name these layers to load_features too"
        )
    mean = image.new_tensor(MEAN).view(3, 1, 1)
    std = image.new_tensor(STD).view(3, 1, 1)
    x = (image - mean) / std
    convolutions = iter(features.convolutions)
    found: dict[str, Tensor] = {}
    for layer in up_to(layers):
        if layer.kind == "conv":
            weight, bias = next(convolutions)
            x = F.conv2d(x, weight, bias, padding=1)
        elif layer.kind == "relu":
            x = F.relu(x)
        else:
            x = F.max_pool2d(x, 2)
        if layer.name in layers:
            found[layer.name] = x
    return found


def load_features(
    path: Path, layers: Sequence[str], *, sha256: str | None = None, activation_scale: float | None = None
) -> Features:
    """Read trained VGG-19 weights as far as the deepest of ``layers``.

    Parameters
    ----------
    path
        A state dict under torchvision's key names (``features.0.weight`` …), for torchvision's input. Read without
        running any code in it. What lies deeper than needed, the classifier included, is not kept.
    layers
        Names from :data:`LAYERS`.
    sha256
        The file's expected SHA-256 in hexadecimal, or its first digits, at least 8; None takes the file as it is.
    activation_scale
        What to divide all activations by. None: 255 for weights trained on pixels 0 to 255 (told by the size of
        conv1_1's filters), otherwise 1.

    Notes
    -----
    The presets' loss weights were chosen with torchvision's own training, whose activations are of the order of 1.
    Weights converted from Oxford's Caffe model carry the pixel range 0 to 255 in conv1_1, so every activation is about
    255 times greater. The content loss goes with its square and the style loss with its fourth power: 1e6 : 1 would
    mean 6.5e10 : 1. With ReLUs, dividing conv1_1 and all biases by 255 divides every layer by 255 and changes nothing
    else.

    Random weights paint too, in silence, so a file other than torchvision's must show that it was trained. Filters that
    were trained on photographs are smooth: in Oxford's weights neighbouring values of a filter correlate by 0.48 to 0.80
    in every layer. Values drawn independently, as every usual initialisation draws them, correlate
    by 0, with a standard deviation of 1 / sqrt(12 · in · out): 0.02 for conv1_1, less for all others.

    Raises
    ------
    ValueError
        For a layer name that does not exist.
    WeightsError
        When the file is missing, has another digest, is not a state dict, has other shapes, ends before ``layers``, or was
        not trained.
    OSError
        When the file cannot be read.
    """
    check_names(layers)
    if not layers:
        raise ValueError("no layer is named; name at least one, conv1_1 for example")
    if not path.is_file():
        raise WeightsError(f"{path}: no such file; give the path of VGG-19's weights in torchvision's key names")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if sha256 is not None:
        _check_digest(path, digest, sha256)
    state = _read(path)
    needed = [layer for layer in up_to(layers) if layer.kind == "conv"]
    held = _held(state)
    if held < len(needed):
        raise WeightsError(_ends_early(path, layers, held))
    convolutions = [(_tensor(path, state, layer, "weight"), _tensor(path, state, layer, "bias")) for layer in needed]
    if not digest.startswith(_TORCHVISION):
        for layer, (weight, _) in zip(needed, convolutions, strict=True):
            _check_trained(path, layer, weight)
    if activation_scale is None:
        activation_scale = _activation_scale(convolutions[0][0])
    # Each layer hands its scale on to the next, so only the first weight is divided, and every bias.
    return Features(
        tuple(
            (
                (weight / activation_scale if i == 0 else weight).contiguous(memory_format=torch.channels_last),
                bias / activation_scale,
            )
            for i, (weight, bias) in enumerate(convolutions)
        ),
        activation_scale,
        digest,
    )


def download_features(
    layers: Sequence[str], *, directory: Path | None = None, progress: bool = False, url: str | None = None
) -> Features:
    """Fetch torchvision's trained VGG-19 (about 550 MB) unless it is there already, and load it as far as ``layers``.

    Nothing else in this package reaches for the network: call this where the user has allowed it.

    Parameters
    ----------
    layers
        Names from :data:`LAYERS`.
    directory
        Where the file is kept; None: where torch.hub keeps its own, shared with torchvision.
    progress
        Show a bar on stderr.
    url
        None: torchvision's ``VGG19_Weights.IMAGENET1K_V1``. The file's name must hold the start of its SHA-256 as torch.hub's
        do, ``name-0123abcd.pth``; it is checked at every call.

    Raises
    ------
    ValueError
        For a layer name that does not exist.
    WeightsError
        When the file cannot be fetched, or is not the expected one.
    """
    check_names(layers)
    url = url or _torchvision_url()
    path = download_path(directory=directory, url=url)
    digest = torch.hub.HASH_REGEX.search(path.name)
    if digest is None:
        raise ValueError(f"{path.name}: expected the start of the file's SHA-256 in its name, as in vgg19-0123abcd.pth")
    if not path.is_file():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), hash_prefix=digest[1], progress=progress)
        except (OSError, RuntimeError) as error:
            raise WeightsError(
                f"VGG-19's weights could not be fetched from {url} to {path} ({error}); "
                "fetch the file elsewhere and give its path"
            ) from error
    return load_features(path, layers, sha256=digest[1])


def download_path(*, directory: Path | None = None, url: str | None = None) -> Path:
    """Where :func:`download_features` keeps its file, whether or not it is there yet."""
    return (directory or Path(torch.hub.get_dir()) / "checkpoints") / (url or _torchvision_url()).rpartition("/")[2]


def _torchvision_url() -> str:
    from torchvision.models import VGG19_Weights

    return str(VGG19_Weights.IMAGENET1K_V1.url)


def _check_digest(path: Path, found: str, sha256: str) -> None:
    if len(sha256.strip()) < _LEAST_DIGITS or not found.startswith(sha256.strip().lower()):
        raise WeightsError(
            f"{path}: SHA-256 is {found}, expected {sha256.strip().lower()}; "
            "fetch the file again, or give the digest of the file that is meant"
        )


def _read(path: Path) -> Mapping[str, Tensor]:
    # Torch warns of pickles that it then refuses. A filter for good: one that is undone again is undone for other threads too.
    warnings.filterwarnings("ignore", "Detected pickle protocol", UserWarning)
    try:
        # Mapped, so that the 500 MB of the classifier are never in memory; files from before torch 1.6 are no zip archives.
        state = torch.load(path, weights_only=True, map_location="cpu", mmap=zipfile.is_zipfile(path))
    except OSError:
        raise
    except Exception as error:
        raise WeightsError(
            f"{path}: not a PyTorch weights file ({type(error).__name__}); expected a state dict saved with torch.save"
        ) from error
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(f"{path}: holds a {type(state).__name__}, expected a state dict of tensors")
    return state


def _held(state: Mapping[str, Tensor]) -> int:
    """How many convolutions the file holds from conv1_1 on without a gap."""
    count = 0
    for place, layer in enumerate(LAYERS):
        if layer.kind == "conv":
            if not {f"features.{place}.weight", f"features.{place}.bias"} <= state.keys():
                break
            count += 1
    return count


def _ends_early(path: Path, layers: Sequence[str], held: int) -> str:
    if held == 0:
        return f"{path}: no features.0.weight in it; expected VGG-19 under torchvision's key names"
    works = reached(held)
    missing = [name for name in layers if name not in works]
    within = ", ".join(presets_within(works)) or "none"
    return (
        f"{path}: ends before {', '.join(missing)}; layers that work with this file: {', '.join(works)}. "
        f"Presets that work with it: {within}; the others need the full VGG-19 weights, or other layers by option"
    )


def _tensor(path: Path, state: Mapping[str, Tensor], layer: Layer, part: str) -> Tensor:
    key = f"features.{PLACE[layer.name]}.{part}"
    found = state[key]
    expected = (layer.out_channels, layer.in_channels, 3, 3) if part == "weight" else (layer.out_channels,)
    if tuple(found.shape) != expected:
        raise WeightsError(
            f"{path}: {key} has shape {tuple(found.shape)}, expected {expected} for {layer.name} of VGG-19; "
            "these are another network's weights"
        )
    # Copied, so that neither the mapped file nor the rest of the state dict stays open.
    values = found.detach().to(torch.float32, copy=True)
    if not bool(values.isfinite().all()):
        raise WeightsError(f"{path}: {key} holds NaN or infinite values; fetch the file again")
    return values


def _check_trained(path: Path, layer: Layer, weight: Tensor) -> None:
    alike = _neighbours_alike(weight)
    if not alike > _LEAST_ALIKE / math.sqrt(12 * layer.in_channels * layer.out_channels):  # true for NaN too
        how = (
            "all equal" if math.isnan(alike) else f"as unlike their neighbours as random ones (correlation {alike:.3f})"
        )
        raise WeightsError(
            f"{path}: the filters of {layer.name} were not trained, their values are {how}; expected VGG-19 as trained on "
            "ImageNet, not as it is initialised"
        )


def _neighbours_alike(weight: Tensor) -> float:
    """Correlation of a layer's (out, in, 3, 3) neighbouring values, across and down; NaN where all are equal."""
    if bool((weight == weight[0, 0, 0, 0]).all()):
        return math.nan
    w = weight.double() - weight.double().mean()
    products = (w[..., 1:] * w[..., :-1]).mean() + (w[..., 1:, :] * w[..., :-1, :]).mean()
    return float(products / 2 / w.square().mean())


def _activation_scale(first: Tensor) -> float:
    # Filters of conv1_1 have norms near 1 when trained on normalised input and near 50 when they carry the factor 255.
    norm = float(first.flatten(1).norm(dim=1).median())
    return 255.0 if norm > 10 else 1.0
