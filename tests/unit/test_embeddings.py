"""The built-in embedder by itself."""

from __future__ import annotations

import asyncio

import pytest

from perdure.models.embeddings import DIMENSIONS, Embedded, Embedder, TextTooLong, embedder_installed

pytestmark = pytest.mark.skipif(not embedder_installed(), reason="the extra `embeddings` is not installed")


def embed(*requests: list[str]) -> list[Embedded]:
    async def run() -> list[Embedded]:
        embedder = Embedder()
        try:
            return list(await asyncio.gather(*(embedder.embed(texts) for texts in requests)))
        finally:
            await embedder.close()

    return asyncio.run(run())


def test_vectors_have_length_one_and_keep_their_order() -> None:
    texts = [f"text number {number}" for number in range(40)]
    together, alone = embed(texts, [texts[33]])
    assert {len(vector) for vector in together.vectors} == {DIMENSIONS}
    assert all(sum(x * x for x in vector) == pytest.approx(1, abs=1e-5) for vector in together.vectors)
    assert list(alone.vectors[0]) == pytest.approx(list(together.vectors[33]), abs=1e-5)


def test_tokens_are_counted_over_all_texts_and_for_each_caller() -> None:
    one, two, both = embed(["hello world"], ["안녕하세요"], ["hello world", "안녕하세요"])
    assert one.tokens == 3
    assert two.tokens > 0
    assert both.tokens == one.tokens + two.tokens


def test_what_is_too_long_is_not_embedded() -> None:
    with pytest.raises(TextTooLong) as caught:
        embed(["fine", "word " * 8193])
    assert caught.value.tokens == 8193
    with pytest.raises(TextTooLong) as caught:
        embed(["x" * 1_000_000])
    assert caught.value.tokens is None


def test_no_texts_are_no_vectors() -> None:
    assert embed([]) == [Embedded([], 0)]
