"""Runs on worker processes and on Dask: the same bytes as on threads, and what dies costs a retry and nothing else."""

from __future__ import annotations

import errno
import functools
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import numpy as np
import psutil
import pytest
import tifffile
from PIL import Image

from denoise_core.device import choose
from denoise_core.methods import zs_fit
from denoise_core.methods.zs_fit.fitting import Size
from flows import dask_engine, preflight
from flows.cli import main
from flows.config import RunConfig
from flows.config_files import ConfigError, build
from flows.denoise_directory import _verdict
from flows.engine import MOST_TRIES, Deaths, EngineLost, WorkerDied
from flows.errors import StartError
from flows.progress import Summary, Watch, listening
from tasks import activity, ledger, table, worker
from tasks.faults import interrupt
from tasks.ledger import Part
from tasks.scan import scan
from tasks.settings import Settings
from tests.survival.faults import write_images
from tests.survival.kills import OPTIONS, Started, differences, temporaries, undisturbed

PATIENCE = 300.0


def rows_of(output: Path) -> dict[str, table.Row]:
    rows, _ = table.read(output / "results.parquet")
    return {row["source"]: row for row in rows}


def digests(output: Path) -> dict[str, str]:
    return {name: row["output_sha256"] for name, row in rows_of(output).items() if row["status"] == table.DONE}


def until(so: Callable[[], object], started: Started | None = None) -> None:
    deadline = time.monotonic() + PATIENCE
    while not so():
        assert time.monotonic() < deadline
        assert started is None or started.process.poll() is None, started.process.communicate()
        time.sleep(0.01)


# --- what decides ---


def config(**options: Any) -> RunConfig:
    return build({"input": "in", "output": "out", **options}, RunConfig)


@pytest.mark.parametrize("name", ["local", "processes", "dask", "dask:tcp://10.0.0.5:8786", "dask:tls://head:8786"])
def test_engines_that_there_are(name: str) -> None:
    chosen = config(engine=name)
    assert chosen.engine == name
    assert chosen.digest() == config().digest(), "where it is computed decides nothing"


@pytest.mark.parametrize("name", ["", "threads", "dask:", "dask: x", "dask:head", "dask:tcp://head", "ray"])
def test_engines_that_there_are_not(name: str) -> None:
    with pytest.raises(ConfigError, match="not one of local, processes, dask, dask:ADDRESS"):
        config(engine=name)


def test_waiting_for_workers_is_for_a_cluster() -> None:
    with pytest.raises(ConfigError, match="--worker-wait is an option of --engine dask:ADDRESS"):
        config(engine="dask", worker_wait=5)


def test_without_dask_the_extra_is_named(tmp_path: Path, photo: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(photo[:20, :20]).save(tmp_path / "image.png")
    monkeypatch.setattr(preflight.importlib.util, "find_spec", lambda name: None)
    wanted = config(input=tmp_path / "image.png", output=tmp_path / "out", engine="dask")
    with pytest.raises(StartError, match=r"pip install denoise-flows\[dask\]"):
        preflight.check(wanted)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(
        input=tmp_path / "images", output=tmp_path / "out", method="nl-bayes", preset="fast", noise="none",
        clip_noise=False, reference=None, seed=0, device=choose("cpu"), slots=1, max_pixels=10**8, run_id="0001-x",
        config_digest="d", steps_are_seen=False, has_limits=False, elsewhere=True,
    )  # fmt: skip


def test_an_image_that_kills_its_worker_fails_alone(settings: Settings, tmp_path: Path) -> None:
    sources = scan(write_images(tmp_path, 4), settings.output, max_pixels=10**8, config_digest="d").todo
    part = Part(settings.run_folder, 1)
    deaths = Deaths(settings)
    for _ in range(MOST_TRIES - 1):
        deaths.begins(1, sources)
        assert deaths.verdict(1, sources, WorkerDied()) is None
        assert part.rows() == []
    deaths.begins(1, sources)
    assert deaths.verdict(1, sources, WorkerDied()) is None, "the others are tried"
    (row,) = part.rows()
    assert (row["source"], row["status"], row["error_type"]) == (sources[0].name, "failed", "WorkerDied")


def test_deaths_of_earlier_runs_count(settings: Settings, tmp_path: Path) -> None:
    sources = scan(write_images(tmp_path, 1), settings.output, max_pixels=10**8, config_digest="d").todo
    deaths = Deaths(settings, earlier=MOST_TRIES - 2)
    for rows in (0, 1):
        deaths.begins(1, sources)
        assert deaths.verdict(1, sources, WorkerDied()) is None
        assert len(Part(settings.run_folder, 1).rows()) == rows


def test_what_kills_worker_after_worker_fails_the_chunk(settings: Settings, tmp_path: Path) -> None:
    sources = scan(write_images(tmp_path, 4), settings.output, max_pixels=10**8, config_digest="d").todo
    deaths = Deaths(settings)
    deaths.begins(1, sources)
    assert deaths.verdict(1, sources, WorkerDied(MOST_TRIES)) is None
    deaths.begins(1, sources)
    fault = deaths.verdict(1, sources, WorkerDied(MOST_TRIES))
    assert isinstance(fault, WorkerDied)
    rows = Part(settings.run_folder, 1).rows()
    assert [row["status"] for row in rows] == ["failed"] * 4


def test_deaths_over_different_images_do_not_add_up(settings: Settings, tmp_path: Path) -> None:
    sources = scan(write_images(tmp_path, 8), settings.output, max_pixels=10**8, config_digest="d").todo
    part, deaths = Part(settings.run_folder, 1), Deaths(settings)
    for source in sources[:-1]:
        deaths.begins(1, sources)
        part.append({"source": source.name, "status": "done"})
        assert deaths.verdict(1, sources, WorkerDied(MOST_TRIES)) is None
    assert [row["status"] for row in part.rows()] == ["done"] * 7


def test_the_state_says_what_was_lost_and_calls_it_no_chunk() -> None:
    summary = Summary("0001", "/out", 9, 2, 0, 7, 0, False, 1.0, None, None, "/out/r", "/out/h", [])
    lost, broke = EngineLost("the Dask scheduler at tcp://head:1 was lost"), OSError(errno.ENOSPC, "no space left")
    for fault, said in ((lost, f"since {lost}"), (broke, "since a chunk broke: no space left")):
        state = _verdict(config(), summary, [], [fault])
        assert (state.type, state.message) == ("FAILED", f"7 of 9 images failed, {said}")


@pytest.fixture
def heard() -> Iterator[None]:
    yield
    interrupt.clear()


@pytest.mark.usefixtures("heard")
def test_a_worker_stops_with_its_run(settings: Settings) -> None:
    settings.run_folder.mkdir(parents=True)
    (settings.run_folder / "config.toml").touch()
    (settings.run_folder / worker.ALIVE).write_text("1\n")
    with worker.serving(settings):
        assert not interrupt.wait(1.5), "the run is there"
        worker.stop_workers_of(settings.run_folder)
        assert interrupt.wait(PATIENCE)
    assert not interrupt.is_set(), "the next work may be another run's"


@pytest.mark.usefixtures("heard")
def test_a_worker_stops_when_its_run_falls_silent(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "SILENT_SECONDS", 1.0)
    settings.run_folder.mkdir(parents=True)
    (settings.run_folder / "config.toml").touch()
    (settings.run_folder / worker.ALIVE).write_text("1\n")
    with worker.serving(settings):
        assert interrupt.wait(PATIENCE)


def test_a_worker_that_does_not_see_the_folder_says_so(settings: Settings) -> None:
    with pytest.raises(OSError, match="does not see the folder of the run"), worker.serving(settings):
        pass
    assert not settings.run_folder.exists(), "nothing is made where nobody looks"


def test_a_run_says_what_its_workers_wait_for(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """While all of them do; what a worker that died said last is forgotten."""
    settings.run_folder.mkdir(parents=True)
    (settings.run_folder / "config.toml").touch()
    waiting = worker.Waiting(settings)
    with worker.serving(settings):
        until(lambda: list(settings.run_folder.glob("work-*")))
        assert waiting.glance() is None
        with activity.waiting("a slot"):
            until(waiting.glance)
            assert re.fullmatch(r"a slot \(\d+ s so far\)", str(waiting.glance()))
            (settings.run_folder / "work-elsewhere-1").write_text("7\n")
            until(lambda: waiting.glance() is None)  # that one works
            (settings.run_folder / "work-elsewhere-1").write_text("8\na device (5 s so far)")
            until(waiting.glance)
    assert [path.name for path in settings.run_folder.glob("work-*")] == ["work-elsewhere-1"]
    assert waiting.glance() is not None
    monkeypatch.setattr(worker, "_FORGOTTEN_SECONDS", 0.0)
    until(lambda: waiting.glance() is None)


@pytest.mark.parametrize(("device", "needs"), [("cpu", {}), ("cuda:0", {"GPU": 1})])
def test_a_chunk_says_to_dask_that_it_needs_a_gpu(settings: Settings, device: str, needs: dict[str, int]) -> None:
    dask = pytest.importorskip("dask")
    pytest.importorskip("prefect_dask")
    seen: list[Any] = []

    def submit(*_: Any, **__: Any) -> Any:
        seen.append(dask.get_annotations()["resources"])
        return SimpleNamespace(task_run_id=uuid4(), add_done_callback=lambda _: None)

    engine = object.__new__(dask_engine._Dask)
    engine._check_connected = lambda: None  # type: ignore[attr-defined]
    engine._runner = SimpleNamespace(client=SimpleNamespace(submit=submit))  # type: ignore[assignment]
    engine.submit(None, {"settings": replace(settings, device=replace(settings.device, name=device))})
    assert seen == [needs]


@pytest.mark.usefixtures("prefect_server")
def test_what_the_run_itself_waits_for_comes_before_its_workers_waits(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.run_folder.mkdir(parents=True)
    told: list[str | None] = []
    monkeypatch.setattr(worker.Waiting, "glance", lambda _: "a slot (9 s so far)")
    watch = Watch(settings, 1)
    with listening(lambda progress: told.append(progress.waiting)):
        watch.show(ended=False)
        monkeypatch.setattr(activity, "_TOLD_SECONDS", 0.0)
        with activity.waiting("a Dask worker"):
            watch.show(ended=False)
    assert told == ["a slot (9 s so far)", "a Dask worker (0 s so far)"]


# --- whole runs ---


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory, photo: np.ndarray) -> Path:
    """Four photographs, as many as a network of the directory takes, and a stack."""
    root = tmp_path_factory.mktemp("given") / "images"
    root.mkdir()
    for number, (top, left) in enumerate(((0, 0), (0, 250), (200, 100), (300, 300))):
        Image.fromarray(photo[top : top + 72, left : left + 72]).save(root / f"{number}.png")
    stack = np.stack([photo[160:200, 200:240, 1].astype(np.uint16) * 200 + 5000] * 3)
    tifffile.imwrite(root / "stack.tif", stack, metadata={"axes": "TYX"}, imagej=True)
    return root


@pytest.fixture(scope="module")
def _short_directory_fit() -> Iterator[None]:
    """Of the fit that stays in this process; what the workers do is as it is."""
    fast = zs_fit.PRESETS["fast"]
    with pytest.MonkeyPatch.context() as patch:
        short = replace(fast.shared, size=Size(16, 3), steps=60)
        patch.setitem(zs_fit.PRESETS, "fast", replace(fast, shared=short, shared_windows=6))
        yield


METHODS = {
    "zs-fit directory": ("--method", "zs-fit", "--scope", "directory", "--noise", "gauss:25"),
    "zs-n2n": ("--method", "zs-n2n"),
}


@pytest.fixture(scope="module")
def on_threads(
    images: Path, tmp_path_factory: pytest.TempPathFactory, prefect_server: str, _short_directory_fit: None
) -> Callable[[str], dict[str, str]]:
    """Digests of what the local engine writes with a method."""

    @functools.cache
    def digests_of(method: str) -> dict[str, str]:
        output = tmp_path_factory.mktemp("local") / "out"
        assert main(["run", str(images), str(output), "--slots", "2", *METHODS[method]]) == 0
        return digests(output)

    return digests_of


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("processes", "zs-fit directory"),
        ("dask", "zs-fit directory"),
        pytest.param("processes", "zs-n2n", marks=pytest.mark.slow),
        pytest.param("dask", "zs-n2n", marks=pytest.mark.slow),
    ],
)
def test_same_bytes(
    name: str, method: str, images: Path, on_threads: Callable[[str], dict[str, str]], tmp_path: Path
) -> None:
    before = set(psutil.Process().children(recursive=True))
    options = ["--slots", "2", "--chunk", "2", "--engine", name, *METHODS[method]]
    assert main(["run", str(images), str(tmp_path / "out"), *options]) == 0
    assert len(on_threads(method)) == 5
    assert digests(tmp_path / "out") == on_threads(method)
    assert any(tmp_path.glob("out/models/3-channel-*")) == (method == "zs-fit directory")
    (run,) = ledger.run_folders(tmp_path / "out")
    assert not (run / worker.ALIVE).exists()
    left = [process for process in psutil.Process().children(recursive=True) if process not in before]
    _, alive = psutil.wait_procs([process for process in left if not is_tracker(process)], timeout=60)
    assert alive == []


def is_tracker(process: psutil.Process) -> bool:
    """Whether it is the one that Python keeps beside a process that has started others."""
    with suppress(psutil.NoSuchProcess):
        return "multiprocessing.resource_tracker" in " ".join(process.cmdline())
    return False


def workers_of(started: Started, output: Path) -> list[psutil.Process]:
    """The processes that write chunks, by the logs that each keeps."""
    pids = {int(path.stem.rpartition("-")[2]) for path in output.glob("runs/*/log-*-*.txt")}
    return [process for process in started.marked() if process.pid in pids]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["processes", "dask"])
def test_a_killed_worker_costs_a_retry_and_nothing_else(name: str, tmp_path: Path) -> None:
    images = write_images(tmp_path, 24)
    expected = undisturbed(images, tmp_path / "undisturbed", *OPTIONS)
    output = tmp_path / "out"
    started = Started.of(images, output, *OPTIONS, "--engine", name)
    until(lambda: len(ledger.latest_rows(output)) >= 4, started)
    victim = workers_of(started, output)[0]
    victim.kill()
    status, said = started.wait()
    assert status == 0, said
    assert differences(output, expected) == []
    (run,) = ledger.run_folders(output)
    # None where it had just written the last row of its chunk.
    assert (run / "log.txt").read_text().count("its worker died") <= 1
    assert started.left_behind() == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["processes", "dask"])
def test_a_killed_run_leaves_no_worker(name: str, tmp_path: Path) -> None:
    images = write_images(tmp_path, 24)
    expected = undisturbed(images, tmp_path / "undisturbed", *OPTIONS)
    output = tmp_path / "out"
    started = Started.of(images, output, *OPTIONS, "--engine", name)
    until(lambda: len(ledger.latest_rows(output)) >= 4, started)
    started.process.kill()  # it alone: its workers must find out
    assert started.left_behind() == []
    started.process.communicate()  # ends with the last that could write to it
    status, said = Started.of(images, output, *OPTIONS, "--engine", name).wait()
    assert status == 0, said
    assert differences(output, expected) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["processes", "dask"])
def test_interrupted_as_by_a_terminal(name: str, tmp_path: Path) -> None:
    images = write_images(tmp_path, 24)
    expected = undisturbed(images, tmp_path / "undisturbed", *OPTIONS)
    output = tmp_path / "out"
    started = Started.of(images, output, *OPTIONS, "--engine", name)
    until(lambda: len(ledger.latest_rows(output)) >= 4, started)
    os.killpg(started.process.pid, signal.SIGINT)  # Ctrl-C reaches every process of the terminal's job
    status, said = started.wait()
    assert status == 130, said
    assert "Traceback" not in said
    assert {row["status"] for row in rows_of(output).values()} == {table.DONE}, "an interrupt is nobody's failure"
    assert started.left_behind() == []
    status, said = Started.of(images, output, *OPTIONS, "--engine", "local").wait()
    assert status == 0, said
    assert differences(output, expected) == []


# --- an existing cluster ---


@contextmanager
def ended(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """A process of ours, which is gone with what it started when the block ends."""
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


class Cluster:
    """A Dask scheduler on loopback, and workers, as `dask scheduler` and `dask worker` start them."""

    def __init__(self, folder: Path, server: str) -> None:
        import socket

        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.address = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
        self._folder = folder
        self._server = server

    def scheduler(self) -> subprocess.Popen[bytes]:
        port = self.address.rpartition(":")[2]
        return self._start("scheduler", "--host", "127.0.0.1", "--port", port, "--no-dashboard")

    def worker(self, *options: str, **environment: str) -> subprocess.Popen[bytes]:
        return self._start("worker", self.address, "--nthreads", "1", "--no-dashboard", *options, **environment)

    def _start(self, *arguments: str, **environment: str) -> subprocess.Popen[bytes]:
        with (self._folder / f"{arguments[0]}.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "dask", *arguments],
                stdout=log,
                stderr=log,
                cwd=self._folder,
                start_new_session=True,
                env={**os.environ, "PREFECT_API_URL": self._server, **environment},
            )


def start_on(cluster: Cluster, server: str, *arguments: object, monkeypatch: pytest.MonkeyPatch) -> Started:
    monkeypatch.setenv("PREFECT_API_URL", server)
    return Started.of(*arguments, "--engine", f"dask:{cluster.address}", "--worker-wait", 90)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_an_existing_cluster(tmp_path: Path, prefect_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker killed, then the scheduler, then all of it again: nothing is lost, and nothing done twice."""
    images = write_images(tmp_path, 24)
    expected = undisturbed(images, tmp_path / "undisturbed", *OPTIONS)
    cluster, output = Cluster(tmp_path, prefect_server), tmp_path / "out"
    command = (images, output, *OPTIONS)
    with ended(cluster.scheduler()) as scheduler, ended(cluster.worker()), ended(cluster.worker()):
        started = start_on(cluster, prefect_server, *command, monkeypatch=monkeypatch)
        until(lambda: len(ledger.latest_rows(output)) >= 3, started)
        logs = list(output.glob("runs/*/log-*-*.txt"))
        psutil.Process(int(logs[0].stem.rpartition("-")[2])).kill()  # its nanny starts another
        rows = len(ledger.latest_rows(output))
        until(lambda: len(ledger.latest_rows(output)) >= rows + 3, started)
        scheduler.kill()
        status, said = started.wait()
    assert status == 1, said
    assert "Traceback" not in said
    assert f"the Dask scheduler at {cluster.address} was lost" in said
    lost = Counter(row["error_type"] for row in rows_of(output).values())
    assert lost[None] >= 6
    assert set(lost) == {None, "EngineLost"}
    with ended(cluster.scheduler()), ended(cluster.worker()), ended(cluster.worker()):
        status, said = start_on(cluster, prefect_server, *command, monkeypatch=monkeypatch).wait()
    assert status == 0, said
    assert differences(output, expected) == []
    assert temporaries(output) == []


@pytest.mark.slow
def test_clusters_that_cannot_do_it(tmp_path: Path, prefect_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is one sentence and exit status 2, within seconds."""
    images, cluster = write_images(tmp_path, 2), Cluster(tmp_path, prefect_server)
    monkeypatch.setenv("PREFECT_API_URL", prefect_server)

    def refused(*options: object) -> str:
        engine_options = ("--engine", f"dask:{cluster.address}", "--worker-wait", 5)
        status, said = Started.of(images, tmp_path / "out", *engine_options, *options).wait()
        assert status == 2, said
        return said.splitlines()[-1]

    assert "does not answer" in refused()
    with ended(cluster.scheduler()):
        assert "has no worker" in refused()
        with ended(cluster.worker(PREFECT_API_URL="http://127.0.0.1:9/api")):
            assert f"start it with PREFECT_API_URL={prefect_server}" in refused("--worker-wait", 90)
    monkeypatch.delenv("PREFECT_API_URL")
    assert "set PREFECT_API_URL" in refused()


def seen(name: str, precision: Any, host: str = "a") -> dask_engine.Seen:
    return dask_engine.Seen(host, dask_engine.Device(name, precision, 8, "because"), None)


def remote() -> dask_engine.RemoteDask:
    return dask_engine.RemoteDask("tcp://127.0.0.1:9", config(engine="dask:tcp://127.0.0.1:9"))


def test_workers_agree_on_a_device() -> None:
    common = remote()._common
    assert common([seen("cpu", "float32"), seen("cpu", "float32", "b")]).threads == 1
    both = common([seen("cpu", "float32"), seen("cuda:0", "bfloat16"), seen("cuda:0", "float32")])
    assert (both.name, both.precision) == ("cuda:0", "float32"), "what all of them have"
    with pytest.raises(StartError, match="no CUDA device"):
        common([dask_engine.Seen("a", "Device cuda is not there: no CUDA device", None)])


def test_what_a_worker_says_of_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import http.server
    import threading

    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/api"
        monkeypatch.setattr(dask_engine, "set_url", lambda: url)
        probe = tmp_path / "out" / "runs" / ".seen"
        probe.parent.mkdir(parents=True)
        asked = dask_engine.Asked("cpu", tmp_path, probe, url, dask_engine._versions())
        assert "does not see OUTPUT" in str(dask_engine.look(asked).problem)
        probe.touch()
        assert dask_engine.look(asked).problem is None
        assert "does not see INPUT" in str(dask_engine.look(asked._replace(input=tmp_path / "gone")).problem)
        older = {**asked.versions, "denoise-flows": "0.0.1"}
        assert "the run 0.0.1; install the same" in str(dask_engine.look(asked._replace(versions=older)).problem)
        assert "reports to" in str(dask_engine.look(asked._replace(server="http://head:4200/api")).problem)
        server.shutdown()
    assert "does not reach the Prefect server" in str(dask_engine.look(asked).problem)


def test_the_page_on_slurm_is_understood_by_dask_jobqueue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobqueue = pytest.importorskip("dask_jobqueue")
    import dask
    import yaml

    page = (Path(__file__).parents[2] / "docs" / "slurm.md").read_text(encoding="utf-8")
    written = yaml.safe_load(page.split("```yaml\n")[1].split("```")[0])["jobqueue"]["slurm"]
    monkeypatch.chdir(tmp_path)
    settings = {"jobqueue.slurm": dask.config.get("jobqueue.slurm") | written}  # as Dask merges the file with its own
    local = {"host": "127.0.0.1", "dashboard_address": None}
    with dask.config.set(settings), jobqueue.SLURMCluster(n_workers=0, scheduler_options=local) as cluster:
        script = cluster.job_script()
    assert "#SBATCH --gres=gpu:1" in script
    assert "--resources GPU=1" in script
    assert "--nthreads 1" in script
    assert "export PREFECT_API_URL=" in script
    assert "export PREFECT_API_AUTH_STRING=$(cat " in script, "without it a server for other machines lets no job in"
    assert page.count("export PREFECT_API_AUTH_STRING=") == page.count("export PREFECT_API_URL=") == 2
