"""Which kind of sandbox this machine gets. Found by trying: a kind that does not pass its own brief check is not taken.

    auto    bubblewrap, then landlock, then wasm, then a refusal that says why none of them works
    a name  that kind, or a refusal; never another one in its place

Rule: code never runs unboxed because something did not work. `unsafe-no-sandbox` must be written out by the operator.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import msgspec

from perdure.sandbox.base import CheckReport, Depth, Sandbox, SandboxFailure
from perdure.sandbox.environment import find_environment
from perdure.sandbox.kinds import Boxes
from perdure.sandbox.left_behind import Records
from perdure.settings import Settings

log = logging.getLogger("perdure.sandbox")

AUTO = ("bubblewrap", "landlock", "wasm")
KINDS = (*AUTO, "docker")


class Refusal(msgspec.Struct, frozen=True):
    """No code runs here. `reason` is for model and operator, and says what to do."""

    reason: str


class Tried(msgspec.Struct, frozen=True):
    """What came of one kind on this machine."""

    kind: str
    works: bool
    words: str
    report: CheckReport | None = None


def records_of(settings: Settings) -> Records:
    """Return the records of the boxes of this data folder."""
    return Records(settings.data.absolute() / "sandbox" / "live")


def make_kind(kind: str, settings: Settings) -> Sandbox:
    """Set up a kind, without a check. Raises SandboxFailure."""
    boxes = Boxes(records_of(settings))
    makers: dict[str, Callable[[], Sandbox]] = {
        "bubblewrap": lambda: _bubblewrap(settings, boxes),
        "landlock": lambda: _landlock(settings, boxes),
        "wasm": lambda: _wasm(settings, boxes),
        "docker": lambda: _docker(settings, boxes),
        "unsafe-no-sandbox": lambda: _unboxed(settings, boxes),
    }
    return makers[kind]()


# Each is imported when it is asked for: what it needs is not everywhere.


def _bubblewrap(settings: Settings, boxes: Boxes) -> Sandbox:
    from perdure.sandbox.bubblewrap import Bubblewrap  # noqa: PLC0415

    return Bubblewrap(find_environment(settings), boxes)


def _landlock(settings: Settings, boxes: Boxes) -> Sandbox:
    from perdure.sandbox.landlock import Landlock  # noqa: PLC0415

    return Landlock(find_environment(settings), boxes)


def _wasm(settings: Settings, boxes: Boxes) -> Sandbox:
    from perdure.sandbox.wasm import Wasm, cache_folder  # noqa: PLC0415

    return Wasm(boxes, cache_folder(settings.data.absolute() / "sandbox"))


def _docker(settings: Settings, boxes: Boxes) -> Sandbox:
    from perdure.sandbox.docker import Docker  # noqa: PLC0415

    return Docker(settings.code_docker_image, boxes)


def _unboxed(settings: Settings, boxes: Boxes) -> Sandbox:
    from perdure.sandbox.unboxed import Unboxed  # noqa: PLC0415

    return Unboxed(find_environment(settings), boxes)


async def choose(settings: Settings) -> Sandbox | Refusal:
    """Return the sandbox that code is to run in, checked briefly, or why there is none.

    Also removes what a server that was killed left behind in this data folder.
    """
    records_of(settings).sweep()
    wanted = settings.code_sandbox
    if wanted == "none":
        return Refusal("The code interpreter is switched off here (PERDURE_CODE_SANDBOX=none).")
    if wanted == "unsafe-no-sandbox":
        return make_kind(wanted, settings)
    reasons = []
    for kind in AUTO if wanted == "auto" else (wanted,):
        sandbox, tried = await _try(kind, settings, "brief")
        if sandbox is not None and tried.works:
            log.info("code runs in the %s sandbox: %s", kind, sandbox.about)
            return sandbox
        reasons.append(f"{kind}: {tried.words}")
    return Refusal(
        f"No sandbox works on this machine, so no code is run. {'; '.join(reasons)}. `perdure doctor` tells more."
    )


async def survey(settings: Settings, depth: Depth = "walls") -> list[Tried]:
    """Try every kind on this machine, and say which work, why the others do not, and what to do."""
    found = []
    for kind in KINDS:
        sandbox, tried = await _try(kind, settings, depth)
        if sandbox is not None:
            await sandbox.close()
        found.append(tried)
    return found


async def _try(kind: str, settings: Settings, depth: Depth) -> tuple[Sandbox | None, Tried]:
    try:
        sandbox = make_kind(kind, settings)
        report = await sandbox.self_check(depth)
    except SandboxFailure as failure:
        return None, Tried(kind=kind, works=False, words=str(failure))
    if report.holds:
        return sandbox, Tried(kind=kind, works=True, words=sandbox.about, report=report)
    broken = [
        f"{wall.wall} ({wall.seen.splitlines()[0] if wall.seen else 'nothing seen'})"
        for wall in report.walls
        if not wall.holds
    ]
    return sandbox, Tried(kind=kind, works=False, words=f"a wall does not hold: {', '.join(broken)}", report=report)
