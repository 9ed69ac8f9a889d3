"""Corrupt files of every container: none kills or stalls the program, and each is done or a failed row with a sentence."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tasks import table
from tests.survival import mutants
from tests.survival.kills import files, temporaries

COUNTS = [200, pytest.param(5000, marks=pytest.mark.slow)]
# Prints the peak of memory, in MB, after a run over whole files and after the run in question.
RUN = """
import json, re, sys
from flows.cli import main
def peak():
    return int(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1]) / 1024
whole, corrupt, output = sys.argv[1:]
options = ["--method", "nl-bayes", "--json"]
sys.stdout, out = open("/dev/null", "w"), sys.stdout
main(["run", whole, output + "-whole", *options])
base = peak()
status = main(["run", corrupt, output, *options])
print(json.dumps({"status": status, "megabytes": peak() - base}), file=out)
"""

pytestmark = [
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is read from /proc"),
    pytest.mark.timeout(3600),
]


@pytest.mark.parametrize("count", COUNTS)
def test_no_corrupt_file_crashes_stalls_or_swells(count: int) -> None:
    verdicts, problems = mutants.ordeal(range(count))
    assert problems == []
    assert len(verdicts) == count
    assert 0.05 < sum(verdict.said is None for verdict in verdicts) / count < 0.5, "some are images, most are not"
    for verdict in verdicts:
        assert verdict.seconds < 10, verdict
        assert verdict.megabytes < 1000, verdict


@pytest.mark.parametrize("count", COUNTS)
def test_a_night_of_corrupt_files_ends_with_a_row_for_each(count: int, tmp_path: Path) -> None:
    whole, corrupt, output = (tmp_path / name for name in ("whole", "corrupt", "out"))
    for folder in (whole, corrupt):
        folder.mkdir()
        for name, data in mutants.seed_files().items():
            (folder / name).write_bytes(data)
    names = []
    for number in range(count):
        name, data = mutants.mutant(number)
        (corrupt / name).write_bytes(data)
        names.append(name)
    done = subprocess.run(
        [sys.executable, "-c", RUN, whole, corrupt, output],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    told = json.loads(done.stdout)
    assert told["status"] == 1
    assert told["megabytes"] < 1000
    rows, _ = table.read(output / "results.parquet")
    assert {row["source"] for row in rows} == {*names, *mutants.seed_files()}
    for row in rows:
        assert row["status"] in ("done", "failed"), row["source"]
        assert (row["status"] == "done") == (row["error"] is None), row["source"]
        assert row["error"] is None or (len(row["error"]) > 10 and "\n" not in row["error"]), row["source"]
        assert row["error_type"] in (None, "ImageError", "ImageTooLarge", "ImageTooSmall"), row["source"]
        assert row["status"] == "done" or row["source"] in names, f"{row['source']} is not corrupt"
    written = {f"images/{row['source']}": row["output_sha256"] for row in rows if row["status"] == "done"}
    assert files(output) == written
    assert temporaries(output) == []
