"""Failed images by reason: for the log, the state of the run and the page of the Prefect UI."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from textwrap import shorten

from tasks.table import FAILED, Row

_NAMES = 3


@dataclass(frozen=True)
class Reason:
    """What several images failed by, and which; the sentence is that of the first."""

    kind: str  # the error's type
    sentence: str
    sources: tuple[str, ...]

    def __str__(self) -> str:
        named = ", ".join(self.sources[:_NAMES])
        more = len(self.sources) - _NAMES
        return f"{named}{f' and {more} more' if more > 0 else ''} ({shorten(self.sentence, 200, placeholder=' …')})"


def by_reason(rows: Iterable[Row]) -> list[Reason]:
    """The failed ones of the rows by reason, the commonest first; sentences that differ in figures and paths alone are one."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row["status"] == FAILED:
            alike = re.sub(r"\S*" + re.escape(str(row["source"])), "", _sentence(row))
            groups.setdefault((str(row["error_type"]), re.sub(r"\d[\d,.]*", "#", alike)), []).append(row)
    reasons = [
        Reason(kind, _sentence(group[0]), tuple(str(row["source"]) for row in group))
        for (kind, _), group in groups.items()
    ]
    return sorted(reasons, key=lambda reason: -len(reason.sources))


def _sentence(row: Row) -> str:
    return " ".join(str(row["error"]).split())


def told(reasons: list[Reason], *, most: int = 3) -> str:
    """The commonest reasons in one line, each with its images by name."""
    parts = [str(reason) for reason in reasons[:most]]
    rest = sum(len(reason.sources) for reason in reasons[most:])
    if rest:
        parts.append(f"{rest} for other reasons")
    return "; ".join(parts)
