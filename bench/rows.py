"""All rows of the table: which measure runs against which servers."""

from __future__ import annotations

import tempfile
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path

from bench.held import idle_streams, last_page
from bench.measures import (
    Length,
    first_token,
    objects,
    relayed_tokens,
    run_latency,
    run_throughput,
    start_and_idle,
    upstream_runs,
    upstream_script,
)
from bench.processes import Server, empty_handler, perdure, scripted_model
from bench.table import Row

Measure = Callable[[Server, Server, Length], Awaitable[list[Row]]]
AGAINST_EMPTY: tuple[Measure, ...] = (objects, run_latency, run_throughput)
AGAINST_MODEL: tuple[Measure, ...] = (first_token, relayed_tokens, upstream_runs)
ALONE: tuple[Callable[[Path, Length], list[Row]], ...] = (last_page, idle_streams, start_and_idle)
NAMES = [one.__name__ for one in (*AGAINST_EMPTY, *AGAINST_MODEL, *ALONE)]


def measure_all(length: Length, only: str, run_loop: Callable[[Awaitable[list[Row]]], list[Row]]) -> list[Row]:
    """Run every measure whose name has one of the words of `only`, commas between, in it."""
    wanted = {name for name in NAMES if any(word in name for word in only.split(","))}
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="perdure-bench-") as name, ExitStack() as stack:
        folder = Path(name)
        for part in ("empty", "model", *(one.__name__ for one in ALONE)):
            (folder / part).mkdir()
        near = [one for one in AGAINST_EMPTY if one.__name__ in wanted]
        if near:
            with empty_handler(folder / "empty") as empty, perdure(folder / "near") as server:
                for measure in near:
                    rows += run_loop(measure(server, empty, length))
        far = [one for one in AGAINST_MODEL if one.__name__ in wanted]
        if far:
            model = stack.enter_context(scripted_model(folder / "model", upstream_script()))
            upstream = {"builtin_model": "none", "upstream_url": model.url}
            with perdure(folder / "far", **upstream) as server:
                for measure in far:
                    rows += run_loop(measure(server, model, length))
        stack.close()
        for alone in ALONE:
            if alone.__name__ in wanted:
                rows += alone(folder / alone.__name__, length)
    return rows
