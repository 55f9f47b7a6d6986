"""The code interpreter tool: a thread's session in the sandbox, its files on the way in and out.

Rules. Whatever goes wrong with code, its limits or its box is told to the model in words. The thread's files are laid
into the session before code runs, each once. Figures become files at once; other files only where an answer links them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from pathlib import PurePosixPath
from typing import Any
from weakref import WeakKeyDictionary

from perdure.blobs import Blobs, drop, new_blob_name
from perdure.domain.citations import Link, file_path
from perdure.errors import NotFound, Unavailable
from perdure.ids import Clock, Ids, new_file_id
from perdure.sandbox.base import DATA, FileRefused, Image, Output, Result, SandboxFailure, Session, SessionLost
from perdure.sandbox.choose import Refusal, choose
from perdure.sandbox.sessions import Sessions, SessionsBusy
from perdure.settings import Settings
from perdure.store.bodies import read_thread
from perdure.store.db import Database
from perdure.store.files import files_named, get_file, insert_file
from perdure.store.threads import get_thread_body
from perdure.wire.files import File, StoredFile, plain_name
from perdure.wire.runs import Run
from perdure.wire.steps import CodeInterpreterCall, CodeOutput, ImageId, ImageOutput, LogsOutput

log = logging.getLogger("perdure.tools")

END_SECONDS = 5.0
"""How long code that is interrupted may take to end before its session does."""
SUFFIXES = {"image/png": ".png", "image/jpeg": ".jpg", "image/svg+xml": ".svg", "image/gif": ".gif"}
PutOut = Callable[[CodeOutput], None]


class _Laid:
    """The files that were laid into a session, and what was given out of it, by name and state."""

    def __init__(self) -> None:
        self.file_ids: set[str] = set()
        self.given: dict[tuple[str, int, int], str] = {}


class CodeBoxes:
    """The sandbox of this server and its sessions, opened when a run first needs them: most servers never do."""

    def __init__(self, settings: Settings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._opening: asyncio.Task[Sessions | Refusal] | None = None
        self._forgetting: set[asyncio.Task[None]] = set()

    def forget(self, thread_id: str) -> None:
        """End the session of a thread that was deleted, as soon as no call uses it."""
        if self._opening is None:
            return
        one = asyncio.get_running_loop().create_task(self._forget(thread_id))
        self._forgetting.add(one)
        one.add_done_callback(self._forgetting.discard)

    async def _forget(self, thread_id: str) -> None:
        sessions = await self.get()
        if isinstance(sessions, Sessions):
            await sessions.forget(thread_id)

    async def get(self) -> Sessions | Refusal:
        """Return the sessions, or why no code runs here."""
        if self._opening is None:
            self._opening = asyncio.get_running_loop().create_task(self._open())
        return await asyncio.shield(self._opening)

    async def _open(self) -> Sessions | Refusal:
        sandbox = await choose(self._settings)
        if isinstance(sandbox, Refusal):
            log.warning("the code interpreter does not work here: %s", sandbox.reason)
            return sandbox
        sessions = Sessions(sandbox, self._settings, self._clock)
        await sessions.start()
        return sessions

    async def close(self) -> None:
        """End all sessions."""
        for one in list(self._forgetting):
            one.cancel()
        if self._opening is not None:
            sessions = await self._opening
            if isinstance(sessions, Sessions):
                await sessions.close()


class SandboxInterpreter:
    """`CodeInterpreter` over the sessions of this server; where there are none, every call hears why."""

    def __init__(self, boxes: CodeBoxes, database: Database, blobs: Blobs, clock: Clock, ids: Ids) -> None:
        self._boxes = boxes
        self._database = database
        self._blobs = blobs
        self._clock = clock
        self._ids = ids
        self._laid: WeakKeyDictionary[Session, _Laid] = WeakKeyDictionary()

    async def file_names(self, run: Run, project_id: str) -> list[str]:
        """Return the names under which the thread's files stand in /mnt/data.

        Also has the sandbox opened: code is likely to follow.
        """
        await self._boxes.get()
        files = [stored.file for stored in await self._files(run, project_id)]
        return list(names_for(files).values())

    async def run_code(self, run: Run, project_id: str, call: CodeInterpreterCall, put_out: PutOut) -> None:
        """Run the call's code in the thread's session. What is to say beside the outputs goes into the call."""
        words: list[str] = []
        sessions = await self._boxes.get()
        if isinstance(sessions, Refusal):
            words.append(f"The code was not run. {sessions.reason}")
        else:
            try:
                async with sessions.use(run.thread_id) as used:
                    words.append(used.lost)
                    words += await self._lay(used.session, run, project_id)
                    result = await self._run(used.session, call.input, self._teller(project_id, put_out))
                    words.append(result.words)
            except (SessionsBusy, SessionLost) as said:
                words.append(str(said))
            except SandboxFailure as failure:
                log.error("run %s: no sandbox for its code: %s", run.id, failure)  # noqa: TRY400  # one line says it
                words.append(f"The code was not run: {failure}")
        call.x_words = "\n".join(one for one in words if one)
        call.x_state = "ended"

    async def _run(self, session: Session, code: str, tell: Callable[[Output], Any]) -> Result:
        """Run code; a caller that is cancelled interrupts it, and the session stays where that works."""
        running = asyncio.get_running_loop().create_task(session.run(code, tell))
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            await session.interrupt()
            _, late = await asyncio.wait({running}, timeout=END_SECONDS)
            if late:
                running.cancel()
                await asyncio.wait({running})
            if not running.cancelled():
                running.exception()  # looked at: whatever it was, its caller has left
            raise

    def _teller(self, project_id: str, put_out: PutOut) -> Callable[[Output], Any]:
        async def tell(output: Output) -> None:
            if not isinstance(output, Image):
                put_out(LogsOutput(logs=output.text))
                return
            name = f"{new_blob_name(self._ids)}{SUFFIXES.get(output.media_type, '.png')}"
            try:
                file_id = await self._keep(name, _once(output.data), project_id)
            except Unavailable as failure:
                put_out(LogsOutput(logs=f"[A figure could not be stored: {failure.message}]\n"))
            else:
                put_out(ImageOutput(image=ImageId(file_id=file_id)))

        return tell

    # -- files on the way in

    async def _files(self, run: Run, project_id: str) -> list[StoredFile]:
        """Return the run's files and the thread's, as far as they are there, each once."""
        try:
            body = await self._database.read(get_thread_body, run.thread_id, project_id)
        except NotFound:  # deleted under the run; its fence ends the run
            return []
        found = []
        for file_id in dict.fromkeys(
            [*files_named(run.tool_resources), *files_named(read_thread(body).tool_resources)]
        ):
            try:
                found.append(await self._database.read(get_file, file_id, project_id, int(self._clock.now())))
            except NotFound:  # deleted since; it is in nobody's way
                continue
        return found

    async def _lay(self, session: Session, run: Run, project_id: str) -> list[str]:
        """Lay the files into /mnt/data that are not there yet; return what to say of those that can not be."""
        laid = self._laid.setdefault(session, _Laid())
        files = await self._files(run, project_id)
        names = names_for([stored.file for stored in files])
        said = []
        for stored in files:
            file = stored.file
            if file.id in laid.file_ids:
                continue
            try:
                async with self._blobs.local_copy(stored.blob) as path:
                    await session.put(names[file.id], path)
            except FileRefused as failure:
                said.append(f"The file {names[file.id]} is not in {DATA}: {failure}")
            except Unavailable as failure:  # the next call tries again
                said.append(f"The file {names[file.id]} is not in {DATA} yet: {failure}")
                continue
            laid.file_ids.add(file.id)
        return said

    # -- files on the way out

    async def annotations_of(self, run: Run, project_id: str, links: list[Link]) -> list[dict[str, Any]]:
        """Make files of what the links name, as far as it is there, and return their annotations."""
        sessions = await self._boxes.get()
        if isinstance(sessions, Refusal):
            return []
        try:
            async with sessions.use(run.thread_id) as used:
                if used.lost:  # a new, empty session: what the answer means is gone
                    return []
                return [one for link in links if (one := await self._annotation(used.session, link, project_id))]
        except (SessionsBusy, SessionLost, SandboxFailure) as failure:
            log.warning("run %s: the files that its answer links are not kept: %s", run.id, failure)
            return []

    async def _annotation(self, session: Session, link: Link, project_id: str) -> dict[str, Any] | None:
        name = str(PurePosixPath(link.path).relative_to(DATA))
        info = (await session.files()).get(name)
        if info is None:
            return None
        laid = self._laid.setdefault(session, _Laid())
        state = (name, info.bytes, info.changed_ns)
        if state not in laid.given:
            try:
                laid.given[state] = await self._keep(name, session.get(name), project_id)
            except (FileRefused, Unavailable) as failure:
                log.warning("the file %s, which an answer links, is not kept: %s", name, failure)
                return None
        return file_path(link, laid.given[state])

    async def _keep(self, name: str, content: AsyncIterator[bytes], project_id: str) -> str:
        """Store what code made as a file; return its id. Raises Unavailable."""
        written = await self._blobs.write(new_blob_name(self._ids), content)
        now = int(self._clock.now())
        file = File(
            id=new_file_id(self._ids),
            purpose="assistants_output",
            filename=plain_name(f"{DATA}/{name}"),
            bytes=written.bytes,
            created_at=now,
            expires_at=None,
        )
        try:
            await self._database.run(insert_file, StoredFile(file, project_id, written.name, written.sha256))
        except Unavailable:
            await drop(self._blobs, [written.name])
            raise
        return file.id


async def _once(content: bytes) -> AsyncIterator[bytes]:
    yield content


def names_for(files: list[File]) -> dict[str, str]:
    """Return the name of each file in /mnt/data by its id: its own, or with its id before it if that one is taken."""
    names: dict[str, str] = {}
    for file in files:
        name = plain_name(file.filename)
        names[file.id] = f"{file.id}-{name}" if name in names.values() else name
    return names
