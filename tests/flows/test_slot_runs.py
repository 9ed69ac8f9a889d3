"""Slots between whole runs on a real server, by the timestamps of their tables."""

from __future__ import annotations

import re
import threading
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from prefect.settings import temporary_settings

import flows.engine
import tasks.slots
from denoise_core import methods
from denoise_core.device import Device, choose
from denoise_core.methods import zs_fit
from denoise_core.methods.zs_fit import fitting, together
from denoise_core.methods.zs_fit.fitting import Size
from flows.cli import main
from flows.config import RunConfig
from flows.config_files import build
from flows.denoise_directory import share
from tasks import table
from tasks.admission import admitted, offer
from tests.flows.services import RealServer, write_images
from tests.flows.slot_runs import killed_while_holding, overlapping, side_by_side


def test_the_limit_alone_keeps_two_runs_apart(denoise_server: RealServer, tmp_path: Path, photo: np.ndarray) -> None:
    found = side_by_side(tmp_path, denoise_server.url, photo, 1)
    assert len(found) == 8
    assert overlapping(found) == 0


def test_a_limit_in_use_is_raised_but_not_lowered(denoise_server: RealServer) -> None:
    name = "denoise somewhere cuda"

    def limit() -> int:
        return int(httpx.get(f"{denoise_server.url}/v2/concurrency_limits/{name}").json()["limit"])

    with temporary_settings({"api.url": denoise_server.url}):
        try:
            offer(name, 3)
            with admitted(name):
                offer(name, 1)
                assert limit() == 3
                offer(name, 4)
                assert limit() == 4
            offer(name, 1)
            assert limit() == 1
        finally:
            httpx.delete(f"{denoise_server.url}/v2/concurrency_limits/{name}")  # other tests count them


@pytest.mark.slow
def test_two_slots_let_two_runs_fit_at_the_same_time(
    denoise_server: RealServer, tmp_path: Path, photo: np.ndarray
) -> None:
    """The first fits wait for each other: they would wait for ever if there were one slot."""
    found = side_by_side(tmp_path, denoise_server.url, photo, 2, meet=True)
    assert len(found) == 8
    assert overlapping(found) >= 1


@pytest.mark.slow
def test_a_killed_run_gives_its_slot_back_to_one_that_says_what_it_waits_for(tmp_path: Path, photo: np.ndarray) -> None:
    found = killed_while_holding(tmp_path, photo, restart=False)
    assert 0 < found.seconds < 90
    for what in ("a slot of cpu: the only one is taken by another fit", "a slot of the limit 'denoise "):
        assert re.search(rf"waiting for {what}.*\(\d+ s so far\)", found.said), found.said


@pytest.mark.slow
def test_a_killed_run_gives_its_slot_back_though_the_server_was_killed_too(tmp_path: Path, photo: np.ndarray) -> None:
    assert 0 < killed_while_holding(tmp_path, photo, restart=True).seconds < 90


@pytest.mark.usefixtures("prefect_server")
def test_fits_are_shared_out_among_devices_and_the_bytes_are_the_same(
    tmp_path: Path, photo: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two stand-ins for GPUs, whose fits the CPU does."""
    images = write_images(tmp_path / "images", photo, 6)
    real, seen = methods.denoise, []
    cpu = choose("cpu")

    def stand_in(frame: np.ndarray, *, device: Device, **options: object) -> object:
        seen.append(device.name)
        return real(frame, device=cpu, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(methods, "denoise", stand_in)
    monkeypatch.setattr(tasks.slots, "identity", lambda name: f"stand-in-{name.replace(':', '-')}")

    def outputs(*names: str) -> tuple[list[str], set[str]]:
        devices = tuple(Device(name, "float32", 1, "a stand-in") for name in names)
        monkeypatch.setattr(flows.engine, "choose_all", lambda _: devices)
        out = tmp_path / "-".join(names).replace(":", "")
        assert main(["run", str(images), str(out), "--method", "tv"]) == 0
        rows, _ = table.read(out / "results.parquet")
        return [row["output_sha256"] for row in rows], {row["device"] for row in rows}

    one, on_one = outputs("cuda:0")
    assert on_one == {"cuda:0"}
    seen.clear()
    two, on_two = outputs("cuda:0", "cuda:1")
    assert on_two == set(seen) == {"cuda:0", "cuda:1"}
    assert two == one


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_server")
def test_the_fits_of_as_many_images_as_there_are_slots_are_one_batch_and_the_bytes_are_the_same(
    tmp_path: Path, photo: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a stand-in for a GPU. The two fits begin together: else the small ones might be over before the other is there."""
    images = tmp_path / "images"
    images.mkdir()
    for number in range(2):
        Image.fromarray(photo[60:132, 100 + 72 * number : 172 + 72 * number]).save(images / f"{number}.png")
    fast = zs_fit.PRESETS["fast"]
    own = replace(fast.own, size=Size(4, 3), steps=10)
    monkeypatch.setitem(zs_fit.PRESETS, "fast", replace(fast, own=own, own_windows=1))
    device = Device("cpu:0", "float32", 1, "a stand-in")
    monkeypatch.setattr(flows.engine, "choose_all", lambda _: (device,))
    monkeypatch.setattr(tasks.slots, "identity", lambda name: f"stand-in-{name.replace(':', '-')}")
    monkeypatch.setattr(together, "PLACES", 2)
    monkeypatch.setattr(together, "_batches", {})
    run, gradients, sizes = together.run, together.Batch._gradients, []

    def counted(batch: together.Batch) -> object:
        sizes.append(len(batch._jobs))
        return gradients(batch)

    monkeypatch.setattr(together.Batch, "_gradients", counted)

    def digests(slots: int) -> list[str]:
        meet = threading.Barrier(slots)

        def when_all_are_there(kind: together.Kind, job: together.Job) -> float:
            meet.wait(120)
            return run(kind, job)

        monkeypatch.setattr(fitting, "run", when_all_are_there)
        sizes.clear()
        out = tmp_path / f"out-{slots}"
        options = ["--scope", "image", "--noise", "gauss:25", "--slots", str(slots)]
        assert main(["run", str(images), str(out), *options]) == 0
        rows, _ = table.read(out / "results.parquet")
        assert [row["steps"] for row in rows] == [10, 10]
        return [row["output_sha256"] for row in rows]

    one = digests(1)
    assert set(sizes) == {1}
    assert digests(2) == one
    assert max(sizes) == 2


@pytest.mark.parametrize(
    ("options", "memory", "slots"),
    [
        ({}, 9 * 10**9, 2),
        ({}, 150 * 10**9, 4),
        ({}, 2 * 10**9, 1),
        ({"slots": 3}, 150 * 10**9, 3),
        ({"preset": "paper"}, 150 * 10**9, 1),
        ({"method": "nl-bayes"}, 150 * 10**9, 1),
        ({"engine": "processes"}, 150 * 10**9, 1),
        ({"style": "style.png", "vgg_weights": "vgg.pth"}, 150 * 10**9, 1),
    ],
)
def test_a_gpu_has_as_many_slots_as_its_memory_holds_where_their_fits_are_one_batch(
    options: dict[str, object], memory: int, slots: int
) -> None:
    config = build({"input": "in", "output": "out", **options}, RunConfig)
    assert share(Device("cuda:0", "bfloat16", 8, "a card", memory), config)[1] == slots
