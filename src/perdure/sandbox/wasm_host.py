"""The process that holds CPython in WebAssembly: started for each session of the wasm kind, run as a plain script.

Inside there is one folder (/mnt/data), standard input and output, a clock and random numbers; WASI gives nothing else.
Arguments: the module, where its compiled form is kept, the folder of the standard library or '', the session's folder,
its memory in bytes, and what Python is to run.
"""

from __future__ import annotations

import os
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

PARENT_SECONDS = 1.0


def main(module: str, cache: str, folder: str, memory: str, boot: str) -> None:
    """Run Python until its input ends."""
    import wasmtime  # noqa: PLC0415  # the extra

    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    config = wasmtime.Config()
    engine = wasmtime.Engine(config)
    compiled = _compiled(engine, Path(module), Path(cache))
    store = wasmtime.Store(engine)
    store.set_limits(memory_size=int(memory))
    wasi = wasmtime.WasiConfig()
    wasi.argv = ["python", "-I", "-S", "-c", boot]
    wasi.env = [("PYTHONDONTWRITEBYTECODE", "1"), ("HOME", "/mnt/data"), ("TMPDIR", "/mnt/data")]
    wasi.preopen_dir(folder, "/mnt/data")
    wasi.inherit_stdin()
    wasi.inherit_stdout()
    wasi.inherit_stderr()
    store.set_wasi(wasi)
    linker = wasmtime.Linker(engine)
    linker.define_wasi()
    instance = linker.instantiate(store, compiled)
    start = instance.exports(store)["_start"]
    try:
        start(store)  # type: ignore[operator]  # a function by WASI's contract
    except wasmtime.ExitTrap as end:
        sys.exit(end.code)


def _compiled(engine: Any, module: Path, cache: Path) -> Any:
    """Return the module in machine code; compiling takes seconds and is done once for each version and machine."""
    from wasmtime import Module  # noqa: PLC0415  # the extra

    if cache.exists():
        return Module.deserialize_file(engine, str(cache))
    made = Module.from_file(engine, str(module))
    cache.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=cache.parent, delete=False) as file:
        file.write(made.serialize())
    Path(file.name).replace(cache)
    return made


def _end_with_parent(parent: int) -> None:
    """End with the server: code in a loop does not see that its input has ended."""
    while os.getppid() == parent:
        time.sleep(PARENT_SECONDS)
    os._exit(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
