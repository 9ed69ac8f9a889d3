"""The configuration of a run: the one place where an option, its default and its bounds are written.

The command line, a TOML file and the form of the Prefect UI all fill the same model.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from enum import StrEnum
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from denoise_core.errors import DenoiseError

MOST_SLOTS = 64


class ConfigError(DenoiseError):
    """An option is unknown or has a value that it cannot have; the message is one sentence."""


class MethodChoice(StrEnum):
    """What denoises."""

    AUTO = "auto"
    ZS_FIT = "zs-fit"
    NL_BAYES = "nl-bayes"
    ZS_N2N = "zs-n2n"
    NONE = "none"


class Preset(StrEnum):
    """How a method is fitted."""

    FAST = "fast"
    PAPER = "paper"
    BEST = "best"


class Scope(StrEnum):
    """What one fit of zs-fit serves."""

    AUTO = "auto"
    IMAGE = "image"
    STACK = "stack"
    DIRECTORY = "directory"


PRESETS = {
    MethodChoice.ZS_FIT: (Preset.FAST, Preset.BEST),
    MethodChoice.NL_BAYES: (Preset.FAST,),
    MethodChoice.ZS_N2N: (Preset.FAST, Preset.PAPER),
    MethodChoice.NONE: (Preset.FAST,),
}


class OnExisting(StrEnum):
    """What a run does where OUTPUT holds earlier results."""

    RESUME = "resume"
    OVERWRITE = "overwrite"
    ERROR = "error"


class RunConfig(BaseModel):
    """One run of ``denoise run``: every option, as the command line names it with dashes for underscores."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    input: Path = Field(description="A directory of images, or one image. It is never written to.")
    output: Path = Field(description="The directory that gets images/, results.parquet, report.html and runs/.")
    method: MethodChoice = Field(
        default=MethodChoice.AUTO,
        description="zs-fit: a non-local estimate, corrected by a small network that is fitted to the noisy images; nl-bayes: "
        "that estimate alone; zs-n2n: Zero-Shot Noise2Noise, one network fitted on each image; none: pixels as they are; "
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
        description="A network that zs-fit kept earlier (a .safetensors file, or a folder of them) to apply, instead of "
        "fitting.",
    )
    noise: str = Field(
        default="none",
        description="The input is clean: add this noise first and score against the input. gauss:25 is σ = 25 on the "
        "0-255 scale, poisson:30 is a peak of 30 photons; none adds nothing.",
    )
    clip_noise: bool = Field(default=False, description="Clip the noisy image to the value range of its data type.")
    reference: Path | None = Field(
        default=None, description="A directory of clean images under the same relative paths, to score against."
    )
    seed: int = Field(default=0, ge=0, lt=2**63, description="Seed of the noise and of the fits.")
    device: str = Field(
        default="auto",
        pattern=r"^(auto|cpu|cuda|cuda:\d+)$",
        description="auto, cpu, cuda or cuda:N. auto is the first GPU, or the CPU where there is none.",
    )
    slots: int | None = Field(
        default=None,
        ge=1,
        le=MOST_SLOTS,
        description="How many fits may share the device, counted over all runs on this machine. Left out: one on a GPU; on "
        "a CPU one a core, each with one thread, for fast, and one with all threads for paper.",
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
        description="Images with more pixels than this, in millions, are refused before anything is decoded.",
    )
    on_existing: OnExisting = Field(
        default=OnExisting.RESUME,
        description="Where OUTPUT has earlier results: resume does what is missing or changed, overwrite does everything "
        "again, error refuses to start.",
    )

    @field_validator("input", "output", "reference", "model", mode="before")
    @classmethod
    def _path_is_given(cls, value: object) -> object:
        if value == "":
            raise ValueError("the path is empty")
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
        return self

    @property
    def resolved_method(self) -> str:
        """The method that runs: what ``auto`` stands for, or the one that was named."""
        if self.method is not MethodChoice.AUTO:
            return self.method.value
        return MethodChoice.ZS_N2N.value if self.preset is Preset.PAPER else MethodChoice.ZS_FIT.value

    @property
    def title(self) -> str:
        """What a run is called in the Prefect UI: input, method, and the noise that is added."""
        noise = "" if self.noise == "none" else f" at {self.noise}"
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
            "seed": self.seed,
            "scope": self.scope.value if self.resolved_method == MethodChoice.ZS_FIT else None,
            "model": None if self.model is None else _content(self.model),
            "reference": None if self.reference is None else str(self.reference.absolute()),
        }
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode("utf-8", "surrogateescape")).hexdigest()

    def to_toml(self) -> str:
        """The configuration as a TOML document that ``--config`` reads back."""
        values = self.model_dump(mode="json", exclude_none=True)
        return "".join(f"{key} = {_toml(value)}\n" for key, value in values.items())


def _content(model: Path) -> str:
    """What identifies the model, or the models in a folder: their bytes. A missing one is found later, by preflight."""
    files = sorted(model.glob("*.safetensors")) if model.is_dir() else [model]
    found = hashlib.sha256()
    for file in files:
        if file.is_file():
            found.update(hashlib.sha256(file.read_bytes()).digest())
    return found.hexdigest()


def _toml(value: object) -> str:
    """A string, number or boolean as TOML writes it: JSON, but for escapes that TOML does not know."""
    if isinstance(value, str):
        value = value.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def read_toml(path: Path) -> dict[str, Any]:
    """The options of a TOML file, by their field names (dashes may stand for underscores)."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"--config: there is no file {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config: {path} cannot be read: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"--config: {path} is not TOML: {error}") from None
    return {key.replace("-", "_"): value for key, value in document.items()}


def build(options: dict[str, Any]) -> RunConfig:
    """The configuration from named options; raises :class:`ConfigError` with one sentence that names the option."""
    try:
        return RunConfig(**options)
    except ValidationError as error:
        raise ConfigError(_sentence(error)) from None


def _sentence(error: ValidationError) -> str:
    """The first fault of a validation, in a user's words."""
    fault = error.errors(include_url=False)[0]
    name = "--" + str(fault["loc"][0]).replace("_", "-") if fault["loc"] else ""
    if name in {"--input", "--output"}:
        name = name[2:].upper()
    given = fault.get("input")
    if fault["type"] == "value_error":
        message = str(fault["ctx"]["error"])
        return f"{name}: {message}" if name else message
    if fault["type"] == "extra_forbidden":
        valid = ", ".join(field.replace("_", "-") for field in RunConfig.model_fields)
        return f"{name[2:]} is no option of a run; the options are {valid}"
    if fault["type"] == "missing":
        return f"{name} is missing: denoise run INPUT OUTPUT"
    if fault["type"] == "string_pattern_mismatch":
        return f"{name}: {given!r} is not one of auto, cpu, cuda, cuda:N"
    return f"{name}: {given!r}: {fault['msg'][0].lower()}{fault['msg'][1:]}"
