"""The results table: its columns, its rows, and the Parquet file.

A row is a plain ``dict`` keyed by column. It is filled while an image is worked on, appended to the ledger as JSON, and
written to ``results.parquet`` under one explicit Arrow schema.
"""

from __future__ import annotations

import datetime
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from denoise_core.errors import DenoiseError
from denoise_core.images import write_atomic

if TYPE_CHECKING:
    import pyarrow as pa

Row = dict[str, Any]

DONE, FAILED, SKIPPED = "done", "failed", "skipped"

NOT_SCORED = "not scored: "
"""So begins the note of an image that its reference cannot be held against."""


class Column(NamedTuple):
    """A column of the results table; ``kind`` names its Arrow type."""

    name: str
    kind: str
    description: str


COLUMNS = (
    Column(
        "source",
        "string",
        "Path of the image below the input, with forward slashes; bytes that are no UTF-8 are written as \\xff, and where a "
        "name has such a text itself, its backslash as \\x5c",
    ),
    Column("output", "string", "Path of the denoised image below the output; null when none was written"),
    Column("stylized", "string", "Path of the stylized image below the output; null when none was written"),
    Column("noisy", "string", "Path of the noisy image below the output; null when none was written"),
    Column("status", "string", "done, failed, or skipped (not an image)"),
    Column("error_type", "string", "Class of the error, null when done"),
    Column("error", "string", "One sentence on what was wrong, null when done"),
    Column("note", "string", "What the output could not carry over from the source, or what else is worth knowing"),
    Column("container", "string", "File format: png, jpeg or tiff"),
    Column(
        "axes",
        "string",
        "Order of the axes: T times, Z depths, C channels, Q and I without a name, Y rows, X columns, S colour samples; as "
        "the file says, or as --axes says",
    ),
    Column("shape", "list<int64>", "Length of each axis"),
    Column("dtype", "string", "Data type of the samples in the file"),
    Column(
        "denoised_as",
        "string",
        "Which axes were the frames of a stack, which channels were denoised jointly, and along which each place was "
        "denoised as a stack of its own (separate); null for a single grey image",
    ),
    Column(
        "value_low",
        "list<float64>",
        "Of each stack, the intensity that the methods saw as 0: the affine map, undone exactly",
    ),
    Column("value_high", "list<float64>", "Of each stack, the intensity that the methods saw as 1"),
    Column("method", "string", "Method that denoised the image"),
    Column("preset", "string", "Preset of the method"),
    Column("scope", "string", "What one fit served: image, stack or directory"),
    Column(
        "kept",
        "string",
        "What zs-fit used, by its measure without a clean image: estimate (non-local, no network), fitted (network of this "
        "image or stack), model (the directory's or the given one), refined (that one, fitted further to this image), "
        "noisy (no noise was found)",
    ),
    Column("model_sha256", "string", "SHA-256 of the file of the model that was at hand; null without one"),
    Column("frames_together", "int64", "Frames of a stack that were estimated together"),
    Column(
        "noise_gain", "float64", "Noise model, variance = gain x mean + offset, in the file's intensities; 0: Gaussian"
    ),
    Column("noise_offset", "float64", "Offset of the noise model, in the file's intensities squared"),
    Column(
        "noise", "string", "Noise that was added before denoising, as kind:level; none when the input was used as is"
    ),
    Column("noise_drawn", "string", "That noise with the level drawn for this image; null when none was added"),
    Column(
        "corrupted_fraction",
        "float64",
        "Share of pixels that the added noise hit; null for kinds that change every pixel, and when none was added",
    ),
    Column("style", "string", "Style images that it was painted after, by name; null without"),
    Column("style_preset", "string", "Preset of the style transfer, and what of it was changed"),
    Column(
        "vgg_sha256", "string", "SHA-256 of the file of VGG-19's weights that it was painted with; null without a style"
    ),
    Column("style_loss", "float64", "Weighted style loss of the stylized image"),
    Column("content_loss", "float64", "Weighted content loss of the stylized image"),
    Column("style_steps", "int64", "Evaluations that the style transfer took"),
    Column("style_seconds", "float64", "Duration of the style transfer, s, also where it was an earlier run's"),
    Column("seed", "int64", "Seed of the run"),
    Column("device", "string", "Device of the fit"),
    Column("precision", "string", "Arithmetic of the fit's convolutions: float32 or bfloat16"),
    Column("threads", "int64", "Threads of one fit"),
    Column("steps", "int64", "Optimiser steps of the fit"),
    Column("restarts", "int64", "Times the fit diverged and was started again"),
    Column("psnr_noisy_db", "float64", "PSNR of the noisy image against the clean one, dB; null without a clean image"),
    Column(
        "psnr_denoised_db", "float64", "PSNR of the denoised pixels, rounded and clipped, against the clean image, dB"
    ),
    Column("ssim_noisy", "float64", "SSIM of the noisy image (Gaussian window, sigma 1.5), mean over channels"),
    Column("ssim_denoised", "float64", "SSIM of the denoised pixels, likewise"),
    Column(
        "data_range",
        "float64",
        "Value range that PSNR and SSIM refer to: the data type's, or the clean image's for floats and 32-bit integers",
    ),
    Column(
        "sigma_estimate",
        "float64",
        "Noise level estimated from the noisy image alone, in the file's intensities: what zs-fit and nl-bayes took it for, at "
        "the mean; under other methods a quick estimate",
    ),
    Column("residual_autocorrelation", "float64", "Autocorrelation of noisy - denoised at lag one; 0 for white noise"),
    Column("mean_noisy", "float64", "Mean of the noisy image, in the file's intensities"),
    Column("mean_denoised", "float64", "Mean of the denoised pixels, rounded and clipped, in the file's intensities"),
    Column(
        "clipped_fraction", "float64", "Share of denoised samples outside the data type's range, clipped on writing"
    ),
    Column(
        "flags", "string", "What to look at before the result is trusted: a mean that moved by more than noise explains"
    ),
    Column("slot_wait_seconds", "float64", "Time the fit waited for a slot of the device, s"),
    Column("fit_started_at", "timestamp", "When the fit, or without one the estimate, began, holding a slot"),
    Column("fit_finished_at", "timestamp", "When the denoising ended and the slot was given back"),
    Column("fit_seconds", "float64", "Duration of the fit, s"),
    Column("denoise_seconds", "float64", "Duration of applying the fitted network, s"),
    Column("seconds", "float64", "Duration of all steps on this image, s, without waiting for a slot"),
    Column("source_sha256", "string", "SHA-256 of the source file"),
    Column("reference_sha256", "string", "SHA-256 of the reference file; null without one"),
    Column("output_sha256", "string", "SHA-256 of the written file"),
    Column("output_bytes", "int64", "Size of the written file, bytes"),
    Column("config_digest", "string", "SHA-256 of the options that decide the result"),
    Column("run_id", "string", "Run that wrote this row"),
    Column("software_version", "string", "Version of denoise-flows"),
    Column("created_at", "timestamp", "When the row was written"),
)
NAMES = tuple(column.name for column in COLUMNS)
_FLOATS = frozenset(column.name for column in COLUMNS if column.kind == "float64")


def now() -> str:
    """The time in UTC, as a row holds it (ISO 8601)."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds")


_LIKE_AN_ESCAPE = re.compile(r"\\(?=x(?:5c|[89a-f][0-9a-f]))")
_ESCAPE = re.compile(r"\\x(5c|[89a-f][0-9a-f])")


def text(name: str) -> str:
    r"""A file name as valid Unicode, no other name's.

    Bytes that are no UTF-8 are written as ``\xff``; where the name itself has such a text, its backslash is ``\x5c``.
    """
    escaped = _LIKE_AN_ESCAPE.sub(r"\\x5c", name)
    return escaped.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def name_of(told: str) -> str:
    """The file name that :func:`text` told."""
    return _ESCAPE.sub(lambda found: bytes.fromhex(found[1]).decode("utf-8", "surrogateescape"), told)


def fill(row: Row, **values: Any) -> None:
    """Set columns of a row; an unknown one raises ``KeyError``.

    A number that is not finite becomes null. What is no Unicode in a text, such as a file name in an error, is escaped.
    """
    for name, value in values.items():
        if name not in NAMES:
            raise KeyError(f"{name} is no column of the results table")
        if name in _FLOATS and value is not None:
            value = float(value)  # noqa: PLW2901
            row[name] = value if math.isfinite(value) else None
        elif isinstance(value, str):
            row[name] = value.encode("utf-8", "backslashreplace").decode("utf-8")
        else:
            row[name] = value


def is_row(row: Row) -> bool:
    """Whether this is a row as this module writes it, one that the table can hold.

    Anything may have got into a ledger, by a bad disk or by people.
    """
    if not all(row.get(c.name) is None or _is_of_kind(row[c.name], c.kind) for c in COLUMNS):
        return False
    return row.get("source") is not None and row.get("status") in {DONE, FAILED, SKIPPED}


def _is_of_kind(value: Any, kind: str) -> bool:
    """Whether a value read from JSON is one of a column's kind, to its last element and bit."""
    if kind.startswith("list<"):
        return isinstance(value, list) and all(_is_of_kind(one, kind[5:-1]) for one in value)
    if kind == "int64":
        return type(value) is int and -(2**63) <= value < 2**63
    if kind == "float64":
        # Arrow takes no integer for a float that would have to be rounded.
        return math.isfinite(value) if isinstance(value, float) else type(value) is int and abs(value) <= 2**53
    if not isinstance(value, str):
        return False
    try:
        value.encode("utf-8")
        return kind == "string" or datetime.datetime.fromisoformat(value).utcoffset() == datetime.timedelta(0)
    except ValueError:  # half a pair of surrogates, or no time
        return False


def schema(provenance: Mapping[str, str], columns: Sequence[Column] = COLUMNS) -> pa.Schema:
    """The Arrow schema, a description on every column, ``provenance`` as metadata of the file."""
    import pyarrow as pa

    types = {
        "string": pa.string(),
        "int64": pa.int64(),
        "float64": pa.float64(),
        "timestamp": pa.timestamp("us", tz="UTC"),
        "list<int64>": pa.list_(pa.int64()),
        "bool": pa.bool_(),
        "list<float64>": pa.list_(pa.float64()),
    }
    fields = [pa.field(c.name, types[c.kind], metadata={"description": c.description}) for c in columns]
    return pa.schema(fields, metadata={f"denoise_flows.{key}": value for key, value in provenance.items()})


def write(path: Path, rows: Iterable[Row], provenance: Mapping[str, str], columns: Sequence[Column] = COLUMNS) -> None:
    """Write the rows, sorted by source, as one Parquet file that appears whole or not at all."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    ordered = sorted(rows, key=lambda row: str(row["source"]))
    values = {column.name: [_arrow_value(column, row.get(column.name)) for row in ordered] for column in columns}
    table = pa.Table.from_pydict(values, schema=schema(provenance, columns))
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    write_atomic(path, sink.getvalue())


def read(path: Path, columns: Sequence[Column] = COLUMNS) -> tuple[list[Row], dict[str, str]]:
    """The rows of a results table and the provenance of its footer."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk's; Arrow's own tell of damaged contents
        raise DenoiseError(f"{path} is not a results table: {' '.join(str(error).split())[:200]}") from None
    if table.schema.names != [column.name for column in columns]:
        raise DenoiseError(f"{path} is not a results table of this version: its columns are others")
    metadata = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
    prefix = "denoise_flows."
    return table.to_pylist(), {k.removeprefix(prefix): v for k, v in metadata.items() if k.startswith(prefix)}


def _arrow_value(column: Column, value: Any) -> Any:
    if column.kind == "timestamp" and isinstance(value, str):
        return datetime.datetime.fromisoformat(value)
    return value
