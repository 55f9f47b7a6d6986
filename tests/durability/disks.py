"""Disks that can be full: one of four megabytes in a namespace of its own, and one that a limit on file sizes makes.

The first needs the right to mount in a new user namespace, which not every machine gives; the second works everywhere
and refuses writes with another error. What can be told of each disk is the same.
"""

from __future__ import annotations

import os
import resource
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.server import ServerProcess

SIZE_BYTES = 4 << 20
BALLAST = "ballast"


class Disk(ABC):
    """`data` is the data folder as the server names it, `seen` as this process reaches it. Ends its servers."""

    before: Sequence[str] = ()

    def __init__(self, data: Path, seen: Path) -> None:
        self.data = data
        self.seen = seen
        self._servers: list[ServerProcess] = []

    def serve(self, **settings: Any) -> ServerProcess:
        kind = type("OnDisk", (ServerProcess,), {"before": self.before})
        server: ServerProcess = kind(self.data, **settings)
        self._servers.append(server)
        return server

    @property
    def log(self) -> Path:
        return self._servers[0].log

    def end(self) -> None:
        for server in self._servers:
            server.stop()

    @abstractmethod
    def fill(self, server: ServerProcess, left_bytes: int) -> None:
        """Leave so much room."""

    @abstractmethod
    def free(self, server: ServerProcess) -> None:
        """Make room again."""


class LimitedDisk(Disk):
    """A limit on the size of the server's files: the write-ahead log can not grow any more."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / "data", folder / "data")

    def fill(self, server: ServerProcess, left_bytes: int) -> None:
        size = (self.data / "perdure.db-wal").stat().st_size
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (size + left_bytes, resource.RLIM_INFINITY))

    def free(self, server: ServerProcess) -> None:
        if server.process.poll() is None:
            unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
            resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, unlimited)


class SmallDisk(Disk):
    """A tmpfs of four megabytes that only servers of this namespace see."""

    def __init__(self, keeper: subprocess.Popen[str], mount: Path) -> None:
        self.before = ("nsenter", "-t", str(keeper.pid), "-U", "-m", "--preserve-credentials", "--")
        self._mount = Path(f"/proc/{keeper.pid}/root{mount}")
        super().__init__(mount / "data", self._mount / "data")

    def fill(self, server: ServerProcess, left_bytes: int) -> None:
        del server
        state = os.statvfs(self._mount)
        with (self._mount / BALLAST).open("ab") as ballast:
            ballast.write(bytes(max(state.f_bavail * state.f_bsize - left_bytes, 0)))

    def free(self, server: ServerProcess) -> None:
        del server
        (self._mount / BALLAST).unlink()

    def command(self, *words: str) -> list[str]:
        """Return a command that runs in the namespace."""
        return [*self.before, *words]


def may_mount() -> bool:
    """Say whether this machine lets us mount in a namespace of our own."""
    try:
        tried = subprocess.run(["unshare", "-Urm", "mount", "-t", "tmpfs", "none", "/tmp"], check=False)  # noqa: S108
    except FileNotFoundError:
        return False
    return tried.returncode == 0


@contextmanager
def small_disk(folder: Path) -> Iterator[SmallDisk]:
    mount = folder / "disk"
    mount.mkdir()
    script = f'mount -t tmpfs -o size={SIZE_BYTES} none "$0" && echo mounted && exec cat'
    keeper = subprocess.Popen(
        ["unshare", "-Urm", "sh", "-c", script, str(mount)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert keeper.stdin is not None
    assert keeper.stdout is not None
    try:
        assert keeper.stdout.readline() == "mounted\n"
        disk = SmallDisk(keeper, mount)
        try:
            yield disk
        finally:
            disk.end()
    finally:
        keeper.stdin.close()
        keeper.wait(30)
        keeper.stdout.close()
