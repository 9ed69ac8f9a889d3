"""Run `denoise run` on a set of benchmark images and print its scores, image by image and as means.

    python -m benchmarks.run_on kodak24 --crop 256 -- --noise gauss:25 --preset paper
    python -m benchmarks.run_on confocal_pairs

The images are looked for in `../shared/data` beside the repository, or in the folder that `--data` names. What stands
behind `--` goes to `denoise run` as it is. Results stay in `benchmarks/results/`, so that a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

from PIL import Image

from benchmarks.common import DATA, RESULTS

PUBLISHED = {
    # Mansour and Heckel, CVPR 2023, as quoted by later papers: 256 x 256 crops of Kodak24
    ("kodak24", "gauss:25"): 29.07,
    ("kodak24", "gauss:50"): 24.81,
    ("kodak24", "poisson:50"): 29.45,
}


def centre_crops(source: Path, target: Path, side: int) -> None:
    """Write the centre side × side of every PNG of `source`."""
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.glob("*.png")):
        image = Image.open(path)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        if not (target / path.name).exists():
            image.crop((left, top, left + side, top + side)).save(target / path.name)


def main() -> int:
    from flows.cli import main as denoise
    from tasks import table

    arguments = sys.argv[1:]
    own, passed = arguments, []
    if "--" in arguments:
        at = arguments.index("--")
        own, passed = arguments[:at], arguments[at + 1 :]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", choices=["kodak24", "confocal_pairs"])
    parser.add_argument("--crop", type=int, help="side of a centre crop, pixels; left out: whole images")
    parser.add_argument("--data", type=Path, default=DATA)
    options = parser.parse_args(own)

    source = (options.data / options.images).resolve()
    if not source.is_dir():
        print(f"There is no folder {source}: --data names the one that holds {options.images}.", file=sys.stderr)
        return 2
    if options.images == "confocal_pairs":
        passed = ["--reference", str(source / "clean"), *passed]
        source /= "noisy"
    elif options.crop:
        source, whole = RESULTS / f"{options.images}-{options.crop}", source
        centre_crops(whole, source, options.crop)
    told = [option.strip("-").replace(":", "") for option in passed if "/" not in option]
    name = "-".join([options.images, str(options.crop or "full"), *told])
    output = RESULTS / name

    started = time.perf_counter()
    status = denoise(["run", str(source), str(output), *passed])
    seconds = time.perf_counter() - started
    rows, provenance = table.read(output / "results.parquet")
    print(f"\n{'image':12} {'noisy dB':>9} {'denoised dB':>12} {'SSIM':>7} {'fit s':>7}")
    for row in rows:
        print(
            f"{row['source']:12} {row['psnr_noisy_db']:9.2f} {row['psnr_denoised_db']:12.2f} {row['ssim_denoised']:7.4f} "
            f"{row['fit_seconds'] or 0:7.1f}"
        )
    noisy, denoised = ([row[f"psnr_{kind}_db"] for row in rows] for kind in ("noisy", "denoised"))
    spread = statistics.stdev(denoised)
    print(
        f"{'mean':12} {statistics.mean(noisy):9.2f} {statistics.mean(denoised):12.2f}   (n = {len(rows)}, sd {spread:.2f} dB)"
    )
    published = PUBLISHED.get((options.images, rows[0]["noise"]))
    if published is not None and options.crop == 256:
        print(f"published for ZS-N2N on 256 x 256 crops: {published:.2f} dB")
    print(f"{seconds:.0f} s for this command; {provenance['software']}, {provenance['environment']}")
    return status


if __name__ == "__main__":
    sys.exit(main())
