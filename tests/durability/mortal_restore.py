"""`perdure restore` that kills itself with SIGKILL before one of the changes that it makes to the data folder.

Arguments: the change from which they are counted (`-`: the first), which one then (0: none), file for the notes, and
those of the command. The notes have a line for each change. Earlier ones are made side by side: their number varies.
Python itself tells of what is made, renamed, removed or opened for writing (audit events), so nothing is patched.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from perdure import backup, cli

CHANGES = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "sqlite3.connect"}
WRITES = os.O_WRONLY | os.O_RDWR


class Tripwire:
    """Called at each audit event."""

    def __init__(self, first: str, at: int, notes: Path, data: Path) -> None:
        self._first = first
        self._left = at
        self._notes = os.open(notes, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._data = str(data)

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        writes = event == "open" and isinstance(args[2], int) and args[2] & WRITES
        if not (writes or event in CHANGES) or not str(args[0]).startswith(self._data):
            return
        change = f"{event} {str(args[0])[len(self._data) + 1 :]}"
        os.write(self._notes, f"{change}\n".encode())
        if self._first in {"-", change}:
            self._first = "-"
            self._left -= 1
        if self._left == 0 and self._first == "-":
            os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    first, at, notes, *command = sys.argv[1:]
    assert backup.STAGING_FOLDER, "what the command imports late is here before the first change"
    sys.argv = ["perdure", *command]
    sys.addaudithook(Tripwire(first, int(at), Path(notes), Path(os.environ["PERDURE_DATA"])))
    cli.main()


if __name__ == "__main__":
    main()
