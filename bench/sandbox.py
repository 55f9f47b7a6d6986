"""Measures code sessions: `python bench/sandbox.py [--quick] [--write]`.

Each kind of sandbox beside a bare ipykernel on this machine, without any sandbox, in turns: one call on a session that
is there, a start to the first answer, a first call with a session from the warm pool. With `--write` the table goes
into bench/RESULTS.md, between its own two marks.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime as dt
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from statistics import median
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from jupyter_client.manager import AsyncKernelManager  # noqa: E402  # found only with the line above

from bench.table import Row, markdown, time_row  # noqa: E402
from perdure.ids import SystemClock  # noqa: E402
from perdure.sandbox.base import Limits, Output, Sandbox, Session  # noqa: E402
from perdure.sandbox.choose import make_kind  # noqa: E402
from perdure.sandbox.sessions import Sessions  # noqa: E402
from perdure.settings import Settings  # noqa: E402
from tests.sandboxes import code_settings  # noqa: E402

RESULTS = HERE / "RESULTS.md"
BEGIN, END = "<!-- sandbox: begin -->", "<!-- sandbox: end -->"
KINDS = ("bubblewrap", "landlock", "wasm")
CELL = "1 + 1"
IMPORTS = "import numpy, pandas, matplotlib.pyplot"
MEGABYTE = bytes(1024 * 1024)


class Size(NamedTuple):
    """How often each thing is done."""

    calls: int
    starts: int


FULL, QUICK = Size(300, 12), Size(40, 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a look, no result")
    parser.add_argument("--write", action="store_true", help="write bench/RESULTS.md too")
    given = parser.parse_args()
    size = QUICK if given.quick else FULL
    with tempfile.TemporaryDirectory() as data:
        rows = asyncio.run(_measured(size, code_settings(Path(data))))
    page = _page(rows, size)
    print(page)
    if given.write:
        old = RESULTS.read_text() if RESULTS.exists() else ""
        before, _, rest = old.partition(BEGIN)
        _, _, after = rest.partition(END)
        RESULTS.write_text(f"{before.rstrip()}\n\n{BEGIN}\n{page}\n{END}\n{after.lstrip()}")


def _today() -> dt.date:
    return dt.datetime.now(dt.UTC).date()


def _page(rows: list[Row], size: Size) -> str:
    return (
        "## Code sessions\n\n"
        f"{_today()}, `python bench/sandbox.py --write`: {size.calls} calls and {size.starts} starts "
        "of each kind, in turns with a bare ipykernel on the same machine, which has no sandbox. The cell is `1 + 1`; "
        f"imports are `{IMPORTS}`. Medians.\n\n{markdown(rows)}"
    )


async def _measured(size: Size, settings: Settings) -> list[Row]:
    kinds = {kind: make_kind(kind, settings) for kind in KINDS}
    for sandbox in kinds.values():  # compiled and cached before anything is measured
        await (await sandbox.start(Limits())).stop()
    rows = await _calls(size, kinds)
    rows += await _starts(size, kinds)
    rows += await _pool(size, kinds["bubblewrap"], settings)
    for sandbox in kinds.values():
        await sandbox.close()
    return rows


async def _calls(size: Size, kinds: dict[str, Sandbox]) -> list[Row]:
    floor, manager = await _bare_kernel()
    sessions = {kind: await sandbox.start(Limits()) for kind, sandbox in kinds.items()}
    times: dict[str, list[float]] = {name: [] for name in ("floor", *kinds)}
    for _ in range(size.calls):
        times["floor"].append(await _timed(lambda: floor(CELL)))
        for kind, session in sessions.items():
            times[kind].append(await _timed(lambda session=session: _run(session, CELL)))  # type: ignore[misc]
    rows = [time_row(f"a call on a session that is there, {kind}", times[kind], times["floor"]) for kind in kinds]
    rows.append(await _files(sessions["bubblewrap"]))
    rows.append(_memory(sessions["bubblewrap"]))
    await manager.shutdown_kernel(now=True)
    return rows


async def _starts(size: Size, kinds: dict[str, Sandbox]) -> list[Row]:
    times: dict[str, list[float]] = {name: [] for name in ("floor", *kinds)}

    async def bare() -> None:
        run, manager = await _bare_kernel()
        await run(CELL)
        ended.append(manager)

    async def boxed(sandbox: Sandbox) -> None:
        session = await sandbox.start(Limits())
        await _run(session, CELL)
        stopped.append(session)

    ended: list[AsyncKernelManager] = []
    stopped: list[Session] = []
    for _ in range(size.starts):
        times["floor"].append(await _timed(bare))
        await ended.pop().shutdown_kernel(now=True)
        for kind, sandbox in kinds.items():
            times[kind].append(await _timed(lambda sandbox=sandbox: boxed(sandbox)))  # type: ignore[misc]
            await stopped.pop().stop()
    return [time_row(f"a cold start to its first answer, {kind}", times[kind], times["floor"]) for kind in kinds]


async def _pool(size: Size, sandbox: Sandbox, settings: Settings) -> list[Row]:
    """A first call of a thread, from the pool and without one; the code imports what most code does."""
    cold, warm, plain, starting, empty = [], [], [], [], []
    for _ in range(max(3, size.starts // 2)):
        began = time.perf_counter()
        session = await sandbox.start(Limits())
        await _run(session, CELL)
        empty.append(time.perf_counter() - began)
        cold.append(await _timed(lambda session=session: _run(session, IMPORTS)))  # type: ignore[misc]
        await session.stop()
        began = time.perf_counter()
        session = await sandbox.start(Limits(), preload=True)
        starting.append(time.perf_counter() - began)
        await session.stop()
    sessions = Sessions(sandbox, settings.model_copy(update={"code_warm_sessions": 2 * size.starts}), SystemClock())
    await sessions.start()
    while sessions.warm < 2 * size.starts:  # noqa: ASYNC110  # nothing tells of it
        await asyncio.sleep(0.1)

    async def first(key: str, code: str) -> None:
        async with sessions.use(key) as used:
            await _run(used.session, code)

    for number in range(size.starts):
        plain.append(await _timed(lambda number=number: first(f"a{number}", CELL)))  # type: ignore[misc]
        warm.append(await _timed(lambda number=number: first(f"b{number}", IMPORTS)))  # type: ignore[misc]
        await sessions.forget(f"a{number}")
        await sessions.forget(f"b{number}")
    await sessions.close()
    return [
        time_row("a thread's first call, from the warm pool; floor: bubblewrap's cold start", plain, empty),
        time_row("the same with imports; floor: the imports on a cold session", warm, cold),
        Row("what the pool does ahead: a start with the imports", f"{median(starting) * 1000:.0f} ms"),
    ]


async def _files(session: Session) -> Row:
    times = []
    for _ in range(20):
        began = time.perf_counter()
        await session.put("megabyte.bin", MEGABYTE)
        got = b"".join([piece async for piece in session.get("megabyte.bin")])
        times.append(time.perf_counter() - began)
        assert got == MEGABYTE
    return Row("a file of 1 MiB in and out again, bubblewrap", f"{median(times) * 1000:.2f} ms")


def _memory(session: Session) -> Row:
    """The proportional memory of a session's processes: bubblewrap, warden, kernel."""
    pid = session.process.pid  # type: ignore[attr-defined]  # every kind's session has one
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    total = 0
    for one in found:
        for line in Path(f"/proc/{one}/smaps_rollup").read_text().splitlines():
            total += int(line.split()[1]) if line.startswith("Pss:") else 0
    return Row("memory of a session that imported nothing, bubblewrap", f"{total // 1024} MB proportional")


async def _bare_kernel() -> tuple[Callable[[str], Awaitable[None]], AsyncKernelManager]:
    manager = AsyncKernelManager(transport="ipc")
    await manager.start_kernel()
    client = manager.client()
    client.start_channels()
    await client.wait_for_ready(timeout=60)

    async def run(code: str) -> None:
        reply = await client.execute_interactive(code, output_hook=lambda _: None)
        assert reply["content"]["status"] == "ok"

    return run, manager


async def _run(session: Session, code: str) -> None:
    async def tell(output: Output) -> None:
        pass

    assert (await session.run(code, tell)).outcome == "ok"


async def _timed(doing: Callable[[], Awaitable[None]]) -> float:
    began = time.perf_counter()
    await doing()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
