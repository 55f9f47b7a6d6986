"""The seccomp filter, run by a small machine of the test's own, for both architectures."""

from __future__ import annotations

import errno
import platform
import socket
import struct

import pytest

from perdure.sandbox.base import SandboxFailure
from perdure.sandbox.bpf import (
    ALLOW,
    ARCHITECTURES,
    BY_PATH,
    ERRNO,
    FIRST_UNKNOWN,
    KILL_PROCESS,
    LOOKED_AT,
    REFUSED,
    SERVERS,
    SIGNALS,
    filter_for,
)

EPERM, ENOSYS = ERRNO | errno.EPERM, ERRNO | errno.ENOSYS


def decide(
    code: bytes, number: int, arguments: tuple[int, ...] = (), architecture: int = ARCHITECTURES["x86_64"]
) -> int:
    """Run a program of classic BPF over one system call."""
    padded = (*arguments, *(0,) * (6 - len(arguments)))
    data = struct.pack("<IIQ6Q", number & 0xFFFFFFFF, architecture, 0, *padded)
    at, register = 0, 0
    while True:
        operation, if_true, if_false, value = struct.unpack_from("<HBBI", code, at * 8)
        at += 1
        if operation == 0x20:
            register = struct.unpack_from("<I", data, value)[0]
        elif operation == 0x54:
            register &= value
        elif operation == 0x06:
            return int(value)
        else:
            true = {0x15: register == value, 0x35: register >= value, 0x45: bool(register & value)}[operation]
            at += if_true if true else if_false


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_each_list_says_what_it_says(machine: str) -> None:
    at, architecture = ("x86_64", "aarch64").index(machine), ARCHITECTURES[machine]
    loose = filter_for(sockets=True, machine=machine)
    tight = filter_for(sockets=False, files_by_path=False, signals=False, machine=machine)
    for code, refused, allowed in (
        (loose, REFUSED, {**SERVERS, **BY_PATH, **SIGNALS}),
        (tight, {**REFUSED, **SERVERS, **BY_PATH, **SIGNALS}, {}),
    ):
        for names, answer in ((refused, EPERM), (allowed, ALLOW)):
            for name, numbers in names.items():
                number = numbers[at]
                if number is not None:
                    assert decide(code, number, architecture=architecture) == answer, name
        assert decide(code, FIRST_UNKNOWN, architecture=architecture) == ENOSYS
        assert decide(code, 0x40000000 + 39, architecture=architecture) == ENOSYS
        assert decide(code, 0, architecture=0x40000003) == KILL_PROCESS
        assert len(code) % 8 == 0
        assert len(code) // 8 < 4096


def test_arguments_are_looked_at() -> None:
    code, pairs = filter_for(sockets=True, machine="x86_64"), filter_for(sockets=False, machine="x86_64")
    number = {name: numbers[0] or 0 for name, numbers in LOOKED_AT.items()}
    thread, stream, datagram = 0x3D0F00, socket.SOCK_STREAM.value, socket.SOCK_DGRAM.value
    assert decide(code, number["clone"], (thread,)) == ALLOW
    for flag in (0x80, 0x20000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000):
        assert decide(code, number["clone"], (thread & ~0x40000000 | flag,)) == EPERM
    assert decide(code, number["clone3"]) == ENOSYS
    assert decide(code, number["socket"], (socket.AF_UNIX, stream)) == ALLOW
    for family in (socket.AF_INET, socket.AF_INET6, 16, 17, 38, 40):
        assert decide(code, number["socket"], (family, stream)) == EPERM
    assert decide(pairs, number["socket"], (socket.AF_UNIX, stream)) == EPERM
    assert decide(pairs, number["socketpair"], (socket.AF_UNIX, stream | 0o2000000)) == ALLOW
    assert decide(pairs, number["socketpair"], (socket.AF_UNIX, datagram)) == EPERM
    assert decide(code, number["ioctl"], (0, 0x5401)) == ALLOW
    assert decide(code, number["ioctl"], (0, 0x5412)) == EPERM
    assert decide(code, number["ioctl"], (0, 0xFFFFFFFF00005412)) == EPERM  # the kernel looks at the lower half
    assert decide(code, number["prlimit64"], (0, 7)) == ALLOW
    assert decide(code, number["prlimit64"], (1, 7)) == EPERM
    assert decide(code, number["prlimit64"], (1 << 32, 7)) == EPERM
    assert decide(code, number["setpriority"], (0, 0, 19)) == ALLOW
    assert decide(code, number["setpriority"], (2, 0, 19)) == EPERM
    assert decide(code, number["seccomp"], (1, 0)) == ALLOW
    assert decide(code, number["seccomp"], (1, 8)) == EPERM


def test_an_unknown_architecture_is_refused_in_words() -> None:
    assert platform.machine() in ARCHITECTURES
    with pytest.raises(SandboxFailure, match="riscv64"):
        filter_for(sockets=True, machine="riscv64")
