"""Looks whether a call keeps its limits: those that no rlimit counts for all its processes together.

timeout, cpu                 the kernel is interrupted first, and keeps its state if it reacts
memory, disk, processes      ended at once: each further moment costs the machine more
"""

from __future__ import annotations

import os
import time
from typing import Any

from .files import space_used
from .processes import Processes

SHORT_BYTES = 256 * 1024**2
DISK_SHARE = 0.1
"""Counting a folder takes at most this share of the time."""


def _machine_is_short() -> bool:
    """Whether the machine runs out of memory: what the kernel holds for a session is counted nowhere else."""
    known = {}
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            for line in file:
                name, _, rest = line.partition(":")
                known[name] = int(rest.split()[0]) * 1024
    except (OSError, ValueError):
        return False
    total, left = known.get("MemTotal", 0), known.get("MemAvailable", 0)
    return "MemAvailable" in known and left < min(SHORT_BYTES, total // 50)


class Watch:
    """The limits of one session, looked at every tick of a call."""

    def __init__(self, limits: dict[str, int], processes: Processes, config: dict[str, Any]) -> None:
        self.limits = limits
        self.processes = processes
        self.sized: list[str] = config["sized"]
        self.counted: str = config["counted"]
        self.next_count = 0.0
        self.files_before = self.bytes_before = 0

    def begin(self, wall_seconds: float) -> None:
        """Begin a call."""
        self.deadline = time.monotonic() + wall_seconds
        self.cpu_before: float | None = None

    def overdue(self) -> bool:
        """Whether the call's time is over."""
        return time.monotonic() > self.deadline

    def look(self) -> str:
        """Return the limit that is not kept, or ''."""
        usage = self.processes.usage(self.limits["memory_bytes"])
        if usage.memory_bytes > self.limits["memory_bytes"] or _machine_is_short():
            return "memory"
        if usage.processes > self.limits["processes"] * 2:  # where the rlimit counts others' processes too
            return "processes"
        if self._too_much_on_disk():
            return "disk"
        if self.overdue():
            return "timeout"
        if self.cpu_before is None:  # the first look comes a tick after the beginning, which costs a call nothing
            self.cpu_before = usage.cpu_seconds
        if usage.cpu_seconds - self.cpu_before > self.limits["cpu_seconds"]:
            return "cpu"
        return ""

    def _too_much_on_disk(self) -> bool:
        """Whether there are too many bytes or files. Files are counted also where the size is set: they cost memory.

        What a call left behind stays, so that the next one can clean up; that one may not add to it.
        """
        files, used = self._files_made(), 0
        began = time.monotonic()
        if self.counted and began > self.next_count:
            used, files = space_used(self.counted, self.limits["files"] * 2)
            used += self._unlinked()
            now = time.monotonic()
            self.next_count = now + (now - began) / DISK_SHARE
        too_much = files > max(self.limits["files"], self.files_before) or used > max(
            self.limits["disk_bytes"], self.bytes_before
        )
        if too_much:
            self.files_before, self.bytes_before = files, used
        return too_much

    def _files_made(self) -> int:
        known = [os.statvfs(place) for place in self.sized]
        return max([one.f_files - one.f_ffree for one in known], default=0)

    def _unlinked(self) -> int:
        """Return the bytes of files that have no name any more and are held open."""
        used, seen = 0, set()
        for pid in self.processes.pids():
            try:
                numbers = os.listdir(f"/proc/{pid}/fd")
            except OSError:
                continue
            for number in numbers:
                try:
                    known = os.stat(f"/proc/{pid}/fd/{number}")
                except OSError:
                    continue
                if known.st_nlink == 0 and known.st_ino not in seen:
                    seen.add(known.st_ino)
                    used += known.st_blocks * 512
        return used
