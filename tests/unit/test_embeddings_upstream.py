"""Embeddings of an upstream over real HTTP: what is sent, what is read, what is tried again."""

from __future__ import annotations

import asyncio
import base64
import json
from array import array
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import pytest

from perdure.models.embeddings import EmbeddingFailure
from perdure.models.upstream_embeddings import TEXTS_AT_ONCE, UpstreamEmbeddings
from perdure.settings import UpstreamSettings, read_settings
from tests.raw_upstream import JSON, KEY, PlayedClock, RawUpstream, listening, refusal, response

T = TypeVar("T")


def answer(*vectors: Any, shuffled: bool = False) -> bytes:
    rows = [{"object": "embedding", "index": index, "embedding": vector} for index, vector in enumerate(vectors)]
    return response(json.dumps({"object": "list", "data": rows[::-1] if shuffled else rows}).encode())


def using(
    upstream: RawUpstream,
    use: Callable[[UpstreamEmbeddings], Awaitable[T]],
    *,
    clock: PlayedClock | None = None,
    dimensions: int | None = None,
) -> T:
    async def run() -> T:
        async with listening(upstream) as url:
            embeddings = UpstreamEmbeddings(
                "default",
                UpstreamSettings(url=url, key=KEY),
                "embed-1",
                read_settings(upstream_silence_seconds=5.0),
                clock or PlayedClock(),
                dimensions=dimensions,
                jitter=lambda: 0.0,
            )
            try:
                return await use(embeddings)
            finally:
                await embeddings.close()

    return asyncio.run(run())


def embed(upstream: RawUpstream, *texts: str, **more: Any) -> list[list[float]]:
    return [list(vector) for vector in using(upstream, lambda its: its.embed(list(texts)), **more)]


def failure(upstream: RawUpstream, *texts: str, **more: Any) -> EmbeddingFailure:
    with pytest.raises(EmbeddingFailure) as caught:
        embed(upstream, *texts, **more)
    assert KEY not in caught.value.message
    return caught.value


class Counting(RawUpstream):
    """An upstream that makes vectors of what it is sent, but takes only so many texts and characters at once."""

    def __init__(self, most_texts: int, most_characters: int = 10**9) -> None:
        super().__init__(b"")
        self.most_texts, self.most_characters = most_texts, most_characters
        self.sizes: list[int] = []

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = int(next(line[16:] for line in head.splitlines() if line.startswith("content-length: ")))
        texts = json.loads(await reader.readexactly(length))["input"]
        self.sizes.append(len(texts))
        if len(texts) > self.most_texts:
            writer.write(refusal(413, "batch size > maximum allowed batch size"))
        elif max(map(len, texts)) > self.most_characters:
            writer.write(refusal(400, "This model's maximum context length is 512 tokens"))
        else:
            writer.write(answer(*([float(len(text)), 1.0] for text in texts)))
        await writer.drain()
        writer.close()


def test_what_is_sent_and_what_comes_back() -> None:
    upstream = RawUpstream(answer([3.0, 4.0], [0.0, 2.0]))
    assert embed(upstream, "one", "둘") == [pytest.approx([0.6, 0.8]), pytest.approx([0.0, 1.0])]
    assert upstream.bodies == [{"model": "embed-1", "input": ["one", "둘"]}]
    assert "post /v1/embeddings http" in upstream.heads[0]
    assert f"bearer {KEY}" in upstream.heads[0]


def test_order_is_that_of_the_index_and_base64_is_read() -> None:
    packed = base64.b64encode(array("f", [0.0, 5.0]).tobytes()).decode()
    assert embed(RawUpstream(answer([1.0, 0.0], packed, shuffled=True)), "a", "b") == [[1.0, 0.0], [0.0, 1.0]]


def test_dimensions_are_asked_for_and_named() -> None:
    upstream = RawUpstream(answer([1.0, 0.0]))

    async def use(embeddings: UpstreamEmbeddings) -> tuple[str, int | None]:
        await embeddings.embed(["a"])
        return embeddings.name, embeddings.dimensions

    assert using(upstream, use, dimensions=2) == ("default/embed-1@2", 2)
    assert upstream.bodies[0]["dimensions"] == 2
    assert using(RawUpstream(answer([1.0, 0.0, 0.0])), use) == ("default/embed-1", 3)


def test_many_texts_go_out_in_groups() -> None:
    upstream = Counting(most_texts=1000)
    found = embed(upstream, *("x" * (n % 7 + 1) for n in range(150)))
    assert upstream.sizes == [TEXTS_AT_ONCE, TEXTS_AT_ONCE, 150 - 2 * TEXTS_AT_ONCE]
    assert [round(one / other) for one, other in found] == [n % 7 + 1 for n in range(150)]
    assert embed(upstream) == []


def test_long_texts_go_out_in_smaller_groups() -> None:
    upstream = Counting(most_texts=1000)
    embed(upstream, *("x" * 90_000 for _ in range(5)))
    assert upstream.sizes == [2, 2, 1]


def test_an_upstream_that_takes_fewer_is_sent_fewer_from_then_on() -> None:
    upstream = Counting(most_texts=32)
    found = embed(upstream, *("x" * (n + 1) for n in range(160)))
    assert [round(one / other) for one, other in found] == list(range(1, 161))
    assert upstream.sizes == [64, 32, 32, 32, 32, 32]


def test_a_text_that_is_too_long_is_cut() -> None:
    upstream = Counting(most_texts=10, most_characters=300)
    assert [round(one / other) for one, other in embed(upstream, "x" * 1000, "y" * 200)] == [250, 200]


def test_a_refusal_about_something_else_stays() -> None:
    found = failure(RawUpstream(refusal(400, "unknown parameter: 'model'")), "a" * 1000)
    assert "unknown parameter" in found.message
    missing = failure(RawUpstream(refusal(404, "no such model")), "a")
    assert "'embed-1' or the path /embeddings (status 404)" in missing.message


def test_refusals_for_the_moment_are_tried_again() -> None:
    clock = PlayedClock()
    upstream = RawUpstream(
        refusal(429, "slow down", JSON + b"retry-after: 3\r\n"), refusal(503, "busy"), answer([1.0, 0.0])
    )
    assert embed(upstream, "a", clock=clock) == [[1.0, 0.0]]
    assert clock.slept == [3.0, 1.0]
    assert failure(RawUpstream(refusal(429, "slow down")), "a").code == "rate_limit_exceeded"


@pytest.mark.parametrize(
    "body",
    [
        response(b"hello"),
        response(b"{}"),
        response(b"[]"),
        response(b'{"data": [1]}'),
        answer(),
        answer([1.0], [1.0]),
        answer([]),
        answer(["x"]),
        answer("???"),
        answer([float("nan"), 1.0]),
        answer(None),
    ],
)
def test_what_is_no_embedding_is_refused(body: bytes) -> None:
    assert "something that is not a list of 1 embeddings" in failure(RawUpstream(body), "a").message


def test_vectors_of_another_length_than_before_are_refused() -> None:
    upstream = RawUpstream(answer([1.0, 0.0]), answer([1.0, 0.0, 0.0]))

    async def use(embeddings: UpstreamEmbeddings) -> None:
        await embeddings.embed(["a"])
        await embeddings.embed(["a"])

    with pytest.raises(EmbeddingFailure, match="3 dimensions"):
        using(upstream, use)


def test_a_lost_connection_is_said_in_words() -> None:
    assert "broke off its answer" in failure(RawUpstream(b""), "a").message
    assert failure(RawUpstream(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{"), "a").code == "server_error"
