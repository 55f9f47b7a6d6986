"""A session over a child process that speaks frames on its standard input and output: every kind is one of these.

The first bytes carry what runs inside (`bundle.py`) and a configuration:

    limits          of `Limits`, as numbers
    data            where /mnt/data is, for the processes inside
    environment     variables of the kernel
    own_namespace   the warden sees the session's processes and no others
    server          where it does not: the server's process
    die_with_parent the warden's parent lives exactly as long as it should
    sized, counted  file systems of a set size whose files are counted; a folder whose bytes are counted, or ''
    uid             whom the warden becomes first; 0 for nobody
    filter, files   seccomp filter (base64) and Landlock's paths, where the wall is around the kernel alone
    preload         import what most code begins with

Rules: nothing that comes from inside is believed beyond its form, its size and its time: a frame that is too large or
too late ends the box. A session that is given up is stopped, never left to itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from perdure.sandbox import words
from perdure.sandbox.base import (
    FileInfo,
    FileRefused,
    Image,
    Limits,
    Logs,
    Outcome,
    Result,
    SandboxFailure,
    SessionLost,
    Tell,
)
from perdure.sandbox.inside import files as names
from perdure.sandbox.inside import frames
from perdure.sandbox.left_behind import end_tree

log = logging.getLogger("perdure.sandbox")

START_SECONDS = 60.0
GRACE_SECONDS = 10.0
"""How much later than the call's own limit the warden may answer: its grace, and a fresh kernel on a busy machine."""
FILE_SECONDS = 120.0
SAID_BYTES = 4096
LOOK_SECONDS = 0.25
OUTCOMES = {"ok", "error", "interrupted", "timeout", "cpu", "memory", "disk", "processes", "output", "died"}


class ProcessSession:
    """One box. `gone` is called once when it is over, to remove what lies outside of it."""

    stop_seconds = 5.0
    """How long the box may take to end by itself when its input ends."""

    def __init__(
        self, kind: str, process: asyncio.subprocess.Process, limits: Limits, gone: Callable[[], None]
    ) -> None:
        self.kind = kind
        self.limits = limits
        self.packages: list[str] = []
        self.python = ""
        self.process = process
        self._gone: Callable[[], None] | None = gone
        self._running = False
        self._said = bytearray()
        self._listening = asyncio.create_task(self._listen_to_errors())
        self._waiting = asyncio.create_task(process.wait())

    @property
    def alive(self) -> bool:
        """Whether the box is still there."""
        return self._gone is not None and self.process.returncode is None

    async def begin(self, boot: bytes) -> None:
        """Send what runs inside and wait until it is ready. Raises SandboxFailure; the box is stopped then."""
        try:
            async with asyncio.timeout(START_SECONDS):
                await self._send_bytes(boot)
                head, _ = await self._receive()
        except (TimeoutError, SessionLost):
            await self.stop()
            said = self._said.decode("utf-8", "replace").strip()
            raise SandboxFailure(f"the {self.kind} sandbox did not start: {said or 'it said nothing'}") from None
        except asyncio.CancelledError:
            await self.stop()
            raise
        self.packages = [str(name) for name in head.get("packages", [])]
        self.python = str(head.get("python", ""))

    async def run(self, code: str, tell: Tell) -> Result:
        """Run a cell. Raises SessionLost; see `base.Session`."""
        self._running = True
        watching = asyncio.create_task(self._close_when_over())
        try:
            wall = self.limits.wall_seconds
            async with asyncio.timeout(wall + GRACE_SECONDS) as deadline:
                await self._send({"op": "run", "wall_seconds": wall}, code.encode("utf-8", "replace"))
                answer = await self._outputs(tell, deadline)
        except TimeoutError:
            await self.stop()
            self._log("gave no answer after %g seconds and was ended", self.limits.wall_seconds + GRACE_SECONDS)
            raise SessionLost(
                words.ended("timeout", self.limits, kept=False).split(" The ")[0] + " " + words.LOST
            ) from None
        except BaseException:
            await self.stop()
            raise
        finally:
            watching.cancel()
            self._running = False
        return self._result(answer)

    async def _outputs(self, tell: Tell, deadline: asyncio.Timeout) -> dict[str, Any]:
        room = self.limits.output_bytes * 2 + 64 * 1024 * 1024
        while True:
            head, body = await self._receive()
            room -= len(body)
            if room < 0:
                raise SessionLost(words.LOST)
            if head["op"] == "done":
                return head
            output = _output(head["op"], body, str(head.get("media_type")))
            if output is not None:
                # Whoever listens may be slow (a store, a client); the code's clock is the warden's.
                when = deadline.when()
                began = asyncio.get_running_loop().time()
                deadline.reschedule(None)
                await tell(output)
                deadline.reschedule(None if when is None else when + asyncio.get_running_loop().time() - began)

    def _result(self, answer: dict[str, Any]) -> Result:
        kept = answer.get("kept") is True
        outcome: Outcome = answer["outcome"] if answer.get("outcome") in OUTCOMES else "died"
        if answer.get("reason") in OUTCOMES:
            outcome = answer["reason"]
        hint = str(answer.get("hint", ""))
        parts = [words.ended(outcome, self.limits, kept=kept), words.hinted(hint, self.limits)]
        if answer.get("cut") is True:
            parts.append(words.cut(self.limits))
        if outcome not in {"ok", "error", "interrupted"}:
            self._log("was stopped at a limit: %s", outcome)
        elif hint in {"memory", "disk", "file", "processes"} or answer.get("cut") is True:
            self._log("met a limit: %s", hint or "output")
        return Result(outcome=outcome, words=" ".join(part for part in parts if part), state_kept=kept)

    async def put(self, name: str, content: Path | bytes) -> None:
        """Lay a file into /mnt/data. Raises FileRefused, SessionLost."""
        try:
            names.check_name(name)
        except names.Refused as refusal:
            raise FileRefused(str(refusal)) from None
        try:  # before the session is told: it would wait for the rest of a file that can not be read
            file = io.BytesIO(content) if isinstance(content, bytes) else await asyncio.to_thread(content.open, "rb")
        except FileNotFoundError:
            raise FileRefused("its bytes are gone; it may have been deleted just now") from None
        with file:
            async with self._answering():
                await self._send({"op": "put", "name": name})
                while piece := await asyncio.to_thread(file.read, frames.CHUNK_BYTES):
                    await self._send({"op": "data"}, piece)
                await self._send({"op": "end"})
                head, _ = await self._receive()
        if head["op"] == "failed":
            raise FileRefused(str(head.get("words"))[:1000])

    async def get(self, name: str) -> AsyncIterator[bytes]:
        """Give a file's bytes in pieces. Raises FileRefused, SessionLost."""
        try:
            names.check_name(name)
        except names.Refused as refusal:
            raise FileRefused(str(refusal)) from None
        room = max(self.limits.file_bytes, self.limits.disk_bytes)
        whole = False
        try:
            async with self._answering():
                await self._send({"op": "get", "name": name})
            while True:
                async with self._answering():
                    head, body = await self._receive()
                room -= len(body)
                if head["op"] == "end":
                    whole = True
                    return
                if head["op"] == "failed":
                    whole = True
                    raise FileRefused(str(head.get("words"))[:1000])
                if room < 0:
                    raise FileRefused(f"{name!r} is longer than a file may be")
                yield body
        finally:
            if not whole:  # the rest of the file still stands in the pipe
                await self.stop()

    async def files(self) -> dict[str, FileInfo]:
        """Return the regular files below /mnt/data. Raises SessionLost."""
        async with self._answering():
            await self._send({"op": "files"})
            head, _ = await self._receive()
        return _listed(head.get("files"))

    async def interrupt(self) -> None:
        """Ask the running call to end."""
        if self._running and self.alive:
            with contextlib.suppress(SessionLost):
                await self._send({"op": "interrupt"})

    async def stop(self) -> None:
        """End the box; returns when its process is gone. Never raises."""
        if self._gone is None:
            return
        gone, self._gone = self._gone, None
        await asyncio.shield(asyncio.ensure_future(self._end(gone)))

    async def _end(self, gone: Callable[[], None]) -> None:
        assert self.process.stdin is not None  # noqa: S101  # it was started with one
        self.process.stdin.close()
        # The warden sees the end of its input and takes everything with it; then the last writer to the pipes is gone.
        ended, _ = await asyncio.wait({self._listening, self._waiting}, timeout=self.stop_seconds)
        if len(ended) < 2:  # noqa: PLR2004  # both
            await asyncio.to_thread(end_tree, self.process.pid)
            with contextlib.suppress(ProcessLookupError):
                self.process.kill()
            await asyncio.wait({self._listening, self._waiting})
        gone()

    async def _close_when_over(self) -> None:
        """When the process that was started is killed during a call, see to it that what it started hears so, too.

        The warden still holds the pipes then, so their end does not tell; nor does `wait`, which waits for it.
        """
        assert self.process.stdin is not None  # noqa: S101  # it was started with one
        while self.process.returncode is None:  # noqa: ASYNC110  # asyncio tells of it only when the pipes are closed
            await asyncio.sleep(LOOK_SECONDS)
        self.process.stdin.close()

    # ---- frames

    @contextlib.asynccontextmanager
    async def _answering(self) -> AsyncIterator[None]:
        """Give the warden its time; late, or broken off in the middle, the box is ended. Raises SessionLost."""
        try:
            async with asyncio.timeout(FILE_SECONDS):
                yield
        except TimeoutError:
            await self.stop()
            raise SessionLost(words.LOST) from None
        except BaseException:
            await self.stop()
            raise

    async def _send(self, head: dict[str, Any], body: bytes = b"") -> None:
        await self._send_bytes(frames.pack(head, body))

    async def _send_bytes(self, data: bytes) -> None:
        assert self.process.stdin is not None  # noqa: S101  # it was started with one
        if self._gone is None:
            raise SessionLost(words.LOST)
        try:
            self.process.stdin.write(data)
            await self.process.stdin.drain()
        except (ConnectionError, RuntimeError):
            raise SessionLost(words.LOST) from None

    async def _receive(self) -> frames.Frame:
        assert self.process.stdout is not None  # noqa: S101  # it was started with one
        try:
            head, body = frames.check_lengths(await self.process.stdout.readexactly(frames.LENGTHS.size))
            text = await self.process.stdout.readexactly(head)
            return frames.parse_head(text), await self.process.stdout.readexactly(body)
        except (asyncio.IncompleteReadError, ConnectionError, frames.BadFrame):
            raise SessionLost(words.LOST) from None

    async def _listen_to_errors(self) -> None:
        """Keep the last that the box says on its standard error: why it did not start, or why it ended."""
        assert self.process.stderr is not None  # noqa: S101  # it was started with one
        while data := await self.process.stderr.read(SAID_BYTES):
            self._said += data
            del self._said[:-SAID_BYTES]

    def _log(self, message: str, *values: object) -> None:
        log.warning(f"code session %s (%s) {message}", self.process.pid, self.kind, *values)  # noqa: G004  # ours


def _output(op: str, body: bytes, media_type: str) -> Logs | Image | None:
    if op == "logs":
        return Logs(body.decode("utf-8", "replace"))
    if op == "image" and media_type in {"image/png", "image/jpeg"}:
        return Image(body, media_type)
    return None


def _listed(found: Any) -> dict[str, FileInfo]:
    """Check a list of files that came from inside; what has not the form of one is left out."""
    listed: dict[str, FileInfo] = {}
    for one in found if isinstance(found, list) else []:
        if not isinstance(one, list) or [type(part) for part in one] != [str, int, int]:
            continue
        try:
            names.check_name(one[0])
        except names.Refused:
            continue
        listed[one[0]] = FileInfo(bytes=one[1], changed_ns=one[2])
    return listed
