"""The configuration of ``denoise compare``: which methods, at which noise, by which protocol.

Every pair of a method and a noise is a run of its own, and its configuration a :class:`flows.config.RunConfig`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from flows.choices import PRESETS, Channels, MethodChoice, OnExisting, Preset, Scope
from flows.config import RunConfig, check_run_options
from flows.config_files import to_toml
from flows.form import for_the_form

LAST_SEED = 2**63 - 1  # that of a run


class Protocol(StrEnum):
    """A published way to compare."""

    OWN = "own"
    ZSN2N_PAPER = "zsn2n-paper"


PROTOCOLS: dict[Protocol, dict[str, Any]] = {
    # Mansour and Heckel, CVPR 2023, and their code: it clips Gaussian noise, and not Poisson noise.
    Protocol.ZSN2N_PAPER: {
        "noise": ("gauss:10", "gauss:25", "gauss:50", "poisson:50", "poisson:25", "poisson:10"),
        "crop": 256,
        "clip_noise": True,
    },
}


@dataclass(frozen=True)
class Candidate:
    """A method as it takes part: with its preset, and what one fit serves."""

    method: MethodChoice
    preset: Preset = Preset.FAST
    scope: Scope = Scope.AUTO

    def __str__(self) -> str:
        """As `parse_candidate` reads it, in the one spelling that tables use: what is the default is left out."""
        preset = "" if self.preset is Preset.FAST else f":{self.preset.value}"
        scope = "" if self.scope is Scope.AUTO else f":{self.scope.value}"
        return f"{self.method.value}{preset}{scope}"


def parse_candidate(text: str) -> Candidate:
    """Read ``zs-fit``, ``zs-n2n:paper``, ``zs-fit:best:directory``; preset and scope in any order.

    Raises:
        ValueError: an unknown method, or what the method does not have.
    """
    name, *options = (part.strip() for part in text.split(":"))
    methods = [method for method in MethodChoice if method is not MethodChoice.AUTO]
    if name not in list(methods):
        raise ValueError(f"there is no method {name!r}; the methods are {', '.join(methods)}")
    chosen: dict[str, Any] = {}
    for option in options:
        kind = "preset" if option in list(Preset) else "scope" if option in list(Scope) else None
        if kind is None or kind in chosen:
            raise ValueError(
                f"{text!r}: write METHOD[:PRESET][:SCOPE], such as zs-fit:best:directory; the presets are "
                f"{', '.join(Preset)}, the scopes {', '.join(Scope)}"
            )
        chosen[kind] = Preset(option) if kind == "preset" else Scope(option)
    found = Candidate(MethodChoice(name), **chosen)
    offered = PRESETS[found.method]
    if found.preset not in offered:
        raise ValueError(f"{text!r}: {name} has no preset {found.preset}, only {' and '.join(offered)}")
    if found.scope is not Scope.AUTO and found.method is not MethodChoice.ZS_FIT:
        raise ValueError(f"{text!r}: only zs-fit has a scope")
    return found


def _as_in_a_run(name: str) -> Any:
    """The field of :class:`RunConfig`, which one option is one place for."""
    return RunConfig.model_fields[name]


class CompareConfig(BaseModel):
    """What to compare, and how: the options of the command denoise compare."""

    model_config = ConfigDict(frozen=True, extra="forbid", json_schema_extra=for_the_form)

    input: Path = _as_in_a_run("input")
    output: Path = Field(
        description="The directory that gets comparison.parquet, comparison.html, summary.md, summary.csv, sheet.png, "
        "protocol.json, and cells/ with the images."
    )
    methods: tuple[str, ...] = Field(
        default=("zs-fit", "nl-bayes", "zs-n2n", "nlm", "wavelet", "tv"),
        description="What is compared, as METHOD[:PRESET][:SCOPE] with commas between: zs-n2n:paper, zs-fit:best, "
        "zs-fit:image. See the methods of denoise run.",
    )
    noise: tuple[str, ...] = Field(
        default=(),
        description="The input is clean: the noise to add before, one comparison each, with commas between: "
        "gauss:25,poisson:30.",
    )
    clip_noise: bool = _as_in_a_run("clip_noise")
    reference: Path | None = _as_in_a_run("reference")
    crop: int | None = _as_in_a_run("crop")
    axes: str | None = _as_in_a_run("axes")
    channels: Channels = _as_in_a_run("channels")
    protocol: Protocol = Field(
        default=Protocol.OWN,
        description="zsn2n-paper: as ZS-N2N was published, 256 x 256 centre crops at gauss:10, 25, 50 (clipped) and "
        "poisson:50, 25, 10 (not clipped), with the published figures beside those of Kodak24. own: as the options say.",
    )
    against: str | None = Field(
        default=None, description="The method that differences and ratios refer to. Left out: the first of --methods."
    )
    seed: int = _as_in_a_run("seed")
    seeds: int = Field(
        default=1, ge=1, le=1000, description="How many seeds of noise and fits: SEED, SEED + 1 and so on."
    )
    device: str = _as_in_a_run("device")
    slots: int | None = _as_in_a_run("slots")
    engine: str = _as_in_a_run("engine")
    worker_wait: float = _as_in_a_run("worker_wait")
    chunk: int | None = _as_in_a_run("chunk")
    max_megapixels: float = _as_in_a_run("max_megapixels")
    strict: bool = _as_in_a_run("strict")
    max_failed: float | None = _as_in_a_run("max_failed")
    on_existing: OnExisting = _as_in_a_run("on_existing")

    @field_validator("input", "output", "reference", mode="before")
    @classmethod
    def _path_is_given(cls, value: object) -> object:
        if value == "":
            raise ValueError("the path is empty")
        return value

    @field_validator("methods", "noise", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("methods")
    @classmethod
    def _methods_are_known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return _each_once([str(parse_candidate(one)) for one in value], "a method")

    @field_validator("noise")
    @classmethod
    def _noise_is_known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        from denoise_core import noise

        return _each_once([str(noise.parse(one)) for one in value], "a noise") if value else value

    @field_validator("against")
    @classmethod
    def _against_is_known(cls, value: str | None) -> str | None:
        return None if value is None else str(parse_candidate(value))

    @model_validator(mode="before")
    @classmethod
    def _protocol_decides(cls, values: Any) -> Any:
        """What a protocol fixes is filled in; the same option beside it would make it another protocol."""
        if not isinstance(values, dict) or values.get("protocol") in (None, Protocol.OWN):
            return values
        decided = PROTOCOLS.get(values["protocol"], {})
        for name, decides in decided.items():
            if values.get(name, decides) not in (decides, list(decides) if isinstance(decides, tuple) else decides):
                raise ValueError(
                    f"--protocol {values['protocol']} decides --{name.replace('_', '-')}: leave one of them out"
                )
        return {**values, **decided}

    @model_validator(mode="after")
    def _options_agree(self) -> Self:
        check_run_options(self)
        if not self.noise and self.reference is None:
            raise ValueError(
                "--noise is missing, such as --noise gauss:25; or --reference, for images with noise of their own"
            )
        if self.noise and self.reference is not None:
            given = "--noise" if self.protocol is Protocol.OWN else f"--protocol {self.protocol}"
            raise ValueError(f"{given} scores against the input and --reference against other images: give one of them")
        if self.clip_noise and not self.noise:
            raise ValueError("--clip-noise needs --noise, such as --noise gauss:25")
        if "none" in self.noise:
            raise ValueError(
                "--noise: none adds nothing to score against; for images with noise of their own give --reference"
            )
        if (last := self.seed + self.seeds - 1) > LAST_SEED:
            raise ValueError(
                f"--seeds: the last one would be {last}; seeds go up to {LAST_SEED}, give a smaller --seed"
            )
        if self.against is not None and self.against not in self.methods:
            raise ValueError(f"--against: {self.against} is none of the methods: {', '.join(self.methods)}")
        return self

    @property
    def noises(self) -> tuple[str, ...]:
        """The noise of each comparison; ``none`` where the images have their own."""
        return self.noise or ("none",)

    @property
    def compared_with(self) -> str:
        """The method that differences and ratios refer to."""
        return self.against or self.methods[0]

    @property
    def tags(self) -> tuple[str, ...]:
        """What a comparison is found by in the Prefect UI."""
        return ("comparison",)

    @property
    def title(self) -> str:
        """What a comparison is called in the Prefect UI."""
        return f"{self.input.resolve().name}: {len(self.methods)} methods at {', '.join(self.noises)}"

    def clips(self, noise: str) -> bool:
        """Whether this noise is clipped to the value range."""
        if self.protocol is Protocol.ZSN2N_PAPER:
            return noise.startswith("gauss:")
        return self.clip_noise

    def cell(self, candidate: str, noise: str, seed: int, *, images: str = "") -> RunConfig:
        """The run of one method at one noise; `images` tells those of other images apart, where images share a fit."""
        found = parse_candidate(candidate)
        name = slug(f"{candidate}-{images}" if images else candidate)
        folder = self.output / "cells" / f"{slug(noise)}-seed-{seed}" / name
        return RunConfig(
            input=self.input,
            output=folder,
            method=found.method,
            preset=found.preset,
            scope=found.scope,
            noise=noise,
            clip_noise=self.clips(noise),
            reference=self.reference,
            crop=self.crop,
            axes=self.axes,
            channels=self.channels,
            seed=seed,
            device=self.device,
            slots=self.slots,
            engine=self.engine,
            worker_wait=self.worker_wait,
            chunk=self.chunk,
            max_megapixels=self.max_megapixels,
            on_existing=OnExisting.OVERWRITE if self.on_existing is OnExisting.OVERWRITE else OnExisting.RESUME,
        )

    def to_toml(self) -> str:
        """The configuration as a TOML document that ``--config`` reads back."""
        return to_toml(self)


def slug(text: str) -> str:
    """A method or a noise as the name of a folder."""
    return re.sub(r"[^a-z0-9._]+", "-", text.replace("/", "_").replace("e+", "e"))


def _each_once(values: Sequence[str], what: str) -> tuple[str, ...]:
    if not values:
        raise ValueError(f"{what} is missing")
    twice = [value for value in values if values.count(value) > 1]
    if twice:
        raise ValueError(f"{twice[0]} is given twice")
    return tuple(values)
