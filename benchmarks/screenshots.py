"""Make docs/ui-*.png and docs/report.png: a run over the sample images, as the Prefect UI and the report show it.

python -m benchmarks.screenshots [OPTION OF denoise run …]

Needs chromium on PATH. One of the files is torn, for the pages to have a failure to show.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

from data.samples import write_samples
from tests.watching import browser, browser_program, server, wait_for_timeline

DOCS = Path(__file__).resolve().parents[1] / "docs"
MOST_BYTES = 150_000
WIDTH = 1120
OPTIONS = ("--method", "nl-bayes", "--noise", "gauss:25", "--chunk", "4")

DEPLOY = """
from flows.server import prepare_environment
prepare_environment()
from flows.denoise_directory import denoise_directory
print(denoise_directory.to_deployment("every-night").apply())
"""


def main() -> int:
    if browser_program() is None:
        sys.exit("benchmarks.screenshots: there is no chromium on PATH; apt-get install chromium")
    with tempfile.TemporaryDirectory(prefix="pictures-") as folder, server(Path(folder) / "prefect") as url:
        root = Path(folder)
        write_samples(root / "samples")
        (root / "samples" / "torn.png").write_bytes((root / "samples" / "camera.png").read_bytes()[:-4000])
        environment = {**os.environ, "PREFECT_API_URL": f"{url}/api", "PREFECT_HOME": f"{folder}/prefect"}
        command = [sys.executable, "-m", "flows.cli", "run", f"{folder}/samples", f"{folder}/denoised"]
        status = subprocess.run([*command, *(sys.argv[1:] or OPTIONS)], env=environment, check=False).returncode
        if status != 1:
            sys.exit(f"benchmarks.screenshots: the run ended with {status}; 1 was expected, since one image is torn")
        deploy = subprocess.run(
            [sys.executable, "-c", DEPLOY], env=environment, check=True, capture_output=True, text=True
        )
        with httpx.Client(base_url=f"{url}/api", timeout=60) as api, browser() as running:
            (run,) = api.post("/flow_runs/filter", json={}).json()
            (page,) = (a for a in api.post("/artifacts/filter", json={}).json() if a["key"] == "report-denoised")
            tab = running.new_page(viewport={"width": WIDTH, "height": 1000})
            tab.set_default_timeout(120_000)
            tab.route("**/*", lambda route: route.continue_() if _is_here(route.request.url, url) else route.abort())
            run_page = f"{url}/v2/runs/flow-run/{run['id']}"
            look(tab, run_page, "chunk 4 of 4", "ui-run.png", height=1100, ready=wait_for_timeline)
            worst = f"{url}/v2/artifacts/artifact/{page['id']}"
            look(tab, worst, "Worst images", "ui-worst.png", height=1000)
            form = f"{url}/v2/deployments/deployment/{deploy.stdout.strip()}/run"
            look(tab, form, "It is never written to", "ui-form.png", height=800)
            look(tab, (root / "denoised" / "report.html").as_uri(), "Images", "report.png", height=1000)
    return 0


def _is_here(address: str, url: str) -> bool:
    return address.startswith((url, "file:", "data:"))


def look(
    tab: Any, address: str, text: str, name: str, *, height: int, ready: Callable[[Any], None] = lambda _: None
) -> None:
    """Keep what the page shows once the text is there, in as many colours as the file may have bytes."""
    tab.set_viewport_size({"width": WIDTH, "height": height})
    tab.goto(address)
    tab.get_by_text(text).first.wait_for()
    ready(tab)
    tab.wait_for_timeout(1000)  # what fades in
    shown = Image.open(io.BytesIO(tab.screenshot())).convert("RGB")
    for colours in (256, 128, 64, 32):
        shown.quantize(colours, dither=Image.Dither.NONE).save(DOCS / name, optimize=True)
        if (DOCS / name).stat().st_size < MOST_BYTES:
            break
    print(f"{DOCS / name}: {(DOCS / name).stat().st_size:,} bytes")


if __name__ == "__main__":
    sys.exit(main())
