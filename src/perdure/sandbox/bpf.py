"""The seccomp filter: which system calls the box may make, as a program of classic BPF.

It is checked in this order: another architecture's calls kill the process; a number that was not known when this was
written, and `clone3`, are answered as on an old kernel (ENOSYS, so that libraries fall back); what can only harm is
refused (EPERM); some calls are looked at closer, by their arguments. All else is what programs need.

Rule: the lists are by number for each architecture, because names are not what the kernel compares.
"""

from __future__ import annotations

import errno
import platform
import socket
import struct

from perdure.sandbox.base import SandboxFailure

LOAD, JUMP_EQUAL, JUMP_ABOVE_EQUAL, JUMP_ANY_BIT, RETURN, AND = 0x20, 0x15, 0x35, 0x45, 0x06, 0x54
ALLOW, KILL_PROCESS, ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
NUMBER, ARCHITECTURE, ARGUMENTS = 0, 4, 16
ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
FIRST_UNKNOWN = 463
"""Linux 6.12 ends here. What came later is not known, so it is not there."""
NEW_NAMESPACES = 0x7E020080
TERMINAL_INPUT = (0x5412, 0x541C)
"""ioctls that type into a terminal: TIOCSTI, TIOCLINUX."""

# name: (x86_64, aarch64); None where the architecture has no such call.
REFUSED: dict[str, tuple[int | None, int | None]] = {
    # other processes' memory and descriptors
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272),
    "pidfd_getfd": (438, 438), "process_madvise": (440, 440), "process_mrelease": (448, 448),
    # mounts and roots
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51),
    "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430), "fsconfig": (431, 431),
    "fsmount": (432, 432), "fspick": (433, 433), "mount_setattr": (442, 442), "statmount": (457, 457),
    "listmount": (458, 458), "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265),
    # namespaces
    "unshare": (272, 97), "setns": (308, 268),
    # wide surfaces of the kernel that no data analysis needs
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282), "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426), "io_uring_register": (427, 427), "fanotify_init": (300, 262),
    "fanotify_mark": (301, 263), "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219),
    "landlock_create_ruleset": (444, 444), "landlock_add_rule": (445, 445), "lookup_dcookie": (212, 18),
    # the machine
    "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106), "kexec_load": (246, 104),
    "kexec_file_load": (320, 294), "reboot": (169, 142), "swapon": (167, 224), "swapoff": (168, 225),
    "acct": (163, 89), "quotactl": (179, 60), "quotactl_fd": (443, 443), "syslog": (103, 116), "vhangup": (153, 58),
    "settimeofday": (164, 170), "clock_settime": (227, 112), "clock_adjtime": (305, 266), "adjtimex": (159, 171),
    "sethostname": (170, 161), "setdomainname": (171, 162), "iopl": (172, None), "ioperm": (173, None),
    "modify_ldt": (154, None), "personality": (135, 92), "nfsservctl": (180, 42), "uselib": (134, None),
    "ustat": (136, None), "sysfs": (139, None), "_sysctl": (156, None),
    # memory that no limit counts, or that outlives its maker
    "memfd_create": (319, 279), "memfd_secret": (447, 447), "shmget": (29, 194), "shmat": (30, 196),
    "msgget": (68, 186), "semget": (64, 190), "mq_open": (240, 180), "mbind": (237, 235), "set_mempolicy": (238, 237),
    "migrate_pages": (256, 238), "move_pages": (279, 239), "set_mempolicy_home_node": (450, 450),
    # the turns that other processes get
    "sched_setscheduler": (144, 119), "sched_setattr": (314, 274), "sched_setparam": (142, 118),
    "ioprio_set": (251, 30),
}  # fmt: skip
SERVERS: dict[str, tuple[int | None, int | None]] = {
    "connect": (42, 203), "bind": (49, 200), "listen": (50, 201), "accept": (43, 202), "accept4": (288, 242),
}  # fmt: skip
BY_PATH: dict[str, tuple[int | None, int | None]] = {
    # Landlock does not look at these, and they reach every file of the same uid
    "chmod": (90, None), "fchmodat": (268, 53), "fchmodat2": (452, 452), "chown": (92, None), "lchown": (94, None),
    "fchownat": (260, 54), "utime": (132, None), "utimes": (235, None), "futimesat": (261, None),
    "setxattr": (188, 5), "lsetxattr": (189, 6), "removexattr": (197, 14), "lremovexattr": (198, 15),
    "inotify_add_watch": (254, 27),
}  # fmt: skip
SIGNALS: dict[str, tuple[int | None, int | None]] = {
    "kill": (62, 129), "tkill": (200, 130), "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240),
    "pidfd_send_signal": (424, 424),
}  # fmt: skip
LOOKED_AT: dict[str, tuple[int | None, int | None]] = {
    "clone": (56, 220), "clone3": (435, 435), "socket": (41, 198), "socketpair": (53, 199), "ioctl": (16, 29),
    "prlimit64": (302, 261), "setpriority": (141, 140), "sched_setaffinity": (203, 122), "utimensat": (280, 88),
    "seccomp": (317, 277),
}  # fmt: skip


def filter_for(*, sockets: bool, files_by_path: bool = True, signals: bool = True, machine: str | None = None) -> bytes:
    """Return the filter's instructions, eight bytes each. Raises SandboxFailure on an unknown architecture.

    `sockets`: Unix sockets by path may be used (they reach the box's own files only). `files_by_path`: calls that
    change a file's mode, owner or times by its path may be made. `signals`: others may be signalled.
    """
    machine = machine or platform.machine()
    if machine not in ARCHITECTURES:
        raise SandboxFailure(
            f"no seccomp filter is written for {machine} (there is one for x86_64 and aarch64): set "
            "PERDURE_CODE_SANDBOX to wasm or docker"
        )
    at = 0 if machine == "x86_64" else 1
    refused = dict(REFUSED)
    refused.update({} if sockets else SERVERS)
    refused.update({} if files_by_path else BY_PATH)
    refused.update({} if signals else SIGNALS)
    code = _head(machine)
    for calls in refused.values():
        number = calls[at]
        if number is not None:
            code += _on(number, _answer(errno.EPERM))
    for name, body in _closer(sockets=sockets, files_by_path=files_by_path).items():
        number = LOOKED_AT[name][at]
        if number is not None:
            code += _on(number, body)
    return b"".join([*code, _step(RETURN, ALLOW)])


def _step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)


def _answer(number: int) -> list[bytes]:
    return [_step(RETURN, ERRNO | number)]


def _on(number: int, body: list[bytes]) -> list[bytes]:
    """Run `body`, which always returns, for this call; the next check begins with the number in the register again."""
    return [_step(JUMP_EQUAL, number, 0, len(body)), *body]


def _head(machine: str) -> list[bytes]:
    return [
        _step(LOAD, ARCHITECTURE),
        _step(JUMP_EQUAL, ARCHITECTURES[machine], 1, 0),
        _step(RETURN, KILL_PROCESS),
        _step(LOAD, NUMBER),
        # Also every call of the x32 ABI, whose numbers begin at 2**30.
        _step(JUMP_ABOVE_EQUAL, FIRST_UNKNOWN, 0, 1),
        *_answer(errno.ENOSYS),
    ]


def _argument(which: int, half: int = 0) -> bytes:
    """Load half of an argument: 0 is the lower one. Both architectures are little-endian."""
    return _step(LOAD, ARGUMENTS + 8 * which + 4 * half)


def _only_if_zero(which: int) -> list[bytes]:
    """Allow the call if the argument is zero, whole."""
    return [
        _argument(which),
        _step(JUMP_EQUAL, 0, 0, 3),
        _argument(which, 1),
        _step(JUMP_EQUAL, 0, 0, 1),
        _step(RETURN, ALLOW),
        *_answer(errno.EPERM),
    ]


def _closer(*, sockets: bool, files_by_path: bool) -> dict[str, list[bytes]]:
    refuse, allow = _answer(errno.EPERM), [_step(RETURN, ALLOW)]
    stream_only = [
        _argument(1),
        _step(AND, 0xF),
        _step(JUMP_EQUAL, socket.SOCK_STREAM.value, 0, 1),
        *allow,
        *refuse,
    ]
    unix_only = [_argument(0), _step(JUMP_EQUAL, 1, 0, 1), *allow, *refuse]
    found = {
        # glibc falls back to clone, whose flags can be looked at
        "clone3": _answer(errno.ENOSYS),
        "clone": [_argument(0), _step(JUMP_ANY_BIT, NEW_NAMESPACES, 0, 1), *refuse, *allow],
        "socket": unix_only if sockets else refuse,
        # a pair of datagram sockets could still send to any path
        "socketpair": unix_only if sockets else stream_only,
        "ioctl": [
            _argument(1),
            _step(JUMP_EQUAL, TERMINAL_INPUT[0], 1, 0),
            _step(JUMP_EQUAL, TERMINAL_INPUT[1], 0, 1),
            *refuse,
            *allow,
        ],
        # one's own limits and turn, nobody else's
        "prlimit64": _only_if_zero(0),
        "setpriority": [_argument(0), _step(JUMP_EQUAL, 0, 1, 0), *refuse, *_only_if_zero(1)],
        "sched_setaffinity": _only_if_zero(0),
        # a filter more is harmless, but one that notifies could hold up whoever sees its calls
        "seccomp": [_argument(1), _step(JUMP_ANY_BIT, 1 << 3, 0, 1), *refuse, *allow],
    }
    if not files_by_path:
        found["utimensat"] = _only_if_zero(1)
    return found
