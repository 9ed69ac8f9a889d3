"""Make docs/before-after.png: a real photograph noisy, denoised from the noisy image alone, and clean.

python -m benchmarks.before_after
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from skimage import data

from denoise_core import noise
from flows.cli import main as denoise

TARGET = Path(__file__).resolve().parents[1] / "docs" / "before-after.png"


def main() -> int:
    clean = data.chelsea()[20:276, 90:346]  # type: ignore[no-untyped-call]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "in").mkdir()
        Image.fromarray(clean).save(Path(folder) / "in" / "chelsea.png")
        status = denoise(["run", f"{folder}/in", f"{folder}/out", "--noise", "gauss:25"])
        denoised = np.asarray(Image.open(Path(folder) / "out" / "images" / "chelsea.png"))
    noisy = noise.add(clean.astype(np.float32) / 255, noise.parse("gauss:25"), noise.rng(0, "chelsea.png"))
    shown = np.rint(np.clip(noisy, 0, 1) * 255).astype(np.uint8)
    gap = np.full((clean.shape[0], 8, 3), 255, np.uint8)
    TARGET.parent.mkdir(exist_ok=True)
    Image.fromarray(np.hstack([shown, gap, denoised, gap, clean])).save(TARGET, optimize=True)
    print(TARGET)
    return status


if __name__ == "__main__":
    sys.exit(main())
