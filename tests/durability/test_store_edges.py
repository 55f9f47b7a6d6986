"""kill -9 at every named edge of every write of vector stores: what clients were told stays true, and every file ends.

`PERDURE_KILLS` of 100 and more takes all three edges of each operation, less one of each, by `PERDURE_SEED`.
"""

from __future__ import annotations

import json
import os
import random
import secrets
import signal
import sqlite3
import time
from collections import Counter
from contextlib import closing, suppress
from itertools import product
from pathlib import Path
from typing import Any, get_args

import openai
import pytest

from perdure.store.db import Edge
from tests.durability.servers import At, EdgeServer, Servers, servers
from tests.server import Client

SEED = os.environ.get("PERDURE_SEED") or secrets.token_hex(4)
ALL = int(os.environ.get("PERDURE_KILLS", "6")) >= 100
EDGES: tuple[Edge, ...] = get_args(Edge)
DEADLINE = 60.0
STORES = {
    *("insert_planned", "update_vector_store", "delete_vector_store", "rebuild_store", "expire_store"),
    *("add_file", "update_attributes", "remove_store_file", "insert_batch", "cancel_batch"),
    *("claim_file", "append_chunks", "complete_file", "fail_file", "release_file", "recover_file"),
    *("renew_file_leases", "sweep_chunks"),
}
RARE = {"recover_file", "release_file", "expire_store"}
"""They may come once only."""
SMALL: Any = {"type": "static", "static": {"max_chunk_size_tokens": 100, "chunk_overlap_tokens": 0}}
AWAY = (openai.APIConnectionError, openai.InternalServerError)


class Shop:
    """A client that does all that can be done to vector stores, and remembers what it was told."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.deleted: set[str] = set()
        self.there: set[str] = set()
        self.full = ""
        """A store with many files."""
        self.attributes: dict[tuple[str, str], Any] = {}
        text = " ".join(f"word{number % 613}" for number in range(6000)).encode()
        self.files = [self._upload(f"{number}.txt", text) for number in range(12)]
        self.big = self._upload("big.txt", text * 40)
        self.broken = self._upload("broken.pdf", b"no pdf")

    def _upload(self, name: str, content: bytes) -> str:
        return self.client.files.create(file=(name, content), purpose="assistants").id

    def visit(self) -> None:
        """Do everything once; ends early when the server dies."""
        with suppress(*AWAY):
            self._open()
        with suppress(*AWAY):
            self._close()

    def _open(self) -> None:
        stores = self.client.vector_stores
        store = stores.create(name="first", file_ids=self.files[:2], chunking_strategy=SMALL).id
        self.there.add(store)
        self.full = store
        stores.update(store, name="second")
        stores.file_batches.create(store, file_ids=[*self.files[2:], self.broken], chunking_strategy=SMALL)
        stores.files.create(store, file_id=self.big, chunking_strategy=SMALL)
        stores.files.update(self.files[0], vector_store_id=store, attributes={"k": "v"})
        self.attributes[store, self.files[0]] = {"k": "v"}
        self._wait(store, in_progress=1)
        stores.files.delete(self.files[1], vector_store_id=store)
        self.deleted.add(f"{store}/{self.files[1]}")
        self.client.post(f"/vector_stores/{store}/rebuild", cast_to=object)

    def _close(self) -> None:
        stores = self.client.vector_stores
        store = stores.create(name="to be cancelled").id
        self.there.add(store)
        batch = stores.file_batches.create(store, file_ids=[self.big, *self.files[:3]], chunking_strategy=SMALL)
        stores.file_batches.cancel(batch.id, vector_store_id=store)
        gone = stores.create(name="to be deleted", file_ids=self.files[:2]).id
        self._wait(gone)
        stores.delete(gone)
        self.deleted.add(gone)

    def _wait(self, store: str, in_progress: int = 0) -> None:
        deadline = time.monotonic() + DEADLINE
        while self.client.vector_stores.retrieve(store).file_counts.in_progress > in_progress:
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def settle(self) -> None:
        """Wait until all files have ended, and hold what there is against what was said."""
        for store in self.there:
            self._wait(store)
            for (of, file_id), attributes in self.attributes.items():
                if of == store:
                    found = self.client.vector_stores.files.retrieve(file_id, vector_store_id=store)
                    assert found.attributes == attributes
            files = {one.id for one in self.client.vector_stores.files.list(store, limit=100)}
            assert not {f"{store}/{one}" for one in files} & self.deleted
        assert not {one.id for one in self.client.vector_stores.list(limit=100)} & self.deleted


def check_stores(path: Path) -> None:
    """Counts, usage and chunks are those of the files, and nothing is left of what is gone."""
    with closing(sqlite3.connect(path)) as connection:
        files: dict[str, list[tuple[int, str, Any]]] = {}
        batches: dict[str, list[str]] = {}
        completed = set()
        rows = connection.execute(
            "SELECT seq, vector_store_id, batch_id, status, attempt, worker_id, body FROM vector_store_files"
        )
        for seq, store_id, batch_id, status, attempt, worker_id, body in rows:
            said = json.loads(body)
            assert (said["status"], worker_id, status != "in_progress") == (status, None, True)
            files.setdefault(store_id, []).append((seq, status, said))
            if batch_id is not None:
                batches.setdefault(batch_id, []).append(status)
            if status == "completed":
                completed.add((seq, attempt))
        for store_id, body in connection.execute("SELECT id, body FROM vector_stores").fetchall():
            store, its = json.loads(body), files.pop(store_id, [])
            check_counts(store, [status for _, status, _ in its])
            used = 0 if store["status"] == "expired" else sum(said["usage_bytes"] for _, _, said in its)
            assert store["usage_bytes"] == used
            if store["status"] == "expired":
                completed -= {one for one in completed if one[0] in {seq for seq, _, _ in its}}
        assert files == {}
        for batch_id, body in connection.execute("SELECT id, body FROM file_batches").fetchall():
            check_counts(json.loads(body), batches.pop(batch_id, []))
        assert batches == {}
        chunks = connection.execute(
            "SELECT file_seq, attempt, count(*), max(number) FROM chunks GROUP BY file_seq, attempt"
        )
        found = {(seq, attempt): (count, last) for seq, attempt, count, last in chunks}
        assert set(found) == completed
        assert all(count == last + 1 for count, last in found.values())


def check_counts(thing: Any, statuses: list[str]) -> None:
    counted = Counter(statuses)
    expected = {status: counted[status] for status in ("in_progress", "completed", "failed", "cancelled")}
    assert thing["file_counts"] == {**expected, "total": len(statuses)}


def let_it_expire(data: Path, shop: Shop) -> None:
    """Put the end of one store into the past, while no server runs; not of the one that is still worked with."""
    with closing(sqlite3.connect(data / "perdure.db")) as connection:
        newest = "SELECT id FROM vector_stores WHERE id <> ? ORDER BY seq DESC LIMIT 1"
        (store_id,) = connection.execute(newest, (shop.full,)).fetchone()
        connection.execute(
            "UPDATE vector_stores SET expires_at = 1, body = json_set(body, '$.expires_at', 1, '$.expires_after', "
            'json(\'{"anchor":"last_active_at","days":1}\')) WHERE id = ?',
            (store_id,),
        )
        connection.commit()
    shop.there.discard(store_id)


def die(server: Servers, shop: Shop, at: At) -> None:
    """Let a server run until it dies at the edge."""
    if at.operation == "expire_store":
        server.now.stop()
        let_it_expire(server.data, shop)
    elif at.operation == "recover_file":
        with suppress(*AWAY):
            shop.client.post(f"/vector_stores/{shop.full}/rebuild", cast_to=object)
            time.sleep(0.1)
        server.now.kill()
    else:
        server.now.kill()
    process = server.start_at_edge(at)
    for _ in range(5):
        if at.operation == "release_file":
            process = told_to_end(server, shop, at)
        else:
            shop.visit()
        if process.process.poll() is None and not process.killed_itself(1.0):
            continue
        assert process.process.returncode == -signal.SIGKILL
        process.stop()
        return
    raise AssertionError(f"nothing ever meets {at}")


def told_to_end(server: Servers, shop: Shop, at: At) -> EdgeServer:
    """Tell a server to end while it reads files, until one dies of it."""
    for _ in range(5):
        with suppress(*AWAY):
            shop.client.post(f"/vector_stores/{shop.full}/rebuild", cast_to=object)
        time.sleep(0.1)
        server.now.stop()
        if server.now.process.returncode == -signal.SIGKILL:
            break
        server.start_at_edge(at)
    assert isinstance(server.now, EdgeServer)
    return server.now


@pytest.mark.parametrize("part", range(3))
def test_kills_at_every_edge_keep_the_counts(tmp_path: Path, part: int) -> None:
    dice = random.Random(SEED)  # noqa: S311  # a game, no secret
    places = list(product(EDGES, sorted(STORES))) if ALL else [(dice.choice(EDGES), one) for one in sorted(STORES)]
    dice.shuffle(places)
    if not ALL:
        places = places[: len(places) // 2]  # the other half is another seed's: each restart costs two seconds
    print(f"PERDURE_SEED={SEED}")  # noqa: T201  # pytest shows it when the test fails
    with servers(tmp_path, embedding_model="hashing") as server, Client(server.url, timeout=20) as client:
        shop = Shop(client)
        shop.visit()
        for edge, operation in places[part::3]:
            die(server, shop, At(edge, operation, 1 if operation in RARE else dice.randint(1, 2)))
            server.start_at_edge(None)
            shop.settle()
        wait_until_swept(server.data / "perdure.db")
        server.now.stop()
        check_stores(server.data / "perdure.db")


def wait_until_swept(path: Path) -> None:
    """Wait until nothing is in work any more: what was asked and never answered may have begun something too."""
    deadline = time.monotonic() + DEADLINE
    left = (
        "SELECT (SELECT count(*) FROM dead_chunks) + "
        "(SELECT count(*) FROM vector_store_files WHERE status = 'in_progress')"
    )
    with closing(sqlite3.connect(path)) as connection:
        while connection.execute(left).fetchone()[0]:
            assert time.monotonic() < deadline
            time.sleep(0.05)
