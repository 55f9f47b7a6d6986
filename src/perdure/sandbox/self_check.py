"""The walls, each tried from inside: what every kind must pass before it is trusted, in tests, by doctor, and at start.

Each check runs hostile code in a real session and looks at what came of it, inside and outside. After each one the next
call must work. The checks of limits use up one each, and take seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Protocol, TypeAlias

import msgspec

from perdure.sandbox import attempts
from perdure.sandbox.base import (
    CheckReport,
    Depth,
    FileRefused,
    Limits,
    Logs,
    Output,
    Result,
    Session,
    SessionLost,
    WallCheck,
)

LIMITS = Limits(
    memory_bytes=384 * 1024**2,
    cpu_seconds=20,
    wall_seconds=20,
    processes=32,
    disk_bytes=24 * 1024**2,
    output_bytes=16 * 1024,
    file_bytes=16 * 1024**2,
    files=3000,
)
SHORT = msgspec.structs.replace(LIMITS, wall_seconds=1, cpu_seconds=60)
PUBLIC_VARIABLES = {"PATH", "LANG", "HOME", "PWD", "TMPDIR", "SHELL", "TERM", "USER", "LOGNAME", "OLDPWD", "SHLVL", "_"}
SHORT_VALUE = 7
SEEN_LETTERS = 2000
AT_ONCE = 4
GET_REFUSED = (
    "link.txt",
    "passwd",
    "loop",
    "pipe",
    "folder/etc/passwd",
    "secret.txt",
    "../etc/passwd",
    "/etc/passwd",
    "a\nb",
)
PUT_REFUSED = ("../out.txt", "/out.txt", "a/../../b", "a\nb", "folder/tmp/out.txt", "e\x1b[2J", ".", "")


class Starts(Protocol):
    """What is checked: anything that starts sessions."""

    name: str

    async def start(self, limits: Limits, *, preload: bool = False) -> Session:
        """Start a box."""
        ...


class Bait(msgspec.Struct, frozen=True):
    """What stands outside, for the code to reach for: a listener on loopback, Unix sockets, a file open to all."""

    port: int
    abstract: str
    path: str
    folder: str
    secret: str
    content: str


CheckFunction: TypeAlias = Callable[["Ground"], Awaitable[tuple[bool, str]]]
Check: TypeAlias = tuple[str, CheckFunction]


class Heard:
    """What a session said in one call, and how the call ended."""

    def __init__(self) -> None:
        self.text = ""
        self.result: Result | None = None
        self.lost = ""

    async def tell(self, output: Output) -> None:
        """Take an output."""
        if isinstance(output, Logs):
            self.text += output.text

    @property
    def words(self) -> str:
        """How it ended, in words."""
        if self.result is None:
            return self.lost
        return f"{self.result.outcome}. {self.result.words}".strip()


class Ground:
    """Where the checks are made: a kind, what stands outside of it, and one session for all that leaves it usable."""

    def __init__(self, sandbox: Starts, bait: Bait) -> None:
        self.sandbox = sandbox
        self.bait = bait
        self._session: Session | None = None

    async def session(self) -> Session:
        """Return the session, a new one if the last was lost. Raises SandboxFailure."""
        if self._session is None or not self._session.alive:
            self._session = await self.sandbox.start(LIMITS)
        return self._session

    async def close(self) -> None:
        """End the session."""
        if self._session is not None:
            await self._session.stop()


async def check_walls(sandbox: Starts, depth: Depth) -> CheckReport:
    """Try the walls. Raises SandboxFailure if no session starts."""
    walls = []
    async with _bait() as bait:
        ground = Ground(sandbox, bait)
        try:
            for name, check in WALLS[:BRIEF] if depth == "brief" else WALLS:
                walls.append(_seen(name, await check(ground)))
            if depth == "limits":
                walls += await _limits(ground)
                walls.append(_seen("a new session after all that", await _again(ground)))
        finally:
            await ground.close()
    return CheckReport(kind=sandbox.name, walls=walls)


async def _limits(ground: Ground) -> list[WallCheck]:
    """Try the limits, a few at once: each has a session of its own, and mostly waits for its end."""
    turns = asyncio.Semaphore(AT_ONCE)

    async def one(name: str, check: CheckFunction) -> WallCheck:
        async with turns:
            return _seen(name, await check(ground))

    return list(await asyncio.gather(*(one(name, check) for name, check in LIMITS_MET)))


def _seen(name: str, found: tuple[bool, str]) -> WallCheck:
    return WallCheck(wall=name, holds=found[0], seen=found[1][-SEEN_LETTERS:])


@contextlib.asynccontextmanager
async def _bait() -> AsyncIterator[Bait]:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        del reader
        writer.close()

    listener = await asyncio.start_server(answer, "127.0.0.1", 0)
    with tempfile.TemporaryDirectory(prefix="perdure-bait-") as folder, contextlib.ExitStack() as stack:
        async with listener:
            yield _lay_out(folder, int(listener.sockets[0].getsockname()[1]), stack)


def _lay_out(folder: str, port: int, stack: contextlib.ExitStack) -> Bait:
    place = Path(folder)
    place.chmod(0o755)
    secret, content = place / "secret.txt", secrets.token_hex(16)
    secret.write_text(content)
    secret.chmod(0o644)
    path, abstract = str(place / "socket"), f"perdure-{secrets.token_hex(6)}"
    if hasattr(socket, "AF_UNIX") and os.name == "posix":
        for address in (path, f"\0{abstract}"):
            with contextlib.suppress(OSError):  # abstract ones are Linux's
                one = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
                one.bind(address)
                one.listen()
    return Bait(port=port, abstract=abstract, path=path, folder=folder, secret=str(secret), content=content)


def _state(secret: str) -> tuple[object, ...]:
    """Return all that must not change about the server's file."""
    path = Path(secret)
    if not path.exists():
        return ()
    known = path.stat()
    return known.st_mode, known.st_uid, known.st_size, known.st_mtime_ns, known.st_nlink, path.read_text()


async def _hear(session: Session, code: str) -> Heard:
    heard = Heard()
    try:
        heard.result = await session.run(code, heard.tell)
    except SessionLost as lost:
        heard.lost = str(lost)
    return heard


async def _works(session: Session) -> bool:
    """Whether the next call works; a session that was lost is no wall, but the next one must start."""
    if not session.alive:
        return True
    return "42" in (await _hear(session, "print(6 * 7)")).text


async def _attempts(ground: Ground, code: str) -> tuple[bool, str]:
    """Run attempts of which none may get anything."""
    session = await ground.session()
    heard = await _hear(session, attempts.TOOLS + code)
    holds = ": GOT " not in heard.text and "refused" in heard.text and await _works(session)
    got = [line for line in heard.text.splitlines() if ": GOT " in line]
    return holds, "\n".join(got) or heard.text or heard.words


async def _network(ground: Ground) -> tuple[bool, str]:
    bait = ground.bait
    return await _attempts(ground, attempts.NETWORK.format(port=bait.port, abstract=bait.abstract, path=bait.path))


async def _files(ground: Ground) -> tuple[bool, str]:
    bait = ground.bait
    before = _state(bait.secret)
    holds, seen = await _attempts(ground, attempts.FILES.format(secret=bait.secret, folder=bait.folder))
    whole = _state(bait.secret) == before
    return holds and whole and bait.content not in seen, seen if whole else "the server's file was changed"


async def _environment(ground: Ground) -> tuple[bool, str]:
    heard = await _hear(await ground.session(), attempts.TOOLS + attempts.ENVIRONMENT)
    ours = [
        name for name, value in os.environ.items() if name not in PUBLIC_VARIABLES and _is_there(heard, name, value)
    ]
    seen = f"variables of the server's: {ours}" if ours else heard.text
    return not ours and "environment:" in heard.text, seen


def _is_there(heard: Heard, name: str, value: str) -> bool:
    """Whether a variable of the server's was seen; one with a value like `1` could be anybody's."""
    return len(value) > SHORT_VALUE and (f"{name}={value}" in heard.text or f"({name!r}, {value!r})" in heard.text)


async def _rights(ground: Ground) -> tuple[bool, str]:
    holds, seen = await _attempts(ground, attempts.RIGHTS)
    first = seen.splitlines()[0] if seen else ""
    known = dict(part.split(": ", 1) for part in first.split("; ") if ": " in part)
    if "Seccomp" in known:
        holds = holds and known["NoNewPrivs"].strip() == "1" and known["Seccomp"].strip() == "2"
        holds = holds and all(int(known[name], 16) == 0 for name in known if name.startswith("Cap"))
        holds = holds and "0" not in known["Uid"].split()
    return holds, seen


async def _others(ground: Ground) -> tuple[bool, str]:
    return await _attempts(ground, attempts.OTHERS.format(pids=[os.getpid(), os.getppid()]))


async def _kernel(ground: Ground) -> tuple[bool, str]:
    return await _attempts(ground, attempts.KERNEL)


async def _devices(ground: Ground) -> tuple[bool, str]:
    return await _attempts(ground, attempts.DEVICES)


async def _sessions_apart(ground: Ground) -> tuple[bool, str]:
    first, second = await asyncio.gather(ground.sandbox.start(LIMITS), ground.sandbox.start(LIMITS))
    try:
        told = await _hear(first, attempts.OF_THE_FIRST)
        folder, pid = told.text.strip().rsplit(" ", 1)
        # Without a process namespace the folder and the process have names that all could use.
        shared = ground.sandbox.name == "landlock"
        code = attempts.OF_THE_SECOND.format(folder=folder if shared else "/mnt/data", pid=int(pid) if shared else 0)
        heard = await _hear(second, attempts.TOOLS + code)
        holds = ": GOT " not in heard.text and "refused" in heard.text
        holds = holds and "mine.txt" not in await second.files() and "mine.txt" in await first.files()
        return holds, heard.text
    finally:
        await asyncio.gather(first.stop(), second.stop())


async def _links(ground: Ground) -> tuple[bool, str]:
    """Symlinks and strange names, on the way out and on the way in."""
    before = _state(ground.bait.secret)
    session = await ground.session()
    try:
        heard = await _hear(
            session, attempts.TOOLS + attempts.LINKS.format(secret=ground.bait.secret, folder=ground.bait.folder)
        )
        listed = await session.files()
        lines = [f"listed: {sorted(listed)}"]
        holds = "deep/er/fine.txt" in listed and not {"link.txt", "passwd", "loop", "pipe"} & set(listed)
        holds = holds and not any(name.startswith("folder/") or "\n" in name for name in listed)
        for name in GET_REFUSED:
            holds = await _refused(lines, f"get {name!r}", _all(session, name)) and holds
        for name in PUT_REFUSED:
            refused = await _refused(lines, f"put {name!r}", session.put(name, b"x"))
            # where no symlink could be made, that name is a folder like any other
            holds = holds and (refused or (name.startswith("folder/") and "no link folder" in heard.text))
        await session.put("link.txt", b"in place of the link")
        holds = holds and await _all(session, "link.txt") == b"in place of the link"
        holds = holds and _state(ground.bait.secret) == before and await _works(session)
        lines.append("put over a symlink replaces the symlink; what it pointed to is as it was")
        return holds, "\n".join([*lines, heard.text])
    except (FileRefused, SessionLost) as failure:
        return False, str(failure)


async def _all(session: Session, name: str) -> bytes:
    return b"".join([piece async for piece in session.get(name)])


async def _refused(lines: list[str], what: str, doing: Awaitable[object]) -> bool:
    try:
        await doing
    except FileRefused as refusal:
        lines.append(f"{what}: refused ({refusal})")
        return True
    lines.append(f"{what}: GOT")
    return False


def _spent(code: str, limits: Limits, *outcomes: str, says: tuple[str, ...] = ("",)) -> CheckFunction:
    """Make a check of a limit: the call ends in one of these ways, says so, and the next one works."""

    async def check(ground: Ground) -> tuple[bool, str]:
        session = await ground.sandbox.start(limits)
        try:
            heard = await _hear(session, code)
            ended = "lost" if heard.result is None else heard.result.outcome
            said = (heard.words + heard.text).lower()
            told = any(word in said for word in (*says, "no module named", "has no attribute"))
            holds = (ended in outcomes or ended == "lost") and told and await _works(session)
            return holds, f"{heard.text[-400:]}\n{heard.words}"
        finally:
            await session.stop()

    return check


async def _again(ground: Ground) -> tuple[bool, str]:
    """After all that, a fresh session starts and works."""
    session = await ground.sandbox.start(LIMITS)
    try:
        return await _works(session), "a new session answers"
    finally:
        await session.stop()


WALLS: list[Check] = [
    ("network", _network),
    ("the server's files", _files),
    ("rights", _rights),
    ("the server's environment", _environment),
    ("other processes and ptrace", _others),
    ("mounts, namespaces and wide system calls", _kernel),
    ("devices", _devices),
    ("two sessions at once", _sessions_apart),
    ("symlinks and file names", _links),
]
BRIEF = 3
"""How many of them are tried at every start: each of the others needs one of these to be down."""
ANY = ("ok", "error", "timeout", "died", "processes")
LIMITS_MET: list[Check] = [
    ("fork bomb", _spent("import os\n" + attempts.FORKS, SHORT, *ANY)),
    ("10 GB allocation", _spent(attempts.MEMORY, LIMITS, "error", "memory", says=("memory",))),
    (
        "memory of several processes",
        _spent(attempts.MEMORY_TOGETHER, LIMITS, "memory", "error", says=("memory", "processes")),
    ),
    ("shared memory", _spent(attempts.MEMORY_SHARED, LIMITS, "memory", "error", says=("memory",))),
    ("full disk", _spent(attempts.DISK, LIMITS, "error", "disk", says=("/mnt/data",))),
    ("files without end", _spent(attempts.DISK_FILES, LIMITS, "error", "disk", "timeout", says=("disk",))),
    ("a file without end", _spent(attempts.LONG_FILE, LIMITS, "error", "disk", says=("limit", "disk"))),
    ("endless loop", _spent(attempts.LOOP, SHORT, "timeout", says=("longer than",))),
    ("endless loop that ignores interrupts", _spent(attempts.DEAF_LOOP, SHORT, "timeout", says=("longer than",))),
    ("endless output", _spent(attempts.OUTPUT, SHORT, "output", "timeout", says=("cut", "longer than"))),
    ("killing the warden", _spent(attempts.KILLS, SHORT, "ok", "died")),
    ("a crash of the interpreter", _spent(attempts.CRASH, SHORT, "died", "error")),
    ("forged frames", _spent(attempts.FORGED, SHORT, "ok", "died", "timeout")),
]
