"""Tracebacks as IPython writes them, without the frames of what runs the cell.

---------------------------------------------------------------------------
ZeroDivisionError                         Traceback (most recent call last)
Cell In[1], line 1
----> 1 1 / 0

ZeroDivisionError: division by zero
"""

from __future__ import annotations

import linecache
import os
import traceback
import types

RULE = "-" * 75
OWN = os.path.dirname(os.path.abspath(__file__)) if "__file__" in globals() else "<perdure"  # carried in, it has none
AROUND = 4
FRAMES_SHOWN = 12
CHAIN_SHOWN = 6
CAUSE = "\nThe above exception was the direct cause of the following exception:\n"
CONTEXT = "\nDuring handling of the above exception, another exception occurred:\n"


def cell_name(count: int) -> str:
    """Return the file name that the code of a cell is compiled under."""
    return f"<cell {count}>"


def exit_note(error: SystemExit) -> str:
    """Return what stands for a SystemExit: it ends the cell and nothing else."""
    return f"SystemExit: {error.code}\n(The session goes on; code can not end it.)"


def show(error: BaseException, count: int) -> str:
    """Return the whole text for an exception of cell number `count`."""
    if isinstance(error, SyntaxError) and error.filename == cell_name(count):
        return _syntax(error)
    lines: list[str] = []
    for link, one in _chain(error):
        lines += [link] if link else [RULE]
        name = type(one).__name__
        lines.append(name + "Traceback (most recent call last)".rjust(75 - len(name)))
        lines += _shown_frames(_frames(one.__traceback__))
        lines.append(_last_line(one))
    return "\n".join(lines)


def _chain(error: BaseException) -> list[tuple[str, BaseException]]:
    chain: list[tuple[str, BaseException]] = []
    one: BaseException | None = error
    seen: set[int] = set()
    while one is not None and id(one) not in seen and len(chain) < CHAIN_SHOWN:
        seen.add(id(one))
        if one.__cause__ is not None:
            chain.append((CAUSE, one))
            one = one.__cause__
        elif one.__context__ is not None and not one.__suppress_context__:
            chain.append((CONTEXT, one))
            one = one.__context__
        else:
            chain.append(("", one))
            one = None
    # Oldest first; the link between two stands before the younger.
    chain.reverse()
    return [("", chain[0][1]), *chain[1:]]


def _frames(begin: types.TracebackType | None) -> list[traceback.FrameSummary]:
    if begin is None:
        return []
    steps = []
    for frame, line in traceback.walk_tb(begin):
        code = frame.f_code
        if _is_own(code.co_filename):
            continue
        steps.append(traceback.FrameSummary(code.co_filename, line, code.co_name, lookup_line=False))
    return steps


def _is_own(filename: str) -> bool:
    return filename.startswith(("<perdure", OWN + os.sep)) or filename in {"<string>", "<frozen runpy>"}


def _shown_frames(frames: list[traceback.FrameSummary]) -> list[str]:
    half = FRAMES_SHOWN // 2
    if len(frames) <= FRAMES_SHOWN:
        return [_frame(one) for one in frames]
    skipped = len(frames) - 2 * half
    middle = f"    [... skipping {skipped} frames ...]\n"
    return [*(_frame(one) for one in frames[:half]), middle, *(_frame(one) for one in frames[-half:])]


def _frame(frame: traceback.FrameSummary) -> str:
    cell = frame.filename.startswith("<cell ")
    number = frame.lineno or 0
    where = "" if frame.name == "<module>" else f", in {frame.name}()"
    if cell:
        head = f"Cell In[{frame.filename[6:-1]}], line {number}{where}"
    else:
        head = f"File {frame.filename}:{number}{where}"
    lines = linecache.getlines(frame.filename)
    first, last = max(1, number - AROUND), min(len(lines), number + AROUND)
    shown = [head]
    for line in range(first, last + 1):
        mark = f"{'-' * max(1, 5 - len(str(line)))}> {line}" if line == number else f"{line:>7}"
        shown.append(f"{mark} {lines[line - 1].rstrip()}".rstrip())
    return "\n".join(shown) + "\n"


def _syntax(error: SyntaxError) -> str:
    number = error.lineno or 0
    name = error.filename or ""
    cell = f"Cell In[{name[6:-1]}]" if name.startswith("<cell ") else f"File {name}"
    lines = [f"  {cell}, line {number}"]
    text = (error.text or "").rstrip("\n")
    if text:
        stripped = text.lstrip()
        lines.append(f"    {stripped}")
        column = (error.offset or 1) - 1 - (len(text) - len(stripped))
        lines.append("    " + " " * max(0, column) + "^")
    lines.append(f"{type(error).__name__}: {error.msg}")
    return "\n".join(lines)


def _last_line(error: BaseException) -> str:
    return "".join(traceback.format_exception_only(type(error), error)).rstrip()
