"""A kind of noise and its levels, as they are written: `gauss:25`, `poisson-gauss:30/5`, `bernoulli:0-0.95`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from denoise_core.noise.kinds import KINDS, Parameter


class Level(NamedTuple):
    """A level, low = high, or the range that each image's level is drawn from."""

    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.low:g}" if self.low == self.high else f"{self.low:g}-{self.high:g}"

    def drawn(self, rng: np.random.Generator, *, whole: bool) -> float:
        """Uniform in (low, high], or over the whole numbers from low to high; of six digits, as it is written."""
        if whole:
            return float(rng.integers(int(self.low), int(self.high), endpoint=True))
        return _six_digits(self.high - (self.high - self.low) * rng.random())


@dataclass(frozen=True)
class Noise:
    """A kind of `KINDS` and its levels, in the order of the kind's parameters; `none` has no level."""

    kind: str
    levels: tuple[Level, ...] = ()

    def __str__(self) -> str:
        """As `parse` reads it."""
        return f"{self.kind}:{'/'.join(map(str, self.levels))}" if self.levels else self.kind

    def drawn(self, rng: np.random.Generator) -> Noise:
        """The noise of one image: every range replaced by a level from it.

        Levels have random numbers of their own, spawned from `rng`, which is left as it is: the noise that is drawn next
        is the same whether its level came from a range or was written.
        """
        if all(level.low == level.high for level in self.levels):
            return self
        own = rng.spawn(1)[0]
        levels = []
        for level, parameter in zip(self.levels, KINDS[self.kind].parameters, strict=True):
            value = level.low if level.low == level.high else level.drawn(own, whole=parameter.whole)
            levels.append(Level(value, value))
        return Noise(self.kind, tuple(levels))


def parse(text: str) -> Noise:
    """Read a kind and its level, several with slashes between; a level is a number, or a range such as `5-50`.

    Levels have six significant digits; more are rounded.

    Raises
    ------
    ValueError
        For an unknown kind, naming all of them with an example of each; for a level out of bounds, with the bounds.
    """
    name, colon, written = (part.strip() for part in text.partition(":"))
    kind = KINDS.get(name)
    if kind is None or (colon and not kind.parameters):
        raise ValueError(
            f"Unknown noise {text!r}: use {', '.join(str(k) for n, k in KINDS.items() if n != 'none')}, or none."
        )
    parts = written.split("/") if colon else []
    levels = tuple(_level(*pair) for pair in zip(parts, kind.parameters, strict=False))
    if len(parts) != len(kind.parameters) or None in levels:
        wanted = ", then / and ".join(map(str, kind.parameters))
        raise ValueError(
            f"Noise {text!r}: {name} takes {wanted}, as {kind.example}, or a range, as {kind.range_example}."
        )
    return Noise(name, tuple(level for level in levels if level is not None))


def _level(written: str, parameter: Parameter) -> Level | None:
    """None for what is no level or range within the bounds."""
    ends = re.split(r"(?<=[^eE\s])\s*-\s*", written.strip(), maxsplit=1)
    if not written.isascii() or "_" in written:  # float takes 2_5 and other scripts' digits for numbers
        return None
    try:
        values = [_six_digits(float(end)) for end in ends]
    except ValueError:
        return None
    level = Level(values[0], values[-1])
    a_range_of_one = len(values) == 2 and level.low == level.high
    a_zero = len(values) == 1 and level.low == 0
    return level if parameter.allows(*level) and not a_range_of_one and not a_zero else None


def _six_digits(value: float) -> float:
    return float(f"{value:g}")
