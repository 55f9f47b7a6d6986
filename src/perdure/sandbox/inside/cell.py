"""One cell of code, run as IPython would: state stays, the last expression is shown, `await` works at the top.

Rule: a cell can end in any way (an error, SystemExit, an interrupt), and the shell is ready for the next one after it.
What the code prints goes to sys.stdout by itself; what needs words (a limit met) comes back as a hint.
"""

from __future__ import annotations

import ast
import asyncio
import builtins
import contextlib
import errno
import inspect
import linecache
import os
import sys
import types
from typing import Any, Callable

from . import trace
from .commands import Commands, rewrite
from .display import Display

DATA = "/mnt/data"
HINTS = {
    errno.ENOSPC: "disk",
    errno.EDQUOT: "disk",
    errno.EFBIG: "file",
    errno.EAGAIN: "processes",
}


class Shell:
    """The state of a session's code.

    `send` takes an image: media type and bytes; `alias` is where /mnt/data really is.
    """

    def __init__(self, send: Callable[[str, bytes], None], alias: str = DATA) -> None:
        self.main = types.ModuleType("__main__")
        self.names = self.main.__dict__
        self.alias = alias
        self.count = 0
        self.display = Display(send, self.names)
        self.commands = Commands(self.names, self.display, alias)
        self.loop: asyncio.AbstractEventLoop | None = None

    def install(self) -> None:
        """Take over what the interpreter would do otherwise: main module, display hook, input, IPython's names."""
        sys.modules["__main__"] = self.main
        sys.displayhook = self.display.show_value
        builtins.input = _no_input
        self.names["__builtins__"] = builtins
        self.names.update({"In": [""], "Out": self.display.values, "get_ipython": lambda: self.commands})
        builtins.display = self.display.display  # type: ignore[attr-defined]  # as in a notebook
        builtins.get_ipython = lambda: self.commands  # type: ignore[attr-defined]  # as in a notebook
        self.display.install()

    def run(self, code: str) -> dict[str, Any]:
        """Run one cell; returns `outcome` ('ok' or 'error') and `hint`: the limit that it met, or ''."""
        self.count += 1
        self.display.begin_cell(self.count)
        self.names["In"].append(code)
        answer = {"outcome": "ok", "hint": ""}
        try:
            self._run(code)
        except BaseException as error:  # noqa: BLE001  # whatever foreign code raises is told, and nothing else is done
            answer = {"outcome": "error", "hint": hint_of(error)}
            self._tell(error)
        try:
            self.display.end_cell()
        except BaseException as error:  # noqa: BLE001  # drawing runs foreign code too
            answer = {"outcome": "error", "hint": hint_of(error)}
            self._tell(error)
        self._flush()
        return answer

    def _run(self, code: str) -> None:
        name = trace.cell_name(self.count)
        code = self.commands.unfold(code)
        tree, code = rewrite(code, name)
        linecache.cache[name] = (len(code), None, code.splitlines(keepends=True), name)
        if self.alias != DATA:
            tree = ast.fix_missing_locations(_Alias(self.alias).visit(tree))
        quiet = _ends_with_semicolon(code)
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) and not quiet else None
        if tree.body:
            self._execute(compile(tree, name, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT))
        if last is not None:
            shown = ast.Interactive([last])
            self._execute(compile(shown, name, "single", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT))

    def _execute(self, compiled: types.CodeType) -> None:
        if not compiled.co_flags & inspect.CO_COROUTINE:
            exec(compiled, self.names)  # noqa: S102  # this is what the box is for
            return
        if self.loop is None or self.loop.is_closed():
            self.loop = asyncio.new_event_loop()
            asyncio.set_event_loop(self.loop)
        self.loop.run_until_complete(eval(compiled, self.names))  # noqa: S307  # the same, for `await`

    def _tell(self, error: BaseException) -> None:
        self._flush()
        try:
            text = trace.exit_note(error) if isinstance(error, SystemExit) else trace.show(error, self.count)
        except BaseException as second:  # noqa: BLE001  # an exception whose own methods fail
            text = f"{type(error).__name__} (and telling of it failed: {type(second).__name__})"
        self.display.write(text + "\n")

    @staticmethod
    def _flush() -> None:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):  # the code may have replaced or closed them
                stream.flush()


class _Alias(ast.NodeTransformer):
    """Where there is no mount namespace, /mnt/data is a name: literals that begin with it mean the real folder."""

    def __init__(self, alias: str) -> None:
        self.alias = alias

    def visit_Constant(self, node: ast.Constant) -> ast.AST:  # ast's spelling
        if isinstance(node.value, str):
            node.value = node.value.replace(DATA, self.alias)
        return node


def _ends_with_semicolon(code: str) -> bool:
    last = code.rstrip().rsplit("\n", 1)[-1]
    return last.split("#")[0].rstrip().endswith(";")


def _no_input(prompt: object = "") -> str:
    raise RuntimeError(
        f"input({str(prompt)!r}) can not be used here: nobody is there to answer. Put the value into the code."
    )


def hint_of(error: BaseException | None) -> str:
    """Return which limit an exception speaks of: memory, disk, file, processes, network, or ''."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, MemoryError):
            return "memory"
        if isinstance(error, RuntimeError) and "can't start new thread" in str(error):
            return "processes"
        if isinstance(error, OSError):
            if error.errno in HINTS:
                return HINTS[error.errno]
            if _from_network(error):
                return "network"
        error = error.__cause__ or error.__context__
    return ""


def _from_network(error: OSError) -> bool:
    """Whether it was raised on the way to a socket, or to a name that only a network could resolve."""
    import socket  # noqa: PLC0415  # not everywhere there, and rarely needed

    if isinstance(error, socket.gaierror) or error.errno in {errno.ENETUNREACH, errno.EAFNOSUPPORT}:
        return True
    frame = error.__traceback__
    while frame is not None:
        if os.path.basename(frame.tb_frame.f_code.co_filename) == "socket.py":
            return True
        frame = frame.tb_next
    return False
