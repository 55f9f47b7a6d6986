"""Identifiers and time: the two things that make a record unique, handed around as ports.

Rule: nothing else in Perdure calls `time`, `secrets` or `random` for records; the engine is given a `Clock` and an
`Ids`, so that a simulation can play both.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import string
import time
from typing import Protocol

from perdure.errors import InvalidRequest

ALPHABET = string.ascii_letters + string.digits
ID_BYTES = 32
PAIRS = [first + second for first in ALPHABET for second in ALPHABET]
PREFIXES = {
    "assistant_id": "asst",
    "thread_id": "thread",
    "message_id": "msg",
    "run_id": "run",
    "step_id": "step",
    "vector_store_id": "vs",
    "batch_id": "vsfb",
}


class Clock(Protocol):
    """Where time comes from."""

    def now(self) -> float:
        """Return Unix time in seconds."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait that long."""
        ...


class SystemClock:
    """The machine's clock."""

    def now(self) -> float:
        """Return Unix time in seconds."""
        return time.time()

    async def sleep(self, seconds: float) -> None:
        """Wait that long on the running loop."""
        await asyncio.sleep(seconds)


class Ids(Protocol):
    """Where identifiers come from."""

    def new(self, prefix: str) -> str:
        """Return `prefix_` and 24 characters of [A-Za-z0-9]; clients cut ids out of texts by that pattern."""
        ...


class RandomIds:
    """Identifiers from the system's random source, for use by one thread.

    The source is read a few kilobytes at a time: during each call into the kernel other threads take the interpreter.
    """

    def __init__(self) -> None:
        self._random = b""
        self._used = 0

    def new(self, prefix: str) -> str:
        """Return a fresh identifier, 142 bits wide.

        24 characters of 62 out of 32 random bytes: a bias below 2**-100.
        """
        number = int.from_bytes(self._next_bytes(), "big")
        letters = []
        for _ in range(12):
            number, index = divmod(number, len(PAIRS))
            letters.append(PAIRS[index])
        return f"{prefix}_{''.join(letters)}"

    def new_hex(self) -> str:
        """Return 32 hexadecimal digits: the hosted server's request ids look like that."""
        return self._next_bytes()[:16].hex()

    def _next_bytes(self) -> bytes:
        begin, self._used = self._used, self._used + ID_BYTES
        random = self._random
        if self._used > len(random):
            random = self._random = secrets.token_bytes(ID_BYTES * 128)
            begin, self._used = 0, ID_BYTES
        return random[begin : begin + ID_BYTES]


def new_file_id(ids: Ids) -> str:
    """Return `file-` and 22 characters of [A-Za-z0-9], 131 bits wide: the recorded shape."""
    return f"file-{ids.new('file')[-22:]}"


def new_hex(ids: Ids) -> str:
    """Return 32 hexadecimal digits, made out of a fresh identifier."""
    return hashlib.blake2b(ids.new("hex").encode(), digest_size=16).hexdigest()


def new_hex_id(ids: Ids, prefix: str) -> str:
    """Return `prefix_` and 32 hexadecimal digits: the recorded shape of uploads, their parts and vector stores."""
    return f"{prefix}_{new_hex(ids)}"


def searchable(text: str) -> str:
    """Return an id or a name as the store may be asked for it: Postgres refuses even a question with a NUL."""
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}")


def check_id(param: str, value: str) -> str:
    """Return `value` if it has the prefix that `param` ('thread_id', ...) demands.

    The hosted server refused a wrong prefix with 400 before any look-up; the text is recorded.
    """
    prefix = PREFIXES[param]
    if not value.startswith(prefix):
        raise InvalidRequest(
            f"Invalid '{param}': '{value}'. Expected an ID that begins with '{prefix}'.",
            param=param,
            code="invalid_value",
        )
    return value
