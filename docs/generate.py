"""Writes the generated parts of the docs: what stands between the two marks of a file is replaced.

`python docs/generate.py` writes; `python docs/generate.py --check` only says whether a file would change (status 1).
"""

from __future__ import annotations

import sys
from pathlib import Path

from perdure.settings import settings_table

DOCS = Path(__file__).parent
PARTS = {"operating.md": ("settings", settings_table)}


def rewritten(text: str, name: str, part: str) -> str:
    """Return the text with the part between the marks of `name` replaced."""
    begin, end = f"<!-- begin {name} -->\n", f"<!-- end {name} -->"
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(end)
    return f"{before}{begin}{part}{end}{after}"


def main() -> int:
    """Write, or check."""
    stale = []
    for file, (name, make) in PARTS.items():
        path = DOCS / file
        old = path.read_text(encoding="utf-8")
        new = rewritten(old, name, make())
        if new != old:
            stale.append(file)
            if "--check" not in sys.argv:
                path.write_text(new, encoding="utf-8")
    sys.stdout.write("".join(f"{file} is out of date: run `make docs`\n" for file in stale if "--check" in sys.argv))
    return 1 if stale and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
