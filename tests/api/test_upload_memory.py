"""A large file passes through a server in a small space: its resident memory grows by less than 50 MB.

The file is 300 MB; `PERDURE_UPLOAD_BYTES=2147483648 pytest tests/api/test_upload_memory.py -s` sends 2 GiB and prints.
"""

from __future__ import annotations

import os
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.server import Client, server_process

SIZE = int(os.environ.get("PERDURE_UPLOAD_BYTES", "300000000"))
MOST_GROWTH = 50
PART = 64 * 1024 * 1024

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is read out of /proc")


def resident_megabytes(process: int) -> float:
    status = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
    found = re.search(r"^VmRSS:\s+(\d+) kB$", status, re.MULTILINE)
    assert found is not None
    return int(found[1]) / 1024


class Watch:
    """How far the memory of a process rises above where it was."""

    def __init__(self, process: int) -> None:
        self._process = process
        self._begin = self._top = resident_megabytes(process)

    @property
    def growth(self) -> float:
        return self._top - self._begin

    @contextmanager
    def watching(self) -> Iterator[None]:
        ended = threading.Event()

        def look() -> None:
            while not ended.wait(0.02):
                self._top = max(self._top, resident_megabytes(self._process))

        looking = threading.Thread(target=look)
        looking.start()
        try:
            yield
        finally:
            ended.set()
            looking.join()


def test_a_large_file_goes_in_and_out_in_a_small_space(tmp_path: Path) -> None:
    large = tmp_path / "large.bin"
    with large.open("wb") as file:
        file.truncate(SIZE)
    with server_process(tmp_path / "data") as server, Client(server.url) as client:
        for _ in range(3):  # what a first request needs is there before
            small = client.files.create(file=bytes(3_000_000), purpose="assistants")
            client.files.content(small.id).read()
        watch = Watch(server.process.pid)
        with watch.watching():
            made = client.files.create(file=large, purpose="assistants")
            after_upload = watch.growth
            with client.files.with_streaming_response.content(made.id) as answer:
                got = sum(map(len, answer.iter_bytes(1 << 20)))
            upload = client.uploads.create(
                filename="a", purpose="assistants", bytes=2 * PART, mime_type="application/octet-stream"
            )
            parts = [client.uploads.parts.create(upload.id, data=bytes(PART)).id for _ in range(2)]
            done = client.uploads.complete(upload.id, part_ids=parts)
        sys.stdout.write(f"{SIZE} bytes up: +{after_upload:.1f} MB; down and in parts too: +{watch.growth:.1f} MB\n")
        assert (made.bytes, got, done.status) == (SIZE, SIZE, "completed")
        assert watch.growth < MOST_GROWTH
