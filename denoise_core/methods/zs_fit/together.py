"""Fits of many images as one batch: on a GPU, a step of many fits takes hardly longer than a step of one.

Threads that fit at the same time share a batch. One of them leads: it takes the steps of all until its own fit has ended;
then another leads. A fit joins as soon as a place is free, and is at a step of its own: nobody waits for company.

A batch has `PLACES` places, taken or not: operations and their shapes are always the same, and none mixes the values of
one place with those of another. So a fit's result does not depend on who else was in the batch. Only where memory ran
out are fewer worked on at once, which may change the last bits.
"""

from __future__ import annotations

import logging
import math
import threading
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from denoise_core.device import Device
from denoise_core.methods import OnStep, Step
from denoise_core.methods.zs_fit.network import Layout, corrected_many, unpack_many
from denoise_core.methods.zs_fit.optimiser import STANDSTILL, Optimisers

PLACES = 16
READ = 50  # steps between looks at the loss

log = logging.getLogger("denoise_core")


@dataclass(eq=False)
class Job:
    """A fit: its weights (P,), changed in place when it ends, and what it is fitted to; on the device that fits.

    `pixels` (N, 3 C + 1) are those of `Crops`, `places` (steps, crops, 3) its places in them, and `rates` (steps, 3) the
    optimiser's `schedule`. At its end it has a `loss`, the mean of the last steps, not finite where the fit diverged; or an
    `error`: what `on_step` raised, or what broke the batch.
    """

    weights: Tensor
    pixels: Tensor
    places: Tensor
    rates: Tensor
    on_step: OnStep
    taken: int = 0
    loss: float = math.nan
    error: BaseException | None = None
    ended: bool = False


class Kind(NamedTuple):
    """What jobs of one batch have in common: `crops` of `side`² a step."""

    device: Device
    layout: Layout
    crops: int
    side: int


class Batch:
    """The fits of one kind that this process has in work."""

    def __init__(self, kind: Kind) -> None:
        self._kind = kind
        fast, name = kind.device.precision == "bfloat16", kind.device.name
        self._dtype = torch.bfloat16 if fast else torch.float32
        self._weights = torch.zeros(PLACES, sum(kind.layout.sizes), device=name)
        self._optimisers = Optimisers(kind.layout, self._weights, fast_in_bfloat16=fast)
        self._losses = torch.zeros(PLACES, device=name)  # sums since they were last looked at
        self._along = torch.arange(kind.side, device=name)
        self._at_once = PLACES, kind.crops  # fits, and crops of each: fewer once memory ran out
        self._changed = threading.Condition()  # guards the queue, and who leads
        self._queue: list[Job] = []
        self._led = False
        # The leader's:
        self._jobs: dict[int, Job] = {}  # by place
        self._pixels = torch.empty(0)  # of all jobs ...
        self._firsts = torch.zeros(PLACES, dtype=torch.int64)  # ... and where those of each place begin

    def run(self, job: Job) -> float:
        """Run a job to its end, leading or beside one who leads; its loss.

        Raises what its `on_step` raised, or what broke the batch.
        """
        with self._changed:
            self._queue.append(job)
            while self._led and not job.ended:
                self._changed.wait()
            leads = not job.ended
            self._led = self._led or leads
        if leads:
            try:
                while not job.ended:
                    self._advance()
            finally:
                if not self._jobs:
                    self._pixels = torch.empty(0)
                with self._changed:
                    self._led = False
                    self._changed.notify_all()
        if job.error is not None:
            raise job.error
        return job.loss

    def _advance(self) -> None:
        """Let jobs join, and take a step of each."""
        try:
            self._admit()
            if not self._jobs:
                return
            gradients, losses = self._gradients()
            self._losses += losses
            rates = torch.tensor([STANDSTILL] * PLACES)
            for place, job in self._jobs.items():
                rates[place] = job.rates[job.taken]
                job.taken += 1
            self._optimisers.step(gradients, rates.to(self._kind.device.name))
            self._look()
        except BaseException as error:  # noqa: BLE001 - each thread raises it
            with self._changed:
                broken, self._queue = [*self._jobs.values(), *self._queue], []
            self._jobs, self._pixels = {}, torch.empty(0)
            for job in broken:
                self._end(job, _own(error))

    def _admit(self) -> None:
        """Give free places to jobs that wait; where memory does not suffice for theirs, those that have places go on."""
        free = [place for place in range(PLACES) if place not in self._jobs]
        with self._changed:
            joining, self._queue = self._queue[: len(free)], self._queue[len(free) :]
        if not joining:
            return
        try:
            self._join(dict(zip(free, joining, strict=False)))
        except BaseException as error:
            for job in joining:
                self._end(job, _own(error))
            if not isinstance(error, torch.OutOfMemoryError):
                raise

    def _join(self, joining: dict[int, Job]) -> None:
        """Give places to jobs; `_jobs` has them once all that may fail is done."""
        jobs = self._jobs | joining
        self._pixels = torch.cat([job.pixels for job in jobs.values()])
        sizes = [len(job.pixels) for job in jobs.values()]
        for job, own in zip(jobs.values(), torch.split(self._pixels, sizes), strict=True):
            job.pixels = own  # the one copy from here on
        self._firsts[list(jobs)] = torch.tensor([0, *sizes[:-1]]).cumsum(0)
        for place, job in joining.items():
            self._optimisers.begin(place, job.weights)
            self._losses[place] = 0
        self._jobs = jobs

    def _gradients(self) -> tuple[Tensor, Tensor]:
        """The gradient of each place's loss (PLACES, P), and these losses (PLACES,)."""
        places = torch.zeros(PLACES, self._kind.crops, 3, dtype=torch.int64)
        for place, job in self._jobs.items():
            places[place] = job.places[job.taken]
            places[place, :, 0] += self._firsts[place]
        while True:
            fits, crops = self._at_once
            try:
                parts = [self._of_fits(first, places[first : first + fits]) for first in range(0, PLACES, fits)]
            except torch.OutOfMemoryError:
                if fits == crops == 1:
                    raise
                self._at_once = (fits // 2, crops) if fits > 1 else (1, crops // 2)
            else:
                gradients, losses = (torch.cat(found) for found in zip(*parts, strict=True))
                return gradients, losses
            log.info("out of memory: %d fits at once, with %d crops each, from here on", *self._at_once)
            torch.cuda.empty_cache()

    def _of_fits(self, first: int, places: Tensor) -> tuple[Tensor, Tensor]:
        """`_gradients` of so many places from `first` on, of no more crops at once than memory has room for."""
        if not any(first <= place < first + len(places) for place in self._jobs):
            return torch.zeros_like(self._weights[: len(places)]), torch.zeros_like(self._losses[: len(places)])
        parts = [self._of_crops(first, crops) for crops in torch.split(places, self._at_once[1], dim=1)]
        gradients, errors, valid = (torch.stack(found).sum(0) for found in zip(*parts, strict=True))
        return gradients, errors / valid.clamp_min(1e-6)

    def _of_crops(self, first: int, places: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients by some of a step's crops (fits, crops, 3), and what these add to the means of errors and `valid`."""
        kind = self._kind
        start, down, along = places.to(kind.device.name)[..., None, None].unbind(2)
        pixels = self._pixels[start + down * self._along[:, None] + along * self._along]
        channels = [kind.layout.channels] * 3 + [1]
        source, estimate, target, valid = torch.split(pixels.permute(0, 1, 4, 2, 3), channels, dim=2)
        parameters = unpack_many(kind.layout, self._weights[first : first + len(places)], self._dtype)
        leaves = [parameter.detach().requires_grad_() for parameter in parameters]
        errors = (corrected_many(leaves, source, estimate) - target).square() * valid
        of_fits = errors.mean(dim=(2, 3, 4)).sum(1) / kind.crops
        gradients = torch.autograd.grad(of_fits.sum(), leaves)
        flat = torch.cat([gradient.flatten(1) for gradient in gradients], dim=1).float()
        return flat, of_fits.detach(), valid.mean(dim=(2, 3, 4)).sum(1) / kind.crops

    def _look(self) -> None:
        """Tell the jobs how far they are, and let go of those that have ended."""
        due = [place for place, job in self._jobs.items() if job.taken % READ == 0 or job.taken == len(job.rates)]
        if due:
            sums, finite = self._losses.tolist(), self._weights.isfinite().all(dim=1).tolist()
            self._losses[due] = 0
        for place, job in list(self._jobs.items()):
            loss, error = None, None
            if place in due:
                loss = job.loss = sums[place] / ((job.taken - 1) % READ + 1) if finite[place] else math.nan
            diverged = loss is not None and not math.isfinite(loss)
            if (loss is not None or job.taken % 5 == 0) and not diverged:
                try:
                    job.on_step(Step(job.taken, len(job.rates), loss))
                except BaseException as raised:  # noqa: BLE001 - its own thread raises it
                    error = raised
            if diverged or error is not None or job.taken == len(job.rates):
                job.weights.copy_(self._weights[place])
                del self._jobs[place]
                self._end(job, error)

    def _end(self, job: Job, error: BaseException | None) -> None:
        with self._changed:
            job.error, job.ended = error, True
            self._changed.notify_all()


def _own(error: BaseException) -> BaseException:
    """An error of the same kind for one of several threads: raised in all, the same one would keep the frames of all."""
    try:
        found = type(error)(*error.args)
    except Exception:  # noqa: BLE001 - some take other arguments
        found = RuntimeError(str(error))
    found.__cause__ = error
    return found


def run(kind: Kind, job: Job) -> float:
    """Run a job of this kind, together with what other threads run; see `Batch.run`."""
    with _lock:
        batch = _batches.get(kind)
        if batch is None:
            batch = _batches[kind] = Batch(kind)
    return batch.run(job)


_batches: dict[Kind, Batch] = {}
_lock = threading.Lock()
