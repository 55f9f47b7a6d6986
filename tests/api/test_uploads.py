"""Uploads: parts in any order and at the same time, put together, checked, cancelled."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from openai.types import Upload

from tests.api.test_files import error_of, refused_twice
from tests.server import Client, running_server

TEXTS = [b"one ", b"two ", b"three"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("uploads") / "data"


@pytest.fixture(scope="module")
def url(data: Path) -> Iterator[str]:
    with running_server(data, upload_limit_bytes=100_000_000) as base_url:
        yield base_url


def blobs_in(data: Path) -> int:
    return len([path for path in (data / "files").rglob("*") if path.is_file()])


def new_upload(client: Client, size: int, **more: Any) -> Upload:
    given: Any = {"filename": "a.txt", "purpose": "assistants", "mime_type": "text/plain", "bytes": size, **more}
    return client.uploads.create(**given)


def with_parts(client: Client, *texts: bytes, **more: Any) -> tuple[str, list[str]]:
    upload = new_upload(client, sum(map(len, texts)), **more)
    return upload.id, [client.uploads.parts.create(upload.id, data=text).id for text in texts]


def md5_of(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def test_an_upload_as_recorded(client: Client) -> None:
    upload = new_upload(client, 13)
    assert re.fullmatch("upload_[0-9a-f]{32}", upload.id)
    expected = {
        "id": upload.id,
        "object": "upload",
        "bytes": 13,
        "created_at": upload.created_at,
        "filename": "a.txt",
        "purpose": "assistants",
        "status": "pending",
        "expires_at": upload.created_at + 3600,
    }
    assert upload.to_dict() == expected
    part = client.uploads.parts.create(upload.id, data=b"one two three")
    assert re.fullmatch("part_[0-9a-f]{32}", part.id)
    assert part.to_dict() == {
        "id": part.id,
        "object": "upload.part",
        "created_at": part.created_at,
        "upload_id": upload.id,
    }
    done = client.uploads.complete(upload.id, part_ids=[part.id], md5=md5_of(b"one two three"))
    assert done.file is not None
    assert done.to_dict() == {**expected, "status": "completed", "file": client.files.retrieve(done.file.id).to_dict()}
    assert (done.file.bytes, done.file.filename, done.file.status) == (13, "a.txt", "processed")


def test_parts_in_the_order_of_the_call(client: Client, data: Path) -> None:
    before = blobs_in(data)
    upload_id, parts = with_parts(client, *TEXTS)
    extra = client.uploads.parts.create(upload_id, data=b"a part that was sent twice, say")
    done = client.uploads.complete(upload_id, part_ids=parts[::-1], md5=md5_of(b"threetwo one ").upper())
    assert done.file is not None
    assert client.files.content(done.file.id).read() == b"threetwo one "
    assert extra.id not in parts
    assert blobs_in(data) == before + 1


def test_parts_at_the_same_time(client: Client) -> None:
    texts = [os.urandom(300_000 + number) for number in range(24)]
    upload = new_upload(client, sum(map(len, texts)))
    with ThreadPoolExecutor(12) as pool:
        parts = list(pool.map(lambda text: client.uploads.parts.create(upload.id, data=text).id, texts))
    done = client.uploads.complete(upload.id, part_ids=parts, md5=md5_of(b"".join(texts)))
    assert done.file is not None
    assert client.files.content(done.file.id).read() == b"".join(texts)


def test_the_official_helper(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "large.bin"
    path.write_bytes(os.urandom(5_000_001))
    done = client.uploads.upload_file_chunked(
        file=path,
        mime_type="application/octet-stream",
        purpose="assistants",
        part_size=1_000_000,
        md5=md5_of(path.read_bytes()),
    )
    assert done.file is not None
    assert client.files.content(done.file.id).read() == path.read_bytes()
    whole = client.uploads.upload_file_chunked(
        file=b"abc", filename="../x.txt", bytes=3, mime_type="text/plain", purpose="batch"
    )
    assert whole.file is not None
    assert whole.file.filename == "x.txt"


def test_an_expiry_is_the_files(client: Client) -> None:
    upload_id, parts = with_parts(client, b"x", expires_after={"anchor": "created_at", "seconds": 7200})
    file = client.uploads.complete(upload_id, part_ids=parts).file
    assert file is not None
    assert file.expires_at == file.created_at + 7200


def test_what_does_not_fit_is_refused_and_can_be_repeated(client: Client, data: Path) -> None:
    upload_id, parts = with_parts(client, *TEXTS)
    _, others = with_parts(client, b"x")
    before = blobs_in(data)
    for part_ids, says in (
        ([*parts, "part_0"], f"No part with id 'part_0' in {upload_id}."),
        ([*parts[:2], others[0]], f"No part with id '{others[0]}' in {upload_id}."),
        ([*parts, parts[0]], f"The part '{parts[0]}' is named twice."),
        (parts[:2], "The parts have 8 bytes together, but the upload was created for 13."),
        ([], "The parts have 0 bytes together, but the upload was created for 13."),
    ):
        assert refused_twice(client.uploads.complete, upload_id, part_ids=part_ids).message.find(says) >= 0
    wrong = refused_twice(client.uploads.complete, upload_id, part_ids=parts, md5="0" * 32)
    assert (wrong.param, f"MD5 {md5_of(b'one two three')}" in wrong.message) == ("md5", True)
    assert blobs_in(data) == before
    assert client.uploads.complete(upload_id, part_ids=parts).status == "completed"


def test_an_upload_ends_once(client: Client, data: Path) -> None:
    upload_id, parts = with_parts(client, *TEXTS)
    client.uploads.complete(upload_id, part_ids=parts)
    cancelled_id, dropped = with_parts(client, *TEXTS)
    before = blobs_in(data)
    cancelled = client.uploads.cancel(cancelled_id)
    assert (cancelled.status, cancelled.file) == ("cancelled", None)
    assert blobs_in(data) == before - 3
    for one, status, part_ids in ((upload_id, "completed", parts), (cancelled_id, "cancelled", dropped)):
        says = f"Upload {one} has status '{status}': only a pending one can be changed."
        for call, named in (
            (client.uploads.complete, {"part_ids": part_ids}),
            (client.uploads.cancel, {}),
            (client.uploads.parts.create, {"data": b"x"}),
        ):
            assert says in refused_twice(call, one, **named).message
    assert blobs_in(data) == before - 3


def test_many_complete_and_one_does(client: Client, data: Path) -> None:
    upload_id, parts = with_parts(client, os.urandom(3_000_000))
    before = blobs_in(data)

    def complete(_number: int) -> int:
        try:
            client.uploads.complete(upload_id, part_ids=parts)
        except openai.APIStatusError as error:
            return error.status_code
        return 200

    with ThreadPoolExecutor(8) as pool:
        seen = sorted(pool.map(complete, range(8)))
    # Whoever comes while the winner deletes the parts finds them gone, or the upload ended.
    assert (seen[0], set(seen[1:]) <= {400, 503}) == (200, True)
    assert blobs_in(data) == before


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({}, 400, "filename"),
        ({"bytes": 0}, 400, "bytes"),
        ({"bytes": "1"}, 400, "bytes"),
        ({"bytes": 100_000_001}, 413, "bytes"),
        ({"purpose": "nothing"}, 400, "purpose"),
        ({"filename": ""}, 400, "filename"),
        ({"mime_type": None}, 400, "mime_type"),
        ({"expires_after": {"anchor": "created_at", "seconds": 1}}, 400, "expires_after.seconds"),
        ({"x": 1}, 400, "x"),
    ],
)
def test_uploads_that_can_not_be(url: str, body: dict[str, Any], status: int, param: str) -> None:
    good = {"filename": "a.txt", "purpose": "batch", "bytes": 1, "mime_type": "text/plain"}
    sent = {**good, **body} if body else {}
    answer = httpx2.post(f"{url}/uploads", json=sent, headers={"authorization": "Bearer k"})
    assert error_of(answer, status)["param"] == param


def test_a_part_over_64_megabytes_is_413(client: Client, data: Path) -> None:
    upload = new_upload(client, 70 * 1024 * 1024)
    before = blobs_in(data)
    with pytest.raises(openai.APIStatusError, match="'data' is over 67108864 bytes") as caught:
        client.uploads.parts.create(upload.id, data=bytes(64 * 1024 * 1024 + 1))
    assert caught.value.status_code == 413
    assert blobs_in(data) == before
    assert client.uploads.parts.create(upload.id, data=bytes(64 * 1024 * 1024)).upload_id == upload.id
    client.uploads.cancel(upload.id)


def test_an_upload_that_is_not_there(client: Client) -> None:
    uploads = client.uploads
    for call, named in (
        (uploads.parts.create, {"data": b"x"}),
        (uploads.complete, {"part_ids": []}),
        (uploads.cancel, {}),
    ):
        with pytest.raises(openai.NotFoundError) as caught:
            call("upload_none", **named)
        error = error_of(caught.value.response, 404)
        assert (error["message"], error["param"]) == ("No such Upload object: upload_none", "id")
