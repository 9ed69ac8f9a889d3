"""The results table: one schema, described columns, no NaN, and readers other than the writer."""

from __future__ import annotations

import datetime
import itertools
import math
import os
from pathlib import Path

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks import table

CONTRACT = """
source output status error_type error axes shape dtype method preset scope noise seed device psnr_noisy_db
psnr_denoised_db ssim_noisy ssim_denoised data_range sigma_estimate residual_autocorrelation mean_noisy
mean_denoised clipped_fraction fit_seconds denoise_seconds seconds source_sha256 output_sha256 config_digest
run_id software_version created_at
""".split()


def test_the_contracts_columns_are_there() -> None:
    assert set(CONTRACT) <= set(table.NAMES)
    assert len(set(table.NAMES)) == len(table.NAMES)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_becomes_null(value: float) -> None:
    row: table.Row = {}
    table.fill(row, psnr_noisy_db=value, seconds=1)
    assert row == {"psnr_noisy_db": None, "seconds": 1.0}


def test_every_file_name_has_a_text_of_its_own_that_tells_it() -> None:
    """Names of few characters that escapes are made of, and of bytes that are no UTF-8."""
    parts = [
        "\\",
        "x",
        "5c",
        "ff",
        "FF",
        "7f",
        "8",
        "é",
        "/",
        os.fsdecode(b"\xff"),
        os.fsdecode(b"\xc3"),
        os.fsdecode(b"\x80"),
    ]
    names = {"".join(chosen) for count in range(6) for chosen in itertools.product(parts, repeat=count)}
    names = {os.fsdecode(os.fsencode(name)) for name in names}
    told = {name: table.text(name) for name in names}
    assert len(set(told.values())) == len(names)
    assert all(table.name_of(one) == name for name, one in told.items())
    assert all(one.encode("utf-8") for one in told.values() if one)


def test_names_are_told_as_they_are_where_nothing_is_to_be_confused() -> None:
    for name in ("a.png", "é/b.tif", "a\\b.tif", "C:\\x.tif", "\\x41.tif", "\\xFF.tif", "\\udcff", "\\n"):
        assert table.text(name) == name
    assert table.text(os.fsdecode(b"x\xff.tif")) == "x\\xff.tif"


def test_a_text_is_valid_whatever_it_quotes() -> None:
    row: table.Row = {}
    table.fill(row, error=f"no room: {os.fsdecode(b'x' + bytes([255]))}", source="a")
    assert table.is_row(row | {"status": "failed"})
    assert row["error"] == "no room: x\\udcff"


def test_an_unknown_column_is_refused() -> None:
    with pytest.raises(KeyError, match="psnr"):
        table.fill({}, psnr=3.0)


@pytest.fixture
def written(tmp_path: Path) -> Path:
    rows: list[table.Row] = [
        {"source": "b.png", "status": "done", "shape": [4, 5, 3], "seed": 3, "seconds": 1.5, "created_at": table.now()},
        {"source": table.text("a\udcff\n<b>.png"), "status": "failed", "error": "why", "created_at": table.now()},
    ]
    path = tmp_path / "results.parquet"
    table.write(path, rows, {"run_id": "0001", "config": "seed = 3\n"})
    return path


def test_pyarrow_sees_one_schema_with_descriptions_and_provenance(written: Path) -> None:
    schema = pq.read_schema(written)
    assert schema.names == list(table.NAMES)
    assert all(len(schema.field(name).metadata[b"description"]) > 5 for name in schema.names)
    assert schema.metadata[b"denoise_flows.run_id"] == b"0001"
    assert schema.field("created_at").type == pa.timestamp("us", tz="UTC")
    rows, provenance = table.read(written)
    assert provenance == {"run_id": "0001", "config": "seed = 3\n"}
    assert [row["status"] for row in rows] == ["failed", "done"], "sorted by source"


def test_an_empty_table_has_the_same_schema(tmp_path: Path, written: Path) -> None:
    table.write(tmp_path / "empty.parquet", [], {})
    assert pq.read_schema(tmp_path / "empty.parquet").equals(pq.read_schema(written), check_metadata=False)


def test_pandas_and_duckdb_read_it(written: Path) -> None:
    frame = pd.read_parquet(written)
    assert list(frame.columns) == list(table.NAMES)
    assert frame.loc[frame.source == "b.png", "seconds"].item() == 1.5
    assert frame.psnr_noisy_db.isna().all()
    found = duckdb.sql(f"SELECT source, shape, created_at FROM '{written}' WHERE status = 'done'").fetchall()
    assert found[0][:2] == ("b.png", [4, 5, 3])
    assert abs(found[0][2] - datetime.datetime.now(datetime.UTC)) < datetime.timedelta(hours=1)
