"""The port: what a kind of sandbox offers, and what comes out of it.

    Sandbox   a kind, set up for this machine: starts sessions, and checks its own walls from inside
    Session   one box with a kernel that keeps its state: runs code, takes and gives files

Failures:

    SandboxFailure   a box can not be had; the text says what to do about it
    SessionLost      this box is gone, with all that was in it; the text says so to the model
    FileRefused      this file can not be put or had; the text says why

Rule: a call that met a limit is no failure. `Result.words` tells the model what happened and what is left.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Literal, Protocol, TypeAlias

import msgspec

from perdure.settings import Settings

DATA = "/mnt/data"
Outcome: TypeAlias = Literal[
    "ok", "error", "interrupted", "timeout", "cpu", "memory", "disk", "processes", "output", "died"
]


Depth: TypeAlias = Literal["brief", "walls", "limits"]
"""How much `self_check` tries: what stands for the rest, every wall, every wall and every limit."""


class SandboxFailure(Exception):
    """No box can be had. The text is for the operator, and says what to do."""


class SessionLost(Exception):
    """The box is gone: variables and files with it. The text is for the model."""


class FileRefused(Exception):
    """A file can not be put or had: its name, its kind, or no room. The text says why."""


class Limits(msgspec.Struct, frozen=True):
    """What a session may use: processor, wall time and output in each call, the rest at any time."""

    memory_bytes: int = 1024**3
    cpu_seconds: float = 120.0
    wall_seconds: float = 60.0
    processes: int = 64
    disk_bytes: int = 256 * 1024**2
    output_bytes: int = 256 * 1024
    file_bytes: int = 128 * 1024**2
    files: int = 50_000

    @classmethod
    def of(cls, settings: Settings) -> Limits:
        """Return the limits that the settings set."""
        return cls(
            memory_bytes=settings.code_memory_mib * 1024**2,
            cpu_seconds=settings.code_cpu_seconds,
            wall_seconds=settings.code_wall_seconds,
            processes=settings.code_processes,
            disk_bytes=settings.code_disk_mib * 1024**2,
            output_bytes=settings.code_output_kib * 1024,
            file_bytes=settings.code_file_mib * 1024**2,
        )


class Logs(msgspec.Struct, frozen=True, tag="logs"):
    """Text: prints, the last expression's value, a traceback; a piece of it, as it came."""

    text: str


class Image(msgspec.Struct, frozen=True, tag="image"):
    """A figure or another picture that was shown."""

    data: bytes
    media_type: str = "image/png"


Output: TypeAlias = Logs | Image
Tell: TypeAlias = Callable[[Output], Awaitable[None]]


class Result(msgspec.Struct, frozen=True):
    """How a call ended. `words` is what the model is told beside the outputs; '' if they say it all.

    `state_kept` is False when the kernel had to be started anew: variables are gone, files are not.
    """

    outcome: Outcome
    words: str = ""
    state_kept: bool = True


class FileInfo(msgspec.Struct, frozen=True):
    """A regular file below /mnt/data. A change of either number means that it was written to."""

    bytes: int
    changed_ns: int


class Session(Protocol):
    """One box. Calls must not overlap: `sessions.py` sees to it. Every method may raise SessionLost."""

    @property
    def packages(self) -> list[str]:
        """Which of the packages that models like to use are there, by import name."""
        ...

    @property
    def alive(self) -> bool:
        """Whether the box is still there."""
        ...

    async def run(self, code: str, tell: Tell) -> Result:
        """Run a cell; outputs are told while it runs, in their order.

        Cancelling this ends the session. To end a call and keep the session, use `interrupt`.
        """
        ...

    async def put(self, name: str, content: Path | bytes) -> None:
        """Lay a file into /mnt/data; `/` in its name makes folders. Raises FileRefused, also for a full disk."""
        ...

    def get(self, name: str) -> AsyncIterator[bytes]:
        """Give a regular file's bytes in pieces. Raises FileRefused. Breaking off in the middle ends the session."""
        ...

    async def files(self) -> dict[str, FileInfo]:
        """Return the regular files below /mnt/data by relative name; no symlink is followed."""
        ...

    async def interrupt(self) -> None:
        """Ask a call that runs to end; its `run` then returns."""
        ...

    async def stop(self) -> None:
        """End the box and everything in it; returns when it is gone. Never raises."""
        ...


class WallCheck(msgspec.Struct, frozen=True):
    """One wall, tried from inside."""

    wall: str
    holds: bool
    seen: str


class CheckReport(msgspec.Struct, frozen=True):
    """What `self_check` saw."""

    kind: str
    walls: list[WallCheck]

    @property
    def holds(self) -> bool:
        """Whether every wall holds."""
        return all(wall.holds for wall in self.walls)


class Sandbox(Protocol):
    """A kind of sandbox on this machine."""

    name: str
    about: str
    """What it can and can not do here, in a sentence for the model and the operator."""

    async def start(self, limits: Limits, *, preload: bool = False) -> Session:
        """Start a box; `preload` imports what most code begins with. Raises SandboxFailure."""
        ...

    async def self_check(self, depth: Depth = "walls") -> CheckReport:
        """Try the walls from inside. Raises SandboxFailure if no box can be had."""
        ...

    async def close(self) -> None:
        """End every box of this kind that is still there."""
        ...
