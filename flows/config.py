"""The configuration of a run: the one place where an option, its default and its bounds are written.

The command line, a TOML file and the form of the Prefect UI all fill the same model.
"""

from __future__ import annotations

import functools
import hashlib
import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from flows.choices import (
    DOWNLOAD,
    LEAST_WEIGHT,
    MOST_SLOTS,
    OF_STYLE_PRESET,
    PRESETS,
    Channels,
    MethodChoice,
    OnExisting,
    Preset,
    Scope,
    StyleOptimiser,
    StylePresetChoice,
)
from flows.config_files import to_toml
from flows.form import ABSOLUTE, absolute_items, for_the_form, noise_pattern

if TYPE_CHECKING:
    from style_core import StylePreset


class RunConfig(BaseModel):
    """What to denoise, and how: the options of the command denoise run."""

    model_config = ConfigDict(frozen=True, extra="forbid", json_schema_extra=for_the_form)

    input: Path = Field(
        json_schema_extra=ABSOLUTE, description="A directory of images, or one image. It is never written to."
    )
    output: Path = Field(
        json_schema_extra=ABSOLUTE,
        description="The directory that gets images/, results.parquet, report.html and runs/.",
    )
    method: MethodChoice = Field(
        default=MethodChoice.AUTO,
        description="zs-fit: a non-local estimate, corrected by a small network that is fitted to the noisy images; nl-bayes: "
        "that estimate alone; zs-n2n: Zero-Shot Noise2Noise, one network fitted on each image; nlm, wavelet, tv, bm3d: "
        "the classical methods, for reference (bm3d: an extra, for non-commercial use only); none: pixels as they are; "
        "auto: zs-fit, or zs-n2n with --preset paper.",
    )
    preset: Preset = Field(
        default=Preset.FAST,
        description="fast: seconds an image; best: zs-fit with more windows, longer fits and a larger network; paper: zs-n2n "
        "as published, 3000 whole-image steps.",
    )
    scope: Scope = Field(
        default=Scope.AUTO,
        description="What one fit of zs-fit serves. directory: one network for all images of as many channels, kept in "
        "OUTPUT/models; stack: one for each file, all its frames together; image: one for each frame; auto: directory for "
        "four or more images of one kind, else stack.",
    )
    model: Path | None = Field(
        default=None,
        json_schema_extra=ABSOLUTE,
        description="A network that zs-fit kept earlier (a .safetensors file, or a folder of them) to apply, instead of "
        "fitting.",
    )
    noise: str = Field(
        default="none",
        json_schema_extra=noise_pattern,
        description="The input is clean: add this noise first and score against the input. gauss:25 is σ = 25 on the "
        "0-255 scale, brown:25 the same, correlated in space; poisson:30 is a peak of 30 photons, poisson-gauss:30/5 that and "
        "σ = 5; of a share of pixels, bernoulli:0.5 makes black, salt-pepper:0.1 black or white, impulse:0.3 a random colour, "
        "text:0.25 covers with text; jpeg:30 is a quality; none adds nothing. A range, as gauss:5-50, draws a level an image. "
        "255 stands for the whole range of 8- and 16-bit data types (65535, of int16 too), for floats and 32-bit integers for "
        "the image's own, from its least to its greatest value; the peak is at the upper end of it, and intensity 0 has no "
        "photons.",
    )
    clip_noise: bool = Field(
        default=False,
        description="Clip the noisy image to the value range of its data type; floats and 32-bit integers to the clean image's "
        "own range.",
    )
    save_noisy: bool = Field(
        default=False,
        description="Also write the noisy images, to OUTPUT/noisy; with --style and --noise they always are.",
    )
    style: tuple[Path, ...] = Field(
        default=(),
        json_schema_extra=absolute_items,
        description="Paint every image in the manner of this one first (Gatys' neural style transfer); given several times, "
        "their styles are blended. What was painted is kept in OUTPUT/stylized, and scores refer to it.",
    )
    style_preset: StylePresetChoice = Field(
        default=StylePresetChoice.SEED,
        description="seed: layers conv1_1 to conv3_1, 300 L-BFGS steps; gatys: layers as first published, up to relu5_1; best: "
        "those layers, from coarse to fine, Wasserstein distance.",
    )
    style_layers: tuple[str, ...] | None = Field(
        default=None,
        description="Layers of VGG-19 whose style is taken, in place of the preset's, with commas between: conv1_1 to conv5_4 "
        "before a ReLU, relu1_1 to relu5_4 after it.",
    )
    content_layers: tuple[str, ...] | None = Field(
        default=None, description="Layers that keep the content, in place of the preset's."
    )
    style_weight: float | None = Field(
        default=None,
        ge=0,
        le=1e12,
        allow_inf_nan=False,
        description="Factor of the style loss, in place of the preset's: 1e6 of seed, 6.5e7 of gatys, 1 of best.",
    )
    content_weight: float | None = Field(
        default=None,
        ge=0,
        le=1e12,
        allow_inf_nan=False,
        description="Factor of the content loss, in place of the preset's: 1 of seed and gatys, 0.15 of best.",
    )
    style_steps: int | None = Field(
        default=None,
        ge=1,
        description="Evaluations of the loss at every scale, in place of the preset's: 300 of seed, 500 of gatys, 200 of best.",
    )
    style_optimiser: StyleOptimiser | None = Field(
        default=None, description="What paints, in place of the preset's: lbfgs of seed and gatys, adam of best."
    )
    style_scale: float = Field(
        default=1.0,
        ge=0.01,
        le=8,
        allow_inf_nan=False,
        description="Size of the style image against the painted one; less than 1 makes strokes smaller.",
    )
    style_max_side: int | None = Field(
        default=None,
        ge=32,
        description="Paint larger images at this longer side, in pixels, and enlarge them again. Left out: at full size.",
    )
    keep_colours: bool = Field(default=False, description="Paint brightness only: the colours stay those of the image.")
    vgg_weights: str | None = Field(
        default=None,
        json_schema_extra={"pattern": f"^/|^{DOWNLOAD}$"},
        description="The trained VGG-19 that --style needs: a file in torchvision's key names (of which only the layers needed "
        f"are kept), or {DOWNLOAD}: torchvision's own, 548 MB, may be fetched, once.",
    )
    vgg_sha256: str | None = Field(
        default=None,
        pattern=r"^[0-9a-fA-F]{64}$",
        description="SHA-256 that the file of --vgg-weights must have.",
    )
    reference: Path | None = Field(
        default=None,
        json_schema_extra=ABSOLUTE,
        description="A directory of clean images under the same relative paths, to score against.",
    )
    crop: int | None = Field(
        default=None, ge=1, description="Only the centre of each image, N x N pixels, cut out before noise is added."
    )
    axes: str | None = Field(
        default=None,
        pattern=r"^[TZCQI]*YX[CS]?$",
        description="What the axes of the images are, such as TYX or ZCYX, whatever the files say: T times, Z depths, C "
        "channels, Q anything else, Y rows, X columns, S colours. The frames of a stack lie along T, without it along Z, "
        "without that along Q; along all other axes each place is denoised as a stack of its own.",
    )
    channels: Channels = Field(
        default=Channels.AUTO,
        description="joint: all channels together; separate: each channel and colour by itself; auto: colours (S) together, "
        "channels (C) each by itself.",
    )
    seed: int = Field(default=0, ge=0, lt=2**63, description="Seed of the noise and of the fits.")
    device: str = Field(
        default="auto",
        pattern=r"^(auto|all|cpu|cuda|cuda:\d+(,cuda:\d+)*)$",
        description="auto, cpu, cuda or cuda:N; several as cuda:0,cuda:1, or all: each fit takes the one that is free. auto is "
        "the first GPU, all every GPU; where there is none both are the CPU.",
    )
    slots: int | None = Field(
        default=None,
        ge=1,
        le=MOST_SLOTS,
        description="How many fits may share a device, counted over all runs on this machine. On a GPU the fits of zs-fit that "
        "are in work at once are one batch, of up to 16, with the local engine. Left out: there one for each 4 GB of its memory, "
        "up to 4, for other methods, engines and --style one; on a CPU one a core, each with one thread, and one with all "
        "threads for paper.",
    )
    engine: str = Field(
        default="local",
        pattern=r"^(local|processes|dask|dask:\S+:\d+)$",
        description="Where chunks are worked on. local: threads of the run's process; processes: a worker process a slot, of "
        "which one that dies costs its chunk a retry; dask: a Dask cluster on this machine, for as long as the run; "
        "dask:ADDRESS, such as dask:tcp://10.0.0.5:8786: the workers of the Dask scheduler there. The result is the same.",
    )
    worker_wait: float = Field(
        default=60.0,
        gt=0,
        le=7 * 86400,
        allow_inf_nan=False,
        description="Seconds that a run on dask:ADDRESS waits for a worker that can take its chunks, at the start and whenever "
        "all are gone.",
    )
    chunk: int | None = Field(
        default=None,
        ge=1,
        description="Images a chunk, the unit that is scheduled and retried. Left out: chosen from the number of images.",
    )
    max_megapixels: float = Field(
        default=500.0,
        gt=0,
        le=1e6,
        allow_inf_nan=False,
        description="Images with more pixels than this, in millions, are refused before anything is decoded; of a TIFF stack "
        "so large that it is done in blocks, each frame may have so many.",
    )
    strict: bool = Field(
        default=False,
        description="One failed image makes the run Failed in Prefect. Left out, failed images are rows of the table, and the "
        "run is Completed; the exit status is 1 in both cases.",
    )
    max_failed: float | None = Field(
        default=None,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="The share of the images, such as 0.05, that may fail before the run is Failed in Prefect.",
    )
    on_existing: OnExisting = Field(
        default=OnExisting.RESUME,
        description="Where OUTPUT has earlier results: resume does what is missing or changed, overwrite does everything "
        "again, error refuses to start.",
    )

    @field_validator("input", "output", "reference", "model", "vgg_weights", mode="before")
    @classmethod
    def _path_is_given(cls, value: object) -> object:
        if value == "":
            raise ValueError("the path is empty")
        return value

    @field_validator("style", mode="before")
    @classmethod
    def _one_style_or_several(cls, value: object) -> object:
        styles = (value,) if isinstance(value, str | Path) else value
        if isinstance(styles, list | tuple) and "" in styles:
            raise ValueError("the path is empty")
        return styles

    @field_validator("style_layers", "content_layers", mode="before")
    @classmethod
    def _layers_with_commas(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("style_layers", "content_layers")
    @classmethod
    def _layers_are_known(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        from style_core.layers import check_names

        if value is not None:
            if not value:
                raise ValueError("no layer is named; leave the option out for the preset's")
            check_names(value)
        return value

    @field_validator("style_weight", "content_weight")
    @classmethod
    def _weight_counts(cls, value: float | None) -> float | None:
        if value is not None and 0 < value < LEAST_WEIGHT:
            raise ValueError(f"{value:g} is too little for the optimisers: give 0, or {LEAST_WEIGHT:g} and more")
        return value

    @field_validator("noise")
    @classmethod
    def _noise_is_known(cls, value: str) -> str:
        from denoise_core import noise

        return str(noise.parse(value))  # one spelling of one level: it is part of the digest

    @model_validator(mode="after")
    def _options_agree(self) -> Self:
        if self.reference is not None and self.noise != "none":
            raise ValueError("--noise scores against the input and --reference against other images: give one of them")
        offered = PRESETS[MethodChoice(self.resolved_method)]
        if self.preset not in offered:
            raise ValueError(
                f"--method {self.resolved_method} has no preset {self.preset}, only {' and '.join(offered)}"
            )
        if self.resolved_method != MethodChoice.ZS_FIT:
            if self.scope is not Scope.AUTO:
                raise ValueError(f"--scope is an option of --method zs-fit, not of {self.resolved_method}")
            if self.model is not None:
                raise ValueError(f"--model is an option of --method zs-fit, not of {self.resolved_method}")
        if self.model is not None and self.scope not in (Scope.AUTO, Scope.DIRECTORY):
            raise ValueError("--model is applied to the whole directory: leave --scope out")
        if self.clip_noise and self.noise == "none":
            raise ValueError("--clip-noise needs --noise, such as --noise gauss:25")
        if self.save_noisy and self.noise == "none":
            raise ValueError("--save-noisy needs --noise, such as --noise gauss:25")
        check_run_options(self)
        self._style_options_agree()
        return self

    def _style_options_agree(self) -> None:
        if self.style:
            if self.reference is not None:
                raise ValueError("--style scores against the stylized image: leave --reference out")
            if self.vgg_weights is None:
                raise ValueError(
                    f"--style needs trained weights of VGG-19: --vgg-weights FILE, or --vgg-weights {DOWNLOAD} to fetch "
                    "torchvision's (548 MB)"
                )
            if self.vgg_sha256 is not None and self.vgg_weights == DOWNLOAD:
                raise ValueError("--vgg-sha256 is for a file: torchvision's own download is checked anyway")
            if self.style_weight == 0 and self.content_weight == 0:
                raise ValueError("--style-weight and --content-weight are both 0: nothing would be painted")
            return
        names = ("style_preset", "style_scale", "style_max_side", "keep_colours", "vgg_weights", "vgg_sha256")
        for name in (*names, *OF_STYLE_PRESET):
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"--{name.replace('_', '-')} needs --style")

    @property
    def resolved_method(self) -> str:
        """The method that runs: what ``auto`` stands for, or the one that was named."""
        if self.method is not MethodChoice.AUTO:
            return self.method.value
        return MethodChoice.ZS_N2N.value if self.preset is Preset.PAPER else MethodChoice.ZS_FIT.value

    @property
    def _style_preset(self) -> StylePreset:
        from style_core import PRESETS as STYLE_PRESETS

        return STYLE_PRESETS[self.style_preset.value]

    @property
    def style_changes(self) -> dict[str, Any]:
        """What of the style preset is another value by option, under the names of :class:`style_core.StylePreset`."""
        preset = self._style_preset
        given = {field: getattr(self, option) for option, field in OF_STYLE_PRESET.items()}
        return {
            field: value.value if isinstance(value, StrEnum) else value
            for field, value in given.items()
            if value is not None and value != getattr(preset, field)
        }

    @property
    def _only_paints(self) -> bool:
        return bool(self.style) and self.resolved_method == MethodChoice.NONE and self.noise == "none"

    @property
    def saves_noisy(self) -> bool:
        """Whether the noisy images are written: asked for, or part of the chain of --style and --noise."""
        return self.noise != "none" and (self.save_noisy or bool(self.style))

    @property
    def paths(self) -> dict[str, tuple[Path, ...]]:
        """The paths that are given, by the names that a user knows them by."""
        weights = () if self.vgg_weights in (None, DOWNLOAD) else (Path(str(self.vgg_weights)),)
        return {
            "INPUT": (self.input,),
            "OUTPUT": (self.output,),
            "--reference": () if self.reference is None else (self.reference,),
            "--model": () if self.model is None else (self.model,),
            "--style": self.style,
            "--vgg-weights": weights,
        }

    @property
    def tags(self) -> tuple[str, ...]:
        """What a run is found by in the Prefect UI: method and noise; the run adds its device and host."""
        return (self.resolved_method,) if self.noise == "none" else (self.resolved_method, self.noise)

    @property
    def title(self) -> str:
        """What a run is called in the Prefect UI until it knows its images: input, method, and the noise that is added."""
        noise = "" if self.noise == "none" else f" at {self.noise}"
        if self.style:
            noise = f" after {' + '.join(path.stem for path in self.style)}{noise}"
        preset = f" {self.preset.value}" if len(PRESETS[MethodChoice(self.resolved_method)]) > 1 else ""
        return f"{self.input.resolve().name}: {self.resolved_method}{preset}{noise}"

    def digest(self) -> str:
        """SHA-256 (hex) of the options that decide a row's pixels and scores.

        Not of the machine: device kind and thread count may change the last bits, and are columns of their own.
        """
        decides = {
            "method": self.resolved_method,
            "preset": self.preset.value if len(PRESETS[MethodChoice(self.resolved_method)]) > 1 else None,
            "noise": self.noise,
            "clip_noise": self.clip_noise,
            "crop": self.crop,
            "seed": 0 if self._only_paints else self.seed,  # of a painting it is in the style's digest
            "scope": self.scope.value if self.resolved_method == MethodChoice.ZS_FIT else None,
            "model": None if self.model is None else _content(self.model),
            "reference": None if self.reference is None else str(self.reference.absolute()),
        }
        if self.axes is not None or self.channels is not Channels.AUTO:
            decides |= {"axes": self.axes, "channels": self.channels.value}
        if self.style:
            decides["style"] = self.style_digest()
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode("utf-8", "surrogateescape")).hexdigest()

    def style_digest(self) -> str:
        """SHA-256 (hex) of all that decides what a stylized image looks like, but the image."""
        decides: dict[str, Any] = {
            "styles": [content(path) for path in self.style],
            "preset": self.style_preset.value,
            "scale": self.style_scale,
            "max_side": self.style_max_side,
            "keep_colours": self.keep_colours,
            "weights": self.vgg_weights if self.vgg_weights == DOWNLOAD else content(Path(str(self.vgg_weights))),
            "seed": self.seed if self._style_preset.start == "noise" else 0,
        }
        if changes := self.style_changes:
            decides["changes"] = changes
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode("utf-8", "surrogateescape")).hexdigest()

    def to_toml(self) -> str:
        """The configuration as a TOML document that ``--config`` reads back."""
        return to_toml(self)


def check_run_options(config: Any) -> None:
    """Raise ValueError where options of how a run is made, which a comparison has too, contradict each other."""
    if config.strict and config.max_failed is not None:
        raise ValueError("--strict lets no image fail and --max-failed a share of them: give one of the two")
    if config.worker_wait != RunConfig.model_fields["worker_wait"].default and not config.engine.startswith("dask:"):
        raise ValueError("--worker-wait is an option of --engine dask:ADDRESS")


def _content(model: Path) -> str:
    """What identifies the model, or the models in a folder: their bytes. A missing one is found later, by preflight."""
    files = sorted(model.glob("*.safetensors")) if model.is_dir() else [model]
    return hashlib.sha256(b"".join(bytes.fromhex(content(file)) for file in files)).hexdigest()


def content(path: Path) -> str:
    """SHA-256 (hex) of a file; the empty string where there is none."""
    if not path.is_file():
        return ""
    now = path.stat()
    return _content_of(path, now.st_size, now.st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _content_of(path: Path, size: int, changed: int) -> str:  # noqa: ARG001 - they tell whether it is the same file still
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
