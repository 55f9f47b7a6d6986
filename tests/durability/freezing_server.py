"""`perdure serve` that stops itself with SIGSTOP once, at an edge of a store operation given as `edge operation`."""

from __future__ import annotations

import os
import signal
import sys

from perdure.app import Running, serve
from perdure.cli import set_up_log
from perdure.settings import read_settings
from perdure.store.db import Edge


class Freezer:
    """Called on the writer's thread at each edge."""

    def __init__(self, edge: str, operation: str) -> None:
        self._at: tuple[str, str] | None = (edge, operation)

    def __call__(self, edge: Edge, operation: str) -> None:
        if (edge, operation) == self._at:
            self._at = None
            os.kill(os.getpid(), signal.SIGSTOP)


def announce(running: Running) -> None:
    print(f"OPENAI_BASE_URL={running.url}", flush=True)  # noqa: T201  # whoever started us reads it


def main() -> None:
    settings = read_settings()
    set_up_log(settings.log_level)
    serve(settings, announce, Freezer(*sys.argv[1:]))


if __name__ == "__main__":
    main()
