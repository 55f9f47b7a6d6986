"""The HTTP server, as Perdure sets it up: for the server itself, and for the floor that `bench/` measures it against.

Rule: it imports nothing of Perdure, so that the floor has nothing of it either.
"""

from __future__ import annotations

from granian.constants import Interfaces
from granian.server.embed import Server
from starlette.types import ASGIApp

BACKLOG = 1024
MOST_CONNECTIONS = 65_536
"""Open at once. By itself granian takes 128, idle ones and open streams among them, and lets all others wait."""


def http_server(app: ASGIApp, address: str, port: int) -> Server:
    """Return granian, for the event loop that it is made in; `serve()` serves until `stop()`."""
    return Server(
        app,
        address=address,
        port=port,
        interface=Interfaces.ASGINL,
        backlog=BACKLOG,
        backpressure=MOST_CONNECTIONS,
        websockets=False,
        log_enabled=False,
    )
