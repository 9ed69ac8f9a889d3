"""Which images a run has in work, for later runs to know over which it died.

While an image is in work there is an empty file in the run's folder, named by a digest of its name and content. It goes when
the work on the image ends, however it ends: only the death of the process leaves it there.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from tasks import ledger
from tasks.settings import Settings
from tasks.table import text
from tasks.work import Source

WORKER_DIED = "WorkerDied"
"""The error of an image over which worker processes died: it says nothing against another death."""

MOST_DEATHS = 2
"""Runs may die over an image for other reasons; what so many died over is worked on where it takes no run with it."""

_NOTE = "in-work-"


@contextmanager
def noted(source: Source, settings: Settings) -> Iterator[None]:
    """While inside, the image is in work."""
    note = settings.run_folder / f"{_NOTE}{_key(text(source.name), source.sha256)}"
    with suppress(OSError):  # a full disk is for the chunks to find
        note.touch()
    try:
        yield
    finally:
        with suppress(OSError):
            note.unlink(missing_ok=True)


def died_over(output: Path, sources: Sequence[Source]) -> frozenset[Source]:
    """Those of the sources over which ``MOST_DEATHS`` runs died, or more, and that have got no answer since.

    Notes that a later row answers are removed: no later run has to read the ledgers for them.
    """
    notes: defaultdict[str, list[Path]] = defaultdict(list)
    left = {
        folder: [note.name.removeprefix(_NOTE) for note in folder.glob(f"{_NOTE}*")]
        for folder in ledger.run_folders(output)
    }
    if sum(map(bool, left.values())) < MOST_DEATHS:
        return frozenset()  # no ledger has to be read
    for folder, keys in left.items():
        for key in keys:
            notes[key].append(folder / f"{_NOTE}{key}")
        for row in ledger.rows_of(folder):
            if row.get("error_type") != WORKER_DIED:
                for note in notes.pop(_key(row["source"], str(row.get("source_sha256"))), ()):
                    with suppress(OSError):
                        note.unlink()
    return frozenset(one for one in sources if len(notes[_key(text(one.name), one.sha256)]) >= MOST_DEATHS)


def _key(name: str, sha256: str) -> str:
    return hashlib.sha256(f"{name}\0{sha256}".encode()).hexdigest()
