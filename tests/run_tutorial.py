"""Run the code cells of a tutorial in order, as a notebook would, and compare the shape of what they print.

    OPENAI_BASE_URL=... OPENAI_API_KEY=... python tests/run_tutorial.py PATH

PATH is the text of a notebook: each code cell begins with a line `In [1]:`, and prose or printed output may stand below
it. `functions` is examples/functions.py, `display` prints. Exit status 0: no cell failed, and where the text shows
printed roles (`[USER]`) and separators, the same were printed in the same sequence.

Where the text shows a question twice in a row its author ran the cell twice: that counts once.
"""

from __future__ import annotations

import ast
import contextlib
import io
import itertools
import pprint
import re
import sys
import textwrap
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
PROMPT = re.compile(r"^In \[[^\]]*\]:[ \t]*", re.MULTILINE)
ROLE_OR_LINE = re.compile(r"\[[A-Z]+\]|-{20,}")


@dataclass(frozen=True)
class Cell:
    """One cell: its code, and the text below it up to the next cell."""

    code: str
    shown: str


def read_cells(text: str) -> list[Cell]:
    """Cut a notebook's text into cells."""
    return [_cut(part) for part in PROMPT.split(text)[1:]]


def _cut(part: str) -> Cell:
    """The code is as many paragraphs as Python can read; from a role on it is output, even if it looks like code."""
    lines = [line for line in part.splitlines() if not line.startswith(("!", "%"))]
    last = next((place for place, line in enumerate(lines) if ROLE_OR_LINE.fullmatch(line)), len(lines))
    ends = [place for place, line in enumerate(lines[:last]) if not line.strip()] + [last]
    end = max((one for one in ends if _is_python("\n".join(lines[:one]))), default=0)
    return Cell("\n".join(lines[:end]), "\n".join(lines[end:]).strip())


def _is_python(code: str) -> bool:
    try:
        ast.parse(code)
    except SyntaxError:
        return False
    return True


def shape_of(printed: str) -> list[str]:
    """Return the roles and separators in order; a block that repeats the one before it counts once."""
    blocks = re.split(r"^(?=\[[A-Z]+\]$|-{20,}$)", printed, flags=re.MULTILINE)
    different = [block for block, _ in itertools.groupby(block.strip() for block in blocks)]
    return [found[0] for block in different if (found := ROLE_OR_LINE.match(block))]


def run_cell(number: int, cell: Cell, names: dict[str, Any]) -> str:
    """Run a cell and return what it printed; what it raises goes up."""
    out = io.StringIO()
    try:
        with contextlib.redirect_stdout(out):
            exec(compile(cell.code, f"<cell {number}>", "exec"), names)  # noqa: S102  # running the cells is the point
    finally:
        sys.stdout.write(out.getvalue())
        sys.stdout.flush()
    return out.getvalue()


def say(line: str) -> None:
    """Tell whoever runs this."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main(path: Path) -> int:
    """Run all cells; return the exit status."""
    sys.path.insert(0, str(EXAMPLES))
    cells = read_cells(path.read_text(encoding="utf-8"))
    names: dict[str, Any] = {"__name__": "__main__", "display": pprint.pprint}
    compared = 0
    for number, cell in enumerate(cells, start=1):
        say(f"In [{number}]:")
        try:
            printed = run_cell(number, cell, names)
        except Exception:  # noqa: BLE001  # whatever a cell raises is the finding
            say(f"cell {number} failed:\n{textwrap.indent(cell.code, '    ')}\n{traceback.format_exc()}")
            return 1
        expected = shape_of(cell.shown)
        if expected and shape_of(printed) != expected:
            say(f"cell {number} printed {shape_of(printed)}, the text shows {expected}")
            return 1
        compared += bool(expected)
    say(f"{len(cells)} cells ran; the printed output of {compared} has the shape that the text shows")
    return 0 if cells else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
