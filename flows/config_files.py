"""Configurations from named options and as TOML, and what is wrong with them in one sentence."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from denoise_core.errors import DenoiseError


class ConfigError(DenoiseError):
    """An option is unknown or has a value that it cannot have; the message is one sentence."""


def to_toml(config: BaseModel) -> str:
    """The options that are set, one a line."""
    values = config.model_dump(mode="json", exclude_none=True)
    return "".join(f"{key} = {_toml(value)}\n" for key, value in values.items())


def _toml(value: object) -> str:
    """A string, number, boolean or list of strings as TOML writes it: JSON, but for escapes that TOML does not know."""
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
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


Config = TypeVar("Config", bound=BaseModel)


def build(options: dict[str, Any], model: type[Config]) -> Config:
    """The configuration from named options; raises :class:`ConfigError` with one sentence that names the option."""
    try:
        return model(**options)
    except ValidationError as error:
        raise ConfigError(_sentence(error, model)) from None


_PATTERNS = {
    "--axes": "no order of axes: any of T, Z, C, Q, then YX, then S where the images have colours",
    "--vgg-sha256": "no SHA-256, which has 64 hexadecimal digits",
    "--device": "not one of auto, all, cpu, cuda, cuda:N, or several as cuda:0,cuda:1",
    "--engine": "not one of local, processes, dask, dask:ADDRESS, which is HOST:PORT or such as tcp://10.0.0.5:8786",
}


def _sentence(error: ValidationError, model: type[BaseModel]) -> str:
    """The first fault of a validation, in a user's words."""
    command = "run" if model.__name__ == "RunConfig" else "compare"
    fault = error.errors(include_url=False)[0]
    name = "--" + str(fault["loc"][0]).replace("_", "-") if fault["loc"] else ""
    if name in {"--input", "--output"}:
        name = name[2:].upper()
    given = fault.get("input")
    if fault["type"] == "value_error":
        message = str(fault["ctx"]["error"])
        return f"{name}: {message}" if name else message
    if fault["type"] == "extra_forbidden":
        valid = ", ".join(field.replace("_", "-") for field in model.model_fields)
        return f"{name[2:]} is no option of denoise {command}; the options are {valid}"
    if fault["type"] == "missing":
        return f"{name} is missing: denoise {command} INPUT OUTPUT"
    if fault["type"] == "string_pattern_mismatch":
        return f"{name}: {given!r} is {_PATTERNS.get(name, _PATTERNS['--device'])}"
    return f"{name}: {given!r}: {fault['msg'][0].lower()}{fault['msg'][1:]}"
