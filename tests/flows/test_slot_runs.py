"""Slots between whole runs on a real server, by the timestamps of their tables."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

import flows.engine
import tasks.slots
from denoise_core import methods
from denoise_core.device import Device, choose
from flows.cli import main
from tasks import table
from tests.flows.services import RealServer, write_images
from tests.flows.slot_runs import killed_while_holding, overlapping, side_by_side


def test_the_limit_alone_keeps_two_runs_apart(denoise_server: RealServer, tmp_path: Path, photo: np.ndarray) -> None:
    found = side_by_side(tmp_path, denoise_server.url, photo, 1)
    assert len(found) == 8
    assert overlapping(found) == 0


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
    for what in ("a slot of cpu: all 1 are taken by other fits", "a slot of the limit 'denoise "):
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
