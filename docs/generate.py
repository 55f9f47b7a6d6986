"""Writes the generated parts of the docs: what stands between the two marks of a file is replaced.

`python docs/generate.py` writes; `python docs/generate.py --check` only says whether a file would change (status 1).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from perdure.api.routes import OPERATIONS
from perdure.settings import settings_table

DOCS = Path(__file__).parent
HOSTED = DOCS / "hosted_operations.json"
"""Method, path and operationId of the 51 operations that the hosted API had; facts of its specification."""


def operations_table() -> str:
    """Return the operations of the hosted API, each with what Perdure does about it."""
    served = {one.operation_id: one for one in OPERATIONS}
    lines, counts = [], {"supported": 0, "partly": 0, "not": 0}
    for method, path, operation_id in json.loads(HOSTED.read_text(encoding="utf-8")):
        found = served.get(operation_id)
        how = "not" if found is None else "partly" if found.lacks else "supported"
        counts[how] += 1
        lines.append(f"| `{method} {path}` | {operation_id} | {how} | {found.lacks if found else ''} |\n")
    total = ", ".join(f"{count} {how}" for how, count in counts.items())
    head = "| operation | operationId | | what is missing |\n|---|---|---|---|\n"
    return f"Of {len(lines)} operations: {total}.\n\n{head}{''.join(lines)}"


def extensions_table() -> str:
    """Return the operations that the hosted API did not have."""
    added = [one for one in OPERATIONS if one.extension]
    return "| operation | what it does |\n|---|---|\n" + "".join(
        f"| `{one.method} {one.plain_path}` | {one.extension} |\n" for one in added
    )


PARTS = (
    ("operating.md", "settings", settings_table),
    ("compatibility.md", "operations", operations_table),
    ("compatibility.md", "extensions", extensions_table),
)


def rewritten(text: str, name: str, part: str) -> str:
    """Return the text with the part between the marks of `name` replaced."""
    begin, end = f"<!-- begin {name} -->\n", f"<!-- end {name} -->"
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(end)
    return f"{before}{begin}{part}{end}{after}"


def main() -> int:
    """Write, or check."""
    stale = []
    for file, name, make in PARTS:
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
