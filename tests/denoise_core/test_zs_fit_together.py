"""Fits of many images in one batch, the way of a GPU: here the CPU goes it, by the name of cpu:0."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from denoise_core.device import Device
from denoise_core.methods import FitDiverged, Step, zs_fit
from denoise_core.methods.zs_fit import fitting, optimiser, together
from denoise_core.methods.zs_fit.fitting import Fitted, Plan, Size, fit
from denoise_core.methods.zs_fit.network import (
    Layout,
    corrected,
    corrected_many,
    initial_weights,
    self_ensemble,
    unpack,
    unpack_many,
)
from denoise_core.methods.zs_fit.pairs import ALPHA, Crops, Pair
from denoise_core.methods.zs_fit.prepared import noise_of_frames, prepare

GPU = Device("cpu:0", "float32", 1, "stands for a GPU")
SHORT = Plan(Size(8, 3), steps=20, crops=4, rate=1e-3, kernel_rate=5e-3, side=16)


@pytest.fixture(autouse=True)
def _few_places(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(together, "PLACES", 4)
    monkeypatch.setattr(together, "_batches", {})


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many fits there were at each step of a batch."""
    found, gradients = [], together.Batch._gradients

    def counted(batch: together.Batch) -> tuple[torch.Tensor, torch.Tensor]:
        found.append(len(batch._jobs))
        return gradients(batch)

    monkeypatch.setattr(together.Batch, "_gradients", counted)
    return found


def quiet(_: Step) -> None:
    pass


def pairs_of(number: int, side: int = 40) -> list[Pair]:
    """Two pairs, not of one size, whose estimate is off by a constant, and some of whose pixels do not count."""
    generator = torch.Generator().manual_seed(number)
    pairs = []
    for width in (side, side + 9):
        x = 10 * torch.rand(2, 1, width, generator=generator).expand(2, side, width)
        noise, again = torch.randn(2, *x.shape, generator=generator)
        z = x + noise
        valid = (torch.rand(1, side, width, generator=generator) > 0.1).float()
        pairs.append(Pair(z + ALPHA * again, x + 0.5, z - again / ALPHA, valid))
    return pairs


def beside(number: int, plan: Plan = SHORT, on_step: Callable[[Step], None] = quiet, device: Device = GPU) -> Fitted:
    return fit(pairs_of(number), plan, seed=number, device=device, on_step=on_step, beside_others=True)


def at_once(*fits: Callable[[], Fitted]) -> list[Fitted | BaseException]:
    """What each fit in a thread of its own returned or raised; none begins before all are there."""
    meet, met = threading.Barrier(len(fits)), set[int]()
    real = together.run

    def run(kind: together.Kind, job: together.Job) -> float:
        if threading.get_ident() not in met:  # its first start
            met.add(threading.get_ident())
            meet.wait(60)
        return real(kind, job)

    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(len(fits)) as pool:
        patch.setattr(fitting, "run", run)
        futures = [pool.submit(one) for one in fits]
        return [future.exception() or future.result() for future in futures]


def test_convolutions_of_many_fits_are_those_of_each() -> None:
    layout = Layout(channels=2, width=8, layers=4)
    generator = torch.Generator().manual_seed(0)
    weights = torch.stack([initial_weights(layout, generator) + 0.01 for _ in range(3)]).requires_grad_()
    z, estimate = torch.randn(2, 3, 5, 2, 14, 11, generator=generator)
    found = corrected_many(unpack_many(layout, weights, torch.float32), z, estimate)
    expected = torch.stack([corrected(unpack(layout, weights[n], torch.float32), z[n], estimate[n]) for n in range(3)])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    (one,) = torch.autograd.grad(found.square().sum(), weights, retain_graph=True)
    (other,) = torch.autograd.grad(expected.square().sum(), weights)
    torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-4)


def test_places_in_the_pixels_are_the_crops_that_are_drawn() -> None:
    crops = Crops(pairs_of(0), 16)
    pixels, along = crops.pixels(), torch.arange(16)
    places = torch.tensor(crops.places(64, torch.Generator().manual_seed(1)))[..., None, None]
    found = pixels[places[:, 0] + places[:, 1] * along[:, None] + places[:, 2] * along]
    drawn = torch.cat(crops.draw(64, torch.Generator().manual_seed(1)), dim=1)
    assert torch.equal(found.permute(0, 3, 1, 2), drawn)


@pytest.mark.parametrize(("precision", "atol"), [("float32", 1e-5), ("bfloat16", 1e-3)])
def test_a_fit_in_a_batch_is_the_fit_alone_but_for_rounding(precision: str, atol: float) -> None:
    device = replace(GPU, precision=precision)
    for crops in (1, 4):
        plan = replace(SHORT, crops=crops)
        alone = fit(pairs_of(0), plan, seed=0, device=device, on_step=quiet)
        found = beside(0, plan, device=device)
        torch.testing.assert_close(found.weights, alone.weights, atol=atol, rtol=0)
        assert found.loss == pytest.approx(alone.loss, rel=1e-4)
        assert (found.steps, found.restarts, found.layout) == (alone.steps, alone.restarts, alone.layout)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_no_bit_depends_on_the_company_nor_on_the_place_in_it(sizes: list[int], precision: str) -> None:
    """Nor on when a fit joins: six fits have four places."""
    device = replace(GPU, precision=precision)
    alone = [beside(number, device=device) for number in range(6)]
    assert set(sizes) == {1}
    for order in ((0, 1, 2, 3, 4, 5), (4, 2, 5, 1, 0, 3)):
        found = at_once(*(partial(beside, number, device=device) for number in order))
        assert max(sizes) == 4
        for number, one in zip(order, found, strict=True):
            assert isinstance(one, Fitted)
            assert torch.equal(one.weights, alone[number].weights)
            assert one.loss == alone[number].loss


def test_fits_of_unlike_networks_and_plans_run_at_the_same_time() -> None:
    plans = [SHORT, replace(SHORT, size=Size(4, 2)), replace(SHORT, steps=7, rate=2e-3), replace(SHORT, side=12)]
    found = at_once(*(partial(beside, number, plan) for number, plan in enumerate(plans)))
    for number, (plan, one) in enumerate(zip(plans, found, strict=True)):
        assert isinstance(one, Fitted)
        alone = fit(pairs_of(number), plan, seed=number, device=GPU, on_step=quiet)
        torch.testing.assert_close(one.weights, alone.weights, atol=1e-5, rtol=0)
        assert one.steps == plan.steps


def test_what_a_fit_tells_of_its_steps_is_what_it_tells_alone() -> None:
    plan = replace(SHORT, steps=52)
    told: list[Step] = []
    beside(0, plan, told.append)
    alone: list[Step] = []
    fit(pairs_of(0), plan, seed=0, device=GPU, on_step=alone.append)
    assert [(one.step, one.steps, one.loss is None) for one in told] == [
        (one.step, one.steps, one.loss is None) for one in alone
    ]
    assert [one.loss for one in told if one.loss] == pytest.approx([one.loss for one in alone if one.loss], rel=1e-3)


class Stopped(BaseException):
    """As tasks.faults.Interrupted, which no step may take for an error."""


def test_a_stop_ends_the_fit_that_it_is_for_and_no_other() -> None:
    """The one that leads, or one beside it: in three fits of which each is stopped once."""
    undisturbed = [beside(number) for number in range(3)]

    def stop(step: Step) -> None:
        if step.step == 10:
            raise Stopped

    for stopped in range(3):
        tells = [stop if number == stopped else quiet for number in range(3)]
        found = at_once(*(partial(beside, number, on_step=tell) for number, tell in enumerate(tells)))
        for number, one in enumerate(found):
            if number == stopped:
                assert isinstance(one, Stopped)
            else:
                assert isinstance(one, Fitted)
                assert torch.equal(one.weights, undisturbed[number].weights)


def test_a_fit_that_diverges_is_started_again_and_leaves_the_others_alone() -> None:
    undisturbed = beside(0)
    absurd = replace(SHORT, steps=20, rate=1e30, kernel_rate=1e30)
    one, other = at_once(partial(beside, 0), partial(beside, 1, absurd))
    assert isinstance(one, Fitted)
    assert torch.equal(one.weights, undisturbed.weights)
    assert isinstance(other, FitDiverged)
    assert torch.equal(beside(0).weights, undisturbed.weights), "nothing of it is left in the batch"


def test_a_start_that_is_not_finite_is_followed_by_one_at_half_the_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    real, jobs = together.run, []

    def first_breaks(kind: together.Kind, job: together.Job) -> float:
        jobs.append(job)
        if len(jobs) == 1:
            job.weights[:] = math.nan
        return real(kind, job)

    monkeypatch.setattr(fitting, "run", first_breaks)
    assert beside(0).restarts == 1
    assert jobs[0].taken == SHORT.steps
    torch.testing.assert_close(jobs[1].rates[:, [0, 2]], jobs[0].rates[:, [0, 2]] / 2)
    assert not torch.equal(jobs[0].places, jobs[1].places)


def test_where_memory_runs_out_fewer_fits_are_worked_on_at_once_then_fewer_crops(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    undisturbed = [beside(number) for number in range(3)]
    real, seen = together.corrected_many, []

    def with_little_memory(parameters: list[torch.Tensor], z: torch.Tensor, estimate: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(z.shape[:2]))
        if z.shape[0] * z.shape[1] > 2:
            raise torch.OutOfMemoryError("out of memory")
        return real(parameters, z, estimate)

    monkeypatch.setattr(together, "_batches", {})
    monkeypatch.setattr(together, "corrected_many", with_little_memory)
    with caplog.at_level(logging.INFO, "denoise_core"):
        found = at_once(*(partial(beside, number) for number in range(3)))
    assert seen[:3] == [(4, 4), (2, 4), (1, 4)]
    assert set(seen[3:]) == {(1, 2)}, "it stays so"
    assert [record.getMessage() for record in caplog.records] == [
        "out of memory: 2 fits at once, with 4 crops each, from here on",
        "out of memory: 1 fits at once, with 4 crops each, from here on",
        "out of memory: 1 fits at once, with 2 crops each, from here on",
    ]
    for one, other in zip(found, undisturbed, strict=True):
        assert isinstance(one, Fitted)
        torch.testing.assert_close(one.weights, other.weights, atol=1e-5, rtol=0)


def test_what_breaks_as_a_fit_joins_is_told_to_all_and_nobody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("the device is gone")

    with monkeypatch.context() as patched:
        patched.setattr(optimiser.Optimisers, "begin", broken)
        ends = at_once(lambda: beside(1), lambda: beside(2))
    assert [str(end) for end in ends] == ["the device is gone"] * 2
    assert ends[0] is not ends[1], "each thread raises an error of its own"
    assert isinstance(beside(3), Fitted)


def test_memory_for_not_even_one_crop_is_an_error_of_all_and_the_batch_can_be_used_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:

        def none_left(*_: object) -> torch.Tensor:
            raise torch.OutOfMemoryError("out of memory")

        patch.setattr(together, "corrected_many", none_left)
        found = at_once(*(partial(beside, number) for number in range(2)))
    assert [type(one) for one in found] == [torch.OutOfMemoryError] * 2
    assert beside(0).restarts == 0


def test_an_image_for_whose_windows_there_is_no_memory_does_not_stop_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    undisturbed, seen = beside(0), []
    with monkeypatch.context() as patch:

        def kept(kind: together.Kind, job: together.Job) -> float:
            seen.append((kind, job))
            return 0.0

        patch.setattr(fitting, "run", kept)
        beside(0), beside(1)
    (kind, first), (_, second) = seen
    batch = together.Batch(kind)
    batch._queue.append(first)
    batch._advance()
    batch._queue.append(second)
    real = torch.cat

    def cat(tensors: list[torch.Tensor], dim: int = 0) -> torch.Tensor:
        if tensors[0] is first.pixels:
            raise torch.OutOfMemoryError("out of memory")
        return real(tensors, dim)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "cat", cat)
        batch._advance()
    assert isinstance(second.error, torch.OutOfMemoryError)
    assert second.ended
    while not first.ended:
        batch._advance()
    assert first.error is None
    assert torch.equal(first.weights, undisturbed.weights)


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "atol"), [("float32", 1e-3), ("bfloat16", 2e-2)])
def test_with_the_preset_too_the_result_is_that_of_the_fit_alone(
    photo: np.ndarray, precision: str, atol: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In units of the noise: to a thousandth in float32."""
    monkeypatch.setattr(together, "PLACES", 2)
    device = replace(GPU, precision=precision)
    clean = photo[None, 60:156, 160:256] / np.float32(255)
    noisy = clean + np.float32(25 / 255) * np.random.default_rng(0).standard_normal(clean.shape, np.float32)
    prepared = prepare(noisy, noise_of_frames(noisy), device)[1]
    assert prepared is not None
    pairs = prepared.pairs(4, 1, window=1, generator=torch.Generator().manual_seed(0), on_step=quiet)
    plan = zs_fit.PRESETS["fast"].own
    one, other = (
        fit(pairs, plan, seed=0, device=device, on_step=quiet, beside_others=beside_others)
        for beside_others in (True, False)
    )
    with torch.inference_mode():
        z, estimate = pairs[0].source[None], pairs[0].estimate[None]
        results = [self_ensemble(found.parameters(GPU), z, estimate) for found in (one, other)]
    assert float((results[0] - estimate).abs().max()) > 0.05, "the network does something"
    assert float((results[0] - results[1]).abs().max()) < atol
