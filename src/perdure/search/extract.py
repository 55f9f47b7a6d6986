"""Files into passages, by child processes that may hang, grow or die.

Rules. No byte of a user's file is parsed in this process. A child serves file after file and is replaced after some,
after any that harmed it, and when its caller goes away. What it sends is bounded; what it does not send in time ends
with it, its whole process group included.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any

import msgspec

import perdure
from perdure.search.passages import MIB, ExtractFailure, ExtractLimits, FailureCode, Passage
from perdure.search.reading import LENGTH, Asked, Done, Failed, Part, Said

__all__ = ["ExtractFailure", "ExtractLimits", "Extractor", "FailureCode", "Passage"]

HEAVY_BYTES = 300 * MIB
"""A child that was ever larger than this is not kept."""
_ROOM_BYTES = 16 * MIB
"""Beside four bytes a character: what passages may take around their text."""

_log = logging.getLogger("perdure.search")
_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(Said)


class Extractor:
    """Reads files, several at once. Belongs to one event loop."""

    def __init__(self, limits: ExtractLimits | None = None) -> None:
        self._limits = limits or ExtractLimits()
        self._turns = asyncio.Semaphore(self._limits.readers)
        self._idle: list[_Reader] = []
        self._all: set[_Reader] = set()
        self.peak_bytes = 0
        """The most memory that a child reported at the end of a file."""

    async def extract(self, path: Path, filename: str) -> list[Passage]:
        """Return the text of a file, in order. Raises ExtractFailure; OSError where the file is gone."""
        size = path.stat().st_size  # noqa: ASYNC240  # a look-up, no reading
        most = self._limits.file_bytes
        if size > most:
            raise ExtractFailure(
                "invalid_file", f"The file has {size:,} bytes; {most:,} are the most. Split it into smaller files."
            )
        async with self._turns:
            passages = await self._read(path, filename)
        if not any(passage.text and not passage.text.isspace() for passage in passages):
            raise ExtractFailure(
                "invalid_file",
                "The file contains no text. Scanned pages need text recognition (OCR) before the upload.",
            )
        return passages

    async def close(self) -> None:
        """End all children."""
        for reader in list(self._all):
            await self._end(reader)
        self._idle.clear()

    async def _read(self, path: Path, filename: str) -> list[Passage]:
        reader = self._idle.pop() if self._idle else await self._start()
        keep = False
        try:
            async with asyncio.timeout(self._limits.seconds):
                passages, peak = await reader.read(Asked(str(path), filename, self._limits))
            self.peak_bytes = max(self.peak_bytes, peak)
            keep = peak < HEAVY_BYTES
        except _Refused as refused:
            keep = not refused.failed.broken
            raise ExtractFailure(refused.failed.code, refused.failed.message) from None
        except TimeoutError:
            raise ExtractFailure(
                "invalid_file",
                f"Reading the file took more than {self._limits.seconds:g} seconds. Split or simplify it.",
            ) from None
        except _Died as died:
            _log.warning("the reader of a file died with status %s", died.status)
            raise _of_death(died.status) from None
        finally:
            if keep and reader.files < self._limits.files_per_reader:
                self._idle.append(reader)
            else:
                await self._end(reader)
        return passages

    async def _start(self) -> _Reader:
        """Start a child with an environment of its own. Raises OSError where no process can be had."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-s", "-P", "-m", "perdure.search.reading"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env=_environment(),
            start_new_session=True,
        )
        reader = _Reader(process, 4 * self._limits.characters + _ROOM_BYTES)
        self._all.add(reader)
        return reader

    async def _end(self, reader: _Reader) -> None:
        self._all.discard(reader)
        await asyncio.shield(reader.end())


class _Refused(Exception):
    """The child read the file and says why it gives no text."""

    def __init__(self, failed: Failed) -> None:
        super().__init__(failed.message)
        self.failed = failed


class _Died(Exception):
    """The child is gone. `status` is its exit status, negative for a signal."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class _Reader:
    """One child process. `most_bytes` bounds what it may send for a file."""

    def __init__(self, process: asyncio.subprocess.Process, most_bytes: int) -> None:
        self._process = process
        self._most_bytes = most_bytes
        self.files = 0

    async def read(self, asked: Asked) -> tuple[list[Passage], int]:
        """Return the passages and the child's peak memory. Raises _Refused and _Died."""
        self.files += 1
        try:
            return await self._exchange(_encoder.encode(asked))
        except (asyncio.IncompleteReadError, ConnectionError):
            raise _Died(await self._process.wait()) from None

    async def _exchange(self, request: bytes) -> tuple[list[Passage], int]:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None  # noqa: S101, PT018  # both are pipes
        stdin.write(LENGTH.pack(len(request)) + request)
        await stdin.drain()
        passages: list[Passage] = []
        left = self._most_bytes
        while True:
            (length,) = LENGTH.unpack(await stdout.readexactly(LENGTH.size))
            left -= length
            if left < 0:
                raise _Refused(Failed("invalid_file", "The file gives more text than the server takes.", broken=True))
            said = _said(await stdout.readexactly(length))
            if isinstance(said, Part):
                passages += said.passages
            elif isinstance(said, Done):
                return passages, said.peak_bytes
            else:
                if said.trace:
                    _log.info("a file could not be read:\n%s", said.trace)
                raise _Refused(said)

    async def end(self) -> None:
        """Kill the child and all that it started."""
        if self._process.returncode is None:
            try:
                if sys.platform == "win32":
                    self._process.kill()
                else:
                    os.killpg(self._process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass  # it was faster
        if self._process.stdin is not None:
            self._process.stdin.close()
        await self._process.wait()


def _said(body: bytes) -> Part | Done | Failed:
    """Decode an answer. What a child sends that was taken over by its file is no answer."""
    try:
        said: Part | Done | Failed = _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise _Refused(Failed("invalid_file", "The file broke the program that reads it.", broken=True)) from None
    return said


def _of_death(status: int) -> ExtractFailure:
    if sys.platform != "win32" and status in {-signal.SIGABRT, -signal.SIGKILL, -signal.SIGSEGV, -signal.SIGBUS}:
        return ExtractFailure(
            "invalid_file", "Reading the file takes more memory than the server allows, or the file is damaged."
        )
    if sys.platform != "win32" and status == -signal.SIGXCPU:
        return ExtractFailure("invalid_file", "Reading the file takes more time than the server allows.")
    if status > 0:
        return ExtractFailure(
            "server_error", "The server could not start the program that reads files. Look into its log."
        )
    return ExtractFailure("invalid_file", "The file broke the program that reads it. Save it anew and upload it again.")


def _environment() -> dict[str, str]:
    """Return what a child needs to find this package, and nothing else of ours: no key, no address."""
    kept = {name: os.environ[name] for name in ("PATH", "SYSTEMROOT", "LD_LIBRARY_PATH") if name in os.environ}
    return {
        **kept,
        "PYTHONPATH": str(Path(perdure.__file__).parent.parent),
        "PYTHONIOENCODING": "utf-8",
        "LC_ALL": "C.UTF-8",
    }
