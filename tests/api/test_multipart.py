"""Bodies of uploads as all kinds of clients send them, and as none should: raw bytes over raw sockets."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest

from perdure.blobs import INCOMING
from tests.api.test_files import error_of
from tests.server import Client, running_server

LIMIT = 1_000_000
BOUNDARY = "----bound"
KIND = f"multipart/form-data; boundary={BOUNDARY}"
PURPOSE = b'form-data; name="purpose"', b"assistants"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("multipart") / "data"


@pytest.fixture(scope="module")
def url(data: Path) -> Iterator[str]:
    with running_server(data, file_limit_bytes=LIMIT, body_timeout_seconds=0.5) as base_url:
        yield base_url


@pytest.fixture
def plain(url: str) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=url, headers={"authorization": "Bearer k"}) as one:
        yield one


def body_of(*parts: tuple[bytes, bytes], end: bytes = b"--\r\n") -> bytes:
    mark = f"--{BOUNDARY}".encode()
    middle = b"".join(
        b"%s\r\ncontent-disposition: %s\r\n\r\n%s\r\n" % (mark, disposition, content) for disposition, content in parts
    )
    return middle + mark + end


def file_part(filename: bytes, content: bytes = b"some text") -> tuple[bytes, bytes]:
    return b'form-data; name="file"; filename=' + filename, content


def post(plain: httpx2.Client, body: Any, kind: str = KIND) -> httpx2.Response:
    return plain.post("/files", content=body, headers={"content-type": kind})


def blobs_in(data: Path) -> list[Path]:
    return [path for path in (data / "files").rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        (b'"a.txt"', "a.txt"),
        (b"a.txt", "a.txt"),
        (b'"two words.txt"', "two words.txt"),
        (b'"semi;colon.txt"', "semi;colon.txt"),
        (b'"a\\"b.txt"', 'a"b.txt'),
        (b'"a%22b.txt"', 'a"b.txt'),
        ('"한국어 파일.txt"'.encode(), "한국어 파일.txt"),
        ('"한국어 파일.txt"'.encode("euc_kr"), "한국어 파일.txt"),
        (b'"R\xe9sum\xe9.txt"', "Résumé.txt"),
        ('"🙂.txt"'.encode(), "🙂.txt"),
        (b"\"x.txt\"; filename*=UTF-8''%ED%95%9C%EA%B8%80.txt", "한글.txt"),
        (b"\"x.txt\"; filename*=utf-8'ko'%ED%95%9C%EA%B8%80.txt", "한글.txt"),
        (b"\"x.txt\"; filename*=EUC-KR''%C7%D1%B1%DB.txt", "한글.txt"),
        (b"\"x.txt\"; filename*=nonsense''%C7", "x.txt"),
        (b"\"x.txt\"; filename*=UTF-8''%FF%FE", "x.txt"),
        (b'"=?UTF-8?B?7ZWc6riALnR4dA==?="', "한글.txt"),
        (b'"=?utf-8?Q?=ED=95=9C.txt?="', "한.txt"),
        (b'"=?nonsense?B?7ZWc?="', "=?nonsense?B?7ZWc?="),
        (b'"../../etc/passwd"', "passwd"),
        (b'"..\\\\..\\\\boot.ini"', "boot.ini"),
        (b'"C:\\Users\\me\\a.txt"', "a.txt"),
        (b'"/"', "upload"),
        (b'".."', "upload"),
        (b'"..."', "upload"),
        (b'""', "upload"),
        (b"", "upload"),
        (b'" a.txt "', "a.txt"),
        (b'".gitignore"', ".gitignore"),
        (b'"a\x00b\x07c\x7f.txt"', "abc.txt"),
        (b'"a\tb.txt"', "ab.txt"),
        ('"\u202egnp.exe"'.encode(), "gnp.exe"),
        (b'"' + b"a" * 10_000 + b'.txt"', "a" * 251 + ".txt"),
        (b'"' + b"a" * 10_000 + b'"', "a" * 255),
        (b'"' + b"a." * 5_000 + b'"', "a." * 127 + "a"),
        (('"' + "가" * 10_000 + '.pdf"').encode(), "가" * 83 + ".pdf"),
    ],
)
def test_names(url: str, plain: httpx2.Client, sent: bytes, kept: str) -> None:
    answer = post(plain, body_of(PURPOSE, file_part(sent)))
    assert answer.status_code == 200, answer.text
    assert answer.json()["filename"] == kept
    with Client(url) as client:
        assert client.files.content(answer.json()["id"]).read() == b"some text"


def test_fields_come_in_any_order(plain: httpx2.Client) -> None:
    anchor = b'form-data; name="expires_after[anchor]"', b"created_at"
    seconds = b"form-data; name=expires_after[seconds]", b"3600"
    for parts in (
        (PURPOSE, anchor, seconds, file_part(b"a")),
        (file_part(b"a"), seconds, anchor, PURPOSE),
        (anchor, file_part(b"a"), PURPOSE, seconds),
    ):
        file = post(plain, b"\r\n" + body_of(*parts) + b"and what stands behind the end").json()
        assert (file["bytes"], file["purpose"], file["expires_at"]) == (9, "assistants", file["created_at"] + 3600)


def test_a_body_may_come_in_any_pieces(plain: httpx2.Client) -> None:
    content = b"\r\n------boun\r\n----bound\r\n\r\n------bounx--\r\n-" * 7
    whole = body_of(file_part(b'"a.txt"', content), PURPOSE)
    for size in (1, 2, 3, 7, 64):
        pieces = (whole[begin : begin + size] for begin in range(0, len(whole), size))
        file = post(plain, pieces).json()
        assert file["bytes"] == len(content)
        assert plain.get(f"/files/{file['id']}/content").content == content


@pytest.mark.parametrize(
    ("parts", "says", "param"),
    [
        ((file_part(b"a"),), "Missing required parameter: 'purpose'.", "purpose"),
        ((PURPOSE,), "Missing required parameter: 'file'.", "file"),
        ((), "Missing required parameter: 'purpose'.", "purpose"),
        ((PURPOSE, file_part(b"a"), file_part(b"b")), "'file' was sent twice: send one file a request.", "file"),
        ((PURPOSE, (b'form-data; name="x"', b"y"), file_part(b"a")), "Unknown parameter: 'x'.", "x"),
        ((file_part(b"a"), PURPOSE, (b'form-data; name="x[y]"', b"y")), "Unknown parameter: 'x[y]'.", "x[y]"),
        (((b"form-data", b"y"), PURPOSE), "Unknown parameter: ''.", ""),
        (((b'form-data; name="purpose"', b"a" * 9000),), "'purpose' is over 8192 bytes.", "purpose"),
        ((file_part(b"a"), (b'form-data; name="purpose"', b"")), "'' is not one of", "purpose"),
        ((PURPOSE, (b'form-data; name="expires_after"', b"{}")), "expected an object, but got a string", None),
        ((PURPOSE, (b'form-data; name="purpose[a]"', b"{}")), "Unknown parameter: 'purpose[a]'.", None),
    ],
)
def test_parts_that_do_not_fit(plain: httpx2.Client, data: Path, parts: Any, says: str, param: str | None) -> None:
    before = blobs_in(data)
    error = error_of(post(plain, body_of(*parts)), 400)
    assert says in error["message"]
    assert param is None or error["param"] == param
    assert blobs_in(data) == before


@pytest.mark.parametrize(
    ("body", "kind", "says"),
    [
        (b'{"purpose": "assistants"}', "application/json", "JSON can not carry a file"),
        (b"purpose=assistants", "application/x-www-form-urlencoded", "must be multipart/form-data"),
        (body_of(PURPOSE, file_part(b"a")), "", "its content type is 'none'"),
        (body_of(PURPOSE, file_part(b"a")), "multipart/form-data", "with a boundary"),
        (body_of(PURPOSE, file_part(b"a")), "multipart/form-data; boundary=", "with a boundary"),
        (body_of(PURPOSE, file_part(b"a")), "multipart/form-data; boundary=other", "can not be read"),
        (body_of(PURPOSE, file_part(b"a")), "multipart/form-data; boundary=" + "x" * 300, "can not be read"),
        (body_of(PURPOSE, file_part(b"a"), end=b""), KIND, "ends before its closing boundary"),
        (body_of(PURPOSE, file_part(b"a"))[:-30], KIND, "ends before its closing boundary"),
        (b"", KIND, "ends before its closing boundary"),
        (b"\x00" * 1000, KIND, "can not be read"),
        (body_of((b"x\r\nbad header: y", b"")), KIND, "can not be read"),
        (body_of((b"form-data" + b"\r\na: b" * 20, b"")), KIND, "can not be read"),
        (body_of(file_part(b'"' + b"x" * 70_000 + b'"')), KIND, "can not be read"),
    ],
)
def test_bodies_that_are_none(plain: httpx2.Client, data: Path, body: bytes, kind: str, says: str) -> None:
    before = blobs_in(data)
    assert says in error_of(post(plain, body, kind), 400)["message"]
    assert blobs_in(data) == before


def test_a_file_over_the_limit_is_413(plain: httpx2.Client, data: Path) -> None:
    assert post(plain, body_of(PURPOSE, file_part(b"a", bytes(LIMIT)))).status_code == 200
    before = blobs_in(data)
    for size in (LIMIT + 1, 3 * LIMIT):
        body = body_of(PURPOSE, file_part(b"a", bytes(size)))
        for sent in (body, iter([body[:1000], body[1000:]])):
            error = error_of(post(plain, sent), 413)
            assert error["message"] == (
                "'file' is over 1000000 bytes. The limit is the server's setting PERDURE_FILE_LIMIT_BYTES."
            )
    assert blobs_in(data) == before


# -- clients that stop


def connected(url: str) -> socket.socket:
    where = urlsplit(url)
    return socket.create_connection((where.hostname or "", where.port or 0), timeout=10)


def begin_of(body: bytes, length: int) -> bytes:
    head = "POST /v1/files HTTP/1.1\r\nhost: x\r\nauthorization: Bearer k\r\nconnection: close\r\n"
    return f"{head}content-type: {KIND}\r\ncontent-length: {length}\r\n\r\n".encode() + body


def received(connection: socket.socket) -> bytes:
    answer = b""
    while piece := connection.recv(65536):
        answer += piece
        head, _, body = answer.partition(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head)
        if length and len(body) >= int(length[1]):
            break
    return answer


@pytest.mark.parametrize(
    "sent", [b"", body_of(PURPOSE), body_of(PURPOSE, file_part(b"a", bytes(700_000)))[:-100]], ids=len
)
def test_a_body_that_stops_coming_is_408(url: str, data: Path, sent: bytes) -> None:
    before = blobs_in(data)
    with connected(url) as connection:
        connection.sendall(begin_of(sent, 900_000))
        answer = received(connection)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert set(json.loads(answer.partition(b"\r\n\r\n")[2])) == {"error", "detail"}
    assert blobs_in(data) == before


def test_what_stands_behind_the_file_must_come_soon(url: str, data: Path) -> None:
    """Otherwise its bytes would be old, and an orphan, before they get their row."""
    before = blobs_in(data)
    whole = body_of(file_part(b"a"), PURPOSE)
    with connected(url) as connection:
        connection.sendall(begin_of(whole[:120], len(whole)))
        connection.settimeout(0.1)
        answer = b""
        for letter in whole[120:]:
            try:
                connection.sendall(bytes([letter]))
                answer += connection.recv(65536)
            except TimeoutError:
                continue
            except OSError:
                break
            if answer:
                break
    assert answer.startswith(b"HTTP/1.1 408 "), answer
    assert blobs_in(data) == before


def test_a_client_that_hangs_up_leaves_nothing(url: str, plain: httpx2.Client, data: Path) -> None:
    before, listed = blobs_in(data), plain.get("/files").json()
    for _ in range(3):
        with connected(url) as connection:
            connection.sendall(begin_of(body_of(PURPOSE, file_part(b"a", bytes(700_000)))[:-100], 900_000))
            half = wait_for(lambda: list((data / "files" / INCOMING).iterdir()))
            assert half
        wait_for(lambda: not list((data / "files" / INCOMING).iterdir()))
    assert blobs_in(data) == before
    assert plain.get("/files").json() == listed


def wait_for(look: Any) -> Any:
    """Wait until it is so; twenty seconds are for a busy machine."""
    deadline = time.monotonic() + 20
    while not (seen := look()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return seen


def test_a_client_that_stops_reading_a_file_harms_nobody(url: str, plain: httpx2.Client) -> None:
    file_id = post(plain, body_of(PURPOSE, file_part(b"a", bytes(LIMIT)))).json()["id"]
    for _ in range(5):
        with connected(url) as connection:
            head = f"GET /v1/files/{file_id}/content HTTP/1.1\r\nhost: x\r\nauthorization: Bearer k\r\n\r\n"
            connection.sendall(head.encode())
            assert connection.recv(1000).startswith(b"HTTP/1.1 200 ")
    assert len(plain.get(f"/files/{file_id}/content").content) == LIMIT
