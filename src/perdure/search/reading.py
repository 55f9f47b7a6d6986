"""The child process that parses what strangers send: `python -m perdure.search.reading`.

It reads requests from its standard input and answers on its standard output, one after the other, until its input ends.
Rules. Before the first file it takes from itself what it does not need: memory beyond its limit, files to write, core
dumps, new privileges, the network. It is expected to die: whoever started it starts another one.
"""

from __future__ import annotations

import ctypes
import os
import re
import struct
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec

from perdure.search.passages import ExtractFailure, ExtractLimits, FailureCode, Passage
from perdure.search.readers import read_passages
from perdure.search.sniff import kind_of

PART_CHARACTERS = 256 * 1024
TRACE_CHARACTERS = 4000
LENGTH = struct.Struct("<I")

_CLONE_NEWNET, _CLONE_NEWUSER = 0x40000000, 0x10000000
_PR_SET_NO_NEW_PRIVS = 38


class Asked(msgspec.Struct):
    """A request: the file, its name as the user gave it, and how far it may go."""

    path: str
    filename: str
    limits: ExtractLimits


class Part(msgspec.Struct, tag="part"):
    """Some passages; more may follow."""

    passages: list[Passage]


class Done(msgspec.Struct, tag="done"):
    """The file is read. `peak_bytes` is the most memory that the process ever had."""

    peak_bytes: int


class Failed(msgspec.Struct, tag="failed"):
    """The file gives no text. `trace` is for the log; with `broken` the process should not be used again."""

    code: FailureCode
    message: str
    trace: str = ""
    broken: bool = False


Said = Part | Done | Failed


def main() -> None:
    """Answer until the input ends."""
    asked_from, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1):  # whatever a library prints or reads, it is not our answer
        os.dup2(nothing, stream)
    decoder, encoder = msgspec.msgpack.Decoder(Asked), msgspec.msgpack.Encoder()
    confined = False
    while head := asked_from.read(LENGTH.size):
        asked = decoder.decode(asked_from.read(LENGTH.unpack(head)[0]))
        if not confined:
            confine(asked.limits)
            confined = True
        more_seconds(asked.limits.seconds)
        for said in answer(asked):
            _send(answers, encoder.encode(said))


def answer(asked: Asked) -> Iterator[Said]:
    """Read one file."""
    try:
        path = Path(asked.path)
        kind = kind_of(path, asked.filename)
        yield from _parts(read_passages(path, kind, asked.limits))
        yield Done(_peak_bytes())
    except ExtractFailure as failure:
        yield Failed(failure.code, failure.message)
    except (MemoryError, RecursionError):
        yield Failed("invalid_file", "Reading the file takes more memory than the server allows.", broken=True)
    except Exception as error:  # noqa: BLE001  # whatever a library makes of a broken file, it is the file's fault
        trace = "".join(traceback.format_exception(error))[-TRACE_CHARACTERS:]
        yield Failed("invalid_file", "The file is damaged or not what its name says.", trace)


def _parts(passages: Iterator[Passage]) -> Iterator[Part]:
    """Give passages together, so that a million small ones are no million messages."""
    waiting: list[Passage] = []
    characters = 0
    for passage in passages:
        if not passage.text:
            continue
        waiting.append(passage)
        characters += len(passage.text)
        if characters >= PART_CHARACTERS or len(waiting) >= 1000:  # noqa: PLR2004  # some bytes each
            yield Part(waiting)
            waiting, characters = [], 0
    yield Part(waiting)


def _send(stream: BinaryIO, body: bytes) -> None:
    stream.write(LENGTH.pack(len(body)) + body)
    stream.flush()


def confine(limits: ExtractLimits) -> None:
    """Take away what reading a file does not need."""
    if sys.platform == "win32":
        return
    import resource  # noqa: PLC0415  # not on every system

    for kind, most in (
        (resource.RLIMIT_AS, limits.memory_bytes),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 64),
    ):
        try:
            resource.setrlimit(kind, (most, most))
        except (ValueError, OSError):  # macOS refuses limits of address space
            continue
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        # A network of its own, with nothing in it. Where the system forbids it, the other walls have to do.
        libc.unshare(_CLONE_NEWNET if os.geteuid() == 0 else _CLONE_NEWNET | _CLONE_NEWUSER)


def more_seconds(seconds: float) -> None:
    """Allow so much CPU time from now on. Whoever started us may be gone and stop nothing."""
    if sys.platform == "win32":
        return
    import resource  # noqa: PLC0415  # not on every system

    used = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime + seconds) + 1, hard))


def _peak_bytes() -> int:
    """Return the most memory that this process has had.

    Not by `getrusage` on Linux: there the figure of whoever started us counts as ours, and a server may be large.
    """
    if sys.platform == "win32":
        return 0
    if sys.platform == "linux":
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        found = re.search(r"^VmHWM:\s*(\d+) kB", status, re.MULTILINE)
        if found:
            return int(found[1]) * 1024
    import resource  # noqa: PLC0415  # not on every system

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    main()
