"""The form of a configuration in the Prefect UI: its schema, with the bounds that a server can check."""

from __future__ import annotations

import math
from typing import Any


def for_the_form(schema: dict[str, Any]) -> None:
    """Say in a JSON schema what Prefect's form shows of no field by itself: a readable title, the bounds, what a path is."""
    for name, field in schema["properties"].items():
        field["title"] = name.replace("_", " ").capitalize().replace("Vgg", "VGG").replace("sha256", "SHA-256")
        if field.get("items", field).get("pattern", "").startswith("^/"):
            field["description"] += " An absolute path: a run of a deployment has no folder of its own."
        bounds = {key: value for kind in field.get("anyOf", [field]) for key, value in kind.items() if key in _BOUNDS}
        said = [f"{words} {bounds[key]:,.12g}" for key, words in _BOUNDS.items() if bounds.get(key, math.inf) < 2**53]
        if said:
            field["description"] += f" {' and '.join(said).capitalize()}."


_BOUNDS = {
    "minimum": "at least",
    "exclusiveMinimum": "more than",
    "maximum": "at most",
    "exclusiveMaximum": "less than",
}

ABSOLUTE: dict[str, Any] = {"pattern": "^/"}


def absolute_items(field: dict[str, Any]) -> None:
    """Each path of a list is absolute."""
    field["items"] |= ABSOLUTE


def noise_pattern(field: dict[str, Any]) -> None:
    """How noise is written, roughly, for the server to refuse what is no noise at once; the bounds are left to the run."""
    from denoise_core.noise import KINDS

    level = "[0-9.eE+ -]+"
    kinds = (
        f"{name}:{'/'.join([level] * len(kind.parameters))}" if kind.parameters else name
        for name, kind in KINDS.items()
    )
    field["pattern"] = f"^({'|'.join(kinds)})$"
