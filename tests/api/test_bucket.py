"""Files whose bytes lie in a bucket, through the whole server."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from tests.api.test_cli import perdure
from tests.api.test_files import error_of
from tests.api.test_multipart import KIND, PURPOSE, begin_of, body_of, connected, file_part, received
from tests.api.test_uploads import md5_of
from tests.s3_server import client_of, new_bucket, s3_server
from tests.server import Client, running_server

CONTENT = os.urandom(1 << 20) * 20


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    with s3_server() as url:
        yield url


@pytest.fixture
def bucket(s3: str, monkeypatch: pytest.MonkeyPatch) -> str:
    return new_bucket(s3, monkeypatch)


def objects_in(s3: str, bucket: str) -> list[int]:
    listed: dict[str, Any] = client_of(s3).list_objects_v2(Bucket=bucket.split("/")[2])
    assert all(one["Key"].startswith("some/prefix/") for one in listed.get("Contents", []))
    return sorted(one["Size"] for one in listed.get("Contents", []))


def test_files_go_in_and_out(s3: str, bucket: str, tmp_path: Path) -> None:
    with running_server(tmp_path / "data", blobs_url=bucket) as url, Client(url) as client:
        file = client.files.create(file=("a.bin", CONTENT), purpose="assistants")
        empty = client.files.create(file=b"", purpose="batch")
        assert client.files.content(file.id).read() == CONTENT
        part = client.files.content(file.id, extra_headers={"range": "bytes=9000000-9000009"})
        assert part.read() == CONTENT[9_000_000:9_000_010]
        assert client.files.content(empty.id).read() == b""
        done = client.uploads.upload_file_chunked(
            file=CONTENT,
            filename="b",
            bytes=len(CONTENT),
            mime_type="x/y",
            purpose="batch",
            part_size=7_000_000,
            md5=md5_of(CONTENT),
        )
        assert done.file is not None
        assert client.files.content(done.file.id).read() == CONTENT
        assert objects_in(s3, bucket) == [0, len(CONTENT), len(CONTENT)]
        for one in client.files.list():
            client.files.delete(one.id)
        assert objects_in(s3, bucket) == []
        assert not (tmp_path / "data" / "files").exists()


def test_what_is_refused_leaves_nothing(s3: str, bucket: str, tmp_path: Path) -> None:
    data = tmp_path / "data"
    with running_server(data, blobs_url=bucket, file_limit_bytes=10_000_000, body_timeout_seconds=0.5) as url:
        head = {"authorization": "Bearer k", "content-type": KIND}
        large = body_of(PURPOSE, file_part(b"a", CONTENT))
        pieces = (large[begin : begin + 100_000] for begin in range(0, len(large), 100_000))
        error_of(httpx2.post(f"{url}/files", content=pieces, headers=head), 413)
        cut = body_of(PURPOSE, file_part(b"a", CONTENT[:9_000_000]))[:-100]
        with connected(url) as connection:
            connection.sendall(begin_of(cut, len(cut) + 100))
            assert received(connection).startswith(b"HTTP/1.1 408 ")
        with connected(url) as connection:
            connection.sendall(begin_of(cut, len(cut) + 100))
        assert httpx2.get(f"{url}/files", headers=head).json()["data"] == []
        assert objects_in(s3, bucket) == []


def test_a_bucket_that_is_away_is_503(bucket: str, tmp_path: Path) -> None:
    away = bucket.replace("s3://blobs", "s3://none")
    with running_server(tmp_path / "data", blobs_url=away) as url, Client(url) as client:
        with pytest.raises(openai.InternalServerError, match="can not reach the place") as caught:
            client.files.create(file=b"x", purpose="batch")
        assert caught.value.status_code == 503
        assert client.files.list().data == []


def test_doctor_looks_at_the_bucket(bucket: str, tmp_path: Path) -> None:
    given = {"PERDURE_DATA": str(tmp_path), "PERDURE_PORT": "0", "PERDURE_BUILTIN_MODEL": "scripted"}
    good = perdure("doctor", cwd=tmp_path, PERDURE_BLOBS_URL=bucket, **given)
    assert "ok   files: kept in s3://blobs-" in good.stdout
    away = perdure("doctor", cwd=tmp_path, PERDURE_BLOBS_URL=bucket.replace("s3://blobs", "s3://none"), **given)
    assert away.returncode == 1
    assert "FAIL files: The server can not reach the place where it keeps files just now. Check PERD" in away.stdout
