"""kill -9 at every named edge of every write operation: before its statements, before its commit, before its answer.

The operations are found in the source. `PERDURE_KILLS` of 100 and more takes all three edges of each; less takes all of
the engine's and one of each of the API's, by `PERDURE_SEED`.
"""

from __future__ import annotations

import ast
import importlib
import os
import random
import secrets
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import get_args

import perdure
from perdure.store.db import Edge
from tests.durability.checks import check_bytes, check_promises, read
from tests.durability.load import poll
from tests.durability.programs import Load
from tests.durability.servers import At, Servers, servers
from tests.durability.store_checks import check_file
from tests.durability.test_store_edges import STORES
from tests.server import Client

SEED = os.environ.get("PERDURE_SEED") or secrets.token_hex(4)
ALL = int(os.environ.get("PERDURE_KILLS", "6")) >= 100
EDGES: tuple[Edge, ...] = get_args(Edge)
REACH_SECONDS = 15.0
RECOVERY_SECONDS = 2.0  # it comes at a start or not at all
TRIES = 8

ENGINE = {
    "claim_run": "calling",
    "record_change": "calling",
    "append_deltas": "resumed",
    "wind_up": "interrupting",
    "end_unheld": "cancelled",
    "renew_leases": "resumed",
    "recover_run": "resumed",
}
API = {
    "insert_assistant": "assistants",
    "update_assistant": "assistants",
    "delete_assistant": "assistants",
    "insert_thread": "forked",
    "insert_new_thread": "forked",
    "update_thread": "edited",
    "delete_thread": "dropped",
    "add_message": "queued",
    "update_message": "edited",
    "delete_message": "edited",
    "create_run": "queued",
    "create_thread_and_run": "both",
    "retry_run": "retried",
    "_update_of_project": "edited",
    "_cancel_of_project": "cancelled",
    "_submit_of_project": "calling",
}
LATER = {"delete_logs"}  # when the logs have been checked
FILES = {
    *("insert_file", "delete_file", "delete_expired_files"),
    *("insert_upload", "insert_part", "complete_upload", "cancel_upload", "expire_uploads", "delete_ended_uploads"),
}
"""`test_half_files.py` kills these at any moment; what vector stores write, `test_store_edges.py`."""
OFTEN = {"record_change": 12, "append_deltas": 12, "claim_run": 6, "add_message": 4, "create_run": 4}
"""How many times an operation comes before the kill, at most: what it writes differs. Others: 2."""


def operations_in_source() -> Iterator[str]:
    """Find what API and engine hand to a database to be run as a write."""
    source = Path(perdure.__file__).parent
    for path in sorted([*source.glob("api/*.py"), *source.glob("engine/*.py")]):
        module = importlib.import_module(f"perdure.{path.parent.name}.{path.stem}")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("database.run"):
                assert isinstance(node.args[0], ast.Name), f"{path}:{node.lineno}: an operation without a name"
                yield getattr(module, node.args[0].id).__name__


def chosen(dice: random.Random) -> list[At]:
    """Return where to die, in any order."""
    places = list(product(EDGES, ENGINE))
    places += product(EDGES, API) if ALL else ((dice.choice(EDGES), operation) for operation in API)
    dice.shuffle(places)
    return [At(edge, operation, dice.randint(1, OFTEN.get(operation, 2))) for edge, operation in places]


def die(server: Servers, load: Load, at: At) -> int:
    """Let servers run until one dies at the edge; return how many died."""
    load.wish.work = {**ENGINE, **API}[at.operation]
    for deaths in range(1, TRIES + 1):
        if server.start_at_edge(at).killed_itself(RECOVERY_SECONDS if at.operation == "recover_run" else REACH_SECONDS):
            return deaths
        load.raise_failures()
        server.now.kill()  # what comes at a start only may find something to do at the next one
    raise AssertionError(f"the load never meets {at}")


def test_every_write_operation_is_known_here() -> None:
    assert set(operations_in_source()) == {*ENGINE, *API, *LATER, *FILES, *STORES}


def test_kills_at_every_edge_lose_nothing(tmp_path: Path) -> None:
    dice = random.Random(SEED)  # noqa: S311  # a game, no secret
    places = chosen(dice)
    print(f"PERDURE_SEED={SEED}, {len(places)} edges")  # noqa: T201  # pytest shows it when the test fails
    with servers(tmp_path) as server:
        with Load(6, SEED, server.url) as load:
            server.now.kill()
            deaths = 1 + sum(die(server, load, at) for at in places)
            load.wish.work = None
            server.start_at_edge(None)
            poll(lambda: load.promises.counts["ends"], "a run to end")
        with Client(server.url) as client:
            listed = check_promises(client, load)
        deaths += die_cleaning(server, dice)
        with Client(server.url) as client:
            poll(lambda: all_logs_are_gone(client, load), "the logs to be deleted")
            check_bytes(client, load.promises)
        server.now.stop()
        rows = check_file(server.data / "perdure.db", listed)
    met = {*server.edges_met()}
    assert met >= {(edge, operation) for edge, operation in product(EDGES, {*ENGINE, *API, *LATER})}
    assert load.promises.counts["readings over deaths"]
    print(f"{deaths} kills", dict(load.promises.counts), dict(rows))  # noqa: T201  # shows what the load was


def die_cleaning(server: Servers, dice: random.Random) -> int:
    """Die while the logs of ended runs are deleted, at the start of a server that keeps none."""
    server.now.stop()
    for edge in dice.sample(EDGES, len(EDGES)):
        assert server.start_at_edge(At(edge, "delete_logs"), event_log_seconds=0).killed_itself(REACH_SECONDS)
    server.start_at_edge(None, event_log_seconds=0)
    return len(EDGES)


def all_logs_are_gone(client: Client, load: Load) -> bool:
    return not any(read(client, f"{reading.path}/events") for reading in load.followers.readings)
