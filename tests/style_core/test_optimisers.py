import itertools

import pytest
import torch
from torch import Tensor

from style_core.objective import Evaluation
from style_core.optimisers import HISTORY_BYTES, AdamState, adam, lbfgs

SIZE = (1, 3, 8, 9)


class Bowl:
    """A badly scaled quadratic, with its lowest point partly outside [0, 1]."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(2)
        self.scales = torch.logspace(0, 3, 3 * 8 * 9).view(SIZE)[..., torch.randperm(9, generator=generator)]
        self.lowest = torch.rand(SIZE, generator=generator) * 1.6 - 0.3
        self.seen: list[Tensor] = []

    def __call__(self, x: Tensor) -> Evaluation:
        self.seen.append(x)
        off = x - self.lowest
        return Evaluation(x, float((self.scales * off.square()).sum()), 0.0, 2 * self.scales * off)

    @property
    def best(self) -> float:
        return self(self.lowest.clamp(0, 1)).loss


def test_lbfgs_finds_the_lowest_point_within_the_bounds() -> None:
    bowl = Bowl()
    losses: list[float] = []
    found = lbfgs(bowl, torch.full(SIZE, 0.5), 200, lambda _, point: losses.append(point.loss))
    assert found.loss == pytest.approx(bowl.best, rel=1e-3)
    assert all(after <= before for before, after in itertools.pairwise(losses))
    assert all(float(x.min()) >= 0 and float(x.max()) <= 1 for x in bowl.seen[:-1])
    assert len(losses) <= 200


def test_lbfgs_is_far_better_with_a_history_than_without() -> None:
    bowl = Bowl()
    with_, without = (lbfgs(bowl, torch.full(SIZE, 0.5), 60, lambda *_: None, n).loss for n in (20, 3))
    assert with_ - bowl.best < 0.5 * (without - bowl.best)


def test_lbfgs_keeps_what_memory_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    bowl = Bowl()
    free = lbfgs(bowl, torch.full(SIZE, 0.5), 40, lambda *_: None, 3).loss
    assert HISTORY_BYTES == 2**31
    monkeypatch.setattr("style_core.optimisers.HISTORY_BYTES", 1)
    assert lbfgs(bowl, torch.full(SIZE, 0.5), 40, lambda *_: None, 20).loss == free


def test_lbfgs_stops_where_nothing_can_be_gained() -> None:
    bowl = Bowl()
    steps: list[int] = []
    lbfgs(bowl, bowl.lowest.clamp(0, 1), 50, lambda step, _: steps.append(step))
    assert steps == [1]


def test_adam_is_torchs_with_averaged_iterates() -> None:
    bowl = Bowl()
    bowl.lowest = bowl.lowest.clamp(0.3, 0.7)  # away from the bounds, which torch does not know
    x = torch.full(SIZE, 0.5, requires_grad=True)
    optimizer = torch.optim.Adam([x], lr=0.02, betas=(0.9, 0.99))
    average = torch.zeros(SIZE)
    for _ in range(30):
        x.grad = bowl(x.detach()).gradient
        optimizer.step()
        average = 0.99 * average + 0.01 * x.detach()
    state, found = adam(bowl, AdamState.start(torch.full(SIZE, 0.5)), 30, lambda *_: None)
    torch.testing.assert_close(state.image, x.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found, average / (1 - 0.99**30), rtol=1e-4, atol=1e-5)


def test_adam_goes_on_where_it_was() -> None:
    bowl = Bowl()
    whole, _ = adam(bowl, AdamState.start(torch.full(SIZE, 0.5)), 20, lambda *_: None)
    half, _ = adam(bowl, AdamState.start(torch.full(SIZE, 0.5)), 10, lambda *_: None)
    again, _ = adam(bowl, half.resized(SIZE[2:]), 10, lambda *_: None)
    assert torch.equal(whole.image, again.image)


def test_adams_state_can_be_enlarged() -> None:
    state, _ = adam(Bowl(), AdamState.start(torch.full(SIZE, 0.5)), 10, lambda *_: None)
    larger = state.resized((11, 13))
    assert larger.image.shape == larger.first.shape == larger.second.shape == (1, 3, 11, 13)
    assert float(larger.second.min()) >= 0
    assert 0 <= float(larger.image.min()) <= float(larger.image.max()) <= 1
    assert larger.steps == 10
    assert float(larger.first.mean()) == pytest.approx(float(state.first.mean()), rel=0.2, abs=1)
