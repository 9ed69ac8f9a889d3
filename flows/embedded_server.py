"""The process of the embedded Prefect server: serves on a socket it inherits until its standard input closes."""

from __future__ import annotations

import os
import socket
import sys
import threading


def main() -> None:
    """Serve the Prefect API on the inherited listening socket whose descriptor is the first argument."""
    import uvicorn
    from prefect.server.api.server import create_app

    listening = socket.socket(fileno=int(sys.argv[1]))
    server = uvicorn.Server(uvicorn.Config(create_app(), log_level="error", lifespan="on", timeout_graceful_shutdown=3))

    def end_with_parent() -> None:
        while os.read(0, 1024):
            pass
        server.should_exit = True
        # A server that is busy shutting down for longer than this has nothing left that anybody waits for.
        threading.Event().wait(15)
        os._exit(0)

    threading.Thread(target=end_with_parent, daemon=True).start()
    server.run(sockets=[listening])


if __name__ == "__main__":
    main()
