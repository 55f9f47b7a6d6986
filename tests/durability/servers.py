"""Servers that get killed and start again: on the same data, at the same address."""

from __future__ import annotations

import random
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from perdure.store.db import Edge
from tests.durability.load import write_script
from tests.server import ServerProcess

EDGE_SERVER = Path(__file__).with_name("edge_server.py")
SETTINGS: dict[str, Any] = {
    "poll_hold_seconds": 0,
    "lease_seconds": 1,
    "keepalive_seconds": 2,
    "shutdown_grace_seconds": 0.1,
}


class At(NamedTuple):
    """Where a server is to kill itself: at an edge of an operation, when it comes for the nth time."""

    edge: Edge
    operation: str
    times: int = 1


class EdgeServer(ServerProcess):
    """A server that kills itself, possibly while it starts; it notes the edges that it meets."""

    def __init__(self, data: Path, at: At | None, notes: Path, **settings: Any) -> None:
        edge, operation, times = at or ("-", "-", 0)
        self.program = (str(EDGE_SERVER), edge, operation, str(times), str(notes))
        self._port = settings["port"]
        super().__init__(data, **settings)

    def _wait_for_url(self) -> str:
        try:
            return super()._wait_for_url()
        except AssertionError:
            if self.process.wait(30) != -signal.SIGKILL:
                raise
            return f"http://127.0.0.1:{self._port}/v1"

    def killed_itself(self, seconds: float) -> bool:
        """Wait for it."""
        try:
            ended = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        assert ended == -signal.SIGKILL, self.log.read_text()[-2000:]
        self._reap()
        return True


def free_port() -> int:
    """Return a port below those that outgoing connections take.

    A client that tries again and again to reach a dead server at such a port is one day given this very port as its
    own, and is connected to itself.
    """
    while True:
        port = random.randrange(20000, 32000)  # noqa: S311  # no secret
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


class Servers:
    """One server after the other."""

    def __init__(self, folder: Path, name: str = "data", **settings: Any) -> None:
        self.data = folder / name
        self.notes = folder / f"{name}.edges"
        self._settings = {"script": write_script(folder), "port": free_port(), **SETTINGS, **settings}
        self.now = ServerProcess(self.data, **self._settings)

    @property
    def url(self) -> str:
        return self.now.url

    def kill(self, draining_seconds: float | None = None) -> None:
        """Kill and start again; with a time, it is told to end first and killed while it does."""
        if draining_seconds is not None:
            self.now.process.terminate()
            time.sleep(draining_seconds)
        self.now.kill()
        self.start()

    def start(self, **settings: Any) -> None:
        """Start, the one before being dead."""
        self.now = ServerProcess(self.data, **{**self._settings, **settings})

    def start_at_edge(self, at: At | None, **settings: Any) -> EdgeServer:
        """Start one that kills itself, or only notes the edges; it may be dead already."""
        self.now = server = EdgeServer(self.data, at, self.notes, **{**self._settings, **settings})
        return server

    def edges_met(self) -> set[tuple[str, str]]:
        lines = self.notes.read_text().splitlines()
        return {(edge, operation) for edge, _, operation in (line.partition(" ") for line in lines)}


@contextmanager
def servers(folder: Path, name: str = "data", **settings: Any) -> Iterator[Servers]:
    one = Servers(folder, name, **settings)
    try:
        yield one
    finally:
        one.now.stop()
