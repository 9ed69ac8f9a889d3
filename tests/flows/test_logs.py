"""What the Prefect server gets of a run whose process began with Prefect's own logging, as those of a worker do."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from uuid import uuid4

import httpx
import numpy as np
import pytest

from tests.flows.services import PATIENCE, write_images

RUN = """
import sys
import prefect
from flows.config import RunConfig
from flows.denoise_directory import denoise_directory

if __name__ == "__main__":
    folder, output, engine = sys.argv[1:]
    denoise_directory(RunConfig(input=folder, output=output, method="none", engine=engine, slots=1))
"""


@pytest.mark.parametrize("engine", ["local", "processes"])
def test_a_worker_tells_a_line_a_chunk_and_none_an_image(
    engine: str, prefect_server: str, tmp_path: Path, photo: np.ndarray
) -> None:
    folder = write_images(tmp_path / f"logged-{uuid4().hex}", photo)
    (tmp_path / "run.py").write_text(RUN)
    ours = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_LOGGING")}
    environment = {**ours, "PREFECT_API_URL": prefect_server, "PYTHONPATH": str(Path.cwd())}
    command = [sys.executable, tmp_path / "run.py", folder, tmp_path / "out", engine]
    ended = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False, cwd=tmp_path
    )
    assert ended.returncode == 0, ended.stderr
    assert "attempted to send logs" not in ended.stderr
    with httpx.Client(base_url=prefect_server, timeout=60) as api:
        named = {"flow_runs": {"name": {"like_": folder.name}}}
        (run,) = api.post("/flow_runs/filter", json=named).json()
        asked = {"logs": {"flow_run_id": {"any_": [run["id"]]}}, "sort": "TIMESTAMP_ASC"}
        lines = [line["message"] for line in api.post("/logs/filter", json=asked).json()]
    chunks = [line for line in lines if re.fullmatch(r"chunk \d of 2: 1 done, 0 failed", line)]
    assert len(chunks) == 2, lines
    assert sum("Finished in state" in line for line in lines) == 1, "that of the run itself"
