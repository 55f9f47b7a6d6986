"""Carries what runs inside a box into it, as text over the box's standard input.

No folder of the server's has to be visible there for it, readable by the box's uid, or reachable by a container engine.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

INSIDE = Path(__file__).parent / "inside"
PACKAGE = "perdure_inside"
BOOT = """\
import os
def take(n):
    b = b""
    while len(b) < n:
        p = os.read(0, n - len(b))
        if not p: os._exit(0)
        b += p
    return b
exec(compile(take(int(take(8))), "<perdure boot>", "exec"))
"""
"""What the box's interpreter is given on its command line: run as many bytes of standard input as the first
eight say.
"""

CARRIED = """\
import sys
from importlib.machinery import ModuleSpec
class Carried:
    def find_spec(self, name, path=None, target=None):
        return ModuleSpec(name, self, is_package=name == PACKAGE) if name in FILES else None
    def create_module(self, spec):
        return None
    def exec_module(self, module):
        name = module.__name__
        exec(compile(FILES[name], f"<{name.replace('_', ' ')}>", "exec", dont_inherit=True), module.__dict__)
sys.meta_path.insert(0, Carried())
"""


@functools.cache
def _files() -> dict[str, str]:
    return {
        PACKAGE if path.stem == "__init__" else f"{PACKAGE}.{path.stem}": path.read_text(encoding="utf-8")
        for path in sorted(INSIDE.glob("*.py"))
    }


def boot_bytes(config: dict[str, Any], *, solo: bool = False) -> bytes:
    """Return what the box reads first: the files, and the call that begins with this configuration."""
    start = "solo import Solo\nSolo(CONFIG).serve()" if solo else "warden import main\nmain(CONFIG)"
    script = (
        f"import json\nPACKAGE = {PACKAGE!r}\nFILES = {_files()!r}\nCONFIG = json.loads({json.dumps(config)!r})\n"
        f"{CARRIED}from {PACKAGE}.{start}\n"
    )
    text = script.encode()
    return f"{len(text):08}".encode() + text
