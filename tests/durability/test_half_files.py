"""kill -9 while files are uploaded and uploads are completed: nothing half is ever seen, and what is left is swept."""

from __future__ import annotations

import os
import random
import threading
import time
from pathlib import Path
from typing import Any

import httpx2
import openai

from tests.server import Client, ServerProcess, server_process

SEED = int(os.environ.get("PERDURE_SEED", "7"))
ROUNDS = 8
SIZES = (1_000, 3_000_000, 20_000_000)
LOST = (openai.APIConnectionError, openai.InternalServerError, httpx2.HTTPError)


class Works:
    """Clients that upload until the server is gone; what was acknowledged is kept in mind."""

    def __init__(self, url: str, seed: int, known: dict[str, bytes]) -> None:
        self._url = url
        self._random = random.Random(seed)  # noqa: S311  # a seed plays the same again
        self.known = known
        self.pending: dict[str, tuple[list[str], bytes]] = {}
        self._threads = [threading.Thread(target=self._work, args=(work,)) for work in (self._files, self._uploads) * 2]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive()

    def _work(self, work: Any) -> None:
        with Client(self._url) as client:
            try:
                while True:
                    work(client)
            except LOST:
                return

    def _files(self, client: Client) -> None:
        content = self._random.randbytes(self._random.choice(SIZES))
        self.known[client.files.create(file=content, purpose="assistants").id] = content

    def _uploads(self, client: Client) -> None:
        texts = [self._random.randbytes(self._random.choice(SIZES)) for _ in range(3)]
        size = sum(map(len, texts))
        upload = client.uploads.create(filename="a", purpose="batch", bytes=size, mime_type="x/y")
        part_ids = [client.uploads.parts.create(upload.id, data=text).id for text in texts]
        self.pending[upload.id] = part_ids, b"".join(texts)
        done = client.uploads.complete(upload.id, part_ids=part_ids)
        assert done.file is not None
        self.known[done.file.id] = b"".join(texts)
        del self.pending[upload.id]


def test_nothing_half_is_seen_after_a_kill(tmp_path: Path) -> None:
    data, chance = tmp_path / "data", random.Random(SEED)  # noqa: S311
    known: dict[str, bytes] = {}
    left: dict[str, tuple[list[str], bytes]] = {}
    for number in range(ROUNDS):
        server = ServerProcess(data, orphan_seconds=0)
        with Client(server.url) as client:
            check(client, known, left)
        works = Works(server.url, SEED + number, known)
        works.start()
        time.sleep(chance.uniform(0.7, 1.7))
        server.kill()
        works.join()
        left.update(works.pending)
    print(f"{len(known)} files acknowledged, {len(left)} uploads cut short")  # noqa: T201  # what `pytest -rP` shows
    assert known
    swept(data, known, left)


def check(client: Client, known: dict[str, bytes], left: dict[str, tuple[list[str], bytes]]) -> None:
    """Every file that is listed is whole, every one that was acknowledged is listed, uploads cut short can end."""
    for upload_id, (part_ids, content) in list(left.items()):
        try:
            file = client.uploads.complete(upload_id, part_ids=part_ids).file
        except openai.BadRequestError as refused:
            if "has status 'completed'" not in refused.message:  # then only its answer was lost
                raise
        else:
            assert file is not None
            known[file.id] = content
        del left[upload_id]
    listed = {file.id: file for file in client.files.list()}
    assert set(known) <= set(listed)
    for file_id, file in listed.items():
        got = client.files.content(file_id).read()
        assert len(got) == file.bytes
        assert got == known.setdefault(file_id, got)


def swept(data: Path, known: dict[str, bytes], left: dict[str, tuple[list[str], bytes]]) -> None:
    """A server that sweeps leaves the bytes of files alone, and no others."""
    files = data / "files"
    with server_process(data, orphan_seconds=0) as server, Client(server.url) as client:
        check(client, known, left)
        (files / ".incoming" / ("0" * 32)).write_bytes(b"half of something")
        owned = len(client.files.list().data)
    stray = files / "00" / ("0" * 32)
    stray.parent.mkdir(exist_ok=True)
    stray.write_bytes(b"nobody's")
    long_ago = time.time() - 7200
    for path in files.rglob("*"):
        os.utime(path, (long_ago, long_ago))
    with server_process(data, orphan_seconds=3600) as server, Client(server.url) as client:
        deadline = time.monotonic() + 20
        while stray.exists() or list((files / ".incoming").iterdir()):
            assert time.monotonic() < deadline, "nothing is swept"
            time.sleep(0.05)
        parts = open_parts(data)
        left_over = [path for path in files.rglob("*") if path.is_file()]
        assert len(left_over) == owned + parts
        check(client, known, left)


def open_parts(data: Path) -> int:
    """Count the parts of uploads that are pending: a client that was cut short may still go on with them."""
    import sqlite3  # noqa: PLC0415

    with sqlite3.connect(f"file:{data / 'perdure.db'}?mode=ro", uri=True) as connection:
        (count,) = connection.execute("SELECT count(*) FROM upload_parts").fetchone()
    return int(count)
