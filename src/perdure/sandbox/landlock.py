"""The Landlock kind: for Linux machines that refuse namespaces (a container's default profile, say).

The warden stays outside of the wall, as its warden; the kernel that it forks restricts itself before it runs foreign
code: a list of paths that may be read, one folder that may be written, no sockets but pairs, no signals to outside, a
seccomp filter. A server that runs as root gives each session a uid of its own first.

Weaker than bubblewrap, and `about` says how: the machine's processes share one list, the existence and size of other
files can be seen, there is no /dev/shm, and the disk is counted, not set. /mnt/data is a name here: literals of the
code that begin with it are taken to mean the session's folder.
"""

from __future__ import annotations

import base64
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from perdure.sandbox.base import CheckReport, Depth, Limits, SandboxFailure, Session
from perdure.sandbox.bpf import filter_for
from perdure.sandbox.bubblewrap import new_uid
from perdure.sandbox.bundle import BOOT, boot_bytes
from perdure.sandbox.environment import Environment, readable_environment
from perdure.sandbox.kinds import Boxes, others_processes, variables
from perdure.sandbox.process import ProcessSession
from perdure.sandbox.self_check import check_walls

SIGNALS_SINCE = 6
"""The version of Landlock's interface that keeps signals inside. Before it, the filter forbids them altogether."""
SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc/ld.so.cache", "/etc/localtime")
HARMLESS = ("/etc/fonts", "/etc/mime.types", "/etc/os-release", "/proc/cpuinfo", "/proc/meminfo")
"""What libraries read when they find it there; here they find it, and would stumble if they could not read it."""
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")


class Landlock:
    """Starts sessions behind Landlock and seccomp. Raises SandboxFailure where the kernel has no Landlock."""

    name = "landlock"

    def __init__(self, environment: Environment, boxes: Boxes) -> None:
        self.version = landlock_version()
        self.as_root = os.geteuid() == 0
        readable = readable_environment(environment) if self.as_root else environment
        if readable is None:
            raise SandboxFailure(
                f"the session's own user can not read the Python at {environment.python}: run Perdure as an ordinary "
                "user, or set PERDURE_CODE_ENVIRONMENT to a folder that all can read and run `perdure sandbox build`"
            )
        self.environment = readable
        self.boxes = boxes
        self.about = (
            "Python without network, behind Landlock and seccomp (no namespaces, no shared memory), with "
            f"{readable.about}"
        )

    async def start(self, limits: Limits, *, preload: bool = False) -> Session:
        """Start a box. Raises SandboxFailure."""
        uid = new_uid() if self.as_root else 0
        folder = make_folder(uid)
        walls = self._walls(folder)
        return await open_in_folder(
            self.name, self.boxes, self.environment, limits, folder, uid, walls, preload=preload
        )

    def _walls(self, folder: Path) -> dict[str, Any]:
        # Another uid than the files of the machine: calls by path reach the session's own only.
        code = filter_for(sockets=False, files_by_path=self.as_root, signals=self.version >= SIGNALS_SINCE)
        readable = [*SYSTEM, *HARMLESS, *(str(root) for root in self.environment.roots)]
        return {
            "filter": base64.b64encode(code).decode(),
            "by_descriptor": not self.as_root,
            "scope_signals": self.version >= SIGNALS_SINCE,
            "files": {
                "readable": readable,
                "devices": list(DEVICES),
                "writable": [str(folder / "data"), str(folder / "tmp")],
            },
        }

    async def self_check(self, depth: Depth = "walls") -> CheckReport:
        """Try the walls from inside. Raises SandboxFailure."""
        return await check_walls(self, depth)

    async def close(self) -> None:
        """End every box of this kind."""
        await self.boxes.close()


def landlock_version() -> int:
    """Return the version of this machine's Landlock. Raises SandboxFailure where there is none."""
    if sys.platform != "linux":
        raise SandboxFailure(f"Landlock is for Linux, this is {sys.platform}")
    from perdure.sandbox.inside import walls  # noqa: PLC0415  # Linux only

    version = walls.landlock_version()
    if version < 3:  # noqa: PLR2004  # before it, files could be cut short from inside
        raise SandboxFailure(
            "this kernel's Landlock is too old or switched off: Linux 6.2 or newer with `landlock` among its security "
            "modules is needed, or bubblewrap"
        )
    return version


async def open_in_folder(
    kind: str,
    boxes: Boxes,
    environment: Environment,
    limits: Limits,
    folder: Path,
    uid: int,
    walls: dict[str, Any],
    *,
    preload: bool,
) -> Session:
    """Start a session without namespaces, in a folder of its own on this machine. Raises SandboxFailure."""
    data, scratch = str(folder / "data"), str(folder / "tmp")
    numbers = {name: getattr(limits, name) for name in limits.__struct_fields__}
    config = {
        "limits": numbers | {"processes": limits.processes + others_processes(uid)},
        "data": data,
        "environment": variables(environment, data, scratch),
        "font_cache": str(environment.font_cache or ""),
        "own_namespace": False,
        "server": os.getpid(),
        "die_with_parent": False,
        "sized": [],
        "counted": str(folder),
        "uid": uid,
        "preload": preload,
        **walls,
    }
    command = [str(environment.python), "-I", "-S", "-c", BOOT]
    return await boxes.open(kind, command, [], limits, boot_bytes(config), folder=folder, make=ProcessSession)


def make_folder(uid: int) -> Path:
    """Make a session's folder, with `data` and `tmp`, for this uid alone; 0: for whoever runs the server."""
    folder = Path(tempfile.mkdtemp(prefix="perdure-box-")).resolve()
    for place in (folder / "data", folder / "tmp"):
        place.mkdir(mode=0o700)
        if uid:
            os.chown(place, uid, uid)
    if uid:
        os.chown(folder, uid, uid)
    return folder
