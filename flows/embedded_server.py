"""The process of a Prefect server of ours: serves on a socket it inherits until its standard input closes."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from typing import Any

_LOG_BYTES = 10_000_000
_LOOK_SECONDS = 0.5


def main() -> None:
    """Serve the Prefect API on the inherited listening socket whose descriptor is the first argument.

    The second one is the name of the file to which the standard output and the standard error lead, if it has a name.
    """
    threading.Thread(target=keep_short, args=(sys.argv[2],), daemon=True).start()
    import uvicorn

    from flows.garbage import collect_beside

    listening = socket.socket(fileno=int(sys.argv[1]))
    server = uvicorn.Server(uvicorn.Config(_app(), log_level="error", lifespan="on", timeout_graceful_shutdown=3))
    collect_beside()

    def end_with_parent() -> None:
        while os.read(0, 1024):
            pass
        server.should_exit = True
        # A server that is busy shutting down for longer than this has nothing left that anybody waits for.
        threading.Event().wait(15)
        os._exit(0)

    threading.Thread(target=end_with_parent, daemon=True).start()
    server.run(sockets=[listening])


def keep_short(name: str) -> None:
    """Watch the file of what this process says: once it is long it gets ``.1`` after its name, and a new one is begun.

    A busy database makes a server say megabytes in minutes. A file without a name begins anew.
    """
    while True:
        time.sleep(_LOOK_SECONDS)
        if os.fstat(1).st_size <= _LOG_BYTES:
            continue
        try:
            if not name:
                raise FileNotFoundError
            os.replace(name, f"{name}.1")  # noqa: PTH105 - of a process that starts with little
            new = os.open(name, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        except OSError:
            os.ftruncate(1, 0)
            continue
        for number in (1, 2):
            os.dup2(new, number)
        os.close(new)


def _app() -> Any:
    """Prefect's application; before the one of ``denoise server`` starts, the counts of its slots are set right."""
    from prefect.server.api.server import create_app

    from flows import lease_counts
    from flows.recorder import take_apart_what_is_refused

    take_apart_what_is_refused()
    app = create_app()
    if "PREFECT__SERVER_EPHEMERAL" in os.environ:  # embedded in a run: it has no limits
        return app

    async def set_right_first(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await lease_counts.set_right()
        await app(scope, receive, send)

    return set_right_first


if __name__ == "__main__":
    main()
