"""What a process does to itself before it runs foreign code. Each step is one system call and can not be undone.

Order matters: the uid first (it needs the privilege that goes with it), then limits, then Landlock, then the filter,
which forbids much of what the steps before it use. A step that fails raises: nothing runs behind half a wall.
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
import os
import platform
import resource
import struct
from typing import Any, Optional

LIBC = ctypes.CDLL(None, use_errno=True)
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP = 1, 4, 22
PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 36, 38
SECCOMP_MODE_FILTER = 2
CAPSET = {"x86_64": 126, "aarch64": 91}
CAPABILITY_VERSION_3 = 0x20080522
LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 444, 445, 446
LANDLOCK_VERSION = 1
O_PATH = 0o10000000

# Rights of Landlock, by the version of its interface that brought them.
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1, 2, 4, 8
FS_RIGHTS = {1: (1 << 13) - 1, 2: 1 << 13, 3: 1 << 14, 5: 1 << 15}
OF_FILES = EXECUTE | WRITE_FILE | READ_FILE | 1 << 14 | 1 << 15
NET_RIGHTS_SINCE, NET_RIGHTS = 4, 3
SCOPES_SINCE, SCOPES = 6, 3


def prctl(option: int, value: int) -> None:
    """Call prctl. Raises OSError."""
    if LIBC.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl {option}")


def drop_to(uid: int) -> None:
    """Give up root for `uid`, whose group has the same number, and every capability. Raises OSError."""
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    # setresuid empties what is permitted and effective; the inheritable set stays, and goes here.
    header = struct.pack("Ii", CAPABILITY_VERSION_3, 0)
    if LIBC.syscall(CAPSET[platform.machine()], header, bytes(24)) != 0:
        raise OSError(ctypes.get_errno(), "capset")
    if os.getresuid() != (uid, uid, uid) or os.getgroups():
        raise PermissionError("the process kept more than it should")


def set_limits(limits: dict[str, int]) -> None:
    """Set the limits that the kernel counts for each process. They hold for children and can not be raised again.

    RLIMIT_DATA makes an allocation fail with MemoryError before the watch has to kill; it counts what a process may
    write to, so a large address space alone (thread stacks, libraries) costs nothing. The address space is bounded
    too, further out, because shared mappings count there only.
    """
    memory = limits["memory_bytes"]
    bounds = {
        resource.RLIMIT_DATA: memory - memory // 8,
        resource.RLIMIT_AS: memory + 4 * 1024**3,
        resource.RLIMIT_FSIZE: limits["file_bytes"],
        resource.RLIMIT_NOFILE: 512,
        resource.RLIMIT_NPROC: limits["processes"],
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 64 * 1024,
        resource.RLIMIT_MSGQUEUE: 0,
        resource.RLIMIT_RTPRIO: 0,
    }
    for which, bound in bounds.items():
        hard = resource.getrlimit(which)[1]
        least = bound if hard == resource.RLIM_INFINITY else min(bound, hard)
        resource.setrlimit(which, (least, least))
    os.nice(5)  # the warden must get its turn
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as score:  # no /proc: no score to set
        score.write("1000")  # should the machine run out of memory, the box goes first


def landlock_version() -> int:
    """Return the version of the kernel's Landlock interface; 0 where there is none."""
    return max(0, int(LIBC.syscall(LANDLOCK_CREATE, None, 0, LANDLOCK_VERSION)))


def restrict_files(readable: list[str], devices: list[str], writable: list[str]) -> None:
    """Let this process reach these paths and what lies below them, and no other file, from now on. Raises OSError.

    Also forbidden, as far as the kernel's version knows it: TCP, and signals and abstract sockets to whoever is not
    in the same box.
    """
    version = landlock_version()
    rights = sum(bits for since, bits in FS_RIGHTS.items() if since <= version)
    net = NET_RIGHTS if version >= NET_RIGHTS_SINCE else 0
    scopes = SCOPES if version >= SCOPES_SINCE else 0
    ruleset = LIBC.syscall(LANDLOCK_CREATE, struct.pack("QQQ", rights, net, scopes), _size_known(version), 0)
    if ruleset < 0:
        raise OSError(ctypes.get_errno(), "Landlock can not be set up")
    for paths, wanted in (
        (readable, EXECUTE | READ_FILE | READ_DIR),
        (devices, READ_FILE | WRITE_FILE),
        (writable, rights),
    ):
        for path in paths:
            _allow(ruleset, path, wanted & rights)
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    if LIBC.syscall(LANDLOCK_RESTRICT, ruleset, 0) != 0:
        raise OSError(ctypes.get_errno(), "Landlock does not hold")
    os.close(ruleset)


def scope_signals() -> None:
    """Keep this process's own signals inside, too: kill(-1) then means its descendants. Raises OSError."""
    ruleset = LIBC.syscall(LANDLOCK_CREATE, struct.pack("QQQ", 0, 0, SCOPES), 24, 0)
    if ruleset < 0 or LIBC.syscall(LANDLOCK_RESTRICT, ruleset, 0) != 0:
        raise OSError(ctypes.get_errno(), "signals can not be kept inside")
    os.close(ruleset)


def _size_known(version: int) -> int:
    """Return how much of the rules' structure this kernel knows; it refuses more."""
    return 24 if version >= SCOPES_SINCE else 16 if version >= NET_RIGHTS_SINCE else 8


def _allow(ruleset: int, path: str, wanted: int) -> None:
    try:
        place = os.open(path, O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        wanted &= wanted if os.path.isdir(path) else OF_FILES
        rule = struct.pack("=Qi", wanted, place)
        if LIBC.syscall(LANDLOCK_ADD, ruleset, 1, rule, 0) != 0:
            raise OSError(ctypes.get_errno(), f"no Landlock rule for {path}")
    finally:
        os.close(place)


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_char_p))


def install_filter(code: bytes) -> None:
    """Install a seccomp filter, made by `sandbox/bpf.py`. Raises OSError."""
    program = _Program(len(code) // 8, code)
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    if LIBC.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "the seccomp filter is not taken")


def build(config: dict[str, Any], rules: Optional[dict[str, list[str]]]) -> None:  # 3.9
    """Put up the walls of a kernel, in the one order that works. Raises OSError."""
    set_limits(config["limits"])
    if rules is not None:
        restrict_files(rules["readable"], rules["devices"], rules["writable"])
    if config.get("filter"):
        install_filter(base64.b64decode(config["filter"]))
