"""`perdure serve` that kills itself with SIGKILL at one edge of one store operation, and notes which edges it has met.

Arguments: edge, operation, how many times it comes until the kill (0: never), file for the notes. Settings come from
the environment. The notes are one line for each edge and operation, and survive the kill.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from perdure.app import Running, serve
from perdure.cli import set_up_log
from perdure.settings import read_settings
from perdure.store.db import Edge


class Tripwire:
    """Called on the writer's thread at each edge."""

    def __init__(self, edge: str, operation: str, times: int, notes: Path) -> None:
        self._at = (edge, operation)
        self._left = times
        self._notes = os.open(notes, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._noted: set[tuple[str, str]] = set()

    def __call__(self, edge: Edge, operation: str) -> None:
        here = (edge, operation)
        if here not in self._noted:
            self._noted.add(here)
            os.write(self._notes, f"{edge} {operation}\n".encode())
        if here == self._at:
            self._left -= 1
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGKILL)


def announce(running: Running) -> None:
    print(f"OPENAI_BASE_URL={running.url}", flush=True)  # noqa: T201  # whoever started us reads it


def main() -> None:
    edge, operation, times, notes = sys.argv[1:]
    settings = read_settings()
    set_up_log(settings.log_level)
    serve(settings, announce, Tripwire(edge, operation, int(times), Path(notes)))


if __name__ == "__main__":
    main()
