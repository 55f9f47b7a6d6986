"""What the kinds share: starting a box's process, remembering it on disk, and knowing all that are there.

Rule: a box is written down before it is used, so that a server that was killed finds it again (`left_behind.py`).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from perdure.sandbox.base import Limits, SandboxFailure
from perdure.sandbox.environment import Environment
from perdure.sandbox.left_behind import Records
from perdure.sandbox.process import ProcessSession

SomeSession = TypeVar("SomeSession", bound=ProcessSession)
STARTERS = {"SYSTEMROOT": os.environ["SYSTEMROOT"]} if os.name == "nt" else {}
"""What a process is started with. Windows starts none without its one."""
OWN_PATH = "/usr/local/bin:/usr/bin:/bin"


def variables(environment: Environment, data: str, scratch: str) -> dict[str, str]:
    """Return the variables of a kernel: nothing of the server's is among them."""
    return {
        "PATH": f"{environment.python.parent}:{OWN_PATH}",
        "HOME": data,
        "TMPDIR": scratch,
        "LANG": "C.UTF-8",
        "MPLBACKEND": "agg",
        "MPLCONFIGDIR": f"{scratch}/.matplotlib",
        # One thread: each would take its share of the box's processes, memory and of the machine.
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONNOUSERSITE": "1",
    }


def others_processes(uid: int) -> int:
    """Return how many processes and threads this user has already: the limit counts them in, unless `uid` is new."""
    if uid:
        return 0
    me, count = os.getuid(), 0
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if entry.stat().st_uid == me:
                    count += sum(1 for _ in (entry / "task").iterdir())
            except OSError:  # it ended between two looks
                continue
    return count


class Boxes:
    """All boxes of one kind that this server started."""

    def __init__(self, records: Records) -> None:
        self.records = records
        self._open: set[ProcessSession] = set()

    async def open(
        self,
        kind: str,
        command: Sequence[str],
        handed: Sequence[int],
        limits: Limits,
        boot: bytes,
        *,
        folder: Path | None = None,
        gone: Callable[[], None] | None = None,
        make: type[SomeSession],
    ) -> SomeSession:
        """Start a box's process and wait until it is ready.

        `make` is the kind's session; `folder` lies outside and goes with the box; `gone` is called when it is over.
        Raises SandboxFailure.
        """
        record = self.records.write(0, folder)
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                pass_fds=tuple(handed),
                env=STARTERS,  # for what starts the box, too: process 1 would show its variables
                cwd="/",
            )
        except OSError as error:
            self.records.clear(record, folder)
            raise SandboxFailure(f"the {kind} sandbox can not be started: {command[0]}: {error.strerror}") from None
        self.records.write(process.pid, folder, record)

        def over() -> None:
            self._open.discard(session)
            self.records.clear(record, folder)
            if gone is not None:
                gone()

        session = make(kind, process, limits, over)
        self._open.add(session)
        await session.begin(boot)
        return session

    async def close(self) -> None:
        """End them all."""
        await asyncio.gather(*(session.stop() for session in list(self._open)))
