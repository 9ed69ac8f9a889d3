"""Requests to the Prefect server as Prefect's own client makes them: with its credentials, certificates, proxy and headers.

Without its retries: it waits 2 s and more whenever the server answers that it is busy, whatever its number of retries.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
from httpx import codes

from tasks.faults import sentence

_NOBODY_THERE = frozenset({codes.BAD_GATEWAY, codes.SERVICE_UNAVAILABLE, codes.GATEWAY_TIMEOUT})
"""What a proxy says of a server that is gone."""


@contextmanager
def http_client(url: str) -> Iterator[Any]:
    """Prefect's HTTP client for the server at this address."""
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: url}), get_client(sync_client=True) as made:
        yield made._client


def send(asking: Any, method: str, path: str, body: dict[str, Any] | None = None, **options: Any) -> httpx.Response:
    """One request by such a client, and its answer, whatever that is."""
    asked = asking.build_request(method, path, json=body, **options)
    if asking.enable_csrf_support and method != "GET":
        asking._add_csrf_headers(request=asked)
    return httpx.Client.send(asking, asked)  # the client's own way to send is what sleeps


def no_answer(asking: Any, seconds: float) -> str | None:
    """Why such a client has no answer from its server within so many seconds; None where it has one."""
    try:
        answer = send(asking, "GET", "/health", timeout=seconds)
    except httpx.TransportError as error:
        return shown(sentence(error))
    except httpx.HTTPError:
        return None  # an answer, if not one that can be read
    return f"it answers {answer.status_code}" if answer.status_code in _NOBODY_THERE else None


def shown(words: str) -> str:
    """Words, or an address, as they may be shown: no address in them names a user or a password."""
    return re.sub(r"(?<=://)[^/\s]*@", "", words)
