"""The seed documents' whole chain in one command: pictures stylized, made noisy, denoised, and scored against the stylized ones.

    python -m benchmarks.chain [--side 256] [--picture FILE]

Preset `seed` of the style transfer, Gaussian noise of 25 that is clipped as the seeds clip it, ZS-N2N as published; then zs-fit
on the same stylized pictures and the same noise. `--picture` keeps a sheet of them: docs/chain.jpg is one. The seed document
reports 28.84 dB on its own picture, which is not published, after 2000 steps.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from benchmarks.common import parser, write
from benchmarks.style import WEIGHTS, picture, save
from flows.cli import main as denoise

CONTENTS = ("astronaut", "chelsea", "coffee")
STYLE = "immunohistochemistry"
NOISE = ["--noise", "gauss:25", "--clip-noise"]
SHOWN = 192  # pixels a side on the sheet, of the centre


def sheet(folder: Path) -> Image.Image:
    """A row for each picture: content, stylized, noisy, by ZS-N2N, by zs-fit; pixels as they are, of the centre."""
    columns = [
        folder / "in",
        *(folder / "paper" / name for name in ("stylized", "noisy", "images")),
        folder / "fit" / "images",
    ]
    step = SHOWN + 4
    image = Image.new("RGB", (step * len(columns) - 4, step * len(CONTENTS) - 4), "white")
    for row, name in enumerate(CONTENTS):
        for column, place in enumerate(columns):
            with Image.open(place / f"{name}.png") as file:
                left, top = ((length - SHOWN) // 2 for length in file.size)
                image.paste(file.crop((left, top, left + SHOWN, top + SHOWN)), (column * step, row * step))
    return image


def main() -> int:
    parse = parser(__doc__)
    parse.add_argument("--side", type=int, default=256)
    parse.add_argument("--weights", type=Path, default=WEIGHTS)
    parse.add_argument("--picture", type=Path, help="where to keep the sheet")
    options = parse.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for content in CONTENTS:
            save(folder / "in", content, picture(content, options.side))
        save(folder, "style", picture(STYLE, options.side))
        paint = ["--style", f"{folder}/style.png", "--vgg-weights", str(options.weights)]
        runs = {
            "paper": [f"{folder}/in", f"{folder}/paper", *paint, *NOISE, "--method", "zs-n2n", "--preset", "paper"],
            "fit": [f"{folder}/paper/stylized", f"{folder}/fit", *NOISE, "--scope", "image"],
        }
        found = pd.DataFrame()
        for label, arguments in runs.items():
            status = denoise(["run", *arguments])
            if status != 0:
                return status
            rows = pd.read_parquet(folder / label / "results.parquet").set_index("source").sort_index()
            noisy = rows["psnr_noisy_db"]
            if "noisy" in found and not np.allclose(found["noisy"], noisy):
                raise AssertionError("the two runs saw different noise")
            found["noisy"], found[label] = noisy, rows["psnr_denoised_db"]
        found = found.rename(columns={"paper": "zs-n2n paper", "fit": "zs-fit"})
        print(f"\ndB against the stylized picture\n{found.round(2)}\nmean {found.mean().round(2).to_dict()}")
        if options.picture is not None:
            sheet(folder).save(options.picture, quality=88)
    print(f"→ {write('chain', {'side': options.side, 'psnr_db': found.to_dict()})}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
