"""What becomes of a run whose Prefect server goes away: Prefect's calls would each wait for a minute, one after another."""

from __future__ import annotations

import functools
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tasks.background import beside
from tasks.prefect_api import http_client, no_answer, shown

LOST_SECONDS = 180.0
_TOLD_SECONDS = 20.0
_POLL_SECONDS = 5.0
ENDED = 1


@contextmanager
def watched(url: str) -> Iterator[None]:
    """While inside, a server that has not answered for `LOST_SECONDS` ends the process, with a sentence.

    Nothing is lost by that: what is done is in the ledger, and the same command goes on. Waiting for a server that
    restarts is Prefect's business.
    """
    with beside(functools.partial(_watch, url), "server-watch"):
        yield


def _watch(url: str, leaving: threading.Event) -> None:
    which = f"the Prefect server {shown(url)}"
    with http_client(url) as asking:
        answered, told = time.monotonic(), False
        while not leaving.wait(_POLL_SECONDS):
            problem = no_answer(asking, _POLL_SECONDS)
            if problem is None:
                answered, told = time.monotonic(), False
                continue
            silent = time.monotonic() - answered
            if silent > LOST_SECONDS and not leaving.is_set():
                _say(f"{which} is lost; the same command goes on where this one stopped")
                os._exit(ENDED)
            if silent > _TOLD_SECONDS and not told:
                told = True
                _say(f"{which} does not answer; waiting for it {LOST_SECONDS:.0f} s at most ({problem})")


def _say(sentence: str) -> None:
    os.write(2, f"denoise: {sentence}\n".encode())
