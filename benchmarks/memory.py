"""The peak memory of `denoise run` over one SIDE × SIDE uint16 grey TIFF, with zs-fit and with nl-bayes.

    python -m benchmarks.memory 10000
    python -m benchmarks.memory 512 --frames 4000 --methods none

With `--frames` the file is a time series of so many such frames, which is done in blocks where it is large enough. The folder for
it is TMPDIR's; it takes the file's size twice. nl-bayes takes hours for some GB on a CPU.
Each run is a child process: its peak is the ru_maxrss that the kernel reports when it ends. Beside it stand the peaks of
children that start Python alone, and that import what a run imports. Prefect's server is a process of its own and
not counted. The image is a photograph continued by its mirror images, with Gaussian noise, written by yet another child: a
process starts with the peak of the one that it was split off from, so this one stays small.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.common import mirrored, parser, write

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

HIGH_WATER = "import re; print(re.search(r'VmHWM:\\s*(\\d+)', open('/proc/self/status').read())[1])"
IMPORTS = "import flows.denoise_directory, tasks.report, imagecodecs, tifffile, denoise_core.methods.zs_fit"
METHODS = ("zs-fit", "nl-bayes")
ROWS = 500


def write_image(path: Path, side: int) -> None:
    """Write the image, some rows at a time."""
    import numpy as np
    import tifffile
    from skimage import data

    clean = mirrored(data.camera().astype(np.float32), side)  # type: ignore[no-untyped-call]
    rng = np.random.default_rng(0)
    image = np.empty((side, side), np.uint16)
    for top in range(0, side, ROWS):
        rows = clean[top : top + ROWS] * 200 + 4000
        image[top : top + ROWS] = np.clip(rng.normal(rows, 2500), 0, 65535).astype(np.uint16)
    tifffile.imwrite(path, image)


def write_series(path: Path, side: int, frames: int) -> None:
    """Write a time series of the image, which moves by a pixel a frame, each frame with noise of its own."""
    import numpy as np
    import tifffile
    from skimage import data

    clean = mirrored(data.camera().astype(np.float32), side) * 200 + 4000  # type: ignore[no-untyped-call]

    def each() -> Iterator[npt.NDArray[np.uint16]]:
        rng = np.random.default_rng(0)
        for frame in range(frames):
            noisy = np.roll(clean, frame, axis=1) + 2500 * rng.standard_normal(clean.shape, np.float32)
            yield np.clip(noisy, 0, 65535).astype(np.uint16)

    with tifffile.TiffWriter(path, bigtiff=True) as writer:
        shape = (frames, side, side)
        writer.write(each(), shape=shape, dtype=np.uint16, photometric="minisblack", metadata={"axes": "TYX"})


def peak_megabytes(command: list[str]) -> float:
    """Of a child process that runs the command."""
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            output.seek(0)
            raise SystemExit(f"{' '.join(command)}\n{output.read().decode(errors='replace')[-2000:]}")
    return usage.ru_maxrss * 1.024e-3  # Linux counts in KiB


def main() -> int:
    parse = parser(__doc__)
    parse.add_argument("side", type=int, nargs="?", default=10_000)
    parse.add_argument("--frames", type=int, help="a time series of so many instead of one image")
    parse.add_argument("--methods", default=",".join(METHODS), help="of the runs (default: %(default)s)")
    parse.add_argument("--write", type=Path, help="only write the image here")
    options = parse.parse_args()
    if options.write is not None:
        if options.frames is None:
            write_image(options.write, options.side)
        else:
            write_series(options.write, options.side, options.frames)
        return 0
    python = [sys.executable, "-c"]
    # Its ru_maxrss would be that of this process.
    alone = subprocess.run([*python, HIGH_WATER], check=True, capture_output=True, text=True).stdout
    peaks = {"python": float(alone) * 1.024e-3, "imports": peak_megabytes([*python, IMPORTS])}
    print(f"python alone {peaks['python']:.0f} MB, with what a run imports {peaks['imports']:.0f} MB")
    series = [] if options.frames is None else ["--frames", str(options.frames)]
    what = " × ".join(map(str, [*([] if options.frames is None else [options.frames]), options.side, options.side]))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        image = folder / "image.tif"
        writing = ["-m", "benchmarks.memory", str(options.side), *series, "--write", str(image)]
        subprocess.run([sys.executable, *writing], check=True)
        for method in options.methods.split(","):
            run = ["-m", "flows.cli", "run", str(image), str(folder / method), "--method", method]
            peaks[method] = peak_megabytes([sys.executable, *run])
            print(
                f"{method:9} over {what} uint16 ({image.stat().st_size / 1e6:.0f} MB): peak "
                f"{peaks[method]:.0f} MB, {peaks[method] - peaks['imports']:.0f} MB above the imports",
                flush=True,
            )
            shutil.rmtree(folder / method)
    facts = {"side": options.side, "frames": options.frames, "megabytes": peaks}
    print(f"→ {write('memory-' + '-'.join(map(str, [options.side, *series[1:]])), facts)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
