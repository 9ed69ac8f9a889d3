"""Sample images: real photographs and micrographs, cut from what scikit-image carries in its wheel."""

import importlib.util
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]


@dataclass(frozen=True)
class Sample:
    """One sample: the file it becomes, the file of scikit-image it is cut from, and where that comes from.

    `height` and `width` are the size in pixels of the crop: the middle, moved by `shift` (down, right) to the subject.
    With `binning` b > 1, blocks of b × b pixels are averaged before the crop; with `bits` 16 the average is kept to
    1/257 of a grey level and spread over 0 … 65535.
    """

    path: str
    source: str
    height: int
    width: int
    subject: str
    author: str
    terms: str
    origin: str
    bits: Literal[8, 16] = 8
    binning: int = 1
    channel: Literal["all", "green"] = "all"
    shift: tuple[int, int] = (0, 0)


# Only images whose origin and terms scikit-image states: "moon" and "page" are left out for want of them.
SAMPLES: tuple[Sample, ...] = (
    Sample(
        "astronaut.png", "astronaut.png", 256, 256,
        "the astronaut Eileen Collins", "NASA", "public domain", "https://flic.kr/p/r9qvLn", shift=(-112, 0),
    ),
    Sample(
        "camera.png", "camera.png", 256, 256,
        "a photographer at work", "Lav Varshney", "CC0", "https://github.com/scikit-image/scikit-image/issues/3927",
    ),
    Sample(
        "chelsea.png", "chelsea.png", 256, 256,
        "a cat", "Stefan van der Walt", "CC0", "scikit-image",
    ),
    Sample(
        "coffee.jpg", "coffee.png", 240, 320,
        "a cup of coffee", "Rachel Michetti, courtesy of Pikolo Espresso Bar", "CC0", "scikit-image",
    ),
    Sample(
        "coins.png", "coins.png", 200, 300,
        "coins from Pompeii", "Brooklyn Museum", "no known copyright restrictions",
        "https://www.brooklynmuseum.org/opencollection/archives/image/51611",
    ),
    Sample(
        "rocket.png", "rocket.jpg", 300, 180,
        "the launch of DSCOVR on a Falcon 9", "SpaceX", "public domain",
        "https://www.flickr.com/photos/spacexphotos/16511594820/",
    ),
    Sample(
        "hubble_deep_field.png", "hubble_deep_field.jpg", 256, 256,
        "the Hubble eXtreme Deep Field", "NASA, through HubbleSite", "free to use, public domain",
        "http://hubblesite.org/newscenter/archive/releases/2012/37/image/a/",
        bits=16, binning=2,
    ),
    Sample(
        "textures/grass.png", "grass.png", 256, 256,
        "grass", "linolafett", "CC0", "https://www.deviantart.com/linolafett/art/Grass-01-434853879",
    ),
    Sample(
        "textures/gravel.png", "gravel.png", 192, 256,
        "gravel", "CC0Textures", "CC0", "https://cc0textures.com/view.php?tex=Gravel04",
    ),
    Sample(
        "micrographs/cell.tif", "cell.png", 256, 256,
        "a cell in saline, quantitative phase from a hologram, 0.107 µm a pixel",
        "Paul Müller, Mirjam Schürmann, Salvatore Girardo, Gheorghe Cojoc and Jochen Guck", "CC0",
        "https://doi.org/10.1364/OE.26.010729", shift=(50, 120),
    ),
    Sample(
        "micrographs/cell_binned.tif", "cell.png", 256, 256,
        "the same cell at half the resolution, 0.214 µm a pixel",
        "Paul Müller, Mirjam Schürmann, Salvatore Girardo, Gheorghe Cojoc and Jochen Guck", "CC0",
        "https://doi.org/10.1364/OE.26.010729",
        bits=16, binning=2,
    ),
    Sample(
        "micrographs/ihc_colon.png", "ihc.png", 256, 256,
        "colonic glands, FHL2 stained with DAB and hematoxylin",
        "Center for Microscopy And Molecular Imaging (CMMI)", "no known copyright restrictions", "scikit-image",
    ),
    Sample(
        "fundus/retina_green.tif", "retina.jpg", 256, 256,
        "the retina of a left eye", "Mikael Häggström", "CC0",
        "https://commons.wikimedia.org/wiki/File:Fundus_photograph_of_normal_left_eye.jpg",
        bits=16, binning=4, channel="green",
    ),
    Sample(
        "fundus/lesions/microaneurysms.png", "microaneurysms.png", 102, 102,
        "microaneurysms in a retina (green channel, image 07_dr of the HRF database)",
        "owner Andreas Maier", "CC0", "https://www5.cs.fau.de/research/data/fundus-images/",
    ),
)  # fmt: skip


def _package_folder() -> Path:
    # find_spec, not import: skimage.data's functions may download, the files in the package cannot.
    spec = importlib.util.find_spec("skimage")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(
            "The sample images come from scikit-image, which is not installed. Install it: pip install scikit-image"
        )
    return Path(spec.origin).parent / "data"


def _derive(sample: Sample, folder: Path) -> Pixels:
    """(height, width) or (height, width, 3), uint8 0 … 255 or uint16 0 … 65535."""
    from PIL import Image

    source = folder / sample.source
    if not source.is_file():
        raise FileNotFoundError(
            f"{source} is missing: the installed scikit-image does not carry it. "
            "Reinstall scikit-image from its wheel (pip install --force-reinstall scikit-image)."
        )
    with Image.open(source) as image:
        x = np.asarray(image)
    if sample.channel == "green":
        x = x[..., 1]
    b = sample.binning
    H, W = x.shape[0] // b, x.shape[1] // b
    if min(H - sample.height, W - sample.width) < 0:
        raise ValueError(
            f"{source} holds {x.shape[0]} × {x.shape[1]} pixels, and at least {sample.height * b} × {sample.width * b} "
            "are needed. It is not the file that scikit-image 0.25 and 0.26 carry: install one of those."
        )
    blocks = x[: H * b, : W * b].reshape(H, b, W, b, *x.shape[2:]).astype(np.int64)
    total = blocks.sum(axis=(1, 3))
    # 65535 / 255 = 257. Whole numbers all the way, so that every machine rounds alike.
    scale, kind = (257, np.uint16) if sample.bits == 16 else (1, np.uint8)
    values = (2 * total * scale + b * b) // (2 * b * b)
    top = (H - sample.height) // 2 + sample.shift[0]
    left = (W - sample.width) // 2 + sample.shift[1]
    return np.ascontiguousarray(values[top : top + sample.height, left : left + sample.width].astype(kind))


def _encode(pixels: Pixels, suffix: str) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    if suffix == ".tif":
        import tifffile

        photometric = "rgb" if pixels.ndim == 3 else "minisblack"
        tifffile.imwrite(buffer, pixels, photometric=photometric, metadata=None, software=False)
    elif suffix == ".jpg":
        Image.fromarray(pixels).save(buffer, format="JPEG", quality=95, subsampling=0)
    elif pixels.dtype == np.uint16:
        # Pillow writes no 16-bit RGB.
        import imagecodecs

        return bytes(imagecodecs.png_encode(pixels))
    else:
        Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def _how(sample: Sample) -> str:
    parts = []
    if sample.channel == "green":
        parts.append("green channel")
    if sample.binning > 1:
        parts.append(f"means of {sample.binning} × {sample.binning} pixels")
    if sample.bits == 16:
        parts.append("scaled by 257")
    parts.append(f"middle {sample.width} × {sample.height}")
    if sample.shift != (0, 0):
        parts.append("moved by (down, right) = ({}, {}) pixels".format(*sample.shift))
    return ", ".join(parts)


def _readme() -> str:
    lines = [
        "# Sample images",
        "",
        "Real photographs and micrographs, written by `denoise samples` from the files that the installed scikit-image",
        "package carries. Origin, author and terms are as scikit-image's documentation of each image gives them.",
        "",
        "| file | what | author | terms | origin |",
        "|---|---|---|---|---|",
        *(f"| `{s.path}` | {s.subject} | {s.author} | {s.terms} | {s.origin} |" for s in SAMPLES),
        "",
        "What was done to the pixels:",
        "",
        "| file | from scikit-image's | how | stored as |",
        "|---|---|---|---|",
        *(f"| `{s.path}` | `{s.source}` | {_how(s)} | {s.bits}-bit {_container(s)} |" for s in SAMPLES),
        "",
        "All originals have 8 bits. The 16-bit files are not a made-up depth: the mean of b × b pixels can take",
        "b² × 255 + 1 levels, more than 8 bits hold. The levels are spread over 0 … 65535 (255 becomes 65535), so the",
        "numbers are not photon counts. Colour profiles and other metadata of the originals are not copied, and no",
        "file has a calibrated pixel size.",
        "",
    ]
    return "\n".join(lines)


def _container(sample: Sample) -> str:
    return {".png": "PNG", ".jpg": "JPEG, quality 95, 4:4:4", ".tif": "TIFF, uncompressed"}[Path(sample.path).suffix]


def write_samples(folder: Path) -> list[Path]:
    """Write the sample images and a README.md with their origin, author and terms.

    Every image is read and encoded before the first is written. Other files in `folder` are left alone; files of an
    earlier call are replaced, each as a whole. The same package versions give the same bytes.

    Parameters
    ----------
    folder
        Where to write; made when absent.

    Returns
    -------
    The images' paths, in the order of `SAMPLES`; the README is not among them.

    Raises
    ------
    ModuleNotFoundError, FileNotFoundError, ValueError
        scikit-image is not installed, or does not carry the expected file.
    NotADirectoryError
        `folder` is a file.
    OSError
        The folder cannot be written to.
    """
    from denoise_core.images import write_atomic

    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file; the sample images need a directory. Name another one.")
    package = _package_folder()
    files = {folder / s.path: _encode(_derive(s, package), Path(s.path).suffix) for s in SAMPLES}
    for path, encoded in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, encoded)
    write_atomic(folder / "README.md", _readme().encode())
    return list(files)
