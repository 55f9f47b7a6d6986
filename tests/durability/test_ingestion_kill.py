"""The server is killed in the middle of a batch of fifty files: after a restart the end is as if nothing had been."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.server import Client, ServerProcess, server_process

FILES = 50
BROKEN = {7, 23, 41}
DEADLINE = 120.0


class Kept(NamedTuple):
    """What a store holds at the end: status, bytes and chunks of each file by its name, and all chunks there are."""

    files: dict[str, tuple[str, int, int]]
    chunks: int
    usage_bytes: int


def content(number: int) -> bytes:
    """Some hundred chunks of text, or a PDF that is none."""
    if number in BROKEN:
        return b"%PDF-1.7 and nothing that follows"
    words = [f"word{number * 7 + place % 613}" for place in range(16_000)]
    return " ".join(words).encode()


def begin_batch(client: Client) -> tuple[str, str]:
    """Upload the files and put them into a new store; return the ids of store and batch."""
    store = client.vector_stores.create(name="killed")
    ids = [
        client.files.create(
            file=(f"{number:02}.{'pdf' if number in BROKEN else 'txt'}", content(number)), purpose="assistants"
        ).id
        for number in range(FILES)
    ]
    small: Any = {"type": "static", "static": {"max_chunk_size_tokens": 200, "chunk_overlap_tokens": 50}}
    batch = client.vector_stores.file_batches.create(store.id, file_ids=ids, chunking_strategy=small)
    assert batch.file_counts.total == FILES
    return store.id, batch.id


def wait_until_done(client: Client, store_id: str, batch_id: str, *, at_least: int = FILES) -> int:
    """Wait until so many files of the batch have ended; return how many have."""
    deadline = time.monotonic() + DEADLINE
    while True:
        batch = client.vector_stores.file_batches.retrieve(batch_id, vector_store_id=store_id)
        store = client.vector_stores.retrieve(store_id)
        assert batch.file_counts.total == store.file_counts.total == FILES
        ended = FILES - batch.file_counts.in_progress
        if ended >= at_least:
            return ended
        assert time.monotonic() < deadline, batch
        time.sleep(0.02)


def kept(data: Path) -> Kept:
    """Read what is in the database of a server that has ended."""
    with closing(sqlite3.connect(data / "perdure.db")) as connection:
        rows = connection.execute(
            "SELECT json_extract(f.body, '$.filename'), v.status, json_extract(v.body, '$.usage_bytes'), "
            "(SELECT count(*) FROM chunks AS c WHERE c.file_seq = v.seq AND c.attempt = v.attempt) "
            "FROM vector_store_files AS v JOIN files AS f ON f.id = v.id"
        ).fetchall()
        (chunks,) = connection.execute("SELECT count(*) FROM chunks").fetchone()
        (usage,) = connection.execute("SELECT json_extract(body, '$.usage_bytes') FROM vector_stores").fetchone()
    assert len(rows) == FILES
    return Kept({name: (status, size, count) for name, status, size, count in rows}, chunks, usage)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Kept:
    """The end of a run that nothing disturbs."""
    data = tmp_path_factory.mktemp("undisturbed") / "data"
    with server_process(data, embedding_model="hashing") as server, Client(server.url) as client:
        wait_until_done(client, *begin_batch(client))
    return kept(data)


def swept(client: Client, data: Path, expected: int) -> None:
    """Wait until chunks that nobody needs are gone."""
    deadline = time.monotonic() + DEADLINE
    with closing(sqlite3.connect(data / "perdure.db")) as connection:
        while connection.execute("SELECT count(*) FROM chunks").fetchone()[0] != expected:
            assert time.monotonic() < deadline
            time.sleep(0.1)
    assert client.vector_stores.list().data


def test_a_run_that_nothing_disturbs(undisturbed: Kept) -> None:
    statuses = [status for status, _, _ in undisturbed.files.values()]
    assert (statuses.count("completed"), statuses.count("failed")) == (FILES - len(BROKEN), len(BROKEN))
    assert undisturbed.chunks == sum(count for _, _, count in undisturbed.files.values()) > 40 * FILES
    assert undisturbed.usage_bytes == sum(size for _, size, _ in undisturbed.files.values())


@pytest.mark.parametrize("kills", [1, 2])
def test_every_file_ends_once_whatever_was_killed(tmp_path: Path, undisturbed: Kept, kills: int) -> None:
    data = tmp_path / "data"
    server = ServerProcess(data, embedding_model="hashing")
    try:
        with Client(server.url) as client:
            store_id, batch_id = begin_batch(client)
            ended = wait_until_done(client, store_id, batch_id, at_least=8)
        for _ in range(kills):
            server.kill()
            server = ServerProcess(data, embedding_model="hashing")
            with Client(server.url) as client:
                assert wait_until_done(client, store_id, batch_id, at_least=ended) < FILES
                ended = wait_until_done(client, store_id, batch_id, at_least=ended + 8)
        with Client(server.url) as client:
            wait_until_done(client, store_id, batch_id)
            batch = client.vector_stores.file_batches.retrieve(batch_id, vector_store_id=store_id)
            assert (batch.status, batch.file_counts.completed) == ("completed", FILES - len(BROKEN))
            failed = client.vector_stores.files.list(store_id, filter="failed").data
            assert {one.last_error.code for one in failed if one.last_error} == {"invalid_file"}
            swept(client, data, undisturbed.chunks)
            found = client.vector_stores.search(store_id, query="word612 word5", max_num_results=5).data
            assert len({(one.file_id, one.content[0].text) for one in found}) == 5
    finally:
        server.stop()
    assert kept(data) == undisturbed
