"""What is not Python in a cell: `!command`, `%magic`, `%%magic`.

Rule: only a line at which Python itself stumbles is rewritten, so a string that holds such a line stays as it is.
The list of magics is short: what models write. An unknown one says so.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import time
import timeit
from typing import Any

from .display import Display

LINE = re.compile(r"^(?P<indent>\s*)(?:(?P<name>[A-Za-z_][\w, ]*?)\s*=\s*)?(?P<mark>[!%])(?P<rest>.*)$")
EXPANSION = re.compile(r"\{(\w+)\}|\$(\w+)")
INSTALLS = re.compile(r"^\s*(?:python3?\s+-m\s+)?(?:pip3?|conda|mamba|uv|apt|apt-get)\b.*\b(?:install|add)\b")
NO_INSTALL = "Nothing can be installed here: the sandbox has no network. Use what is there, or do it in plain Python."
ACCEPTED = {"matplotlib", "config", "load_ext", "autoreload", "precision", "autosave", "pylab"}


def rewrite(code: str, filename: str) -> tuple[ast.Module, str]:
    """Return the tree of a cell and its text with commands turned into calls. Raises SyntaxError."""
    lines = code.split("\n")
    tried: set[int] = set()
    while True:
        try:
            return ast.parse("\n".join(lines), filename), "\n".join(lines)
        except SyntaxError as error:
            number = (error.lineno or 0) - 1
            if number in tried or not 0 <= number < len(lines):
                raise
            found = LINE.match(lines[number])
            if found is None:
                raise
            tried.add(number)
            lines[number] = _as_call(found)


def _as_call(found: re.Match[str]) -> str:
    name, rest = found["name"], found["rest"]
    if found["mark"] == "!":
        call = f"get_ipython().{'getoutput' if name else 'system'}({rest.lstrip('!')!r})"
    else:
        magic, _, line = rest.lstrip("%").partition(" ")
        call = f"get_ipython().run_line_magic({magic!r}, {line.strip()!r})"
    return f"{found['indent']}{f'{name} = ' if name else ''}{call}"


class Commands:
    """What `get_ipython()` gives: runs magics and commands over the names of the session."""

    def __init__(self, names: dict[str, Any], display: Display, alias: str) -> None:
        self.names = names
        self.display = display
        self.alias = alias

    def unfold(self, code: str) -> str:
        """Turn a cell that begins with `%%magic` into a call of it; others come back unchanged."""
        text = code.lstrip("\n")
        if not text.startswith("%%"):
            return code
        first, _, body = text.partition("\n")
        magic, _, line = first[2:].partition(" ")
        if magic in {"time", "timeit", "capture"}:
            return body if magic == "capture" else f"get_ipython().run_cell_magic({magic!r}, {line!r}, {body!r})"
        return f"get_ipython().run_cell_magic({magic!r}, {line.strip()!r}, {body!r})"

    def system(self, command: str) -> None:
        """Run a shell command; its output goes where the cell's goes."""
        if INSTALLS.match(command):
            print(NO_INSTALL)  # printing is how a cell is answered
            return
        sys.stdout.flush()
        done = subprocess.run(self._expanded(command), shell=True, check=False, executable=_shell())  # noqa: S602
        self.names["_exit_code"] = done.returncode

    def getoutput(self, command: str) -> list[str]:
        """Run a shell command and return the lines that it printed."""
        done = subprocess.run(  # noqa: S602  # a shell is what was asked for
            self._expanded(command),
            shell=True,
            check=False,
            executable=_shell(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self.names["_exit_code"] = done.returncode
        return done.stdout.decode(errors="replace").splitlines()

    getoutputs = getoutput

    def run_line_magic(self, magic: str, line: str, *_: Any) -> Any:
        """Run `%magic line`."""
        if magic in ACCEPTED:
            return None
        if magic in {"pip", "conda", "mamba", "uv"}:
            print(NO_INSTALL)
            return None
        known = getattr(self, f"_magic_{magic}", None)
        if known is None:
            print(f"UsageError: Line magic function `%{magic}` not found.")
            return None
        return known(line)

    def run_cell_magic(self, magic: str, line: str, body: str) -> Any:
        """Run `%%magic line` over the rest of the cell."""
        if magic in {"bash", "sh", "script"}:
            return self.system(body)
        if magic in {"writefile", "file"}:
            path = line.replace("/mnt/data", self.alias)
            with open(path, "w", encoding="utf-8") as file:
                file.write(body)
            print(f"Writing {line}")
            return None
        if magic == "html":
            return self.display.write(body)
        if magic == "time":
            return self._timed(body)
        if magic == "timeit":
            return self._magic_timeit(body)
        print(f"UsageError: Cell magic `%%{magic}` not found.")
        return None

    def _magic_timeit(self, line: str) -> None:
        timer = timeit.Timer(line, globals=self.names)
        loops, _ = timer.autorange()
        best = min(timer.repeat(3, loops)) / loops
        print(f"{_duration(best)} per loop (best of 3, {loops} loops each)")

    def _magic_time(self, line: str) -> Any:
        return self._timed(line)

    def _timed(self, code: str) -> Any:
        tree = ast.parse(code)
        value = None
        began, used = time.perf_counter(), time.process_time()
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, "<timed>", "exec"), self.names)  # noqa: S102  # this is what the box is for
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), "<timed>", "eval"), self.names)  # noqa: S307
        print(
            f"CPU times: {_duration(time.process_time() - used)}\nWall time: {_duration(time.perf_counter() - began)}"
        )
        return value

    def _magic_cd(self, line: str) -> None:
        os.chdir(os.path.expanduser(line.replace("/mnt/data", self.alias)) or self.alias)
        print(os.getcwd())

    def _magic_pwd(self, _: str) -> str:
        return os.getcwd()

    def _magic_ls(self, line: str) -> None:
        self.system(f"ls {line}")

    def _magic_env(self, _: str) -> dict[str, str]:
        return dict(os.environ)

    def _magic_who(self, _: str) -> None:
        own = {"In", "Out", "get_ipython"}
        print("\t".join(name for name in self.names if not name.startswith("_") and name not in own))

    def _magic_reset(self, _: str) -> None:
        for name in [name for name in self.names if not name.startswith("_") and name not in {"In", "Out"}]:
            del self.names[name]

    def _magic_run(self, line: str) -> None:
        path = line.split(maxsplit=1)[0].replace("/mnt/data", self.alias)
        with open(path, encoding="utf-8") as file:
            exec(compile(file.read(), path, "exec"), self.names)  # noqa: S102  # this is what the box is for

    def _expanded(self, command: str) -> str:
        def value(found: re.Match[str]) -> str:
            name = found[1] or found[2]
            return str(self.names[name]) if name in self.names else found[0]

        return EXPANSION.sub(value, command).replace("/mnt/data", self.alias)


def _shell() -> str:
    return "/bin/bash" if os.path.exists("/bin/bash") else "/bin/sh"


def _duration(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"
