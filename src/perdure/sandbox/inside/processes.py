"""The processes of a session as its warden sees them: how many, how much memory and time, and their end.

In a box with a process namespace everything but the warden is the session's. Without one, the session is what
descends from the warden: orphans come back to it, because it is their subreaper.

kill(-1) reaches everything that a process may signal, in one step. It is used where that is the session and nobody
else: in a namespace, under a uid of its own, or with signals kept inside by Landlock. Whether it is so is tried on the
server and on the warden's parent: both must be out of reach.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from typing import NamedTuple

PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096
TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
REAP_SECONDS = 2.0


class Usage(NamedTuple):
    """What a session's processes use now: number, bytes, seconds since its start."""

    processes: int
    memory_bytes: int
    cpu_seconds: float


class Processes:
    """All processes of this session. `own_namespace`: nobody else's are in sight; `server`: the server's process."""

    def __init__(self, *, own_namespace: bool, server: int) -> None:
        self.own_namespace = own_namespace
        self.me = os.getpid()
        self.alone = own_namespace or not (_reaches(server) or _reaches(os.getppid()))

    def usage(self, memory_limit: int) -> Usage:
        """Measure. Memory is what is resident, shared pages counted once if that matters for the limit."""
        mine = os.times()
        ticks, resident, pids = 0, 0, self._stats()
        for fields in pids.values():
            ticks += sum(int(fields[at]) for at in (11, 12, 13, 14))
            resident += int(fields[21]) * PAGE
        if resident > memory_limit:
            resident = sum(_proportional(pid, int(fields[21]) * PAGE) for pid, fields in pids.items())
        return Usage(len(pids), resident, ticks / TICKS + mine.children_user + mine.children_system)

    def pids(self) -> list[int]:
        """Return the ids of the session's processes."""
        return list(self._stats())

    def _stats(self) -> dict[int, list[str]]:
        """Return the fields of /proc/PID/stat after the name, for every process of the session but the warden."""
        found: dict[int, list[str]] = {}
        for entry in os.listdir("/proc"):
            if not entry.isdigit() or int(entry) == self.me:
                continue
            try:
                with open(f"/proc/{entry}/stat", "rb") as file:
                    # the name, in brackets, may hold anything, brackets too
                    found[int(entry)] = file.read().decode("utf-8", "replace").rpartition(")")[2].split()
            except OSError:  # it ended between two looks
                continue
        return found if self.own_namespace else self._descendants(found)

    def _descendants(self, everything: dict[int, list[str]]) -> dict[int, list[str]]:
        children: dict[int, list[int]] = {}
        for pid, fields in everything.items():
            children.setdefault(int(fields[1]), []).append(pid)
        mine: dict[int, list[str]] = {}
        line = list(children.get(self.me, []))
        while line:
            pid = line.pop()
            if pid not in mine:
                mine[pid] = everything[pid]
                line += children.get(pid, [])
        return mine

    def signal_all(self, number: int) -> None:
        """Send a signal to every process of the session but the warden."""
        if self.alone:
            with contextlib.suppress(ProcessLookupError, PermissionError):  # nobody is left
                os.kill(-1, number)
            return
        seen: set[int] = set()
        for _ in range(200):  # what is forked meanwhile is found by the next look
            fresh = set(self._stats()) - seen
            if not fresh:
                return
            for pid in fresh:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, number)
            seen |= fresh

    def kill_all(self) -> None:
        """End every process of the session but the warden, and take up what is left of them."""
        deadline = time.monotonic() + REAP_SECONDS
        while True:
            self.signal_all(signal.SIGKILL)
            if not self.reap() or time.monotonic() > deadline:
                return
            time.sleep(0.002)

    @staticmethod
    def reap() -> bool:
        """Take up the ended children; returns whether any child is left."""
        while True:
            try:
                pid, _ = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                return True


def _reaches(pid: int) -> bool:
    """Whether this process may signal that one."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return False
    except ProcessLookupError:
        return True
    return True


def _proportional(pid: int, resident: int) -> int:
    """Return a process's memory with each shared page divided among those who share it; `resident` if it hides that."""
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
            for line in file:
                if line.startswith(b"Pss:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        return resident
    return resident
