"""Measures Perdure against floors in the same run: `python bench/run.py [--quick] [--only NAME] [--write]`.

Prints a Markdown table; with `--write` it also goes into bench/RESULTS.md, where the section on where the time goes is
kept as it stands.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime as dt
import os
import platform
import sqlite3
import sys
from collections.abc import Awaitable
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from bench.load import fast_loop  # noqa: E402  # found only with the line above
from bench.measures import Length  # noqa: E402
from bench.rows import NAMES, measure_all  # noqa: E402
from bench.table import Row, markdown  # noqa: E402

RESULTS = HERE / "RESULTS.md"
KEPT = "## Where the time goes"
FULL = Length(rounds=3, seconds=1.2, runs=200, streams=2000, messages=100_000, idle_seconds=10)
QUICK = Length(rounds=1, seconds=0.5, runs=40, streams=200, messages=10_000, idle_seconds=2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one short round of each: a look, no result")
    parser.add_argument(
        "--only",
        default="",
        help=f"only measures whose name has one of these words in it, commas between: {', '.join(NAMES)}",
    )
    parser.add_argument("--write", action="store_true", help="write bench/RESULTS.md too")
    given = parser.parse_args()
    length = QUICK if given.quick else FULL
    rows = measure_all(length, given.only, _on_fast_loop)
    page = _page(rows, length)
    print(page)
    if given.write:
        old = RESULTS.read_text() if RESULTS.exists() else ""
        _, heading, kept = old.partition(KEPT)
        RESULTS.write_text(f"{page}\n\n{heading}{kept}".rstrip() + "\n")


def _on_fast_loop(measure: Awaitable[list[Row]]) -> list[Row]:
    async def main() -> list[Row]:
        return await measure

    with asyncio.Runner(loop_factory=fast_loop()) as runner:
        return runner.run(main())


def _page(rows: list[Row], length: Length) -> str:
    today = dt.datetime.now(tz=dt.UTC).date()
    parts = ", ".join(f"{name} {version(name)}" for name in ("granian", "starlette", "msgspec", "uvloop"))
    return f"""# Results

{today}, a {platform.system()} machine with {os.cpu_count()} cores that client, server and model share, Python \
{platform.python_version()}, SQLite {sqlite3.sqlite_version}, {parts}.

`python {" ".join(["bench/run.py", *sys.argv[1:]])}`: {length.rounds} rounds of {length.seconds:g} s, floor and \
figure in turns; {length.runs} single runs for each latency. Rates and times are medians; a ratio is the median of the \
rounds' own ratios. Unless a row says otherwise the floor is the empty handler: same HTTP server, routing and JSON, \
nothing stored. Every write is fsynced before its answer.

{markdown(rows)}"""


if __name__ == "__main__":
    main()
