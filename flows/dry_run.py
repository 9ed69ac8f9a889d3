"""What a run or a comparison would do, in words: nothing is written, nothing fetched."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from denoise_core.device import Device, choose, choose_all
from flows import compare, scopes, styles
from flows.choices import OnExisting
from flows.compare_config import CompareConfig
from flows.config import RunConfig
from flows.console import printable
from tasks.comparison_summary import noise_name
from tasks.scan import Scan, scan
from tasks.settings import Style
from tasks.stylize import names_of, preset_of
from tasks.table import FAILED, SKIPPED, Row, text


def told(config: RunConfig | CompareConfig, *, as_json: bool) -> Iterator[str]:
    """What would be done, line by line, or as one JSON object.

    Raises:
        DenoiseError: it could not start: no such device, a model, style or weights that cannot be used.
    """
    device = _device(config)
    if isinstance(config, RunConfig):
        return _run(config, device, as_json=as_json)
    return _compare(config, device, as_json=as_json)


def _device(config: RunConfig | CompareConfig) -> Device:
    """The device of a run here; that of another machine's workers is not asked for."""
    if config.engine.startswith("dask:"):
        return replace(choose("cpu"), name=config.device, reason="of the cluster's workers")
    return choose_all(config.device)[0]


def _run(config: RunConfig, device: Device, *, as_json: bool) -> Iterator[str]:
    found = scan(
        config.input.resolve(),
        config.output.resolve(),
        max_pixels=int(config.max_megapixels * 1e6),
        config_digest=config.digest(),
        redo=config.on_existing is OnExisting.OVERWRITE,
        reference=None if config.reference is None else config.reference.resolve(),
        axes=config.axes,
        channels=config.channels.value,
        noisy=config.saves_noisy,
        in_rgb=bool(config.style),
    )
    if config.model is not None:
        scopes.given(config.model.resolve())  # a damaged one is said now
    scope = scopes.resolve(config, found) if config.resolved_method == "zs-fit" else None
    style = styles.of(config)
    if style is not None:
        styles.check(style, fetch=False)
    failed, skipped = _with(FAILED, found), _with(SKIPPED, found)
    if as_json:
        plan = {
            "to_do": [text(source.name) for source in found.todo],
            "already_done": [row["source"] for row in found.done],
            "cannot_be_done": _errors(failed),
            "not_images": [row["source"] for row in skipped],
            "style": style and names_of(style),
            "style_preset": style and preset_of(style),
            "fetches_weights": style is not None and styles.to_fetch(style),
            "method": config.resolved_method,
            "scope": scope and scope[0],
            "device": device.name,
        }
        yield json.dumps(plan)
        return
    for source in found.todo:
        shape = " × ".join(map(str, source.header.shape))
        facts = [source.header.container, source.header.axes, shape, source.header.dtype, str(source.arrangement)]
        yield f"to do    {printable(text(source.name))}  ({', '.join(filter(None, facts))})"
    for row in found.done:
        yield f"done     {printable(row['source'])}"
    for row in failed:
        yield f"cannot   {printable(row['source'])}: {printable(row['error'])}"
    for row in skipped:
        yield f"skip     {printable(row['source'])}: {printable(row['error'])}"
    if scope is not None and found.todo:
        yield f"scope {scope[0]}: {scope[1]}"
    if style is not None and styles.to_fetch(style):
        yield "torchvision's weights of VGG-19 would be fetched first, 548 MB; they were not looked at"
    yield (
        f"{len(found.todo)} to do, {len(found.done)} done already, {len(failed)} cannot be done, {len(skipped)} not images; "
        f"{_steps(config, style)} on {device.name} ({device.reason}). Nothing was written."
    )


def _steps(config: RunConfig, style: Style | None) -> str:
    """What an image goes through: "painted in the manner of paint.jpg, preset seed, then nl-bayes"."""
    if style is None:
        return config.resolved_method
    then = "" if config.resolved_method == "none" else f" then {config.resolved_method}"
    return f"{printable(styles.told(style))},{then}"


def _compare(config: CompareConfig, device: Device, *, as_json: bool) -> Iterator[str]:
    found = compare.look(config)
    cells = compare.plan(config, found)
    failed = _with(FAILED, found)
    if as_json:
        planned = [
            {
                "method": p.cell.candidate,
                "noise": p.cell.noise,
                "seed": p.cell.seed,
                "to_do": p.todo,
                "already_done": p.done,
            }
            for p in cells
        ]
        plan = {"images": len(found.todo), "cells": planned, "cannot_be_done": _errors(failed), "device": device.name}
        yield json.dumps(plan)
        return
    for p in cells:
        yield f"{p.cell.candidate:24} {noise_name(p.cell.noise):16} seed {p.cell.seed}: {p.todo} to do, {p.done} done already"
    for row in failed:
        yield f"cannot   {printable(row['source'])}: {printable(row['error'])}"
    yield (
        f"{len(cells)} cells of {len(found.todo)} images: {sum(p.todo for p in cells)} to do, "
        f"{sum(p.done for p in cells)} done already; on {device.name} ({device.reason}). Nothing was written."
    )


def _with(status: str, found: Scan) -> list[Row]:
    return [row for row in found.refused if row["status"] == status]


def _errors(rows: list[Row]) -> list[dict[str, Any]]:
    return [{"source": row["source"], "error": row["error"]} for row in rows]
